"""This tree beside another commit, on one machine and in one run, in turns: what has a change cost or brought?

`python -m benchmarks.commits COMMIT` measures the encoder by itself and the service under a load, prints what they take, and how many
times the other's that is. The other commit is checked out into build/COMMIT.
"""

import argparse
import shutil
import statistics
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cached_property
from pathlib import Path

from benchmarks import processes
from benchmarks.processes import ROOT, Server, Worker, machine
from benchmarks.serving import DTYPES, Bench
from benchmarks.small import BUILD, make_checkpoints
from service.load.client import Question

ROUNDS = 4
CLIENTS, SECONDS, REQUESTS = 8, 5, 48


class Side(Bench):
    """The processes of one tree."""

    def __init__(self, root: Path, dtype: str, stack: ExitStack) -> None:
        super().__init__(dtype, 1.0, stack)
        self._root = root

    @cached_property
    def ours(self) -> Server:
        """The service."""
        server = self._stack.enter_context(processes.ours(self.dtype, root=self._root))
        return self._warm(server, Question("speech"))

    @cached_property
    def encoder(self) -> Worker:
        """The encoder's own benchmark."""
        return self._stack.enter_context(processes.worker("benchmarks.encoder", self.dtype, root=self._root))

    def round(self) -> Iterator[tuple[str, float]]:
        """What each takes, and its name; seconds."""
        for row in self.encoder.ask()["rows"]:
            yield f"encoder, {row['batch']} x {row['seconds']} s, per clip", row["took"]
        figures = self.load(self.ours, "speech", CLIENTS, SECONDS, REQUESTS, ramp=1.0)
        load = f"service, {CLIENTS} clients, {SECONDS} s"
        yield f"{load}, a request's share of the time", 1 / figures["requests_per_second"]
        yield f"{load}, TTFT p50", figures["ttft"]["p50"]
        yield f"{load}, longest gap p95", figures["longest_gap"]["p95"]
        yield f"{load}, CPU time per request", sum(figures["cpu_seconds_per_request"].values())


@contextmanager
def checked_out(commit: str) -> Iterator[Path]:
    """A work tree of another commit, which shares what was built here."""
    tree = BUILD / commit
    subprocess.run(["git", "worktree", "add", "--force", "--detach", str(tree), commit], cwd=ROOT, check=True)
    try:
        (tree / "build").symlink_to(BUILD)
        yield tree
    finally:
        (tree / "build").unlink(missing_ok=True)
        shutil.rmtree(tree)
        subprocess.run(["git", "worktree", "prune"], cwd=ROOT, check=True)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("commit")
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    arguments = parser.parse_args()
    make_checkpoints()
    print(f"{machine()}; medians of {arguments.rounds} rounds: the other commit, this tree, ratio")
    with checked_out(arguments.commit) as tree:
        for dtype in arguments.dtype:
            with ExitStack() as stack:
                sides = [Side(root, dtype, stack) for root in (tree, ROOT)]
                found: list[dict[str, list[float]]] = [{}, {}]
                for _ in range(arguments.rounds):
                    for side, figures in zip(sides, found, strict=True):
                        for what, seconds in side.round():
                            figures.setdefault(what, []).append(seconds)
            for what, before in found[0].items():
                old, new = statistics.median(before), statistics.median(found[1][what])
                print(f"{dtype:8}  {what:55} {1000 * old:8.1f} ms {1000 * new:8.1f} ms  {new / old:.2f}", flush=True)


if __name__ == "__main__":
    main()
