import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.features import N_SAMPLES, SAMPLE_RATE
from service.answers.segments import PAUSE, quietest_cut, srt, vtt
from service.answers.transcription import Piece


@pytest.mark.parametrize("pause", [N_SAMPLES // 2 + 5000, N_SAMPLES - 20_000, 400_000])
def test_the_cut_is_in_the_middle_of_the_pause(pause: int) -> None:
    samples = np.random.default_rng(0).normal(0, 0.1, N_SAMPLES).astype(np.float32)
    samples[pause : pause + PAUSE] = 0
    assert quietest_cut(samples) == pytest.approx(pause + PAUSE // 2, abs=2)


def test_a_pause_in_the_first_half_does_not_count() -> None:
    samples = np.ones(N_SAMPLES, np.float32)
    samples[1000:9000] = 0
    assert N_SAMPLES // 2 < quietest_cut(samples) <= N_SAMPLES


@given(st.integers(0, 2**32 - 1))
def test_the_cut_is_always_in_the_second_half(seed: int) -> None:
    samples = np.random.default_rng(seed).normal(size=SAMPLE_RATE).astype(np.float32)
    assert len(samples) // 2 < quietest_cut(samples) < len(samples)


PIECES = [Piece(0, 0.0, 61.2345, "Hello"), Piece(1, 61.2345, 62.0, " "), Piece(2, 62.0, 3725.5, "a\n\n--> b")]


def test_subrip() -> None:
    assert srt(PIECES) == ("1\n00:00:00,000 --> 00:01:01,234\nHello\n\n2\n00:01:02,000 --> 01:02:05,500\na → b\n")


def test_webvtt() -> None:
    assert vtt(PIECES) == ("WEBVTT\n\n00:00:00.000 --> 00:01:01.234\nHello\n\n00:01:02.000 --> 01:02:05.500\na → b\n")


def test_subtitles_of_a_track_that_begins_late() -> None:
    pieces = [Piece(0, 0.0, 1.5, "Hello.")]
    assert srt(pieces, 4.25).splitlines()[1] == "00:00:04,250 --> 00:00:05,750"
    assert vtt(pieces, 3600.0).splitlines()[2] == "01:00:00.000 --> 01:00:01.500"
