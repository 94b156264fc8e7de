from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.audio.raw import Coding, RawDecoder, encode
from tests.sounds import voice

WIRES: list[tuple[Coding, int]] = [("pcm_s16le", 24000), ("pcm_s16le", 16000), ("pcm_mulaw", 8000), ("pcm_alaw", 8000)]


@pytest.mark.parametrize(("coding", "rate"), WIRES)
def test_what_was_encoded_is_decoded(coding: Coding, rate: int) -> None:
    t = np.arange(16000) / 16000
    sound = (0.3 * np.sin(2 * np.pi * 440 * t)).astype(np.float32)
    decoded = RawDecoder(coding, rate).decode(encode(sound, coding, rate))
    assert len(sound) - 40 <= len(decoded) <= len(sound)  # what the resampler keeps back
    error = np.abs(decoded[200:-200] - sound[200 : len(decoded) - 200]).max()
    assert error < (0.002 if coding == "pcm_s16le" else 0.03)


@pytest.mark.parametrize(("coding", "rate"), WIRES)
@given(cuts=st.lists(st.integers(0, 4000), max_size=8))
def test_pieces_of_any_size_give_what_the_whole_gives(coding: Coding, rate: int, cuts: list[int]) -> None:
    """Also those that cut a sample in two."""
    data = encode(voice(0.2), coding, rate)
    places = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    decoder = RawDecoder(coding, rate)
    pieces = [decoder.decode(data[begin:end]) for begin, end in pairwise(places)]
    np.testing.assert_allclose(np.concatenate(pieces), RawDecoder(coding, rate).decode(data), atol=1e-6)


def test_samples_of_16_khz_are_what_they_were() -> None:
    sound = voice(0.5)
    decoded = RawDecoder("pcm_s16le", 16000).decode(encode(sound, "pcm_s16le", 16000))
    np.testing.assert_allclose(decoded, sound, atol=1 / 32768)


def test_what_is_too_loud_is_clipped() -> None:
    assert encode(np.array([2.0, -2.0], np.float32), "pcm_s16le", 16000) == b"\xff\x7f\x00\x80"
    assert encode(np.empty(0, np.float32), "pcm_s16le", 24000) == b""
