import asyncio
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.audio.decode import decode
from service.listening.voice import FRAME, Detector, Turns, Voice, frames_in
from service.settings import DEFAULT_MODEL
from tests.sounds import voice

SPEECH = DEFAULT_MODEL.parent / "samples" / "japan.flac"


@pytest.fixture
def detector() -> Iterator[Detector]:
    detector = Detector()
    yield detector
    detector.close()


@pytest.fixture(scope="module")
def speech() -> np.ndarray:
    """A person's recording between two seconds of silence."""
    with SPEECH.open("rb") as file:
        samples = np.concatenate(list(decode(file, max_seconds=60)))
    silence = np.zeros(32000, np.float32)
    return np.concatenate([silence, samples, silence])


async def test_a_person_is_heard_between_silences(detector: Detector, speech: np.ndarray) -> None:
    frames, probabilities = await detector.listen(Voice(), speech)
    assert frames.shape == (len(speech) // FRAME, FRAME)
    quiet = frames_in(1500)
    assert max(probabilities[:quiet] + probabilities[-quiet:]) < 0.3
    assert np.mean(np.array(probabilities[2 * quiet : -2 * quiet]) > 0.5) > 0.6


async def test_streams_at_once_and_in_pieces_are_heard_like_one_alone(detector: Detector, speech: np.ndarray) -> None:
    _, alone = await detector.listen(Voice(), speech)

    async def in_pieces(size: int) -> list[float]:
        stream, found = Voice(), []
        for begin in range(0, len(speech), size):
            found += (await detector.listen(stream, speech[begin : begin + size]))[1]
        return found

    for together in await asyncio.gather(in_pieces(1600), in_pieces(777), in_pieces(len(speech))):
        np.testing.assert_allclose(together, alone, atol=1e-4)


@pytest.mark.parametrize("seconds", [0.01, 0.5, 3.0, 4.1])
async def test_a_whole_is_heard_like_its_frames(detector: Detector, speech: np.ndarray, seconds: float) -> None:
    samples = speech[24000 : 24000 + round(16000 * seconds)]
    filled_up = np.pad(samples, (0, -len(samples) % FRAME))
    _, probabilities = await detector.listen(Voice(), filled_up)
    assert detector.speech(samples) == pytest.approx(max(probabilities), abs=1e-4)


def test_speech_is_told_from_silence_and_noise(detector: Detector, speech: np.ndarray) -> None:
    noise = np.random.default_rng(0).normal(0, 0.02, 160000).astype(np.float32)
    assert detector.speech(speech) > 0.9
    assert detector.speech(noise[: len(speech)] + speech) > 0.9
    assert detector.speech(noise) < 0.4
    assert detector.speech(np.zeros(160000, np.float32)) < 0.4
    assert detector.speech(speech[:32000]) < 0.4


async def test_samples_that_are_no_frame_yet_wait(detector: Detector) -> None:
    stream = Voice()
    frames, probabilities = await detector.listen(stream, voice(0.02))
    assert (len(frames), probabilities, len(stream.rest)) == (0, [], 320)
    frames, _ = await detector.listen(stream, voice(0.02))
    assert (len(frames), len(stream.rest)) == (1, 640 - FRAME)


async def test_one_stream_that_fails_does_not_hang(detector: Detector) -> None:
    bad = Voice(state=np.zeros(3))  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        await detector.listen(bad, voice(0.1))
    assert (await detector.listen(Voice(), voice(0.1)))[1]


def test_a_turn_begins_with_speech_and_ends_after_silence() -> None:
    turns = Turns(0.5, 3)
    heard = [turns.hear(p) for p in (0.4, 0.6, 0.4, 0.3, 0.4, 0.6, 0.3, 0.4, 0.4, 0.4)]
    # 0.4 alone is neither; once below 0.35, it counts as silence, too.
    assert heard == [None, True, None, None, None, None, None, None, False, None]


@given(st.lists(st.floats(0, 1), max_size=60), st.floats(0.2, 1), st.integers(1, 8))
def test_beginnings_and_ends_take_turns(probabilities: list[float], threshold: float, silence: int) -> None:
    turns = Turns(threshold, silence)
    changes = [change for p in probabilities if (change := turns.hear(p)) is not None]
    assert changes == [i % 2 == 0 for i in range(len(changes))]
    assert turns.speaking == (len(changes) % 2 == 1)
    if any(p >= threshold for p in probabilities):
        assert changes


def test_a_turn_ends_however_low_the_threshold() -> None:
    turns = Turns(0.1, 2)
    assert [turns.hear(p) for p in (0.2, 0.0, 0.0)] == [True, None, False]
