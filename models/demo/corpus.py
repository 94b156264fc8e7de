"""The speech that the encoder and the adapter are trained on: utterances as features with a label for every 20 ms, in shards on disk."""

import random
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from models.demo import flite
from models.demo.augment import draw_channel, transmit
from models.demo.speech import Utterance, WordSpan
from models.demo.synthesis import speak
from models.demo.voices import SEEN, Voice
from models.demo.world import digits, is_test, sample, spoken_words
from models.encoder import encoder_length
from models.features import log_mel

SHARD_SIZE = 2000
IGNORED = -100  # a label that teaches nothing
STATE_SECONDS = 0.02  # one encoder state
_ENGINE_SHARES = {"espeak": 0.6, "flite": 0.24, "pico": 0.16}
_SENTENCE_SHARE, _WORD_SHARE = 0.66, 0.08  # the rest: random words in a row
_DIGIT_SHARE = 0.2  # of random words
_VOWELS = set("aeiou")


class Shard(NamedTuple):
    """Utterances, one after the other."""

    features: NDArray[np.float16]
    """(frames, n_mels), 10 ms each."""
    words: NDArray[np.int16]
    """(states,), 20 ms each: 0 between words, else 1 + index in `spoken_words()`; `IGNORED` where the engine tells no word times."""
    phones: NDArray[np.int16]
    """(states,): 0 between words, else 1 + index in `phone_set()`; `IGNORED` as above."""
    frames: NDArray[np.int64]
    """(utterances,) how many frames each utterance has."""
    texts: list[str]
    sentences: NDArray[np.bool_]
    """(utterances,) whether it is a sentence of the world."""

    def save(self, file: Path) -> None:
        """Writes the shard, whole or not at all."""
        part = file.with_suffix(".part.npz")
        np.savez(part, **{**self._asdict(), "texts": np.array("\n".join(self.texts))})
        part.rename(file)

    @classmethod
    def load(cls, file: Path) -> "Shard":
        """Reads a shard."""
        with np.load(file) as arrays:
            fields = {name: arrays[name] for name in cls._fields}
        return cls(**{**fields, "texts": str(fields["texts"]).split("\n")})


@cache
def phone_set() -> tuple[str, ...]:
    """The phones of all spoken words, sorted."""
    return tuple(sorted({phone for word in spoken_words() for phone in _pronunciation(word)}))


@cache
def _pronunciation(word: str) -> tuple[str, ...]:
    return tuple(flite.pronounce(word))


def draw_text(rng: random.Random) -> tuple[str, bool]:
    """What to say next, and whether it is a sentence of the world: most are, the rest are random words. Never a test sentence."""
    kind = rng.random()
    while True:
        if kind < _SENTENCE_SHARE:
            text = sample(rng).text
        else:
            count = 1 if kind < _SENTENCE_SHARE + _WORD_SHARE else rng.randint(2, 8)
            text = " ".join(_random_word(rng) for _ in range(count))
        if not is_test(text):
            return text, kind < _SENTENCE_SHARE


def _random_word(rng: random.Random) -> str:
    return rng.choice(digits() if rng.random() < _DIGIT_SHARE else spoken_words())


def draw_voice(rng: random.Random) -> Voice:
    """A voice that training may hear."""
    engine = rng.choices(list(_ENGINE_SHARES), list(_ENGINE_SHARES.values()))[0]
    return rng.choice(SEEN[engine])


def synthesise_shard(seed: int) -> Shard:
    """A shard of utterances in seen voices through random channels."""
    rng, numbers = random.Random(seed), np.random.default_rng(seed)
    texts = [draw_text(rng) for _ in range(SHARD_SIZE)]
    utterances = [transmit(speak(text, draw_voice(rng), numbers), draw_channel(numbers), numbers) for text, _ in texts]
    features = [log_mel(torch.from_numpy(u.samples)).T.half().numpy() for u in utterances]
    labels = [_labels(u, encoder_length(len(f))) for u, f in zip(utterances, features, strict=True)]
    return Shard(
        np.concatenate(features),
        np.concatenate([words for words, _ in labels]),
        np.concatenate([phones for _, phones in labels]),
        np.array([len(f) for f in features]),
        [text for text, _ in texts],
        np.array([sentence for _, sentence in texts]),
    )


def _labels(utterance: Utterance, states: int) -> tuple[NDArray[np.int16], NDArray[np.int16]]:
    """The word and the phone at every state of an utterance."""
    words, phones = (np.full(states, 0 if utterance.words else IGNORED, np.int16) for _ in range(2))
    for span in utterance.words:
        begin, end = (round(seconds / STATE_SECONDS) for seconds in (span.begin, span.end))
        words[begin:end] = 1 + spoken_words().index(span.word)
        for phone, start, stop in _phone_spans(span):
            phones[round(start / STATE_SECONDS) : round(stop / STATE_SECONDS)] = 1 + phone_set().index(phone)
    return words, phones


def _phone_spans(span: WordSpan) -> Iterator[tuple[str, float, float]]:
    """A word's phones, its time shared among them: a vowel lasts half as long again as a consonant. The same for every engine."""
    phones = _pronunciation(span.word)
    weights = [1.5 if phone[0] in _VOWELS else 1.0 for phone in phones]
    begin = span.begin
    for phone, weight in zip(phones, weights, strict=True):
        end = begin + (span.end - span.begin) * weight / sum(weights)
        yield phone, begin, end
        begin = end


def build_shard(folder: Path, seed: int, number: int) -> None:
    """Writes a numbered shard where it is missing. Its samples depend on nothing else only in a process that has not spoken before."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (file := folder / f"{number:03}.npz").exists():
        synthesise_shard(seed * 1000 + number).save(file)
