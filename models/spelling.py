"""Rows that name tokens: an adapter's rows become mixtures of the LLM's own token embeddings, one for each token that is heard.

A row is compared with what a small network makes of each token's letters, so that a token that no training had is heard by its spelling;
blanks and repetitions leave, as in connectionist temporal classification (Graves et al. 2006).
"""

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.encoder import Linear, product

LETTERS = "abcdefghijklmnopqrstuvwxyz'.,?!"
N_ALPHABET = 26  # of those
LONGEST = 16  # letters of a token
MIXED = 8  # tokens of which a row is a mixture, at most
SHARPNESS = 3.0  # the power of their shares: an LLM reads what is nearly one token better than an even mixture (models/smol/LOG.md)
PART = 4096  # spellings that are read at once
SPACES = ("Ġ", "▁")  # how byte-level and SentencePiece vocabularies write the space before a word
SPOKEN = re.compile(r"[Ġ▁]?(?:[A-Z]?[a-z']+|[A-Z]|[.,?!])|[Ġ▁]")
"""Tokens that speech is made of."""


def spoken_tokens(vocabulary: Mapping[str, int]) -> tuple[Tensor, Tensor]:
    """The ids (n,) of a vocabulary's tokens that can be spoken, in rising order, and their spelling (n, 2 + LONGEST), int64.

    Spelling: whether a space stands before, whether the first letter is a capital, and the letters from 1 on, filled up with 0.
    """
    spoken = sorted((i, token) for token, i in vocabulary.items() if SPOKEN.fullmatch(token) and len(token) <= LONGEST)
    ids = torch.tensor([i for i, _ in spoken], dtype=torch.int64)
    return ids, torch.tensor([_spelling(token) for _, token in spoken], dtype=torch.int64).view(-1, 2 + LONGEST)


def _spelling(token: str) -> list[int]:
    word = token.lstrip("Ġ▁")
    letters = [LETTERS.index(letter) + 1 for letter in word.lower()]
    return [len(word) < len(token), word[:1].isupper(), *letters, *[0] * (LONGEST - len(letters))]


class Spelling(nn.Module):
    """Spellings (n, 2 + LONGEST) to vectors (n, dim) and a bias each, by two convolutions over the letters."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        inner = dim // 2
        self.letter = nn.Embedding(1 + len(LETTERS), inner // 2, padding_idx=0)
        self.place = nn.Embedding(LONGEST, inner // 2)
        self.conv1 = nn.Conv1d(inner // 2, inner, 3, padding=1)
        self.conv2 = nn.Conv1d(inner, inner, 3, padding=1)
        self.space = nn.Embedding(2, inner)
        self.capital = nn.Embedding(2, inner)
        self.out1 = Linear(3 * inner, 2 * dim)
        self.out2 = Linear(2 * dim, dim + 1)

    def forward(self, spellings: Tensor) -> Tensor:
        """(n, 2 + LONGEST) -> (n, dim + 1)."""
        letters = spellings[:, 2:]
        real = (letters > 0)[:, None]  # (n, 1, LONGEST)
        x = (self.letter(letters) + self.place.weight).transpose(1, 2) * real
        x = F.gelu(self.conv1(x)) * real
        x = F.gelu(self.conv2(x)) * real  # (n, inner, LONGEST)
        kind = self.space(spellings[:, 0]) + self.capital(spellings[:, 1])
        y: Tensor = self.out2(self.out1(torch.cat([x.amax(-1), x.sum(-1) / 4, kind], -1), gelu=True))
        return y


class Speller(nn.Module):
    """Compares rows with the tokens of the LLM that `know` has told it of, and puts together the rows that the LLM reads."""

    ids: Tensor
    """Of the spoken tokens (n,) in the LLM's vocabulary."""
    embeddings: Tensor
    spellings: Tensor

    def __init__(self, llm_dim: int, dim: int) -> None:
        super().__init__()
        self.query = Linear(llm_dim, dim)
        self.blank = Linear(llm_dim, 1)
        self.spelling = Spelling(dim)
        self.know({}, torch.zeros(0, llm_dim))

    def know(self, vocabulary: Mapping[str, int], embeddings: Tensor) -> None:
        """Takes the tokens of an LLM by their notation, and its embeddings (vocabulary, llm_dim), which are no part of the state."""
        ids, spellings = spoken_tokens(vocabulary)
        for name, value in (("ids", ids), ("spellings", spellings), ("embeddings", embeddings[ids])):
            self.register_buffer(name, value.to(self.blank.weight.device), persistent=False)
        self._keys: tuple[Tensor, Tensor] | None = None  # as _parts has them, kept while nothing is trained

    def train(self, mode: bool = True) -> "Speller":
        """What is kept of the tokens is no longer right when the weights change."""
        self._keys = None
        return super().train(mode)

    def scores(self, rows: Tensor, tokens: Tensor | None = None) -> Tensor:
        """Rows (..., llm_dim) -> scores (..., 1 + n) of the blank and of all spoken tokens, or of those at the places `tokens`."""
        keys, bias = self._all_keys() if tokens is None else _parts(self.spelling(self.spellings[tokens]))
        return self._compare(rows, keys, bias)

    def _compare(self, rows: Tensor, keys: Tensor, bias: Tensor) -> Tensor:
        return torch.cat([self.blank(rows), product(self.query(rows), keys, bias)], -1)

    def in_phases(self, rows: Tensor) -> Tensor:
        """Rows (n, phases * llm_dim), side by side, -> (phases, n, llm_dim)."""
        return rows.view(len(rows), -1, self.blank.in_features).transpose(0, 1)

    def _all_keys(self) -> tuple[Tensor, Tensor]:
        weight = self.spelling.out2.weight
        if torch.is_grad_enabled() and weight.requires_grad:
            return _parts(self.spelling(self.spellings))
        if self._keys is None or (self._keys[0].dtype, self._keys[0].device) != (weight.dtype, weight.device):
            with torch.no_grad():
                self._keys = _parts(torch.cat([self.spelling(part) for part in torch.split(self.spellings, PART)]))
        return self._keys

    def forward(self, rows: Tensor) -> Tensor:
        """The rows (n, phases * llm_dim) of a window, 80 ms each, to those that the LLM reads (m, llm_dim), one a token, at least one.

        What is heard in one phase counts, the one whose text is likeliest in all of them.
        """
        phases, (keys, bias) = self.in_phases(rows), self._all_keys()
        heard = [_hear(self._compare(phase, keys, bias)) for phase in phases]
        best = heard[self._likeliest(phases, heard, keys, bias) if len(heard) > 1 else 0].best
        kept = without_echoes(self.spellings[best.indices[:, 0]].tolist())
        values, tokens = best.values[kept], best.indices[kept]
        shares = (SHARPNESS * values).softmax(-1)  # (m, MIXED)
        mixed: Tensor = (shares[:, None].to(rows.dtype) @ self.embeddings[tokens])[:, 0]
        return mixed

    @torch.no_grad()
    def _likeliest(self, phases: Tensor, heard: Sequence["_Heard"], keys: Tensor, bias: Tensor) -> int:
        """Which phase's text is likeliest in all phases (phases, n, llm_dim): the mean of logarithms counts."""
        tokens, places = torch.unique(torch.cat([one.best.indices[:, 0] for one in heard]), return_inverse=True)
        totals = torch.stack([one.total for one in heard])[..., None]
        near = self._compare(phases, keys[tokens], bias[tokens]).float() - totals
        texts = places.split([len(one.best.indices) for one in heard])
        return int(how_likely(near, texts).mean(1).argmax())


