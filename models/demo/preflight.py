"""Whether every voice of the demo can speak on this machine: asked before hours of work, not behind them."""

import subprocess

import numpy as np

from models.demo.synthesis import speak
from models.demo.voices import SEEN, UNSEEN, Voice

PACKAGES = {
    "espeak": "Debian: espeak-ng",
    "flite": "Debian: flite",
    "pico": "PyPI: ttspico",
    "ked_diphone": "Debian: festvox-kdlpc16k",
    "cmu_us_slt_arctic_hts": "Debian: festvox-us-slt-hts",
}
"""Engine, or voice of festival -> the package that brings it."""


def mute_voices() -> list[str]:
    """What is missing, a line for each voice that can't speak; of espeak's, which are one program, the first of each group is tried.

    Run it in a process of its own: espeak remembers what it has said, and would say the next sentence otherwise.
    """
    groups = [*SEEN.values(), *UNSEEN.values()]
    tried = [voice for voices in groups for voice in (voices[:1] if voices[0].engine == "espeak" else voices)]
    return [f"{voice.engine} {voice.name} ({_package(voice)})" for voice in tried if not _speaks(voice)]


def _speaks(voice: Voice) -> bool:
    try:
        return len(speak("one", voice, np.random.default_rng(0)).samples) > 0
    except (OSError, ImportError, ValueError, subprocess.CalledProcessError):
        return False


def _package(voice: Voice) -> str:
    return PACKAGES[voice.name if voice.engine == "festival" else voice.engine]
