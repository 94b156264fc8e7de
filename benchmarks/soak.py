"""`make soak`: thousands of requests to one server, to see that neither its memory nor its cost per request grows.

Lengths vary, every recording is new, some repeat; memory is read after the first 500 requests and at the end. The cache of embeddings,
which would fill all the while, is small enough to be full before.
"""

import argparse
import asyncio
import json
import time
from itertools import chain
from typing import Any

from benchmarks import processes, report
from benchmarks.small import make_checkpoints
from service.load.client import Load, Question, clips, summarize

CLIENTS = 16
LENGTHS = (1.0, 2.5, 5.0, 7.3)  # seconds; a batch of requests has as many of each
MARKS = (100, 500, 5000)  # requests after which is measured
STEP = 100  # requests between two looks
GROWTH = 1.05  # what memory and cost may grow by
EMBEDDINGS_MIB = 8


def step(server: processes.Server, number: int) -> dict[str, Any]:
    """Sends requests of all lengths, a fifth of them with recordings known from before; returns what they cost and what is held after."""
    cpu, start = sum(server.cpu_seconds().values()), time.perf_counter()
    fresh = (clips(number // 5, seconds, seed=None) for seconds in LENGTHS)
    recordings = chain.from_iterable(zip(*fresh, clips(number // 5, 5.0, unique=False, seed=0), strict=True))
    samples = asyncio.run(Load(server.url, Question(tokens=8)).closed(recordings, CLIENTS))
    return {
        "errors": summarize(samples)["errors"],
        "resident_mib": server.resident_mib(),
        "cpu_seconds_per_request": (sum(server.cpu_seconds().values()) - cpu) / len(samples),
        "seconds_per_request": (time.perf_counter() - start) / len(samples),
    }


def main() -> None:
    """Prints a line at every step, writes them to soak.json, and ends with 1 where memory or cost has grown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=MARKS[-1])
    parser.add_argument("--dtype", default="bfloat16")
    arguments = parser.parse_args()
    make_checkpoints()
    steps: dict[int, dict[str, Any]] = {}
    with processes.ours(arguments.dtype, "--embedding-cache-mib", str(EMBEDDINGS_MIB)) as server:
        for sent in range(STEP, arguments.requests + 1, STEP):
            steps[sent] = step(server, STEP)
            print(sent, json.dumps(steps[sent]), flush=True)
    report.SOAK.write_text(json.dumps(steps, indent=1))
    report.write(report.read())
    raise SystemExit(verdict(steps))


def verdict(steps: dict[int, dict[str, Any]]) -> int:
    """Says what has grown from the marks to the end; 1 where it is more than it may be."""
    last = max(steps)
    first, warm = min(MARKS[0], last), min(MARKS[1], last)
    memory = {n: sum(steps[n]["resident_mib"].values()) for n in (warm, last)}
    cost = {n: steps[n]["cpu_seconds_per_request"] for n in (first, last)}
    errors = sum(entry["errors"] for entry in steps.values())
    print(
        f"resident MiB after {warm}: {memory[warm]}, after {last}: {memory[last]}, ratio {memory[last] / memory[warm]:.3f}"
    )
    print(
        f"CPU s per request at {first}: {cost[first]:.4f}, at {last}: {cost[last]:.4f}, ratio {cost[last] / cost[first]:.3f}"
    )
    print(f"errors: {errors}")
    return int(errors > 0 or memory[last] > GROWTH * memory[warm] or cost[last] > GROWTH * cost[first])


if __name__ == "__main__":
    main()
