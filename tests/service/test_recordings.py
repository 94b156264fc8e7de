import wave
from pathlib import Path

import numpy as np
import pytest

from models.training.manifest import AudioSpan
from service.audio.recordings import read_samples
from service.errors import ApiError
from tests.sounds import RATE, voice, wav


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "a.wav").write_bytes(wav(voice(3)))
    return tmp_path / "a.wav"


def test_a_whole_recording(file: Path) -> None:
    samples = read_samples(AudioSpan(file))
    assert samples.dtype.is_floating_point
    np.testing.assert_allclose(samples.numpy(), voice(3), atol=2 / 32768)


@pytest.mark.parametrize(("start", "frames"), [(0, 100), (1234, 20000), (2 * RATE, 5 * RATE)])
def test_pieces_by_seeking_and_by_decoding_are_equal(file: Path, start: int, frames: int) -> None:
    whole = read_samples(AudioSpan(file)).numpy()
    stereo = file.with_name("stereo.wav")
    with wave.open(str(file)) as source, wave.open(str(stereo), "wb") as out:
        out.setnchannels(2)
        out.setsampwidth(2)
        out.setframerate(RATE)
        mono = np.frombuffer(source.readframes(source.getnframes()), "<i2")
        out.writeframes(np.repeat(mono, 2).tobytes())
    for path in (file, stereo):  # the second can't be sought in
        np.testing.assert_array_equal(
            read_samples(AudioSpan(path, start, frames)).numpy(), whole[start : start + frames]
        )


def test_what_is_not_there(file: Path, tmp_path: Path) -> None:
    with pytest.raises(ApiError, match="ends before"):
        read_samples(AudioSpan(file, 3 * RATE, 10))
    with pytest.raises(FileNotFoundError):
        read_samples(AudioSpan(tmp_path / "missing.wav", 0, 10))
    (tmp_path / "text.wav").write_text("no audio")
    for span in (AudioSpan(tmp_path / "text.wav"), AudioSpan(tmp_path / "text.wav", 0, 10)):
        with pytest.raises(ApiError):
            read_samples(span)
