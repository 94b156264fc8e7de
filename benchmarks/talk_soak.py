"""`make soak-talk`: one talks for ten minutes on one socket, others come and go; every turn is answered, and memory stays as it is."""

import argparse
import asyncio
import json
from collections.abc import AsyncIterator
from time import perf_counter

import aiohttp
import numpy as np

from benchmarks import processes
from benchmarks.small import make_checkpoints
from benchmarks.talk import TOKENS, say, speech
from models.features import SAMPLE_RATE
from service.load.client import Load, Question, clips

MINUTES = 10
OTHERS = 3  # sockets beside the long one, for one turn each
GROWTH = 1.05  # of resident memory, from the end of the second minute on
# Of the KV cache so little that all of it has been used after the second minute: the system gives pages when they are first used.
CACHE = ("--num-gpu-blocks-override", "256")
# Before the first minute: the long conversation fills its context after seven, and with it the memory for reading a prompt.
LONG_ONES, LONG_SECONDS = 4, 300
PAUSE = np.zeros(SAMPLE_RATE, np.float32)


async def turns(socket: aiohttp.ClientWebSocketResponse, seeds: AsyncIterator[int]) -> int:
    """Takes one turn for each seed; how many were answered."""
    session = {"max_output_tokens": TOKENS, "audio": {"input": {"transcription": {"model": "any"}}}}
    await socket.send_json({"type": "session.update", "session": session})
    answered = 0
    async for seed in seeds:
        await say(socket, np.concatenate([speech(2 + seed % 6, seed), PAUSE]))
        async for message in socket:
            event = json.loads(message.data)
            if event["type"] == "error" or event.get("response", {}).get("status") == "failed":
                raise RuntimeError(f"not answered: {event}")
            if event["type"] == "response.done" and event["response"]["status"] != "cancelled":
                answered += 1
                break
        else:
            raise RuntimeError(f"the socket was closed with {socket.close_code}")
    return answered


async def until(end: float, first: int, step: int) -> AsyncIterator[int]:
    """Seeds up to a time."""
    while perf_counter() < end:
        yield first
        first += step


async def soak(server: processes.Server, minutes: float) -> tuple[int, list[int]]:
    """How many turns were answered, and the resident MiB at the end of each minute."""
    end = perf_counter() + 60 * minutes
    sizes: list[int] = []

    async def watch() -> None:
        while True:
            await asyncio.sleep(60)
            by_name = server.resident_mib()
            sizes.append(sum(by_name.values()))
            print(f"minute {len(sizes)}: {sizes[-1]} MiB, {by_name}", flush=True)

    async with aiohttp.ClientSession() as http:

        async def talk(first: int, step: int, once: bool) -> int:
            answered = 0
            while perf_counter() < end:
                async with http.ws_connect(f"{server.url}/v1/realtime") as socket:
                    last = perf_counter() + 1e-6 if once else end
                    answered += await turns(socket, until(last, first + step * answered, step))
            return answered

        watching = asyncio.create_task(watch())
        talks = [talk(0, OTHERS + 1, once=False), *(talk(i + 1, OTHERS + 1, once=True) for i in range(OTHERS))]
        answered = await asyncio.gather(*talks)
        watching.cancel()
    return sum(answered), sizes


def main() -> None:
    """Prints the figures; ends with 1 where memory grew. What is not answered is an error."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=MINUTES)
    minutes = parser.parse_args().minutes
    make_checkpoints()
    with processes.ours("bfloat16", *CACHE) as server:
        asyncio.run(Load(server.url, Question()).closed(clips(LONG_ONES, LONG_SECONDS), LONG_ONES))
        answered, sizes = asyncio.run(soak(server, minutes))
    grown = sizes[-1] / sizes[min(1, len(sizes) - 1)] if sizes else 1.0
    print(f"{answered} turns answered; resident memory {sizes} MiB, {grown:.3f} times that after two minutes")
    raise SystemExit(grown > GROWTH)


if __name__ == "__main__":
    main()
