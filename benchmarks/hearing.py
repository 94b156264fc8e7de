"""How well people are heard: word error rates of a server's transcriptions, by group.

`python -m benchmarks.hearing MANIFEST CHECKPOINT OUT.json` serves the checkpoint and has it write down every recording of a manifest of
JSON lines {"file", "text", "group", "seconds"} and perhaps {"whisper_base"}. The bound is what the
LLM makes of the transcripts in the same prompt. References and replies go through Whisper's English normaliser. With `--joined GROUP ...`,
the recordings of these groups are also written down as one, behind each other, as far as the server takes so long a recording.
"""

import argparse
import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import httpx
import jiwer
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from transformers.models.whisper.english_normalizer import EnglishTextNormalizer

from benchmarks.processes import ours
from models.checkpoint import open_checkpoint
from models.features import SAMPLE_RATE
from models.manifest import AudioSpan
from models.prompt import PLACE
from service.answers.prompting import QUOTE
from service.audio.recordings import as_wav, read_samples
from service.settings import ServeSettings, default_cache

AT_ONCE = 8
Line = dict[str, Any]


def rate(references: Sequence[str], replies: Sequence[str]) -> float:
    """The word error rate."""
    normalize = EnglishTextNormalizer({})
    return float(jiwer.wer([normalize(text) for text in references], [normalize(text) or "-" for text in replies]))


async def all_of(lines: list[Line], ask: Callable[[Line], Awaitable[str]], what: str) -> list[str]:
    """The replies, in the order of the lines."""
    gate = asyncio.Semaphore(AT_ONCE)

    async def one(line: Line) -> str:
        async with gate:
            return await ask(line)

    tasks = [asyncio.create_task(one(line)) for line in lines]
    for task in track(tasks, what):
        await task
    return [task.result() for task in tasks]


async def measure(lines: list[Line], folder: Path, url: str, checkpoint: str) -> dict[str, list[str]]:
    """What is written of each line: from speech, and from its transcript."""
    opened = open_checkpoint(checkpoint, default_cache())
    config, tokenizer = opened.config, opened.tokenizer()

    def prompt(text: str) -> str:
        asked = config.transcribe_instruction
        content = asked.replace(PLACE, text) if PLACE in asked else f"{asked}\n{text}"
        message = [{"role": "user", "content": content}]
        return str(tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True))

    async with httpx.AsyncClient(base_url=url, timeout=300) as client:

        async def hear(line: Line) -> str:
            reply = await client.post(
                "/v1/audio/transcriptions", files={"file": (folder / line["file"]).read_bytes()}, data={"model": model}
            )
            return str(reply.raise_for_status().json()["text"])

        async def read(line: Line) -> str:
            body = {
                "model": model,
                "prompt": prompt(line["text"]) + config.transcribe_begun,
                "max_tokens": round(32 + 8 * line["seconds"]),
                "temperature": 0,
                "add_special_tokens": False,
            } | ({"stop": QUOTE} if config.transcribe_begun.endswith(QUOTE) else {})
            reply = await client.post("/v1/completions", json=body)
            return str(reply.raise_for_status().json()["choices"][0]["text"])

        model = (await client.get("/v1/models")).json()["data"][0]["id"]
        return {"speech": await all_of(lines, hear, "Hearing"), "bound": await all_of(lines, read, "Reading")}


def measure_joined(lines: list[Line], folder: Path, url: str, groups: Sequence[str]) -> dict[str, Any]:
    """What is written of the groups' recordings as one, its word error rate, and the seconds that it took for each of them."""
    limit = ServeSettings.model_fields["max_audio_seconds"].default
    samples, texts, names = torch.empty(0), [], []
    for line in (line for group in groups for line in lines if line["group"] == group):
        longer = torch.cat([samples, read_samples(AudioSpan(folder / line["file"]))])
        if len(longer) > limit * SAMPLE_RATE:
            break
        samples = longer
        texts.append(line["text"])
        names.append(line["file"])
    audio = as_wav(samples)
    start = time.perf_counter()
    reply = httpx.post(f"{url}/v1/audio/transcriptions", files={"file": audio}, timeout=None)
    took, seconds = time.perf_counter() - start, len(samples) / SAMPLE_RATE
    written = str(reply.raise_for_status().json()["text"])
    found = {"rate": rate([" ".join(texts)], [written]), "seconds": seconds, "real_time_factor": took / seconds}
    return found | {"files": names, "text": " ".join(texts), "speech": written}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("manifest", type=Path)
    parser.add_argument("checkpoint")
    parser.add_argument("out", type=Path)
    parser.add_argument("--joined", nargs="+", metavar="GROUP", default=[])
    args = parser.parse_args()
    lines = [json.loads(line) for line in args.manifest.read_text().splitlines()]
    with ours("float32", checkpoint=Path(args.checkpoint)) as server:
        written = asyncio.run(measure(lines, args.manifest.parent, server.url, args.checkpoint))
        joined = measure_joined(lines, args.manifest.parent, server.url, args.joined) if args.joined else None
    if "whisper_base" in lines[0]:
        written["whisper_base"] = [line["whisper_base"] for line in lines]
    groups = {
        name: [i for i, line in enumerate(lines) if line["group"] == name] for name in {x["group"]: 0 for x in lines}
    }
    groups["all"] = list(range(len(lines)))
    rates = {
        name: {by: rate([lines[i]["text"] for i in at], [texts[i] for i in at]) for by, texts in written.items()}
        for name, at in groups.items()
    }
    table = Table("group", "recordings", *written)
    for name, found in rates.items():
        table.add_row(name, str(len(groups[name])), *(f"{value:.3f}" for value in found.values()))
    Console().print(table)
    if joined:
        told = (joined["seconds"], joined["rate"], joined["real_time_factor"])
        Console().print("{:.0f} s as one recording: {:.3f}, real-time factor {:.3f}".format(*told))
    replies = [
        {
            "file": line["file"],
            "text": line["text"],
            **{by: texts[i] for by, texts in written.items() if by in ("speech", "bound")},
        }
        for i, line in enumerate(lines)
    ]
    args.out.write_text(
        json.dumps({"checkpoint": args.checkpoint, "rates": rates, "joined": joined, "replies": replies}, indent=1)
        + "\n"
    )


if __name__ == "__main__":
    main()
