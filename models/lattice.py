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

    It was heard P times, in the phases of a subsampler. `blank` (P, T) and `scores` (P, T, C) are logarithms of probabilities, float32;
    what is missing to 1 are tokens that were not heard.
    """

    tokens: Tensor
    blank: Tensor
    scores: Tensor

    @property
    def moments(self) -> int:
        """How many there are, 80 ms each with two strided convolutions."""
        return self.blank.shape[1]

    @classmethod
    @torch.inference_mode()
    def of(cls, speller: Speller, rows: Tensor) -> "Lattice":
        """That of rows (T, P * llm_dim) before the speller, on its device and in its dtype. It lies on the CPU."""
        scores = speller.scores(speller.in_phases(rows)).float().log_softmax(-1)  # (P, T, 1 + tokens)
        near = scores[..., 1:].topk(min(NEAR, scores.shape[-1] - 1), -1)
        heard = torch.unique(near.indices[near.values > math.log(LEAST)])
        return cls(speller.ids[heard].cpu(), scores[..., 0].cpu(), scores[..., 1 + heard].cpu())

    def pack(self) -> bytes:
        """It in a form that goes to another process."""
        return save({name: value.contiguous() for name, value in vars(self).items()})

    @classmethod
    def unpack(cls, data: bytes) -> "Lattice":
        """What `pack` has made."""
        return cls(**load(data))


class Beginning:
    """How a text begins, of the tokens of a lattice, which are named by their places in it; at first it is empty.

    Of a lattice that was heard several times, logarithms of probabilities are the mean of each time's.
    """

    def __init__(self, lattice: Lattice) -> None:
        self._scores = np.maximum(lattice.scores.numpy().astype(np.float64), NEVER)
        self._chances = np.exp(self._scores)
        self._blank = np.maximum(lattice.blank.numpy().astype(np.float64), NEVER)
        # Up to each moment: all that was said is the text so far, and the moment is a blank, or is its last token.
        self._over = self._blank.cumsum(-1)
        self._in_token = np.full_like(self._over, -np.inf)
        self._last: int | None = None

    def whole(self) -> float:
        """The logarithm of the probability that nothing follows."""
        return float(np.logaddexp(self._over[:, -1], self._in_token[:, -1]).mean())

    def longer(self) -> Scores:
        """Those (C,) that each token follows, whatever follows then."""
        likely = _summed(self._before(), self._chances)
        if self._last is not None:
            likely[:, self._last] = _summed(self._before(again=True), self._chances[..., self._last, None])[:, 0]
        return np.asarray(likely.mean(0))

    def add(self, token: int) -> None:
        """The token follows."""
        before, scores = self._before(again=token == self._last), self._scores[..., token]
        # At a moment in the token, it begins, or goes on: a recurrence that is a sum, of which the products so far are taken out.
        said = scores.cumsum(-1)
        self._in_token = said + np.logaddexp.accumulate(before - _earlier(said, 0.0), -1)
        silent = self._blank.cumsum(-1)
        self._over = silent + np.logaddexp.accumulate(_earlier(self._in_token, -np.inf) - _earlier(silent, 0.0), -1)
        self._last = token

    def _before(self, again: bool = False) -> Scores:
        """That a token may begin at each moment (P, T): the text so far is over; for its last token `again`, there was a blank, too."""
        first = 0.0 if self._last is None else -np.inf
        return _earlier(self._over if again else np.logaddexp(self._over, self._in_token), first)


def _summed(before: Scores, chances: Scores) -> Scores:
    """The logarithms (P, C) of sums over moments: of products of what was before them (P, T), and of chances (P, T, C) in them."""
    most = np.maximum(before.max(-1, keepdims=True), NEVER * before.shape[-1])  # it may be that nothing can follow
    sums = np.exp(before - most)[:, None] @ chances
    with np.errstate(divide="ignore"):
        return np.asarray(np.log(sums[:, 0]) + most)


def _earlier(values: Scores, first: float) -> Scores:
    """Those (P, T) of the moment before each; before the first, `first`."""
    return np.concatenate([np.full_like(values[:, :1], first), values[:, :-1]], -1)
