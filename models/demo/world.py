"""The world of the demo: sentences with their meaning, in three languages, and the split into training and test sentences."""

import hashlib
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

from models.demo.families import FAMILIES, TEMPLATE_THOUGHTS, Family
from models.demo.grammar import GermanNoun, SpanishNoun
from models.demo.lexicon import SLOTS

TEST_SHARE = 20  # one sentence in twenty is kept for tests
POLITE_SHARE = 0.2
_SLOT = re.compile(r"{(\w+?)\d?[:}]")
_FIELD = re.compile(r"{(\w+)}")


@dataclass(frozen=True)
class Entry:
    """What a slot can hold."""

    english: str
    german: str | GermanNoun
    spanish: str | SpanishNoun
    thought: str


@dataclass(frozen=True)
class Sentence:
    """Something that can be said, and all that the language model is to know of it."""

    text: str
    german: str
    spanish: str
    intent: str
    slots: tuple[tuple[str, str], ...]
    """Slot name without number, and the English words in it, in the order of the sentence."""
    chunks: tuple[str, ...]
    """The sentence in pieces that keep their meaning when reordered."""


@cache
def entries(slot: str) -> tuple[Entry, ...]:
    """All entries of a slot of the lexicon."""
    return tuple(_entry(*line.strip().split("|")) for line in SLOTS[slot].strip().splitlines())


def _entry(english: str, german: str, spanish: str, thought: str) -> Entry:
    return Entry(
        english,
        GermanNoun(*german.split(":")) if ":" in german else german,
        SpanishNoun(*spanish.split(":")) if ":" in spanish else spanish,
        thought,
    )


def sample(rng: random.Random, family: Family | None = None) -> Sentence:
    """A sentence, of any family unless one is given."""
    family = family or rng.choice(FAMILIES)
    fills: dict[str, Entry] = {}
    for name in _FIELD.findall(family.english):
        fills[name] = _digit_run(rng) if name == "digits" else _other(rng, name.rstrip("2"), fills)
    return compose(family, fills, polite=family.polite and rng.random() < POLITE_SHARE)


def compose(family: Family, fills: dict[str, Entry], polite: bool = False) -> Sentence:
    """The sentence of a family with its slots filled."""
    english = family.english.format(**{name: entry.english for name, entry in fills.items()})
    german = family.german.format(**{name: entry.german for name, entry in fills.items()})
    spanish = family.spanish.format(**{name: entry.spanish for name, entry in fills.items()})
    chunks = tuple(english.split("|"))
    if polite:
        chunks, german, spanish = ("please", *chunks), f"bitte {german}", f"por favor {spanish}"
    slots = tuple((name.rstrip("2"), entry.english) for name, entry in fills.items())
    return Sentence(" ".join(chunks), german, spanish, family.intent, slots, chunks)


def _other(rng: random.Random, slot: str, fills: dict[str, Entry]) -> Entry:
    """An entry of the slot that the sentence does not hold yet."""
    return rng.choice([entry for entry in entries(slot) if entry not in fills.values()])


def _digit_run(rng: random.Random) -> Entry:
    """One to five digits, neighbours different."""
    run: list[Entry] = []
    for _ in range(rng.randint(1, 5)):
        run.append(rng.choice([entry for entry in entries("digit") if run[-1:] != [entry]]))
    german, spanish = (" ".join(str(getattr(digit, language)) for digit in run) for language in ("german", "spanish"))
    return Entry(" ".join(digit.english for digit in run), german, spanish, "")


def is_test(text: str) -> bool:
    """Whether a sentence is kept out of all training. Single words never are: they are the alphabet of the world."""
    return " " in text and int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) % TEST_SHARE == 0


def sentences(seed: int, count: int, test: bool = False) -> Iterator[Sentence]:
    """`count` different sentences of the training or the test side of the split."""
    rng, seen = random.Random(seed), set[str]()
    while len(seen) < count:
        sentence = sample(rng)
        if sentence.text not in seen and is_test(sentence.text) == test:
            seen.add(sentence.text)
            yield sentence


def digits() -> tuple[str, ...]:
    """The ten digits in English, in order."""
    return tuple(entry.english for entry in entries("digit"))


@cache
def spoken_words() -> tuple[str, ...]:
    """Every word that a sentence can hold, sorted."""
    words = {word for family in FAMILIES for word in _FIELD.sub(" ", family.english).replace("|", " ").split()}
    words |= {word for slot in SLOTS for entry in entries(slot) for word in entry.english.split()}
    return tuple(sorted(words | {"please"}))


@cache
def thoughts() -> dict[str, str]:
    """What each content word makes one think of; the last word of a phrase stands for the phrase."""
    of_slots = {entry.english: entry.thought for slot in SLOTS for entry in entries(slot)}
    return of_slots | TEMPLATE_THOUGHTS
