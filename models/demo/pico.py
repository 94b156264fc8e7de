"""SVOX Pico through the package ttspico. It tells no word times: its utterances teach words in their order only."""

from functools import cache
from typing import Any

import numpy as np

from models.demo.speech import Utterance
from models.demo.voices import Voice
from models.features import SAMPLE_RATE


@cache
def _engine(language: str) -> Any:
    import ttspico  # compiled when it is installed, and of use for nothing but this speech: not among the project's packages

    return ttspico.TtsEngine(language)


def speak(text: str, voice: Voice, rate: int, pitch: int) -> Utterance:
    """Says `text`. Rate and pitch are in per cent of the voice's own. Raises ImportError where ttspico is not installed."""
    engine = _engine(voice.name)
    engine.rate, engine.pitch = rate, pitch
    samples = np.frombuffer(engine.speak(text), np.int16).astype(np.float32) / np.float32(32768)
    return Utterance(samples, SAMPLE_RATE, [])
