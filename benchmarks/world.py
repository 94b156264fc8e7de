"""Recordings as the world sends them: people's speech in many formats, whole, cut short and damaged."""

import random
import subprocess
from collections.abc import Callable, Iterator
from functools import cache
from itertools import product

import torch

from benchmarks.talk import speech
from service.audio.recordings import as_wav

SECONDS = (2, 5, 8)
FORMATS = {  # as ffmpeg writes them
    "wav": ("-f", "wav"),
    "flac": ("-f", "flac"),
    "mp3": ("-f", "mp3"),
    "ogg": ("-f", "ogg", "-c:a", "libopus"),
    "webm": ("-f", "webm", "-c:a", "libopus"),
    "late webm": ("-output_ts_offset", "4", "-f", "webm", "-c:a", "libopus"),
    "paused webm": ("-af", "aselect='lt(t,1)+gt(t,1.5)'", "-f", "webm", "-c:a", "libopus"),
    "mp4": ("-movflags", "frag_keyframe+empty_moov", "-f", "mp4", "-c:a", "aac"),
    "aac": ("-f", "adts", "-c:a", "aac"),
    "mpeg-ts": ("-f", "mpegts", "-c:a", "mp2"),
    "speex": ("-ar", "16000", "-ac", "1", "-f", "ogg", "-c:a", "libspeex"),
    "wma": ("-f", "asf", "-c:a", "wmav2"),
}
MOST_DAMAGES = 20  # in one recording
DAMAGE_BYTES = 32

Recordings = Callable[[int], Iterator[bytes]]


@cache
def _files() -> list[bytes]:
    """One of each format and length."""
    return [
        _written(options, seconds, seed) for seed, (options, seconds) in enumerate(product(FORMATS.values(), SECONDS))
    ]


def _written(options: tuple[str, ...], seconds: int, seed: int) -> bytes:
    said = as_wav(torch.from_numpy(speech(seconds, seed)))
    command = ["ffmpeg", "-v", "error", "-i", "-", *options, "-"]
    return subprocess.run(command, input=said, stdout=subprocess.PIPE, check=True).stdout


def whole(number: int) -> Iterator[bytes]:
    """As they were written."""
    return (random.choice(_files()) for _ in range(number))


def cut_short(number: int) -> Iterator[bytes]:
    """The first part of each."""
    return (file[: round(len(file) * random.uniform(0.1, 0.95))] for file in whole(number))


def damaged(number: int) -> Iterator[bytes]:
    """With noise in some places."""
    return map(_damage, whole(number))


def _damage(file: bytes) -> bytes:
    damaged = bytearray(file)
    for _ in range(random.randint(1, MOST_DAMAGES)):
        begin = random.randrange(len(damaged) - DAMAGE_BYTES)
        damaged[begin : begin + DAMAGE_BYTES] = random.randbytes(DAMAGE_BYTES)
    return bytes(damaged)


def noise(number: int) -> Iterator[bytes]:
    """No recordings at all."""
    return (random.randbytes(1 << 15) for _ in range(number))
