"""What each part of the service costs on this machine, measured where it works by itself, and one thing where all work."""

import asyncio
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import aiohttp
import numpy as np

from benchmarks import processes
from benchmarks.capacity.simulation import Costs, Turn, closed, opened
from benchmarks.processes import Server, Worker
from benchmarks.talk import say
from models.features import SAMPLE_RATE
from service.load.client import REPEATED, Load, Question, clips, summarize

SHORT, LONG = 5, 25  # seconds of the recordings
FEW, TOKENS, MANY = 8, 32, 64  # of the replies
NUMBER = 24  # requests of each measurement
CLIENTS = 16  # where many replies are said at once
SOCKETS, OPEN_SECONDS = 8, 10
RATE, SECONDS = 15.0, 60.0  # of requests that come by chance
MOST_MS = 40  # by which a batch may be found to take longer
NUMBER_TOLD = 5000  # of them, simulated
P95 = 1.645  # standard deviations


@dataclass(frozen=True)
class Line:
    """A cost that grows evenly."""

    at_none: float
    each: float

    @classmethod
    def through(cls, one: tuple[float, float], other: tuple[float, float]) -> "Line":
        """Through two points."""
        each = (other[1] - one[1]) / (other[0] - one[0])
        return cls(one[1] - each * one[0], each)


def measure(dtype: str, server: Server) -> Costs:
    """Takes five minutes; the server has to be warm."""
    cores = len(os.sched_getaffinity(0))
    with processes.worker("benchmarks.encoder", dtype) as encoder:
        one_core, all_cores = _encoder(encoder, 1), _encoder(encoder, cores)
    with processes.worker("benchmarks.engine_only", dtype) as engine:
        single, long, many = _engine(engine, 1, SHORT), _engine(engine, 1, LONG), _engine(engine, CLIENTS, SHORT)
    prompt = Line.through((SHORT, single["ttft"]["p50"]), (LONG, long["ttft"]["p50"]))
    gap = Line.through((1, single["gap"]["p50"]), (CLIENTS, many["gap"]["p50"]))

    _heard(server, 1, FEW)
    told = {clients: _heard(server, clients, MANY) - _heard(server, clients, FEW) for clients in (1, CLIENTS)}
    by_share = Line.through(*((1 / clients, cpu / (MANY - FEW)) for clients, cpu in told.items()))  # of a step
    saying = FEW * (by_share.at_none + by_share.each / CLIENTS)
    loads = {seconds: _new(server, seconds, CLIENTS, FEW) for seconds in (SHORT, LONG)}
    listening = Line.through(*((s, cpu - saying - one_core[s, 1]) for s, (_, cpu) in loads.items()))
    batch = Line.through(*((n * SHORT, one_core[SHORT, n]) for n in (1, 8)))
    costs = Costs(
        cores=cores,
        receive=listening.at_none,
        receive_second=listening.each,
        wait=0.0,
        batch=batch.at_none,
        batch_second=batch.each,
        crowded=0.0,
        alone=all_cores[SHORT, 1] / one_core[SHORT, 1],
        threads_alone=cores,
        step=gap.at_none,
        prompt=prompt.at_none - gap.at_none,
        prompt_second=prompt.each,
        reply=gap.each,
        deliver_step=by_share.each,
        deliver=by_share.at_none,
        spread=math.log(single["gap"]["p95"] / single["gap"]["p50"]) / P95,
    )
    alone = _new(server, SHORT, 1, FEW)[0]["ttft"]["p50"]
    costs = replace(costs, wait=max(0.0, alone - closed(costs, Turn(SHORT, FEW), 1, NUMBER).ttft(50)))
    by_chance = Load(server.url, Question(tokens=TOKENS)).open(clips(round(RATE * SECONDS), SHORT), RATE)
    return _with_crowded(costs, summarize(asyncio.run(by_chance))["ttft"]["p50"])


def _with_crowded(costs: Costs, measured: float) -> Costs:
    """With what makes half of the first tokens of a common load come within what was `measured`; their 95th percentile is not looked at."""

    def off(crowded: float) -> float:
        tried = replace(costs, crowded=crowded)
        return abs(opened(tried, Turn(SHORT, TOKENS), RATE, NUMBER_TOLD).ttft(50) - measured)

    return replace(costs, crowded=min((step / 1000 for step in range(MOST_MS)), key=off))


def socket_second(server: Server) -> float:
    """The server's processor seconds for a second of an open microphone, in which nobody speaks."""
    before = _server_seconds(server)
    asyncio.run(_keep_open(server))
    return (_server_seconds(server) - before) / (SOCKETS * OPEN_SECONDS)


async def _keep_open(server: Server) -> None:
    quiet = 1e-4 * np.random.default_rng(0).normal(size=OPEN_SECONDS * SAMPLE_RATE)

    async def one(http: aiohttp.ClientSession) -> None:
        async with http.ws_connect(f"{server.url}/v1/realtime") as socket:
            await say(socket, quiet.astype(np.float32))

    async with aiohttp.ClientSession() as http:
        await asyncio.gather(*(one(http) for _ in range(SOCKETS)))


def _encoder(worker: Worker, threads: int) -> dict[tuple[int, int], float]:
    """Seconds for a batch of recordings, by their length and number."""
    rows = worker.ask(threads=threads)["rows"]
    return {(row["seconds"], row["batch"]): row["took"] * row["batch"] for row in rows}


def _engine(worker: Worker, clients: int, seconds: int) -> Any:
    return worker.ask(clients=clients, requests=2 * clients + NUMBER, seconds=seconds, different=NUMBER)


def _heard(server: Server, clients: int, tokens: int) -> float:
    """The server's processor seconds for a request about what it has heard before."""
    recordings = clips(2 * clients + NUMBER, SHORT, unique=False, seed=REPEATED)
    return _ask(server, recordings, clients, tokens)[1]


def _new(server: Server, seconds: int, clients: int, tokens: int) -> tuple[Any, float]:
    """The figures of requests about new recordings, and the server's processor seconds for one."""
    return _ask(server, clips(clients * NUMBER, seconds), clients, tokens)


def _ask(server: Server, recordings: Iterator[bytes], clients: int, tokens: int) -> tuple[Any, float]:
    before = _server_seconds(server)
    summary = summarize(asyncio.run(Load(server.url, Question(tokens=tokens)).closed(recordings, clients)))
    return summary, (_server_seconds(server) - before) / summary["requests"]


def _server_seconds(server: Server) -> float:
    return sum(seconds for name, seconds in server.cpu_seconds().items() if "Engine" not in name)
