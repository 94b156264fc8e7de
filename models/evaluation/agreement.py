"""Whether an adapter fits its LLM: how alike the LLM continues a transcript and the speech. Knows nothing about scores or plots."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from models.evaluation.local import LocalModel, TokenAlignment
from models.manifest import AudioSpan
from models.prompt import CONTINUE

BATCH = 16  # recordings
CONTINUATION_TOKENS = 64

Advance = Callable[[int], None]


@dataclass(frozen=True)
class Alignment:
    """How alike the LLM continues a transcript and the speech, over all tokens of its continuations of the transcripts.

    The lists are the means at each place of a continuation.
    """

    tokens: int
    kl: float
    top1_agreement: float
    kl_by_place: list[float]
    top1_agreement_by_place: list[float]


def measure_alignment(
    model: LocalModel, heard: Sequence[tuple[str, str]], base: Path, advance: Advance = lambda done: None
) -> Alignment:
    """Compares the predictions of the LLM's own continuations of the transcripts, over pairs of recording and transcript.

    Paths of recordings are relative to `base`; `advance` hears of each batch that is done.
    """
    found: list[TokenAlignment] = []
    for begin in range(0, len(heard), BATCH):
        batch = heard[begin : begin + BATCH]
        spans = [AudioSpan.parse(audio, base) for audio, _ in batch]
        texts = [text for _, text in batch]
        continuations = model.from_text(texts, [CONTINUE] * len(texts), CONTINUATION_TOKENS)
        found += model.align(spans, texts, continuations, CONTINUE)
        advance(len(batch))
    return summarize(found)


def summarize(items: Sequence[TokenAlignment]) -> Alignment:
    """Means over all tokens, and over those at each place."""

    def by_place(values: list[torch.Tensor]) -> list[float]:
        table = torch.nn.utils.rnn.pad_sequence(values, batch_first=True, padding_value=torch.nan)
        return table.nanmean(0).tolist()

    kl, agree = [item.divergence for item in items], [item.agree.float() for item in items]
    tokens = sum(map(len, kl))
    return Alignment(tokens, torch.cat(kl).mean().item(), torch.cat(agree).mean().item(), by_place(kl), by_place(agree))
