"""Joint decoding, in vLLM's engine: each token is one that was heard, chosen by how likely it was heard and how likely the LLM finds it.

The LLM is not told what was heard; it only expects a text. After Hori et al. 2017, see models/lattice.py. In place of a beam, which vLLM
does not keep in its cache, several replies are written at once, each by a code of its own (Vilnis et al. 2023, "Arithmetic sampling:
parallel diverse decoding for large language models"): codes that lie near each other say the same for long, and all go where it is likely.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from vllm.sampling_params import SamplingParams
from vllm.v1.sample.logits_processor.builtin import process_dict_updates
from vllm.v1.sample.logits_processor.interface import BatchUpdate, LogitsProcessor

from models.lattice import Beginning, Lattice, Scores

HEARD, CODE, ENDS = "blsp_heard", "blsp_code", "blsp_ends"

EXPECTED = 0.6  # the weight of what the LLM expects beside what was heard, in logarithms (models/smol/LOG.md)
LONGER = 1.5  # what each token adds to a text's score
EVENNESS = 0.6  # of the tokens' shares of the codes: near 0 all codes say the likeliest
BELOW_ONE = 1 - 1e-9


@dataclass(frozen=True)
class Guide:
    """What a reply is held to: a packed lattice, its code, and the tokens that end a text, of which the first is taken."""

    lattice: bytes
    code: float
    """In [0, 1); 0 says the likeliest token each time."""
    ends: tuple[int, ...]

    def told(self) -> dict[str, Any]:
        """It in a request's `extra_args`; those of clients are JSON, which has no bytes."""
        return {HEARD: self.lattice, CODE: self.code, ENDS: list(self.ends)}

    @classmethod
    def of(cls, told: dict[str, Any] | None) -> "Guide | None":
        """What a request was told; None where it was none of ours."""
        if told is None or not isinstance(told.get(HEARD), bytes):
            return None
        return cls(told[HEARD], told[CODE], tuple(told[ENDS]))


class Choice:
    """Which tokens may follow in one reply; `said` is what there is of it, to which vLLM adds."""

    def __init__(self, guide: Guide, said: list[int], device: torch.device) -> None:
        lattice = Lattice.unpack(guide.lattice)
        self._beginning = Beginning(lattice)
        self._ids = [*lattice.tokens.tolist(), guide.ends[0]]
        self._places = {token: place for place, token in enumerate(self._ids[:-1])}
        self._code = min(guide.code, BELOW_ONE)
        self._ends = torch.tensor(guide.ends, device=device)
        self._said = said
        self._read = 0
        self.tokens = torch.tensor(self._ids, device=device)
        """Those (C + 1,) that may follow, the end last."""

    def expected(self, logits: Tensor) -> Tensor:
        """How likely the LLM finds each of the tokens: logits (vocabulary,) to logarithms of probabilities (C + 1,)."""
        likely = logits.float().log_softmax(-1)
        return torch.cat([likely[self.tokens[:-1]], likely[self._ends].logsumexp(0, keepdim=True)])

    def scores(self, expected: Tensor) -> Scores:
        """Scores (C + 1,) of the tokens, which are `expected` so much, on the CPU."""
        for token in self._said[self._read :]:
            if token in self._places:  # vLLM may ask once more behind the end
                self._beginning.add(self._places[token])
        self._read = len(self._said)
        heard = np.append(self._beginning.longer() + LONGER, self._beginning.whole())
        return np.asarray(heard + EXPECTED * expected.double().numpy())

    def take(self, expected: Tensor) -> int:
        """The token that the code says, of tokens that are `expected` so much; what is left of the code says those behind it."""
        scores = self.scores(expected)
        ranked = np.argsort(-scores, kind="stable")
        shares = np.exp((scores[ranked] - scores[ranked[0]]) / EVENNESS)
        shares /= shares.sum()
        upto = shares.cumsum()
        place = int(np.searchsorted(upto[:-1], self._code, side="right"))
        self._code = float(np.clip((self._code - upto[place] + shares[place]) / shares[place], 0.0, BELOW_ONE))
        token: int = self._ids[int(ranked[place])]
        return token


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
        """Leaves guided requests one token each in logits (batch, vocabulary); the device is waited for once, for all of them."""
        if not self._choices:
            return logits
        choices = list(self._choices.items())
        sizes = [len(choice.tokens) for _, choice in choices]
        expected = torch.split(torch.cat([choice.expected(logits[row]) for row, choice in choices]).cpu(), sizes)
        taken = [choice.take(part) for (_, choice), part in zip(choices, expected, strict=True)]
        rows = [row for row, _ in choices]
        logits[rows] = -torch.inf
        logits[rows, taken] = 0.0
        return logits
