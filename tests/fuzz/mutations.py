"""Small files of every format, and what can be done to them. Everything follows from a seed."""

import random
import struct
from collections.abc import Callable, Sequence

from tests.service.test_audio import SEEDS, encode, lossy, tones, video
from tests.service.test_refusals import silent_opus

EXTREMES = (
    0,
    1,
    0x7F,
    0x80,
    0xFF,
    0x7FFF,
    0xFFFF,
    0x10000,
    0x7FFFFFFF,
    0x80000000,
    0xFFFFFFFE,
    0xFFFFFFFF,
    2**63 - 1,
    2**64 - 1,
)


def seeds() -> dict[str, bytes]:
    """A short file of every container, with every codec that it may hold here."""
    lossless = {
        f"{container}-{codec}": encode(tones(48000, 0.2), 48000, container, codec)
        for container, codec in (
            ("ogg", "flac"),
            ("aiff", "pcm_s24be"),
            ("mov", "pcm_s24le"),
            ("matroska", "pcm_f32le"),
            ("matroska", "flac"),
            ("au", "pcm_s16be"),
            ("w64", "pcm_s16le"),
            ("wv", "wavpack"),
            ("wav", "pcm_alaw"),
            ("wav", "adpcm_ima_wav"),
            ("avi", "pcm_s16le"),
            ("asf", "pcm_s16le"),
            ("ac3", "ac3"),
            ("eac3", "eac3"),
        )
    }
    lossy_files = {
        name: lossy(name, 44100 if name == "flv" else 48000, 1, 0.5)
        for name in ("mp3-no-xing", "m4a-faststart", "flv", "mpegts", "webm-live")
    }
    two = encode(tones(48000, 0.2), 48000, "ogg", "libopus") + encode(tones(44100, 0.2, 2), 44100, "ogg", "flac")
    return SEEDS | lossless | lossy_files | {"video": video(True), "chained": two, "silence": silent_opus(20)}


def mutate(data: bytes, random: random.Random, others: Sequence[bytes]) -> bytes:
    """Does one to five things to a file; most of them near its start, where headers are."""
    clip = bytearray(data)
    for _ in range(random.randint(1, 5)):
        if not clip:
            break
        random.choice(MUTATIONS)(clip, random, others)
    return bytes(clip)


def _place(clip: bytearray, random: random.Random) -> int:
    return random.randrange(min(len(clip), random.choice((16, 64, 256, 1024, len(clip)))))


def _flip(clip: bytearray, random: random.Random, _: Sequence[bytes]) -> None:
    clip[_place(clip, random)] ^= 1 << random.randrange(8)


def _byte(clip: bytearray, random: random.Random, _: Sequence[bytes]) -> None:
    clip[_place(clip, random)] = random.randrange(256)


def _number(clip: bytearray, random: random.Random, _: Sequence[bytes]) -> None:
    """Writes an extreme number where a length, a rate or a count may be."""
    width, form = random.choice(((2, "H"), (4, "I"), (8, "Q")))
    place = _place(clip, random)
    number = random.choice(EXTREMES) & (2 ** (8 * width) - 1)
    clip[place : place + width] = struct.pack(random.choice("<>") + form, number)


def _cut(clip: bytearray, random: random.Random, _: Sequence[bytes]) -> None:
    del clip[_place(clip, random) :]


def _remove(clip: bytearray, random: random.Random, _: Sequence[bytes]) -> None:
    place = _place(clip, random)
    del clip[place : place + random.choice((1, 4, 100, 5000))]


def _repeat(clip: bytearray, random: random.Random, _: Sequence[bytes]) -> None:
    place = _place(clip, random)
    clip[place:place] = clip[place : place + random.choice((1, 8, 200, 4000))] * random.choice((1, 2, 20))


def _noise(clip: bytearray, random: random.Random, _: Sequence[bytes]) -> None:
    place = _place(clip, random)
    clip[place : place + random.choice((4, 50, 2000))] = random.randbytes(random.choice((4, 50, 2000)))


def _splice(clip: bytearray, random: random.Random, others: Sequence[bytes]) -> None:
    """Goes on with a piece of another file."""
    other = random.choice(others)
    clip[_place(clip, random) :] = other[random.randrange(len(other)) :]


MUTATIONS: list[Callable[[bytearray, random.Random, Sequence[bytes]], None]] = [
    _flip,
    _byte,
    _number,
    _number,
    _cut,
    _remove,
    _repeat,
    _noise,
    _splice,
]
