"""How good replies are: word errors, BLEU, and how often they are right."""

import re
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

import jiwer
import sacrebleu
from pydantic import BaseModel, ConfigDict

Task = Literal["wer", "bleu", "exact", "accuracy"]


class Question(BaseModel):
    """A line of an evaluation's manifest: what is asked about a recording, and the right answer."""

    model_config = ConfigDict(extra="ignore")

    audio: str
    text: str
    instruction: str
    reference: str
    task: Task


class Pair(NamedTuple):
    """The replies to one question, asked with the transcript and with the speech."""

    text: str
    speech: str


Scores = dict[str, float]
"""By the metric's name, in percent."""


def score(task: Task, replies: Sequence[str], references: Sequence[str]) -> Scores:
    """Scores the replies to questions of one task.

    "wer": word error rate without regard to case and punctuation. "bleu": BLEU and chrF of sacrebleu. "exact": equal but for white space.
    "accuracy": the first of all references' labels that a reply names, as whole words, is the right one.
    """
    return {"wer": _wer, "bleu": _bleu, "exact": _exact, "accuracy": _accuracy}[task](replies, references)


def normalize(text: str) -> str:
    """Lower case, without punctuation, one space between words."""
    return " ".join(re.sub(r"[^\w\s']", " ", text.casefold()).split())


def _wer(replies: Sequence[str], references: Sequence[str]) -> Scores:
    rate = jiwer.wer([normalize(r) for r in references], [normalize(r) for r in replies])
    return {"WER": 100 * float(rate)}


def _bleu(replies: Sequence[str], references: Sequence[str]) -> Scores:
    bleu = sacrebleu.corpus_bleu(replies, [references]).score
    return {"BLEU": bleu, "chrF": sacrebleu.corpus_chrf(replies, [references]).score}


def _exact(replies: Sequence[str], references: Sequence[str]) -> Scores:
    return {"exact": _percent(a.split() == b.split() for a, b in zip(replies, references, strict=True))}


def _accuracy(replies: Sequence[str], references: Sequence[str]) -> Scores:
    labels = {normalize(reference) for reference in references}
    right = (first_label(a, labels) == normalize(b) for a, b in zip(replies, references, strict=True))
    return {"accuracy": _percent(right)}


def first_label(reply: str, labels: set[str]) -> str | None:
    """The label that a reply names first, of two at one place the longer one."""
    words = f" {normalize(reply)} "
    places = {label: words.find(f" {label} ") for label in labels}
    named = [label for label in labels if places[label] >= 0]
    return min(named, key=lambda label: (places[label], -len(label)), default=None)


def _percent(hits: Iterable[bool]) -> float:
    hits = list(hits)
    return 100 * sum(hits) / len(hits)


class Group(NamedTuple):
    """Questions of one task and instruction, and how well they were answered from text and from speech."""

    task: Task
    instruction: str
    questions: int
    text: Scores
    speech: Scores


def score_groups(questions: Sequence[Question], pairs: Sequence[Pair]) -> list[Group]:
    """Scores every task and instruction by itself, in the order of their first questions."""
    groups: dict[tuple[Task, str], list[tuple[Question, Pair]]] = {}
    for question, pair in zip(questions, pairs, strict=True):
        groups.setdefault((question.task, question.instruction), []).append((question, pair))
    return [_group(task, instruction, members) for (task, instruction), members in groups.items()]


def _group(task: Task, instruction: str, members: Sequence[tuple[Question, Pair]]) -> Group:
    references = [question.reference for question, _ in members]
    text = score(task, [pair.text for _, pair in members], references)
    speech = score(task, [pair.speech for _, pair in members], references)
    return Group(task, instruction, len(members), text, speech)
