"""Continuation writing: the LLM continues every transcript of a manifest, which is what the adapter learns from.

The output is a journal, see service/offline/journal.py: a run that was killed goes on where it was.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from models.features import SAMPLE_RATE
from models.manifest import AudioSpan, InputError, Line, ReadAudio, parse_line, read_json_lines
from models.prompt import Prompt, PromptBuilder
from models.training.batches import transcript_message
from service.errors import ApiError, ContextTooLong
from service.offline.journal import open_journal

if TYPE_CHECKING:
    from service.engine import Delta, Sampling

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
        """What becomes of one line: `samples` and `continuation`, or `dropped` with the reason."""
        try:
            samples = await asyncio.to_thread(self._listen, AudioSpan.parse(line.audio, base), line.text)
            return {"samples": samples, "continuation": await self._continue(line.text, request_id)}
        except Dropped as reason:
            return {"dropped": str(reason)}

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


def asked(line: Line, base: Path, instruction: str) -> dict[str, Any]:
    """The fields of the output that say what was asked."""
    return {"audio": str(AudioSpan.parse(line.audio, base)), "text": line.text, "instruction": instruction}


async def write_continuations(
    manifest: Path,
    out: Path,
    instruction: str,
    open_writer: Callable[[], AbstractAsyncContextManager[Writer]],
    *,
    shard: Shard = Shard(0, 1),  # noqa: B008 (immutable)
    concurrency: int = 256,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Counter[str]:
    """Continues what `out` does not hold yet of the manifest's shard; returns how many lines were "continued", or dropped for which reason.

    No writer is opened where nothing is left to do. `progress` hears of the lines done and of all. Raises InputError where the manifest is
    wrong, where `out` was made from another one, or with another instruction, and where another process is writing to it; and Unavailable
    where the engine dies.
    """

    def told(line: Line) -> dict[str, Any]:
        return asked(line, manifest.parent.absolute(), instruction)

    waiting = dict(shard_lines(manifest, shard))
    total = len(waiting)
    with open_journal(out) as journal:
        counts = Counter[str]()
        for where, fields in journal.lines():
            line = waiting.pop(fields.get("index", -1), None)
            if line is None or not told(line).items() <= fields.items():
                raise InputError(
                    f"{where}: not from this shard of {manifest} with this instruction, or there twice; choose another output file"
                )
            counts[fields.get("dropped", "continued")] += 1

        if waiting:
            async with open_writer() as writer:

                async def write(numbered: tuple[int, Line]) -> dict[str, Any]:
                    index, line = numbered
                    progress(counts.total(), total)
                    written = await writer.write(line, manifest.parent.absolute(), f"line-{index}")
                    counts[written.get("dropped", "continued")] += 1
                    return {"index": index} | told(line) | written

                await journal.fill(waiting.items(), write, concurrency)
    progress(counts.total(), total)
    return counts


def shard_lines(manifest: Path, shard: Shard) -> Iterator[tuple[int, Line]]:
    """The lines of a shard with their numbers, counted from 0; raises InputError."""
    for i, (where, fields) in enumerate(read_json_lines(manifest)):
        if i % shard.divisor == shard.rest:
            yield i, parse_line(Line, where, fields)
