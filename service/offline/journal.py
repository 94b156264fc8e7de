"""A file of JSON lines that grows by one line for each piece of work, in the order in which they are done.

It tells a later run what is left: after a kill, what is there is kept, and a line that was not written to its end is done again.
"""

import asyncio
import fcntl
import json
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from models.manifest import InputError, parse_object

T = TypeVar("T")


class Journal:
    """Use `open_journal`; read the lines of earlier runs before the first new one is written."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self._path = path
        self._file = file

    def lines(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yields ("file:line", object) for each line; at the end cuts off a last one that was not written to its end.

        Raises InputError where the file is no journal, and then leaves it as it is.
        """
        self._file.seek(0)
        end = 0
        for number, line in enumerate(self._file, 1):
            where = f"{self._path}:{number}"
            if line.endswith(b"\n"):
                yield where, parse_object(where, line)
                end += len(line)
            elif not line.startswith(b"{"):
                raise InputError(f"{where}: not a JSON object")
        self._file.truncate(end)

    def write(self, fields: dict[str, Any]) -> None:
        """Adds a line; from here on a kill of this process can't lose it."""
        text = json.dumps(fields, ensure_ascii=False) + "\n"
        self._file.write(text.encode(errors="backslashreplace"))  # half a surrogate pair is kept as JSON's escape
        self._file.flush()

    async def fill(self, work: Iterable[T], do: Callable[[T], Awaitable[dict[str, Any]]], concurrency: int) -> None:
        """Writes what is made of each piece of work, `concurrency` of them at the same time; takes a piece when it can begin.

        The first error cancels the rest and is raised as it is.
        """
        queue = iter(work)

        async def take() -> None:
            for piece in queue:
                self.write(await do(piece))

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(concurrency):
                    group.create_task(take())
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from errors


@contextmanager
def open_journal(path: Path) -> Iterator[Journal]:
    """Opens a journal, alone; raises InputError where another process has it open."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise InputError(
                f"{path}: another process is writing to it; give each process a file of its own"
            ) from error
        yield Journal(path, file)
