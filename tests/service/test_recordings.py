import wave
from pathlib import Path

import numpy as np
import pytest
from av import AudioFrame

from models.manifest import AudioSpan
from service.audio import decode
from service.audio.recordings import read_samples
from service.errors import ApiError
from tests.sounds import RATE, encode, voice, wav


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


@pytest.mark.parametrize(
    ("name", "codec", "rate", "sought"),
    [
        ("a.flac", "flac", RATE, True),
        ("a.wav", "pcm_s24le", RATE, True),
        ("a.ogg", "libopus", 48_000, False),
        ("a.mp3", "libmp3lame", RATE, False),
        ("b.flac", "flac", 44_100, False),
        ("b.wav", "libmp3lame", RATE, False),
    ],
)
def test_a_piece_is_what_it_is_in_the_whole_file(
    tmp_path: Path, name: str, codec: str, rate: int, sought: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where it is sought, nothing but a few packets before it is decoded."""
    seconds = 60
    file = tmp_path / name
    file.write_bytes(encode(file.suffix[1:], codec, voice(seconds * rate / RATE), rate))
    whole = read_samples(AudioSpan(file)).numpy()
    frames: list[int] = []
    mono = decode._mono

    def counted(frame: AudioFrame) -> np.ndarray:
        frames.append(frame.samples)
        return mono(frame)

    monkeypatch.setattr(decode, "_mono", counted)
    for start, length in [(1, 9), (23_456, 7_000), (40 * RATE + 1, RATE), (len(whole) - 1000, 5000)]:
        frames.clear()
        piece = read_samples(AudioSpan(file, start, length)).numpy()
        np.testing.assert_array_equal(piece, whole[start : start + length])
        assert (sum(frames) < length + RATE) == (sought or start < RATE)
    with pytest.raises(ApiError, match="ends before"):
        read_samples(AudioSpan(file, (seconds + 10) * RATE, 10))


def test_what_is_not_there(file: Path, tmp_path: Path) -> None:
    with pytest.raises(ApiError, match="ends before"):
        read_samples(AudioSpan(file, 3 * RATE, 10))
    with pytest.raises(FileNotFoundError):
        read_samples(AudioSpan(tmp_path / "missing.wav", 0, 10))
    (tmp_path / "text.wav").write_text("no audio")
    for span in (AudioSpan(tmp_path / "text.wav"), AudioSpan(tmp_path / "text.wav", 0, 10)):
        with pytest.raises(ApiError):
            read_samples(span)
