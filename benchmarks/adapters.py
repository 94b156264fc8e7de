"""`make bench-adapters`: 32 adapters on one engine, asked all at once, beside one adapter that is asked as much; and what they take.

All have one encoder. Rounds alternate, so that whatever else the machine does meets both. Adapters are loaded while the server runs, and
unloaded at the end.
"""

import argparse
import asyncio
import json
import os
import statistics
import time
import urllib.request
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from benchmarks import processes
from benchmarks.small import BUILD, OURS, make_checkpoints
from models.config import BlspConfig
from service.gate.keys import key_line, new_key
from service.load.client import Load, Question, clips, summarize

ADAPTERS = 32
SECONDS = 5.0  # of each recording
TOKENS = 16
LIMIT = 1.1  # times what a request to one adapter takes


def make_adapters(folder: Path) -> list[str]:
    """Writes adapters for the small checkpoint with random weights, where they are not there yet; returns their names."""
    names = [f"adapter-{i:02d}" for i in range(ADAPTERS)]
    config = BlspConfig.read(OURS)
    trained = load_file(OURS / "adapter.safetensors")
    for i, name in enumerate(names):
        target = folder / name
        target.mkdir(parents=True, exist_ok=True)
        parts = {part: os.path.relpath(OURS / getattr(config, part), target) for part in ("encoder", "llm")}
        config.model_copy(update=parts).write(target)
        torch.manual_seed(i)
        weights = {key: w if w.ndim < 2 else torch.randn_like(w) * w[0].numel() ** -0.5 for key, w in trained.items()}
        save_file(weights, target / "adapter.safetensors")
    return names


async def ask(url: str, models: list[str], each: int) -> list[Any]:
    """Has a client for each of the models ask it about `each` new recordings, one after the other; all clients at once."""
    asked = [Load(url, Question(model=name, tokens=TOKENS)).closed(clips(each, SECONDS), 1) for name in models]
    return [sample for samples in await asyncio.gather(*asked) for sample in samples]


def measure(server: processes.Server, models: list[str], each: int) -> dict[str, float]:
    """Seconds of the clock and of processors that a request costs."""
    cpu, start = sum(server.cpu_seconds().values()), time.perf_counter()
    samples = asyncio.run(ask(server.url, models, each))
    took = time.perf_counter() - start
    assert not summarize(samples)["errors"]
    cpu = sum(server.cpu_seconds().values()) - cpu
    return {"seconds": took / len(samples), "cpu_seconds": cpu / len(samples)}


def admin(server: processes.Server, key: str, method: str, path: str, body: Any = None) -> None:
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"{server.url}{path}", data, headers, method=method)
    urllib.request.urlopen(request, timeout=60).close()


def main() -> None:
    """Prints every round and the ratio of the medians; ends with 1 where 32 adapters cost more than they may."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--each", type=int, default=4, help="requests of each of the 32 clients in a round")
    parser.add_argument("--dtype", default="float32")
    arguments = parser.parse_args()
    make_checkpoints()
    folder = BUILD / "adapters"
    names, key = make_adapters(folder), new_key()
    options = ["--keys", key_line("root", key), "--admins", "root", "--adapter-folder", str(folder)]
    options += ["--open-endpoints", '["/ready", "/v1/speech"]', "--embedding-cache-mib", "1"]
    rounds: dict[str, list[dict[str, float]]] = {"one": [], "many": []}
    with processes.ours(arguments.dtype, *options) as server:
        first = OURS.name
        asyncio.run(ask(server.url, [first] * ADAPTERS, 2))
        before = server.resident_mib()
        start = time.perf_counter()
        for name in names:
            admin(server, key, "POST", "/v1/adapters", {"name": name, "path": name})
        print(f"seconds to load an adapter: {(time.perf_counter() - start) / ADAPTERS:.3f}")
        asyncio.run(ask(server.url, names, 1))
        loaded = server.resident_mib()
        for _ in range(arguments.rounds):
            for kind, models in (("one", [first] * ADAPTERS), ("many", names)):
                rounds[kind].append(measure(server, models, arguments.each))
                print(kind, json.dumps(rounds[kind][-1]), flush=True)
        for name in names:
            admin(server, key, "DELETE", f"/v1/adapters/{name}")
        time.sleep(1)
        print(f"resident MiB before: {before}, with {ADAPTERS} adapters: {loaded}, without: {server.resident_mib()}")
    medians = {
        kind: {name: statistics.median(one[name] for one in found) for name in found[0]}
        for kind, found in rounds.items()
    }
    ratios = {name: medians["many"][name] / medians["one"][name] for name in medians["one"]}
    print(json.dumps(medians | {"ratios": ratios}, indent=1))
    raise SystemExit(int(ratios["seconds"] > LIMIT))


if __name__ == "__main__":
    main()
