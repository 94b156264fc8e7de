"""Text to speech with any of the demo's voices, at a random rate and pitch."""

import numpy as np

from models.demo import festival, flite, pico
from models.demo.espeak import espeak
from models.demo.speech import Utterance
from models.demo.voices import Voice


def speak(text: str, voice: Voice, rng: np.random.Generator) -> Utterance:
    """Says lowercase `text` as the engine of `voice` does; how fast and how high is drawn from `rng`.

    Raises OSError or ImportError where the engine is not installed.
    """
    if voice.engine == "espeak":
        rate, pitch, pitch_range = (int(rng.integers(*bounds)) for bounds in ((130, 211), (20, 81), (20, 81)))
        return espeak().speak(text, voice, rate, pitch, pitch_range)
    if voice.engine == "flite":
        return flite.speak(text, voice, stretch=float(rng.uniform(0.85, 1.25)), pitch=float(rng.uniform(0.75, 1.35)))
    if voice.engine == "pico":
        return pico.speak(text, voice, rate=int(rng.integers(80, 121)), pitch=int(rng.integers(75, 136)))
    return festival.speak(text, voice)
