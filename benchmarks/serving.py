"""What serving costs, beside vLLM's own speech serving, the engine alone and the plain way; all sides in turns, A B A B.

`python -m benchmarks.serving` measures every piece in float32 and bfloat16, and writes benchmarks/results.json, RESULTS.md
and results.png. `--only PIECE …` measures some pieces and keeps what is there of the others.
"""

import argparse
import asyncio
import json
import os
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack
from datetime import date
from functools import cached_property
from itertools import count
from typing import Any

from benchmarks import processes, report
from benchmarks.processes import Server, Worker, machine
from benchmarks.small import make_checkpoints
from benchmarks.talk import cut_off, posted, talked, waits
from service.audio.raw import Samples
from service.load.client import REPEATED, Load, Question, Sample, clips, summarize

DTYPES = ("float32", "bfloat16")
ROUNDS = 2
LONG, SHORT = 300, 30  # seconds of the recordings that are uploaded as they are spoken
SETTLE_SECONDS = 2  # before a load: a worker of vLLM's own server keeps a core busy for a second after its last step
SPEAKERS = 3  # of each length at the same time, whose recordings end well apart


class Bench:
    """The processes of one dtype, started when a piece first needs them."""

    settle_seconds: float = SETTLE_SECONDS

    def __init__(self, dtype: str, scale: float, stack: ExitStack) -> None:
        self.dtype = dtype
        self._scale = scale
        self._stack = stack
        self.seeds = count(round(time.time()))

    @cached_property
    def ours(self) -> Server:
        """This service."""
        return self._warm(self._stack.enter_context(processes.ours(self.dtype)), Question("speech"), Question("chat"))

    @cached_property
    def compiled(self) -> Server:
        """This service with a compiled LLM, which needs a C++ compiler on the machine."""
        server = self._stack.enter_context(processes.ours(self.dtype, "--no-enforce-eager"))
        return self._warm(server, Question("speech"))

    @cached_property
    def peer(self) -> Server:
        """vLLM with its native Ultravox."""
        return self._warm(self._stack.enter_context(processes.peer(self.dtype)), Question("chat"))

    @cached_property
    def engine(self) -> Worker:
        """The engine alone."""
        return self._stack.enter_context(processes.worker("benchmarks.engine_only", self.dtype))

    @cached_property
    def plain(self) -> Worker:
        """The plain loop."""
        return self._stack.enter_context(processes.worker("benchmarks.plain", self.dtype))

    @cached_property
    def encoder(self) -> Worker:
        """The encoder's own benchmark."""
        return self._stack.enter_context(processes.worker("benchmarks.encoder", self.dtype))

    def start(self) -> dict[str, Any]:
        """How long the service took until it was ready, and what it holds."""
        return {"ready_after": self.ours.ready_after, "resident_mib": self.ours.resident_mib()}

    def _warm(self, server: Server, *questions: Question) -> Server:
        for question in questions:
            for seconds in (5, 25):
                asyncio.run(Load(server.url, question).closed(clips(8, seconds, seed=next(self.seeds)), 8))
        return server

    def requests(self, number: int) -> int:
        """How many to send, for a full number; a trial run sends fewer."""
        return max(2, round(number * self._scale))

    def load(
        self,
        server: Server,
        api: str,
        clients: int,
        seconds: int,
        number: int,
        *,
        unique: bool = True,
        ramp: float = 0.0,
    ) -> Any:
        """One closed loop; its summary, with the server's CPU seconds for each request by process."""
        time.sleep(self.settle_seconds)
        before, own = server.cpu_seconds(), time.process_time()
        recordings = clips(self.requests(number), seconds, unique=unique, seed=next(self.seeds) if unique else 0)
        question = Question("chat" if api == "chat" else "speech")
        samples = asyncio.run(Load(server.url, question).closed(recordings, clients, ramp))
        summary = summarize(samples)
        used = {name: after - before.get(name, 0.0) for name, after in server.cpu_seconds().items()}
        summary["cpu_seconds_per_request"] = {name: seconds / len(samples) for name, seconds in used.items()}
        summary["cpu_seconds_per_request"]["load client"] = (time.process_time() - own) / len(samples)
        return summary

    def hear_once(self, seconds: int) -> None:
        """Brings the recordings that repeat into the service's cache."""
        asyncio.run(Load(self.ours.url, Question()).closed(clips(REPEATED, seconds, unique=False, seed=0), 1))

    def two_questions(self, question: Question, another: Question) -> dict[str, Any]:
        """`question` and then `another` about each of ten recordings of 25 s, one client."""
        first, second = asyncio.run(self._ask_twice(self.ours.url, question, another))
        return {"first": summarize(first), "second": summarize(second)}

    async def _ask_twice(self, url: str, question: Question, another: Question) -> tuple[list[Sample], list[Sample]]:
        load = Load(url, question)
        first, second = [], []
        async with load.session() as session:
            for clip in clips(self.requests(10), 25, seed=next(self.seeds)):
                first.append(await load.ask(session, clip))
                second.append(await load.ask(session, clip, another))
        return first, second

    def uploads(self) -> dict[str, Any]:
        """Recordings of 5 minutes and of 30 s, sent as they are spoken; no two of them end at the same time."""
        longest = LONG if self._scale == 1 else 2 * SHORT
        long, short = asyncio.run(self._speak(self.ours.url, longest))
        return {"long": summarize(long), "short": summarize(short), "seconds": longest}

    async def _speak(self, url: str, longest: int) -> tuple[list[Sample], list[Sample]]:
        """Windows are full, and recordings end, at different seconds modulo a window for every speaker."""
        speakers = range(SPEAKERS if self._scale == 1 else 1)

        async def speak(wait: float, seconds: int) -> Sample:
            await asyncio.sleep(wait)
            (clip,) = clips(1, seconds, seed=next(self.seeds))
            load = Load(url, Question(upload_seconds=seconds))
            async with load.session() as session:
                return await load.ask(session, clip)

        apart = SHORT / (2 * SPEAKERS)
        long = asyncio.gather(*(speak(2 * i * apart, longest) for i in speakers))
        short = asyncio.gather(*(speak(SHORT + (2 * i + 1) * apart, SHORT) for i in speakers))
        return await long, await short


