"""Small files that would become large, and headers that lie: refused at the limit, within the decoder's time and memory."""

import io
import random
import struct
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.audio.decoders import Decoders
from service.errors import AudioTooLong, InvalidAudio, NotAudio
from tests.fuzz.mutations import mutate, seeds
from tests.service.test_audio import encode, lossy, tones, wav
from tests.service.test_refusals import silent_opus

LIMIT = 60.0
FILES = seeds()


@pytest.fixture(scope="module")
def decoders() -> Iterator[Decoders]:
    decoders = Decoders(max_seconds=LIMIT, seconds=10, memory_bytes=128 << 20)
    yield decoders
    decoders.close()


def listen(decoders: Decoders, data: bytes) -> float:
    """Seconds that come out."""
    return sum(map(len, decoders.decode(io.BytesIO(data)))) / 16_000


def died(decoders: Decoders, data: bytes, longest: float = LIMIT) -> bool:
    """Decodes or refuses a file; whether its decoder died of it."""
    seconds = 0.0
    try:
        for chunk in decoders.decode(io.BytesIO(data)):
            seconds += len(chunk) / 16_000
            if not np.isfinite(chunk).all() or seconds > longest:
                return True
    except (InvalidAudio, NotAudio, AudioTooLong) as error:
        return "decoder" in error.message
    return False


def silent_flac(seconds: int) -> bytes:
    """Silence at 48 kHz whose header doesn't say how long it is."""
    data = bytearray(encode(np.zeros((48_000 * seconds, 1)), 48_000, "flac", "flac"))
    assert data[:4] == b"fLaC"
    data[21] &= 0xF0  # the 36 bits of STREAMINFO's number of samples
    data[22:26] = bytes(4)
    return bytes(data)


def test_hours_of_opus(decoders: Decoders) -> None:
    bomb = silent_opus(10 * 3600)
    assert len(bomb) < 2_000_000
    heard: list[np.ndarray] = []
    with pytest.raises(AudioTooLong, match="limit of 60 s"):
        heard.extend(decoders.decode(io.BytesIO(bomb)))
    assert sum(map(len, heard)) <= LIMIT * 16_000


@pytest.mark.parametrize("declared", [True, False])
def test_minutes_of_flac(decoders: Decoders, declared: bool) -> None:
    bomb = encode(np.zeros((48_000 * 300, 1)), 48_000, "flac", "flac") if declared else silent_flac(300)
    assert len(bomb) < 300_000
    with pytest.raises(AudioTooLong):
        listen(decoders, bomb)


def test_few_samples_that_would_become_many(decoders: Decoders) -> None:
    """One byte is 16 samples at the lowest rate."""
    assert listen(decoders, wav(np.zeros((60_000, 1)), 1000, "u1")) == LIMIT
    with pytest.raises(AudioTooLong):
        listen(decoders, wav(np.zeros((60_001, 1)), 1000, "u1", size=0))


@pytest.mark.parametrize("rate", [0, 1, 999, 768_001, 2**31 - 1, 2**32 - 1])
@pytest.mark.parametrize("dtype", ["u1", "i2", "f8"])
def test_forged_rates_of_wav(decoders: Decoders, rate: int, dtype: str) -> None:
    with pytest.raises(InvalidAudio):
        listen(decoders, wav(tones(16_000, 0.2), rate, dtype))


@pytest.mark.parametrize("channels", [0, 65, 255, 65_535])
def test_forged_channels_of_wav(decoders: Decoders, channels: int) -> None:
    with pytest.raises(InvalidAudio):
        listen(decoders, wav(tones(16_000, 0.2), 16_000, "i2", channels=channels))


def forged(data: bytes, mark: bytes, offset: int, value: bytes) -> bytes:
    """The file with other bytes at a distance from a mark in it."""
    place = data.index(mark) + offset
    return data[:place] + value + data[place + len(value) :]


FORGED = {
    "flac, 655350 Hz in 8 channels": forged(FILES["flac"], b"fLaC", 18, b"\x9f\xff\x6e"),
    "flac, no rate": forged(FILES["flac"], b"fLaC", 18, b"\x00\x00\x00"),
    "opus, 255 channels": forged(FILES["ogg-opus"], b"OpusHead", 9, b"\xff"),
    "opus, no channels": forged(FILES["ogg-opus"], b"OpusHead", 9, b"\x00"),
    "mp4, 65535 channels": forged(FILES["m4a"], b"mp4a", 20, b"\xff\xff"),
    "mp4, 4 GHz": forged(FILES["m4a"], b"mp4a", 28, b"\xff\xff\xff\xff"),
    "mp4, a table of 4 billion sizes": forged(FILES["m4a"], b"stsz", 12, b"\xff\xff\xff\xff"),
    "mp4, a table of 4 billion times": forged(FILES["m4a"], b"stts", 8, b"\xff\xff\xff\xff"),
    "caf, infinite rate": forged(FILES["caf"], b"desc", 12, struct.pack(">d", float("inf"))),
    "caf, 4 billion channels": forged(FILES["caf"], b"desc", 36, b"\xff\xff\xff\xff"),
    "aiff, 65535 channels": forged(FILES["aiff-pcm_s24be"], b"COMM", 8, b"\xff\xff"),
    "au, 4 billion channels": forged(FILES["au-pcm_s16be"], b".snd", 20, b"\xff\xff\xff\xff"),
    "au, 4 GHz": forged(FILES["au-pcm_s16be"], b".snd", 16, b"\xff\xff\xff\xff"),
}


@pytest.mark.parametrize("data", FORGED.values(), ids=FORGED.keys())
def test_forged_headers(decoders: Decoders, data: bytes) -> None:
    assert not died(decoders, data, longest=1.0)


def test_a_file_among_bombs(decoders: Decoders) -> None:
    assert listen(decoders, lossy("mp3")) == pytest.approx(2.0, abs=0.1)


@settings(max_examples=60, deadline=None)
@given(name=st.sampled_from(sorted(FILES)), seed=st.integers(0, 2**32))
def test_mutated_files_are_decoded_or_refused(decoders: Decoders, name: str, seed: int) -> None:
    """What `make fuzz` does twenty thousand times."""
    data = mutate(FILES[name], random.Random(seed), list(FILES.values()))
    assert not died(decoders, data), "keep this file"
