"""What an adapter that spells has heard, before anything is chosen: how likely each token is at each moment, and how likely texts are.

A text may begin and end at any moment, so its probability is the sum over all ways to lay it over them, as in connectionist temporal
classification (Graves et al. 2006). Beginnings of texts have one, too, with which an LLM can be told token by token what was heard
(Hori et al. 2017, "Joint CTC/attention decoding for end-to-end speech recognition"; Watanabe et al. 2017, algorithm 2).
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load, save
from torch import Tensor

from models.spelling import Speller

NEAR = 8  # tokens of a moment that may be meant
LEAST = 1e-3  # how likely each of them is at least
NEVER = -700.0  # the least logarithm of a probability: of infinities, sums that are taken out again would leave nothing

Scores = npt.NDArray[np.float64]
"""Natural logarithms of probabilities."""


@dataclass(frozen=True)
class Lattice:
    """The tokens (C,) of the LLM's vocabulary that may have been said, in rising order, and how likely each is at each of T moments.

    `blank` (T,) and `scores` (T, C) are logarithms of probabilities, float32; what is missing to 1 are tokens that were not heard.
    """

    tokens: Tensor
    blank: Tensor
    scores: Tensor

    @classmethod
    @torch.inference_mode()
    def of(cls, speller: Speller, rows: Tensor) -> "Lattice":
        """That of rows (T, llm_dim) before the speller, on its device and in its dtype. It lies on the CPU."""
        scores = speller.scores(rows).float().log_softmax(-1)
        near = scores[:, 1:].topk(min(NEAR, scores.shape[1] - 1), -1)
        heard = torch.unique(near.indices[near.values > math.log(LEAST)])
        return cls(speller.ids[heard].cpu(), scores[:, 0].cpu(), scores[:, 1 + heard].cpu())

    def pack(self) -> bytes:
        """It in a form that goes to another process."""
        return save({name: value.contiguous() for name, value in vars(self).items()})

    @classmethod
    def unpack(cls, data: bytes) -> "Lattice":
        """What `pack` has made."""
        return cls(**load(data))


class Beginning:
    """How a text begins, of the tokens of a lattice, which are named by their places in it; at first it is empty."""

    def __init__(self, lattice: Lattice) -> None:
        self._scores = np.maximum(lattice.scores.numpy().astype(np.float64), NEVER)
        self._blank = np.maximum(lattice.blank.numpy().astype(np.float64), NEVER)
        # Up to each moment: all that was said is the text so far, and the moment is a blank, or is its last token.
        self._over = self._blank.cumsum()
        self._in_token = np.full_like(self._over, -np.inf)
        self._last: int | None = None

    def whole(self) -> float:
        """The logarithm of the probability that nothing follows."""
        return float(np.logaddexp(self._over[-1], self._in_token[-1]))

    def longer(self) -> Scores:
        """Those (C,) that each token follows, whatever follows then."""
        return np.asarray(np.logaddexp.reduce(self._before() + self._scores, axis=0))

    def add(self, token: int) -> None:
        """The token follows."""
        before, scores = self._before()[:, token], self._scores[:, token]
        # At a moment in the token, it begins, or goes on: a recurrence that is a sum, of which the products so far are taken out.
        said = scores.cumsum()
        self._in_token = said + np.logaddexp.accumulate(before - _earlier(said, 0.0))
        silent = self._blank.cumsum()
        self._over = silent + np.logaddexp.accumulate(_earlier(self._in_token, -np.inf) - _earlier(silent, 0.0))
        self._last = token

    def _before(self) -> Scores:
        """That each token (T, C) may begin at each moment: the text so far is over, behind its last token by a blank for the same one."""
        first = 0.0 if self._last is None else -np.inf
        over = _earlier(np.logaddexp(self._over, self._in_token), first)
        before = np.repeat(over[:, None], self._scores.shape[1], axis=1)
        if self._last is not None:
            before[:, self._last] = _earlier(self._over, first)
        return before


def _earlier(values: Scores, first: float) -> Scores:
    """Those (T,) of the moment before each; before the first, `first`."""
    return np.concatenate([[first], values[:-1]])