def beside_peer(clients: int, seconds: int, number: int, ramp: float) -> Callable[[Bench], Iterator[tuple[str, Any]]]:
    """The peer, and this service at both endpoints, in turns; clients begin over `ramp` seconds."""

    def measure(bench: Bench) -> Iterator[tuple[str, Any]]:
        for _ in range(ROUNDS):
            yield "peer", bench.load(bench.peer, "chat", clients, seconds, number, ramp=ramp)
            yield "ours", bench.load(bench.ours, "speech", clients, seconds, number, ramp=ramp)
            yield "ours, chat", bench.load(bench.ours, "chat", clients, seconds, number, ramp=ramp)

    return measure


def cached(bench: Bench) -> Iterator[tuple[str, Any]]:
    """Recordings that the service has heard before, beside the engine with their embeddings."""
    bench.hear_once(5)
    for _ in range(ROUNDS):
        number = bench.requests(512)
        yield "engine only", bench.engine.ask(clients=32, requests=number, seconds=5, different=REPEATED)
        yield "ours", bench.load(bench.ours, "speech", 32, 5, 512, unique=False)


def plain(bench: Bench) -> Iterator[tuple[str, Any]]:
    """The plain loop beside this service under 32 clients."""
    for _ in range(ROUNDS):
        yield "plain loop", bench.plain.ask(requests=bench.requests(8), seconds=5)
        yield "ours", bench.load(bench.ours, "speech", 32, 5, 384)
        yield "ours, LLM compiled", bench.load(bench.compiled, "speech", 32, 5, 384)


