"""`blsp evaluate`: the same questions asked with the transcript and with the speech, of a checkpoint or a server; table, JSON, plot."""

import json
import textwrap
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import httpx
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.table import Table

from models.evaluation.agreement import Advance, Alignment, measure_alignment
from models.evaluation.local import LocalModel
from models.evaluation.scores import Group, Pair, Question, score_groups
from models.manifest import AudioSpan, InputError, ReadAudio
from models.prompt import CONTINUE
from service.audio.recordings import as_wav

BATCH = 16  # questions


class Model(Protocol):
    """Whoever answers questions: LocalModel or ServedModel."""

    def from_text(self, transcripts: Sequence[str], instructions: Sequence[str], max_tokens: int) -> list[str]:
        """Greedy replies to instructions about transcripts."""

    def from_speech(self, audio: Sequence[AudioSpan], instructions: Sequence[str], max_tokens: int) -> list[str]:
        """Greedy replies to instructions about recordings."""


class ServedModel:
    """A model behind a server of ours: speech goes to /v1/speech, transcripts to /v1/chat/completions."""

    def __init__(self, client: httpx.Client, read: ReadAudio) -> None:
        self._client = client
        self._read = read
        self._name = str(self._json(client.get("/v1/models"))["data"][0]["id"])

    def from_text(self, transcripts: Sequence[str], instructions: Sequence[str], max_tokens: int) -> list[str]:
        """Greedy replies to instructions about transcripts; raises InputError with what the server says."""

        def ask(transcript: str, instruction: str) -> str:
            message = {"role": "user", "content": f"{instruction} {transcript}"}
            body = {"model": self._name, "messages": [message], "max_tokens": max_tokens, "temperature": 0}
            reply = self._json(self._client.post("/v1/chat/completions", json=body))
            return str(reply["choices"][0]["message"]["content"] or "").strip()

        with ThreadPoolExecutor(BATCH) as threads:
            return list(threads.map(ask, transcripts, instructions))

    def from_speech(self, audio: Sequence[AudioSpan], instructions: Sequence[str], max_tokens: int) -> list[str]:
        """Greedy replies to instructions about recordings; raises InputError with what the server says."""

        def ask(span: AudioSpan, instruction: str) -> str:
            files = {"file": ("speech.wav", as_wav(self._read(span)))}
            fields = {"instruction": instruction, "max_tokens": str(max_tokens)}
            return str(self._json(self._client.post("/v1/speech", files=files, data=fields))["text"]).strip()

        with ThreadPoolExecutor(BATCH) as threads:
            return list(threads.map(ask, audio, instructions))

    @staticmethod
    def _json(response: httpx.Response) -> dict[str, Any]:
        if response.is_error:
            raise InputError(f"{response.request.url} answered {response.status_code}: {response.text}")
        body: dict[str, Any] = response.json()
        return body


@dataclass(frozen=True)
class Evaluation:
    """Everything that was measured; `alignment` is of local checkpoints only, for a server does not show
    the distributions that it compares."""

    model: str
    groups: list[Group]
    alignment: Alignment | None
    replies: list[dict[str, Any]]


def evaluate(
    name: str, model: Model, questions: Sequence[Question], base: Path, max_tokens: int, advance: Advance
) -> Evaluation:
    """Asks every question twice, and aligns a local model; audio paths are relative to `base`.

    `advance` hears of each batch that is done, of `work(questions, model)` items in all.
    """
    if not questions:
        raise InputError("the manifest holds no questions")
    pairs: list[Pair] = []
    for begin in range(0, len(questions), BATCH):
        batch = questions[begin : begin + BATCH]
        instructions = [question.instruction for question in batch]
        text = model.from_text([question.text for question in batch], instructions, max_tokens)
        spans = [AudioSpan.parse(question.audio, base) for question in batch]
        speech = model.from_speech(spans, instructions, max_tokens)
        pairs += map(Pair, text, speech)
        advance(len(batch))
    alignment = (
        measure_alignment(model, recordings(questions), base, advance) if isinstance(model, LocalModel) else None
    )
    replies = [
        question.model_dump() | {"reply_to_text": pair.text, "reply_to_speech": pair.speech}
        for question, pair in zip(questions, pairs, strict=True)
    ]
    return Evaluation(name, score_groups(questions, pairs), alignment, replies)


def recordings(questions: Sequence[Question]) -> list[tuple[str, str]]:
    """Each recording once, with its transcript."""
    return list({question.audio: (question.audio, question.text) for question in questions}.values())


def work(questions: Sequence[Question], model: Model) -> int:
    """How many items `evaluate` will go through."""
    return len(questions) + (len(recordings(questions)) if isinstance(model, LocalModel) else 0)


def write_results(evaluation: Evaluation, folder: Path) -> None:
    """Writes evaluation.json, with every reply, and evaluation.png."""
    folder.mkdir(parents=True, exist_ok=True)
    fields = asdict(evaluation) | {"groups": [group._asdict() for group in evaluation.groups]}
    (folder / "evaluation.json").write_text(json.dumps(fields, indent=2, ensure_ascii=False) + "\n")
    plot(evaluation, folder / "evaluation.png")


def table(evaluation: Evaluation) -> Table:
    """The scores, text and speech side by side, and the alignment."""
    result = Table("task", "instruction", "n", "metric", "text", "speech", title=evaluation.model)
    for group in evaluation.groups:
        for metric, value in group.text.items():
            cells = (metric, f"{value:.1f}", f"{group.speech[metric]:.1f}")
            result.add_row(group.task, group.instruction, str(group.questions), *cells)
    if evaluation.alignment is not None:
        place = ("continuation", CONTINUE, f"{evaluation.alignment.tokens} tokens")
        result.add_row(*place, "KL, nats per token", "", f"{evaluation.alignment.kl:.3f}")
        result.add_row(*place, "top-1 agreement", "", f"{100 * evaluation.alignment.top1_agreement:.1f}")
    return result


def plot(evaluation: Evaluation, file: Path) -> None:
    """Draws the scores as bars, and the alignment over the places of a continuation, as a PNG."""
    panels = 1 if evaluation.alignment is None else 2
    figure = Figure(figsize=(8 * panels, 1.5 + 0.5 * max(6, len(evaluation.groups))), layout="constrained")
    axes = figure.subplots(1, panels, squeeze=False)[0]
    _plot_scores(axes[0], evaluation.groups)
    if evaluation.alignment is not None:
        _plot_alignment(axes[1], evaluation.alignment)
    figure.savefig(file, dpi=120)


def _plot_scores(axes: Axes, groups: Sequence[Group]) -> None:
    bars = [
        (f"{metric}: {textwrap.shorten(group.instruction, 40)}", value, group.speech[metric])
        for group in groups
        for metric, value in group.text.items()
    ]
    places = range(len(bars))
    axes.barh([p - 0.2 for p in places], [text for _, text, _ in bars], height=0.4, label="transcript")
    axes.barh([p + 0.2 for p in places], [speech for _, _, speech in bars], height=0.4, label="speech")
    axes.set_yticks(list(places), [label for label, _, _ in bars], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("percent")
    axes.legend()


def _plot_alignment(axes: Axes, alignment: Alignment) -> None:
    axes.plot(alignment.kl_by_place, label="KL(transcript || speech), nats")
    axes.plot(alignment.top1_agreement_by_place, label="top-1 agreement")
    axes.set(xlabel="token of the continuation", ylim=(0, None))
    axes.legend()
