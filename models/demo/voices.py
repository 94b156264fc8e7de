"""Which voices speak in training, and which are kept out of it."""

from typing import NamedTuple


class Voice(NamedTuple):
    """A synthetic voice: the engine that makes it and its name there."""

    engine: str
    name: str


_ACCENTS = ("en-us", "en", "en-gb-scotland", "en-gb-x-gbclan", "en-gb-x-gbcwmd", "en-029")
_VARIANTS = """
    Alex Alicia Andrea Andy Annie Denis Diogo Gene Henrique Hugo Jacky Lee Marco Mario Michael Mike Nguyen adam anika antonio
    aunty benjamin boris caleb david edward f1 f2 f3 f5 grandma grandpa gustave iven iven2 iven4 john kaukovalta klatt klatt2
    klatt4 m1 m2 m3 m5 m6 m7 marcelo max miguel paul pedro rob sandro shelby steph steph3 travis
"""
_UNSEEN_ACCENTS = ("en-us-nyc", "en-gb-x-rp")
_UNSEEN_VARIANTS = "m4 f4 m8 klatt3 robert linda quincy pablo steph2 zac victor belinda Gene2 iven3 norbert ed"

SEEN: dict[str, list[Voice]] = {
    "espeak": [Voice("espeak", f"{accent}+{variant}") for accent in _ACCENTS for variant in _VARIANTS.split()],
    "flite": [Voice("flite", name) for name in ("slt", "awb", "kal16")],
    "pico": [Voice("pico", name) for name in ("en-US", "en-GB")],
}
UNSEEN: dict[str, list[Voice]] = {
    "espeak-unseen": [
        Voice("espeak", f"{accent}+{variant}") for accent in _UNSEEN_ACCENTS for variant in _UNSEEN_VARIANTS.split()
    ],
    "flite-rms": [Voice("flite", "rms")],
    "festival-ked": [Voice("festival", "ked_diphone")],
    "festival-hts": [Voice("festival", "cmu_us_slt_arctic_hts")],
}
"""Voices that no training hears: accents and variants of espeak, a speaker of flite, and the whole of festival.

The speaker of festival's HTS voice is that of flite's slt, though: new is only the engine.
"""