def second_question(bench: Bench) -> Iterator[tuple[str, Any]]:
    """Two questions about one recording: in two turns of a conversation, and asked anew, with the recording after and before them."""
    questions = {
        "ours, next turn": (Question("chat"), Question("chat", next_turn="Go on")),
        "ours": (Question(), Question(instruction="Go on")),
        "ours, recording first": (
            Question("chat", recording_first=True),
            Question("chat", recording_first=True, instruction="Go on"),
        ),
    }
    for side, (question, another) in questions.items():
        yield side, bench.two_questions(question, another)


def talk(number: int) -> Callable[[Bench], Iterator[tuple[str, Any]]]:
    """So many people who speak at the same time: on sockets, and where their recordings are posted, here and to the peer."""

    def measure(bench: Bench) -> Iterator[tuple[str, Any]]:
        ours, peer = bench.ours.url, bench.peer.url
        ways: dict[str, Callable[[Samples], Awaitable[float]]] = {
            "socket, turns by the client": lambda said: talked(ours, said, told_by_server=False),
            "socket, cut off in a word": lambda said: talked(ours, cut_off(said), told_by_server=False),
            "socket, turns by the server": lambda said: talked(ours, said, told_by_server=True),
            "posted": lambda said: posted(ours, said, "chat"),
            "peer, posted": lambda said: posted(peer, said, "chat"),
        }
        for side, answer in ways.items():
            yield side, waits(number, next(bench.seeds) * 1000, answer)

    return measure


def one(side: str, measure: Callable[[Bench], Any]) -> Callable[[Bench], Iterator[tuple[str, Any]]]:
    """A piece with a single side and round."""

    def measured(bench: Bench) -> Iterator[tuple[str, Any]]:
        yield side, measure(bench)

    return measured


PIECES: dict[str, Callable[[Bench], Iterator[tuple[str, Any]]]] = {
    "start": one("ours", Bench.start),
    "peer-1x5": beside_peer(1, 5, 10, 0.0),
    "peer-8x5": beside_peer(8, 5, 48, 1.0),
    "peer-32x5": beside_peer(32, 5, 256, 1.5),
    "peer-8x25": beside_peer(8, 25, 48, 3.0),
    "in-step-32x5": beside_peer(32, 5, 128, 0.0),
    "in-step-8x25": beside_peer(8, 25, 24, 0.0),
    "cached-32x5": cached,
    "plain-32x5": plain,
    "second-question": second_question,
    "talk-1": talk(1),
    "talk-8": talk(8),
    "upload-300": one("ours", Bench.uploads),
    "memory": one("ours", lambda bench: bench.ours.resident_mib()),
    "encoder": one("ours", lambda bench: bench.encoder.ask()),
}


def run(pieces: list[str], dtypes: list[str], scale: float) -> None:
    """Measures and writes after every piece."""
    make_checkpoints()
    results = report.read()
    for dtype in dtypes:
        with ExitStack() as stack:
            bench = Bench(dtype, scale, stack)
            for piece in pieces:
                load_before, start = os.getloadavg()[0], time.perf_counter()
                sides: dict[str, list[Any]] = {}
                for side, figures in PIECES[piece](bench):
                    sides.setdefault(side, []).append(figures)
                    print(f"{dtype} {piece} {side}: {json.dumps(figures)}", flush=True)
                results[f"{dtype} {piece}"] = {
                    "made": f"{date.today()}, {machine()}, load before {load_before:.1f}",
                    "took": time.perf_counter() - start,
                    "scale": scale,
                    "sides": sides,
                }
                report.write(results)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--only", nargs="+", choices=PIECES, default=list(PIECES), metavar="PIECE", help=", ".join(PIECES)
    )
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--scale", type=float, default=1.0, help="share of the requests to send; under 1 for a trial")
    arguments = parser.parse_args()
    run(arguments.only, arguments.dtype, arguments.scale)


if __name__ == "__main__":
    main()
