"""Manifests: files of JSON lines, one recording each, as the official code's data preparation writes them.

`{"audio": "speech.wav", "text": "what is said"}`, where the path may carry `:start:frames` to name a piece of a longer file (official
code: blsp/src/speech_text_paired_dataset.py, get_waveform). `blsp continue` adds `samples` and `continuation`, or `dropped`.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator
from operator import itemgetter
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor

from models.features import N_SAMPLES


class InputError(ValueError):
    """A manifest or an option that can't be used; the message says which, where and why."""


Objective = Literal["ce", "kl"]
"""Cross-entropy of a reply, as published; or divergence from the LLM that reads the transcript."""


class AudioSpan(NamedTuple):
    """A recording, or a piece of it: `frames` samples from `start` on, counted at 16 kHz; None: to its end."""

    path: Path
    start: int = 0
    frames: int | None = None

    @classmethod
    def parse(cls, text: str, base: Path) -> "AudioSpan":
        """Reads `path` or `path:start:frames`; a relative path is relative to the folder `base`."""
        path, *numbers = text.rsplit(":", 2)
        if len(numbers) == 2 and all(number.isdecimal() for number in numbers):
            return cls(base / path, int(numbers[0]), int(numbers[1]))
        return cls(base / text)

    def __str__(self) -> str:
        return str(self.path) if self.frames is None else f"{self.path}:{self.start}:{self.frames}"


ReadAudio = Callable[[AudioSpan], Tensor]
"""Gives the samples (n,) of a span, float32, 16 kHz; raises an error that says why it can't."""


class Line(BaseModel):
    """A line of a manifest; other fields are passed over."""

    model_config = ConfigDict(extra="ignore")

    audio: str
    text: str


class ContinuedLine(Line):
    """A line that `blsp continue` wrote."""

    index: int = 0
    """Which line of its manifest it continues."""
    samples: int
    continuation: str
    instruction: str | None = None
    """What the LLM was told; None: what `blsp align` is told that it was."""
    loss: Objective | None = None


class Example(NamedTuple):
    """What the adapter learns from: speech, its transcript, and how the LLM continues the transcript, or what else it replies to it."""

    audio: AudioSpan
    samples: int
    text: str
    continuation: str
    instruction: str | None = None
    """What it replies to; None: the run's instruction."""
    loss: Objective | None = None
    """How this reply is learnt; None: as the run's are."""


AnyLine = TypeVar("AnyLine", bound=BaseModel)


def read_json_lines(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields ("file:line", object) for each line; raises InputError for one that is not a JSON object."""
    with file.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            where = f"{file}:{number}"
            yield where, parse_object(where, line)


def parse_object(where: str, line: str | bytes) -> dict[str, Any]:
    """The JSON object in a line; raises InputError."""
    try:
        fields = json.loads(line)
    except ValueError as error:
        raise InputError(f"{where}: not JSON: {error}") from error
    if not isinstance(fields, dict):
        raise InputError(f"{where}: not a JSON object")
    return fields


def read_manifest(file: Path, model: type[AnyLine]) -> list[AnyLine]:
    """All lines of a manifest; raises InputError that names the first wrong line and its field."""
    return [parse_line(model, where, fields) for where, fields in read_json_lines(file)]


def parse_line(model: type[AnyLine], where: str, fields: dict[str, Any]) -> AnyLine:
    """Checks a line's fields; raises InputError."""
    try:
        return model.model_validate(fields)
    except ValidationError as error:
        raise InputError(f"{where}: {error}") from error


def read_examples(data: Path) -> tuple[list[Example], Counter[str]]:
    """The examples in a file, or in all `*.jsonl` of a folder, that `blsp continue` wrote; and how many lines are none, by the reason.

    Those of a file are in the order of its manifest, for that of the file is the order in which they were done, and differs. Raises
    InputError for a wrong line, and where no line is left that fits a window of 30 s.
    """
    files = sorted(data.glob("*.jsonl")) if data.is_dir() else [data]
    examples: list[Example] = []
    passed_over = Counter[str]()
    for file in files:
        continued: list[tuple[int, Example]] = []
        for where, fields in read_json_lines(file):
            found = _example(where, fields, file.parent)
            if isinstance(found, str):
                passed_over[found] += 1
            else:
                continued.append(found)
        examples += [example for _, example in sorted(continued, key=itemgetter(0))]
    if not examples:
        raise InputError(f"{data}: no line with a continuation and at most 30 s of audio")
    return examples, passed_over


def read_transcripts(data: Path, read: ReadAudio) -> list[Example]:
    """The recordings and transcripts of a file, or of all `*.jsonl` of a folder; a whole file is read to learn its length.

    Raises InputError for a wrong line, and where nothing is left of at most 30 s with a text.
    """
    examples = []
    for file in sorted(data.glob("*.jsonl")) if data.is_dir() else [data]:
        for line in read_manifest(file, Line):
            audio = AudioSpan.parse(line.audio, file.parent)
            samples = len(read(audio)) if audio.frames is None else audio.frames
            if samples <= N_SAMPLES and line.text.strip():
                examples.append(Example(audio, samples, line.text, ""))
    if not examples:
        raise InputError(f"{data}: no recording of at most 30 s with a transcript")
    return examples


def _example(where: str, fields: dict[str, Any], base: Path) -> tuple[int, Example] | str:
    """The example in a line with its place in the manifest, or why there is none; raises InputError."""
    if "dropped" in fields:
        return str(fields["dropped"])
    line = parse_line(ContinuedLine, where, fields)
    if line.samples > N_SAMPLES:
        return "longer than a window of 30 s"
    audio = AudioSpan.parse(line.audio, base)
    return line.index, Example(audio, line.samples, line.text, line.continuation, line.instruction, line.loss)
