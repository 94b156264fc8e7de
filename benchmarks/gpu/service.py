"""The service on a GPU at Llama-2-7B's shapes, beside the engine alone and vLLM's native Ultravox; all on one card, in turns.

`python -m benchmarks.gpu.service FILE`; `--tiny` with tiny shapes and few requests, on any machine.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch

from benchmarks import processes
from benchmarks.gpu.figures import Figures
from benchmarks.gpu.shapes import make_checkpoints
from benchmarks.processes import Server, Worker
from benchmarks.serving import Bench
from benchmarks.small import BUILD, CONTEXT
from service.load.client import REPEATED, Question

DTYPE = "bfloat16"
ROUNDS = 2
KV_BYTES = 16 << 30  # of each of the three that share the card
SHARE = "0.3"  # of the card that must be free for each
LOADS = {  # clients, seconds of a clip: requests in a round
    (1, 5): 16,
    (32, 5): 160,
    (32, 25): 128,
    (128, 5): 384,
    (1, 25): 8,
    (128, 25): 256,
}
CACHED = 256  # requests of 32 clients about clips that were heard before


class CardBench(Bench):
    """The three, each started once; they wait without work while another is measured."""

    def __init__(self, scale: float, stack: ExitStack, tiny: bool) -> None:
        super().__init__(DTYPE, scale, stack)
        if torch.cuda.is_available():
            self.settle_seconds = 0.2  # there, cores are not scarce
        self._checkpoint, self._peer = make_checkpoints(tiny=tiny)
        # A size of the cache instead of a share of what is free: so they need not be started one after the other.
        card = ["--kv-cache-memory-bytes", str(KV_BYTES), "--gpu-memory-utilization", SHARE]
        self._card = card if torch.cuda.is_available() else []
        self._options = ["--load-format", "dummy", "--max-model-len", str(CONTEXT), *self._card]

    @cached_property
    def ours(self) -> Server:
        """This service."""
        server = self._stack.enter_context(processes.ours(DTYPE, *self._options, checkpoint=self._checkpoint))
        return self._warm(server, Question("speech"))

    @cached_property
    def peer(self) -> Server:
        """vLLM with its native Ultravox."""
        server = self._stack.enter_context(processes.peer(DTYPE, *self._card, checkpoint=self._peer))
        return self._warm(server, Question("chat"))

    @cached_property
    def engine(self) -> Worker:
        """The engine alone."""
        options = [DTYPE, str(self._checkpoint), *self._options]
        worker = self._stack.enter_context(processes.worker("benchmarks.engine_only", *options, name="engine-only"))
        for seconds in (5, 25):
            worker.ask(clients=8, requests=8, seconds=seconds, different=8)
        return worker

    def start_all(self) -> dict[str, Any]:
        """Ours by itself, which is timed; then the others, which find its kernels compiled."""
        found = self.start()
        with ThreadPoolExecutor() as threads:
            waiting = [threads.submit(getattr, self, name) for name in ("peer", "engine")]
        return found | {"others": [str(future.exception() or "ready") for future in waiting]}

    def sides(self, clients: int, seconds: int, number: int) -> dict[str, Callable[[], Any]]:
        """What is asked of each under so many clients."""
        ramp = min(2.0, clients / 20)
        ask = {"clients": clients, "requests": self.requests(number), "seconds": seconds}
        return {
            "peer": lambda: self.load(self.peer, "chat", clients, seconds, number, ramp=ramp),
            "ours": lambda: self.load(self.ours, "speech", clients, seconds, number, ramp=ramp),
            "engine only": lambda: self.engine.ask(**ask, different=self.requests(number)),
        }

    def hear(self) -> dict[str, Any]:
        """Brings the recordings that repeat into the service's cache."""
        self.hear_once(5)
        return {}

    def cached(self) -> dict[str, Callable[[], Any]]:
        """Recordings that the service has heard before, beside the engine with their embeddings."""
        ask = {"clients": 32, "requests": self.requests(CACHED), "seconds": 5}
        return {
            "ours": lambda: self.load(self.ours, "speech", 32, 5, CACHED, unique=False),
            "engine only": lambda: self.engine.ask(**ask, different=REPEATED),
        }


def in_turns(sides: dict[str, Callable[[], Any]]) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Each side, and each again."""
    for _ in range(ROUNDS):
        yield from sides.items()


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--tiny", action="store_true")
    arguments = parser.parse_args()
    figures = Figures(arguments.file)
    begun = time.time()
    try:
        with ExitStack() as stack:
            bench = CardBench(0.03 if arguments.tiny else 1.0, stack, arguments.tiny)
            figures.attempt("start", bench.start_all)
            figures.attempt("hearing", bench.hear)
            for side, ask in in_turns(bench.cached()):
                figures.attempt("cached, 32 x 5 s", partial(measured, side, ask))
            for (clients, seconds), number in list(LOADS.items())[: 2 if arguments.tiny else None]:
                for side, ask in in_turns(bench.sides(clients, seconds, number)):
                    figures.attempt(f"{clients} x {seconds} s", partial(measured, side, ask))
    finally:
        print_logs(begun)


def measured(side: str, ask: Callable[[], Any]) -> dict[str, Any]:
    """One side's figures."""
    return {"side": side, **ask()}


def print_logs(since: float) -> None:
    """The ends of the logs of what was started."""
    for log in sorted(BUILD.glob("*.log")):
        if log.stat().st_mtime > since:
            print(f"--- {log.name}", log.read_text(errors="replace")[-20_000:], sep="\n", flush=True)


if __name__ == "__main__":
    main()
