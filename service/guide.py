"""Joint decoding, in vLLM's engine: each token is one that was heard, chosen by how likely it was heard and how likely the LLM finds it.

The LLM is not told what was heard; it only expects a text. After Hori et al. 2017, with greedy choices in place of a beam, see
models/lattice.py.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from vllm.sampling_params import SamplingParams
from vllm.v1.sample.logits_processor.builtin import process_dict_updates
from vllm.v1.sample.logits_processor.interface import BatchUpdate, LogitsProcessor

from models.lattice import Beginning, Lattice

HEARD, TASTE, ENDS = "blsp_heard", "blsp_taste", "blsp_ends"


@dataclass(frozen=True)
class Taste:
    """How much the LLM's logarithms of probabilities count beside those of what was heard, and what each token adds to the text's."""

    expected: float
    longer: float


@dataclass(frozen=True)
class Guide:
    """What a reply is held to: a packed lattice, and the tokens that end a text, of which the first is taken."""

    lattice: bytes
    taste: Taste
    ends: tuple[int, ...]

    def told(self) -> dict[str, Any]:
        """It in a request's `extra_args`; those of clients are JSON, which has no bytes."""
        return {HEARD: self.lattice, TASTE: [self.taste.expected, self.taste.longer], ENDS: list(self.ends)}

    @classmethod
    def of(cls, told: dict[str, Any] | None) -> "Guide | None":
        """What a request was told; None where it was none of ours."""
        if told is None or not isinstance(told.get(HEARD), bytes):
            return None
        return cls(told[HEARD], Taste(*told[TASTE]), tuple(told[ENDS]))


class Choice:
    """Which tokens may follow in one reply; `said` is what there is of it, to which vLLM adds."""

    def __init__(self, guide: Guide, said: list[int], device: torch.device) -> None:
        lattice = Lattice.unpack(guide.lattice)
        self._beginning = Beginning(lattice)
        self._places = {token: place for place, token in enumerate(lattice.tokens.tolist())}
        self._taste = guide.taste
        self._ends = torch.tensor(guide.ends, device=device)
        self._said = said
        self._read = 0
        self.tokens = torch.cat([lattice.tokens.to(device), self._ends[:1]])
        """Those (C + 1,) that may follow, the end last."""

    def expected(self, logits: Tensor) -> Tensor:
        """How likely the LLM finds each of the tokens: logits (vocabulary,) to logarithms of probabilities (C + 1,)."""
        likely = logits.float().log_softmax(-1)
        return torch.cat([likely[self.tokens[:-1]], likely[self._ends].logsumexp(0, keepdim=True)])

    def scores(self, expected: Tensor) -> Tensor:
        """Scores (C + 1,) of the tokens, which are `expected` so much, on the CPU."""
        for token in self._said[self._read :]:
            if token in self._places:  # vLLM may ask once more behind the end
                self._beginning.add(self._places[token])
        self._read = len(self._said)
        heard = torch.from_numpy(np.append(self._beginning.longer() + self._taste.longer, self._beginning.whole()))
        return heard.float() + self._taste.expected * expected


class JointDecoding(LogitsProcessor):  # type: ignore[misc]
    """vLLM's logits processor for requests that have a Guide; it leaves all others alone."""

    def __init__(self, _config: Any, device: torch.device, _pins: bool) -> None:
        self._device = device
        self._choices: dict[int, Choice] = {}  # by their rows of the logits

    def is_argmax_invariant(self) -> bool:
        """It is not: greedy replies, too, are held to what was heard."""
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        """Notes who has come to the batch, left it or moved in it."""
        process_dict_updates(self._choices, batch_update, self._choice)

    def _choice(self, params: SamplingParams, _prompt: list[int] | None, said: list[int]) -> Choice | None:
        guide = Guide.of(params.extra_args)
        return None if guide is None else Choice(guide, said, self._device)

    def apply(self, logits: Tensor) -> Tensor:
        """Sets the logits (batch, vocabulary) of guided requests; the device is waited for once, for all of them."""
        if not self._choices:
            return logits
        choices = list(self._choices.items())
        sizes = [len(choice.tokens) for _, choice in choices]
        expected = torch.split(torch.cat([choice.expected(logits[row]) for row, choice in choices]).cpu(), sizes)
        scores = torch.cat([choice.scores(part) for (_, choice), part in zip(choices, expected, strict=True)])
        for (row, choice), part in zip(choices, torch.split(scores.to(logits), sizes), strict=True):
            logits[row] = -torch.inf
            logits[row, choice.tokens] = part
        return logits
