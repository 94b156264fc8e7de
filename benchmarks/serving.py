"""What serving costs: start-up, memory, and latency under load.

`make bench` starts `blsp serve` on a random checkpoint of the "small" shapes (Whisper encoder 384 wide, 4 layers; Llama 512 wide, 8 layers)
and sends it unique 5 s clips from closed-loop clients, each asking for 32 streamed tokens. It prints a table and writes it with the
machine's name to benchmarks/RESULTS.md.
"""

import asyncio
import os
import platform
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import httpx
import numpy as np

ROOT = Path(__file__).parents[1]
BLSP = Path(sys.executable).with_name("blsp")
CHECKPOINT = ROOT / "build" / "small"
URL = "http://127.0.0.1:8199"
SECONDS, TOKENS, RATE = 5, 32, 16_000
CLIENTS = (1, 8, 32)


@dataclass(frozen=True)
class Sample:
    """One request: seconds to the first token, to the end, and the longest gap between two tokens."""

    ttft: float
    total: float
    longest_gap: float


def init_small() -> None:
    """Makes the checkpoint once."""
    if not CHECKPOINT.exists():
        sizes = "--encoder-dim 384 --encoder-layers 4 --encoder-heads 6 --llm-dim 512 --llm-layers 8 --llm-heads 8 --llm-ffn-dim 1408"
        options = f"{sizes} --vocabulary 1024 --adapter-inner-dim 512 --padding exact".split()
        subprocess.run([BLSP, "init", CHECKPOINT, *options], check=True)


def clip(seed: int) -> bytes:
    """5 s of noise as raw 16-bit samples in a wav file."""
    samples = np.random.default_rng(seed).normal(0, 3000, SECONDS * RATE).astype("<i2").tobytes()
    head = b"RIFF" + (36 + len(samples)).to_bytes(4, "little") + b"WAVEfmt " + (16).to_bytes(4, "little")
    head += bytes.fromhex("0100 0100 803e0000 007d0000 0200 1000") + b"data" + len(samples).to_bytes(4, "little")
    return head + samples


async def request(client: httpx.AsyncClient, seed: int) -> Sample:
    """Sends one clip and reads the stream."""
    audio = clip(seed)
    start = time.perf_counter()
    stamps = []
    fields = {"instruction": "Hi", "stream": "true", "max_tokens": str(TOKENS), "min_tokens": str(TOKENS)}
    async with client.stream("POST", f"{URL}/v1/speech", params=fields, content=audio) as response:
        assert response.status_code == 200, await response.aread()
        async for line in response.aiter_lines():
            if "speech.delta" in line:
                stamps.append(time.perf_counter())
    gaps = [b - a for a, b in pairwise(stamps)]
    return Sample(stamps[0] - start, time.perf_counter() - start, max(gaps))


async def load(clients: int, requests: int, seed: int) -> tuple[float, list[Sample]]:
    """Requests per second of `clients` that each send one request after the other, and every request's sample."""
    seeds = iter(range(seed, seed + requests))
    samples: list[Sample] = []

    async def one(client: httpx.AsyncClient) -> None:
        for number in seeds:
            samples.append(await request(client, number))

    async with httpx.AsyncClient(timeout=300, limits=httpx.Limits(max_connections=clients)) as client:
        start = time.perf_counter()
        await asyncio.gather(*(one(client) for _ in range(clients)))
        return len(samples) / (time.perf_counter() - start), samples


def p95(values: list[float]) -> float:
    """The 95th percentile."""
    return statistics.quantiles(values, n=20)[-1]


def resident_mib(process: int) -> dict[str, int]:
    """Resident memory of a process and its descendants, by name."""
    table = subprocess.run(["ps", "-eo", "pid=,ppid=,rss=,comm="], capture_output=True, text=True, check=True).stdout
    rows = [line.split(None, 3) for line in table.splitlines()]
    family, found = {str(process)}, {}
    for _ in rows:  # a child may stand before its parent
        family |= {pid for pid, parent, _, _ in rows if parent in family}
    for pid, _, rss, name in rows:
        if pid in family and int(rss) > 100_000:
            found[name] = int(rss) // 1024
    return found


def measure(dtype: str) -> list[str]:
    """Starts a server, loads it with ever more clients; returns the lines of the report."""
    start = time.perf_counter()
    command = [BLSP, "serve", CHECKPOINT, "--port", "8199", "--dtype", dtype]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert server.stderr is not None
    try:
        assert any("Ready" in line for line in server.stderr), "the server did not start"
        lines = [
            f"## {dtype}",
            "",
            f"Ready after {time.perf_counter() - start:.0f} s. Resident memory, MiB: {resident_mib(server.pid)}.",
            "",
        ]
        lines += [
            "| clients | requests/s | TTFT p50, s | TTFT p95, s | total p50, s | longest gap p95, s |",
            "| --- " * 6 + "|",
        ]
        asyncio.run(load(8, 16, 10_000))
        for i, clients in enumerate(CLIENTS):
            rate, samples = asyncio.run(load(clients, max(40, 3 * clients), 1000 * i))
            ttft, total, gap = ([getattr(s, name) for s in samples] for name in ("ttft", "total", "longest_gap"))
            columns = (rate, statistics.median(ttft), p95(ttft), statistics.median(total), p95(gap))
            lines.append(f"| {clients} | " + " | ".join(f"{value:.3g}" for value in columns) + " |")
        return [*lines, "", f"After the load: {resident_mib(server.pid)}.", ""]
    finally:
        server.terminate()
        server.wait(60)


def main() -> None:
    """Runs everything and writes the results."""
    init_small()
    machine = f"{platform.machine()}, {os.cpu_count()} cores, load before the run {os.getloadavg()[0]:.1f}"
    head = [
        f"# Serving the small shapes: {SECONDS} s clips, {TOKENS} tokens each",
        "",
        f"Made by `make bench` on {machine}.",
        "",
    ]
    report = "\n".join([*head, *measure("float32"), *measure("bfloat16")])
    print(report)
    (ROOT / "benchmarks" / "RESULTS.md").write_text(report)


if __name__ == "__main__":
    main()
