"""Batches from the shards: utterances of like length together, in an order that depends on the seed and the step alone."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.demo.corpus import IGNORED, Shard
from models.demo.mel_augment import N_MELS
from models.encoder import encoder_length


@dataclass(frozen=True)
class Batch:
    """Utterances of one training step."""

    features: Tensor
    """float32 (batch, n_mels, T), zeros behind the real frames."""
    frames: Tensor
    """(batch,) real frames."""
    words: Tensor
    """(batch, states), `IGNORED` behind the real states."""
    phones: Tensor
    texts: list[str]


class Utterances:
    """All shards of a folder, in memory."""

    def __init__(self, shards: list[Shard]) -> None:
        self.shards = shards
        self.frames = np.concatenate([shard.frames for shard in shards])
        self.place = [(shard, i) for shard in shards for i in range(len(shard.frames))]
        self._frame_starts = {id(shard): _starts(shard.frames) for shard in shards}
        self._state_starts = {id(shard): _starts(encoder_lengths(shard.frames)) for shard in shards}

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Reads every shard in `folder`, in the order of their numbers."""
        return cls([Shard.load(file) for file in sorted(folder.glob("[0-9]*.npz"))])

    def text(self, index: int) -> str:
        """What is said."""
        shard, i = self.place[index]
        return shard.texts[i]

    def is_sentence(self, index: int) -> bool:
        """Whether what is said is a sentence of the world."""
        shard, i = self.place[index]
        return bool(shard.sentences[i])

    def batch(self, indices: NDArray[np.int64], width: int) -> Batch:
        """The utterances at `indices`, padded to `width` frames."""
        states = encoder_length(width)
        features = torch.zeros(len(indices), width, N_MELS)
        words, phones = (torch.full((len(indices), states), IGNORED) for _ in range(2))
        for row, index in enumerate(indices):
            some_features, some_words, some_phones = self._arrays(int(index))
            features[row, : len(some_features)] = torch.from_numpy(some_features)
            words[row, : len(some_words)] = torch.from_numpy(some_words)
            phones[row, : len(some_phones)] = torch.from_numpy(some_phones)
        texts = [self.text(int(index)) for index in indices]
        return Batch(features.transpose(1, 2), torch.from_numpy(self.frames[indices]), words, phones, texts)

    def _arrays(self, index: int) -> tuple[NDArray[np.float16], NDArray[np.int16], NDArray[np.int16]]:
        """Features (frames, n_mels), words (states,) and phones (states,) of one utterance."""
        shard, i = self.place[index]
        frames, states = (slice(*s[id(shard)][i : i + 2]) for s in (self._frame_starts, self._state_starts))
        return shard.features[frames], shard.words[states], shard.phones[states]


def encoder_lengths(frames: NDArray[np.int64]) -> NDArray[np.int64]:
    """Encoder states of each of many utterances."""
    return np.array([encoder_length(int(n)) for n in frames])


def batches(
    lengths: NDArray[np.int64], budget: int, multiple: int, seed: int, first: int = 0
) -> Iterator[tuple[NDArray[np.int64], int]]:
    """Endless batches of indices, each with the width to pad it to, from batch number `first` on.

    A width is a multiple of `multiple`, and a batch of it fills `budget` whole: so there are few shapes in all, and none is
    ever new for long (oneDNN compiles its kernels for each).
    """
    rng = np.random.default_rng(seed)
    number = 0
    while True:
        for batch in _epoch(lengths, budget, multiple, rng):
            if number >= first:
                yield batch
            number += 1


def _epoch(
    lengths: NDArray[np.int64], budget: int, multiple: int, rng: np.random.Generator
) -> list[tuple[NDArray[np.int64], int]]:
    """Every utterance once, in shuffled batches, but for those of a width that do not fill one."""
    order = rng.permutation(len(lengths))
    widths = -(-lengths[order] // multiple) * multiple
    result: list[tuple[NDArray[np.int64], int]] = []
    for width in np.unique(widths).tolist():
        members, size = order[widths == width], max(1, budget // width)
        result += [(members[i : i + size], width) for i in range(0, len(members) - size + 1, size)]
    return [result[i] for i in rng.permutation(len(result))]


def _starts(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum(lengths)])