class _Heard(NamedTuple):
    """What one phase hears."""

    best: torch.return_types.topk
    """The likeliest tokens (m, MIXED), by their places, of the rows that begin one, and their scores."""
    total: Tensor
    """The logarithm of the sum of all scores of each row (n,)."""


def _hear(scores: Tensor) -> _Heard:
    """What is heard in scores (n, 1 + tokens)."""
    best = scores[first_of_each(scores), 1:].float().topk(min(MIXED, scores.shape[1] - 1), -1)
    return _Heard(best, scores.detach().float().logsumexp(-1))


def _parts(spelled: Tensor) -> tuple[Tensor, Tensor]:
    """What spellings have become (n, dim + 1): vectors (n, dim), scaled for products with queries and without gaps, and biases (n,)."""
    return spelled[:, :-1] * spelled.shape[1] ** -0.5, spelled[:, -1].contiguous()


def how_likely(phases: Tensor, texts: Sequence[Tensor]) -> Tensor:
    """Logarithms of probabilities (texts, phases) of texts, each of some tokens (m_i,), by connectionist temporal classification.

    `phases` (phases, n, 1 + tokens) are those of the blank and of tokens at each moment.
    """
    n_phases, length, _ = phases.shape
    targets = nn.utils.rnn.pad_sequence([1 + text for text in texts], batch_first=True)
    sizes = torch.tensor([len(text) for text in texts])
    lost = F.ctc_loss(
        phases.transpose(0, 1).repeat(1, len(texts), 1),  # (n, texts * phases, 1 + tokens)
        targets.repeat_interleave(n_phases, 0),
        torch.full((len(texts) * n_phases,), length),
        sizes.repeat_interleave(n_phases),
        reduction="none",
    )
    return -lost.view(len(texts), n_phases)


def without_echoes(spellings: Sequence[Sequence[int]]) -> list[int]:
    """The places of tokens, by their spellings, but of those that repeat the end of the one before: "impressions" and then "ions".

    A word has several spellings in tokens, and CTC may begin with one and end with another.
    """
    kept: list[int] = []
    before: list[int] = []
    for place, (space, _, *letters) in enumerate(spellings):
        word = [letter for letter in letters if letter]
        echo = not space and word and max(word) <= N_ALPHABET and before[-len(word) :] == word
        if not echo:
            kept.append(place)
            before = word
    return kept


def first_of_each(scores: Tensor) -> Tensor:
    """Where in (n, 1 + tokens) scores a token is heard first: the places (m,) of rows that are more likely a token than blank."""
    scores = scores.detach().float()
    likely = scores[:, 0] < scores[:, 1:].logsumexp(-1)
    token = torch.where(likely, scores[:, 1:].argmax(-1), -1)
    before = F.pad(token[:-1], (1, 0), value=-1)
    heard = (likely & (token != before)).nonzero()[:, 0]
    return heard if len(heard) else (scores[:, 1:].logsumexp(-1) - scores[:, 0]).argmax()[None]
