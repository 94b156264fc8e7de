"""`make soak-talk`: one talks for ten minutes on one socket, others come and go; every turn is answered, and nothing stays in memory.

While it goes on, the conversation itself takes some (ten minutes of audio are kept), and reading its ever longer prompts, until they fill
the context. So what the service holds when nobody talks is compared, after a first minute of talk and after all of it.
"""

import argparse
import asyncio
import itertools
import json
import time
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
LOOKS = 12  # in a minute, in which memory comes and goes
QUIET_SECONDS = 20  # in which it gives back what is free
GROWTH = 1.05  # of resident memory, from the end of the first minute of talk to the end of all
# Of caches so little that all of it has been used by then: the system gives pages when they are first used.
CACHES = ("--num-gpu-blocks-override", "256", "--embedding-cache-mib", "8")
# Before the first minute: prompts as long as the context.
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


async def soak(server: processes.Server, minutes: float) -> int:
    """How many turns were answered; prints what is resident in each minute."""
    end = perf_counter() + 60 * minutes

    async def watch() -> None:
        for minute in itertools.count(1):
            sizes = []
            for _ in range(LOOKS):
                await asyncio.sleep(60 / LOOKS)
                sizes.append(resident(server))
            print(f"minute {minute}: {min(sizes)} to {max(sizes)} MiB", flush=True)

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
    return sum(answered)


def resident(server: processes.Server) -> int:
    """MiB of all processes."""
    return sum(server.resident_mib().values())


def settled(server: processes.Server) -> int:
    """The same, when nobody talks and what is free was given back."""
    time.sleep(QUIET_SECONDS)
    print(f"nobody talks: {resident(server)} MiB, {server.resident_mib()}", flush=True)
    return resident(server)


def main() -> None:
    """Prints the figures; ends with 1 where memory grew. What is not answered is an error."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=MINUTES)
    minutes = parser.parse_args().minutes
    make_checkpoints()
    with processes.ours("bfloat16", *CACHES) as server:
        asyncio.run(Load(server.url, Question()).closed(clips(LONG_ONES, LONG_SECONDS), LONG_ONES))
        asyncio.run(soak(server, 1))
        before = settled(server)
        answered = asyncio.run(soak(server, minutes))
        grown = settled(server) / before
    print(f"{answered} turns answered; {grown:.3f} times the memory after {minutes:g} minutes of talk than after one")
    raise SystemExit(grown > GROWTH)


if __name__ == "__main__":
    main()
