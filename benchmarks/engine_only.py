"""The limit: the same engine, fed with ready-made embeddings, without HTTP, decoding or encoding. Answers lines (see processes.py)."""

import asyncio
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.processes import answer_lines
from benchmarks.small import OURS
from models.checkpoint import open_checkpoint
from models.features import SAMPLE_RATE
from models.prompt import Message, Prompt, Speech
from service.engine import Engine, Plan, Sampling
from service.load.client import Question, Sample, summarize


async def closed(engine: Engine, prompts: list[Prompt], clients: int, requests: int) -> list[Sample]:
    """As Load.closed, straight to the engine."""
    question = Question()
    waiting = iter(range(requests))
    samples: list[Sample] = []

    async def client() -> None:
        for i in waiting:
            sample = Sample(first_sent=time.perf_counter(), last_sent=time.perf_counter())
            sampling = Sampling(max_tokens=question.tokens, min_tokens=question.tokens)
            async for delta in engine.stream(prompts[i % len(prompts)], sampling, f"limit-{time.perf_counter()}-{i}"):
                sample.tokens += [time.perf_counter()] * bool(delta.token_ids)
            sample.end = time.perf_counter()
            samples.append(sample)

    await asyncio.gather(*(client() for _ in range(clients)))
    return samples


async def main(dtype: str, model: str = str(OURS), *options: str) -> None:
    """Starts the engine, with vLLM's options; answers {"clients", "requests", "seconds", "different"} with a summary."""
    checkpoint = await asyncio.to_thread(open_checkpoint, model, Path("build/cache"))
    engine = Engine.start(Plan.make(checkpoint.llm, "limit", dtype, list(options)), drop_first_space=False)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    embedder = checkpoint.load_embedder(engine.dtype, device)
    builder = checkpoint.prompt_builder(engine.dtype)
    try:
        questions = answer_lines()
        while (asked := await asyncio.to_thread(next, questions, None)) is not None:
            samples = await closed(engine, _prompts(embedder, builder, asked), asked["clients"], asked["requests"])
            print(json.dumps(summarize(samples)), flush=True)
    finally:
        await engine.close()


def _prompts(embedder: Any, builder: Any, asked: dict[str, Any]) -> list[Prompt]:
    """The prompts that the service would build for `different` recordings of `seconds`."""
    size = round(asked["seconds"] * SAMPLE_RATE)
    noise = np.random.default_rng(0).normal(0, 0.1, (asked["different"], size)).astype(np.float32)
    rows = [embedder.embed([torch.from_numpy(samples)])[0].cpu() for samples in noise]
    return [builder.build([Message("user", [Question().instruction, Speech(row)])]) for row in rows]


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
