"""The voices: who speaks in training, who only in the development set, who only in the tests; and the synthesisers, called in this process.

Both libraries keep some state from one utterance to the next, so the same bytes come again only in a new process that says the same things.
"""

import ctypes
import random
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

from models.smol.rooms import Sound

Split = Literal["train", "natural", "dev", "natural-dev", "test"]
"""Of what is spoken; "natural" is more for training, and "natural-dev" for development, by natural voices."""

Program = Literal["flite", "espeak-ng", "piper", "hibari", "kokoro"]

FLITE = {
    "cmu_us_slt": (13, 120, 215),
    "cmu_us_rms": (13, 80, 150),
    "cmu_us_awb": (13, 95, 175),
    "cmu_us_kal16": (6, 80, 150),
}
"""Shares of all that is trained on, in percent, and the least and greatest pitch in Hz."""
ACCENTS = "en-US en-US en-US en-US-nyc en en en-GB-x-rp en-GB-x-gbclan en-GB-x-gbcwmd en-029"
VARIANTS = """m1 m2 m3 m4 m6 m7 f1 f2 f3 f5 adam Annie belinda benjamin boris david edward Denis grandma grandpa Jacky
john max michael mike miguel rob steph victor anika klatt2 sandro travis"""
NATURAL: dict[tuple[Program, str], tuple[float, float, float]] = {
    ("piper", "joe"): (1, 0.9, 1.35),
    ("hibari", "American"): (2, 0.75, 1.1),
    ("hibari", "British"): (1, 0.75, 1.1),
}
"""Shares of what natural voices say for training, and the least and greatest pitch, of the voice's own."""
NATURAL_DEV = "af_bella af_nova am_adam am_michael bf_emma bm_george"
HELD_OUT = {"dev": ("en-US", "m5 f4 Alicia"), "test": ("en-GB-scotland", "m8 linda Marcelo")}


@dataclass(frozen=True)
class Voice:
    """A synthesiser's voice with its manner."""

    program: Program
    name: str
    pace: float
    """How long sounds are, of 1; espeak-ng: words a minute."""
    pitch: float = 0
    """flite: Hz; espeak-ng: 0 to 100; piper, hibari: of the voice's own; kokoro: its own."""
    gap: int = 0
    """espeak-ng's silence between words, in 10 ms."""


def draw(rng: random.Random, split: Split) -> Voice:
    """A voice of the split: training has flite's four of 16 kHz and espeak-ng's many, the others have voices that no other has."""
    if split == "natural":
        who = rng.choices(list(NATURAL), weights=[share for share, _, _ in NATURAL.values()])[0]
        return Voice(*who, rng.uniform(0.8, 1.3), rng.uniform(*NATURAL[who][1:]))
    if split == "natural-dev":
        return Voice("kokoro", rng.choice(NATURAL_DEV.split()), rng.uniform(0.8, 1.3))
    if split == "train" and rng.random() < sum(share for share, _, _ in FLITE.values()) / 100:
        name = rng.choices(list(FLITE), weights=[share for share, _, _ in FLITE.values()])[0]
        return Voice("flite", name, rng.uniform(0.8, 1.3), rng.uniform(*FLITE[name][1:]))
    if split == "dev" and rng.random() < 0.25:
        return Voice("flite", "cmu_us_kal", rng.uniform(0.8, 1.3), rng.uniform(80, 150))
    accents, variants = (ACCENTS, VARIANTS) if split == "train" else HELD_OUT[split]
    name = f"gmw/{rng.choice(accents.split())}+{rng.choice(variants.split())}"
    gap = rng.randint(1, 5) if rng.random() < 0.15 else 0
    return Voice("espeak-ng", name, rng.randint(120, 210), rng.randint(20, 80), gap)


class Synthesiser(Protocol):
    """What speaks."""

    def speak(self, voice: Voice, text: str) -> tuple[Sound, int]:
        """Samples (n,) between -1 and 1, and their rate. Raises ValueError for a voice that it lacks."""


