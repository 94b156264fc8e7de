"""`blsp batch`: a file of requests answered line by line into another file; a run that was stopped goes on where it was.

What a line says and how its answer looks is service/offline/clerk.py's.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models.manifest import InputError
from service.errors import InvalidRequest
from service.offline.clerk import Answer, failure, key, line_number, parse_line
from service.offline.journal import Journal, open_journal

Numbered = tuple[int, bytes]
"""A line of the input, with its number counted from 1."""


@dataclass
class Batch:
    """A file of requests and the journal of its answers; use `open_batch`."""

    source: Path
    journal: Journal
    total: int
    """Lines of the input that are not blank."""
    done: set[int]
    """Numbers of the lines that earlier runs have answered."""
    counts: Counter[str]
    """How many lines so far were "answered", or failed with which error code."""

    async def run(
        self,
        answer: Answer,
        *,
        concurrency: int,
        progress: Callable[[int, int], None] = lambda done, total: None,
        report: Callable[[int, dict[str, Any]], None] = lambda number, error: None,
    ) -> None:
        """Answers what is left, `concurrency` lines at the same time, reading them as late as possible.

        `progress` hears of the lines done and of all, `report` of each line that fails and its error. Raises what `answer` raises.
        """

        async def work(line: Numbered) -> dict[str, Any]:
            number, text = line
            output = await answer(number, text)
            error = failure(output)
            if error is not None:
                report(number, error)
            self.counts[_outcome(error)] += 1
            progress(self.counts.total(), self.total)
            return output

        progress(self.counts.total(), self.total)
        left = (line for line in _read_lines(self.source) if line[0] not in self.done)
        await self.journal.fill(left, work, concurrency)


@contextmanager
def open_batch(source: Path, out: Path) -> Iterator[Batch]:
    """Looks up what `out` holds already of the answers to `source`.

    Raises InputError where it was made from another file or another process is writing to it, OSError where a file can't be read.
    """
    with source.open("rb"), open_journal(out) as journal:
        if out.samefile(source):
            raise InputError(f"{out} is the input; choose another output file")
        done: dict[int, Any] = {}
        counts = Counter[str]()
        for where, output in journal.lines():
            number = line_number(output)
            if number is None or number in done:
                raise InputError(f"{where}: not made from {source}, or there twice; choose another output file")
            done[number] = key(output)
            counts[_outcome(failure(output))] += 1
        yield Batch(source, journal, _count_lines(source, out, done), set(done), counts)


def _read_lines(source: Path) -> Iterator[Numbered]:
    """The lines that are not blank."""
    with source.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                yield number, line


def _count_lines(source: Path, out: Path, done: dict[int, Any]) -> int:
    """How many lines the input has; raises InputError where those that are done are not among them."""
    total = found = 0
    for number, text in _read_lines(source):
        total += 1
        if number in done:
            found += 1
            if done[number] != _key(text):
                raise InputError(f"{out}: line {number} of {source} was another one; choose another output file")
    if found < len(done):
        raise InputError(f"{out}: has lines that {source} does not have; choose another output file")
    return total


def _key(text: bytes) -> Any:
    try:
        return key(parse_line(text))
    except InvalidRequest:
        return None  # as the custom_id in its output


def _outcome(error: dict[str, Any] | None) -> str:
    return "answered" if error is None else error["code"] or error["type"]
