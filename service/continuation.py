"""Continuation writing: the LLM continues every transcript of a manifest, which is what the adapter learns from.

The output grows by one line for each line of the manifest, in the order in which they are done. It is its own journal: after a kill, what
is there is kept, and a line that was not written to its end is done again.
"""

import asyncio
import fcntl
import json
import os
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterable, Iterator
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TextIO

from models.features import SAMPLE_RATE
from models.prompt import Prompt, PromptBuilder
from models.training import InputError
from models.training.batches import transcript_message
from models.training.manifest import AudioSpan, Line, ReadAudio, parse_line, read_json_lines
from service.errors import ApiError, ContextTooLong

if TYPE_CHECKING:
    from service.engine import Delta, Sampling

LONGEST_LINE = 1 << 20  # bytes

Stream = Callable[[Prompt, "Sampling", str], AsyncGenerator["Delta", None]]
"""Engine.stream."""


class Shard(NamedTuple):
    """The lines whose number, counted from 0, leaves `rest` when divided by `divisor`."""

    rest: int
    divisor: int

    @classmethod
    def parse(cls, text: str) -> "Shard":
        """Reads `i/n`, 0 <= i < n; raises InputError."""
        rest, slash, divisor = text.partition("/")
        if not (slash and rest.isdecimal() and divisor.isdecimal() and int(rest) < int(divisor)):
            raise InputError(f"a shard is i/n with i from 0 to n - 1, not {text!r}")
        return cls(int(rest), int(divisor))


@dataclass(frozen=True)
class Limits:
    """What is dropped: audio outside these seconds, prompts of more tokens."""

    min_seconds: float = 0.1
    max_seconds: float = 30.0
    max_prompt_tokens: int = 192


class Dropped(Exception):
    """A line that no continuation is written for; its text is the reason."""


@dataclass(frozen=True)
class Writer:
    """Writes the continuation of one line after the other."""

    stream: Stream
    sampling: "Sampling"
    prompts: PromptBuilder
    read: ReadAudio
    instruction: str
    limits: Limits

    async def write(self, line: Line, base: Path, request_id: str) -> dict[str, Any]:
        """The fields of the output for one line: `samples` and `continuation`, or `dropped` with the reason."""
        audio = AudioSpan.parse(line.audio, base)
        fields: dict[str, Any] = {"audio": str(audio), "text": line.text}
        try:
            samples = await asyncio.to_thread(self._listen, audio, line.text)
            return fields | {"samples": samples, "continuation": await self._continue(line.text, request_id)}
        except Dropped as reason:
            return fields | {"dropped": str(reason)}

    def _listen(self, audio: AudioSpan, text: str) -> int:
        """The number of samples; raises Dropped."""
        if not text.strip():
            raise Dropped("empty text")
        try:
            samples = len(self.read(audio))
        except (ApiError, OSError) as error:
            raise Dropped("unreadable audio") from error
        if samples < self.limits.min_seconds * SAMPLE_RATE:
            raise Dropped("audio too short")
        if samples > self.limits.max_seconds * SAMPLE_RATE:
            raise Dropped("audio too long")
        return samples

    async def _continue(self, text: str, request_id: str) -> str:
        prompt = self.prompts.build([transcript_message(self.instruction, text)])
        if len(prompt.token_ids) > self.limits.max_prompt_tokens:
            raise Dropped("text too long")
        try:
            async with aclosing(self.stream(prompt, self.sampling, request_id)) as deltas:
                continuation = "".join([delta.text async for delta in deltas]).strip()
        except ContextTooLong as error:
            raise Dropped("text too long") from error
        if not continuation:
            raise Dropped("empty continuation")
        return continuation


async def write_continuations(
    manifest: Path,
    out: Path,
    writer: Writer,
    *,
    shard: Shard = Shard(0, 1),  # noqa: B008 (immutable)
    concurrency: int = 256,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Counter[str]:
    """Continues what `out` does not hold yet of the manifest's shard; returns how many lines were "continued", or dropped for which reason.

    `progress` hears of the lines done and of all. Raises InputError where the manifest is wrong, where `out` was made from another one
    or another process is writing to it, and Unavailable where the engine dies.
    """
    waiting = dict(shard_lines(manifest, shard))
    total = len(waiting)
    with open_journal(out) as file:
        counts = Counter[str]()
        for where, fields in read_json_lines(out):
            line = waiting.pop(fields.get("index", -1), None)
            if line is None or fields.get("text") != line.text:
                raise InputError(
                    f"{where}: not from this shard of {manifest}, or there twice; choose another output file"
                )
            counts[fields.get("dropped", "continued")] += 1
        queue = iter(waiting.items())

        async def work() -> None:
            for index, line in queue:
                progress(counts.total(), total)
                fields = {"index": index} | await writer.write(line, manifest.parent.absolute(), f"line-{index}")
                file.write(json.dumps(fields, ensure_ascii=False) + "\n")
                file.flush()
                counts[fields.get("dropped", "continued")] += 1

        await all_of(work() for _ in range(concurrency))
    progress(counts.total(), total)
    return counts


async def all_of(work: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Runs everything at the same time; the first error cancels the rest and is raised as it is."""
    try:
        async with asyncio.TaskGroup() as group:
            for part in work:
                group.create_task(part)
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from errors


def shard_lines(manifest: Path, shard: Shard) -> Iterator[tuple[int, Line]]:
    """The lines of a shard with their numbers, counted from 0; raises InputError."""
    for i, (where, fields) in enumerate(read_json_lines(manifest)):
        if i % shard.divisor == shard.rest:
            yield i, parse_line(Line, where, fields)


@contextmanager
def open_journal(out: Path) -> Iterator[TextIO]:
    """Opens `out` for appending, alone, and cuts off a last line that was not written to its end."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("a+b") as raw:
        try:
            fcntl.flock(raw, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise InputError(f"{out}: another process is writing to it; give each shard a file of its own") from error
        tail = max(0, raw.seek(0, os.SEEK_END) - LONGEST_LINE)
        raw.seek(tail)
        raw.truncate(tail + raw.read().rfind(b"\n") + 1)
        with out.open("a", encoding="utf-8") as file:
            yield file