def _heard(data: "ctypes._Pointer[ctypes.c_short]", n: int) -> Sound:
    return np.ctypeslib.as_array(data, (n,)).astype(np.float32) / np.float32(32768)


class _Wave(ctypes.Structure):
    _fields_ = (
        ("type", ctypes.c_char_p),
        ("rate", ctypes.c_int),
        ("samples", ctypes.c_int),
        ("channels", ctypes.c_int),
        ("data", ctypes.POINTER(ctypes.c_short)),
    )


class _FliteVoice(ctypes.Structure):
    _fields_ = (("name", ctypes.c_char_p), ("features", ctypes.c_void_p))


class Flite:
    """libflite and its voices (2.2). Raises OSError where they can't be found."""

    def __init__(self) -> None:
        names = ("flite", "flite_usenglish", "flite_cmulex")
        self._library, *_ = (ctypes.CDLL(f"lib{name}.so.1", mode=ctypes.RTLD_GLOBAL) for name in names)
        self._library.flite_text_to_wave.restype = ctypes.POINTER(_Wave)
        self._library.delete_wave.argtypes = [ctypes.POINTER(_Wave)]
        self._library.feat_set_float.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_float]
        self._library.flite_init()
        self._voices = {name: self._loaded(name) for name in (*FLITE, "cmu_us_kal")}

    @staticmethod
    def _loaded(name: str) -> "ctypes._Pointer[_FliteVoice]":
        register = getattr(ctypes.CDLL(f"libflite_{name}.so.1"), f"register_{name}")
        register.restype = ctypes.POINTER(_FliteVoice)
        voice: ctypes._Pointer[_FliteVoice] = register(None)
        return voice

    def speak(self, voice: Voice, text: str) -> tuple[Sound, int]:
        """See Synthesiser."""
        speaker = self._voices[voice.name]
        for feature, value in ((b"duration_stretch", voice.pace), (b"int_f0_target_mean", voice.pitch)):
            self._library.feat_set_float(speaker.contents.features, feature, value)
        wave = self._library.flite_text_to_wave(text.encode(), speaker)
        samples = _heard(wave.contents.data, wave.contents.samples)
        rate: int = wave.contents.rate
        self._library.delete_wave(wave)
        return samples, rate


class Espeak:
    """libespeak-ng (1.51) with its data, which ESPEAK_DATA_PATH can name. Raises OSError where they can't be found."""

    _SYNCHRONOUS, _CHARACTERS, _UTF8, _PACE, _VOLUME, _PITCH, _GAP = 2, 1, 1, 1, 2, 3, 7

    def __init__(self) -> None:
        self._library = ctypes.CDLL("libespeak-ng.so.1")
        self._rate: int = self._library.espeak_Initialize(
            self._SYNCHRONOUS, 0, None, 1 << 15
        )  # errors don't end the process
        if self._rate <= 0:
            raise OSError("espeak-ng lacks its data")
        self._pieces: list[Sound] = []
        kind = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)
        self._callback = kind(self._hear)  # kept, or it is collected
        self._library.espeak_SetSynthCallback(self._callback)

    def _hear(self, data: "ctypes._Pointer[ctypes.c_short]", n: int, _events: int) -> int:
        if data and n > 0:
            self._pieces.append(_heard(data, n))
        return 0

    def speak(self, voice: Voice, text: str) -> tuple[Sound, int]:
        """See Synthesiser."""
        if self._library.espeak_SetVoiceByName(voice.name.encode()):
            raise ValueError(f"espeak-ng lacks the voice {voice.name}")
        settings = (
            (self._PACE, int(voice.pace)),
            (self._PITCH, int(voice.pitch)),
            (self._GAP, voice.gap),
            (self._VOLUME, 60),
        )
        for parameter, value in settings:
            self._library.espeak_SetParameter(parameter, value, 0)
        self._pieces.clear()
        data = text.encode()
        size = ctypes.c_size_t(len(data) + 1)
        self._library.espeak_Synth(data, size, 0, self._CHARACTERS, 0, self._UTF8, None, None)
        return (np.concatenate(self._pieces) if self._pieces else np.zeros(0, np.float32)), self._rate
