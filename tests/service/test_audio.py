"""Decoding: every format against its reference, while it arrives, and every kind of broken file."""

import io
import shutil
import struct
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator
from fractions import Fraction
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.audio.decode import MAX_FRAME_SAMPLES, SAMPLE_RATE, decode
from service.audio.upload import GrowingBuffer
from service.errors import ApiError, AudioTooLong, InvalidAudio, NotAudio, TruncatedAudio, UploadTooLarge

SHARED = Path(__file__).parents[2].parent / "shared" / "audio"
FFMPEG = shutil.which("ffmpeg")
EDGE = SAMPLE_RATE // 20  # where a resampler's filter reaches over the ends


def tones(rate: int, seconds: float, channels: int = 1) -> np.ndarray:
    """Sines far below 3.5 kHz, another in each channel; float64, shape (samples, channels)."""
    time = np.arange(round(rate * seconds)) / rate
    waves = [
        0.3 * np.sin(2 * np.pi * (220 + 170 * c) * time + c) + 0.2 * np.sin(2 * np.pi * 1500 * time)
        for c in range(channels)
    ]
    return np.stack(waves, axis=1)


def wav(samples: np.ndarray, rate: int, dtype: str, size: int | None = None, channels: int | None = None) -> bytes:
    """A RIFF file of u1, i2, i3, i4, f4 or f8 samples; `size` overrides the declared number of bytes."""
    width = int(dtype[1])
    if dtype[0] == "f":
        data = samples.astype("<" + dtype).tobytes()
    elif dtype == "u1":
        data = (np.round(samples * 127) + 128).astype("u1").tobytes()
    else:
        whole = np.round(samples * (2 ** (8 * width - 1) - 1)).astype("<i8")
        data = whole.reshape(-1, 1).view("u1")[:, :width].tobytes()
    count = samples.shape[1] if channels is None else channels
    tag = 3 if dtype[0] == "f" else 1
    block = min(count * width, 0xFFFF)
    form = struct.pack("<HHIIHH", tag, count, rate, min(rate * block, 0xFFFFFFFF), block, 8 * width)
    size = len(data) if size is None else size
    return (
        b"RIFF"
        + struct.pack("<I", min(36 + size, 2**32 - 1))
        + b"WAVEfmt \x10\0\0\0"
        + form
        + b"data"
        + (struct.pack("<I", size) + data)
    )


class Pipe(io.BytesIO):
    """A file that a muxer cannot seek in."""

    def seekable(self) -> bool:
        return False


def encode(
    samples: np.ndarray,
    rate: int,
    container: str,
    codec: str,
    *,
    layout: str | None = None,
    options: dict[str, str] | None = None,
    pipe: bool = False,
    cover: bool = False,
) -> bytes:
    """Samples of shape (samples, channels) as a file of any format that libav writes."""
    if options and options.get("movflags") == "faststart":  # libav opens the file once more to move the index
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "clip"
            with av.open(str(path), "w", format=container, options=options) as out:
                fill(out, samples, rate, codec, layout, cover)
            return path.read_bytes()
    file = Pipe() if pipe else io.BytesIO()
    with av.open(file, "w", format=container, options=options or {}) as out:
        fill(out, samples, rate, codec, layout, cover)
    return file.getvalue()


def fill(out: Any, samples: np.ndarray, rate: int, codec: str, layout: str | None, cover: bool) -> None:
    stream: Any = out.add_stream(codec, rate=rate)
    stream.codec_context.layout = layout or {1: "mono", 2: "stereo"}[samples.shape[1]]
    if codec in ("aac", "libmp3lame", "libopus"):
        stream.codec_context.bit_rate = 96_000 * samples.shape[1] if rate > 16000 else 32_000 * samples.shape[1]
    if codec == "wavpack":
        stream.codec_context.format = "s32p"
    if not cover:
        out.start_encoding()
    else:
        picture: Any = out.add_stream("png", rate=1)
        picture.width = picture.height = 320
        picture.pix_fmt = "rgb24"
        picture.disposition = av.stream.Disposition.attached_pic
        noise = np.random.default_rng(0).integers(0, 255, (320, 320, 3), np.uint8)
        out.mux(picture.encode(av.VideoFrame.from_ndarray(noise, format="rgb24")))
    flat = samples.astype(np.float32).reshape(1, -1)
    frame = av.AudioFrame.from_ndarray(flat, format="flt", layout=stream.codec_context.layout.name)
    frame.sample_rate, frame.pts, frame.time_base = rate, 0, Fraction(1, rate)
    fit = av.AudioResampler(
        format=stream.codec_context.format,
        layout=stream.codec_context.layout,
        rate=rate,
        frame_size=stream.codec_context.frame_size or 1024,
    )
    for part in [*fit.resample(frame), *fit.resample(None), None]:
        out.mux(stream.encode(part))


def whole(data: bytes, max_seconds: float = 60) -> np.ndarray:
    chunks = list(decode(io.BytesIO(data), max_seconds=max_seconds))
    assert all(chunk.dtype == np.float32 and chunk.ndim == 1 and len(chunk) for chunk in chunks)
    return np.concatenate(chunks)


def rms(signal: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(signal, dtype=np.float64))))


def assert_close(decoded: np.ndarray, expected: np.ndarray, ratio: float = 0.005) -> None:
    count = min(len(decoded), len(expected))
    difference = decoded[:count] - expected[:count]
    assert rms(difference[EDGE:-EDGE]) <= ratio * rms(expected)


# ---- lossless: against the signal itself ----


@pytest.mark.parametrize("rate", [8000, 11025, 16000, 22050, 32000, 44100, 48000, 96000, 192000])
@pytest.mark.parametrize("channels", [1, 2, 5])
def test_wav_rates_and_channels(rate: int, channels: int) -> None:
    decoded = whole(wav(tones(rate, 1.3, channels), rate, "i2"))
    expected = tones(SAMPLE_RATE, 1.3, channels).mean(axis=1)
    assert abs(len(decoded) - len(expected)) <= 1
    assert_close(decoded, expected, 0.001)


@pytest.mark.parametrize("dtype", ["u1", "i2", "i3", "i4", "f4", "f8"])
@pytest.mark.parametrize("channels", range(1, 9))
def test_wav_widths_are_exact_at_16k(dtype: str, channels: int) -> None:
    samples = tones(SAMPLE_RATE, 0.2, channels)
    decoded = whole(wav(samples, SAMPLE_RATE, dtype))
    if dtype == "u1":
        scaled = np.round(samples * 127) / 128
    elif dtype[0] == "i":
        full = 2.0 ** (8 * int(dtype[1]) - 1)
        scaled = np.round(samples * (full - 1)) / full
    else:
        scaled = samples
    assert len(decoded) == len(samples)
    np.testing.assert_allclose(decoded, scaled.mean(axis=1), atol=1e-6)


def test_int16_at_16k_is_bit_exact() -> None:
    every = np.arange(-32768, 32768).astype("<i2")
    data = wav(np.zeros((0, 1)), SAMPLE_RATE, "i2", size=every.nbytes) + every.tobytes()
    np.testing.assert_array_equal(whole(data), every / np.float32(32768))


@pytest.mark.parametrize(
    ("container", "codec"),
    [
        ("flac", "flac"),
        ("ogg", "flac"),
        ("aiff", "pcm_s16be"),
        ("aiff", "pcm_s24be"),
        ("caf", "pcm_s16le"),
        ("mov", "pcm_s24le"),
        ("ipod", "alac"),
        ("matroska", "pcm_f32le"),
        ("matroska", "flac"),
        ("au", "pcm_s16be"),
        ("w64", "pcm_s16le"),
        ("wv", "wavpack"),
        ("wav", "pcm_alaw"),
    ],
)
@pytest.mark.parametrize(("rate", "channels"), [(16000, 1), (44100, 2), (48000, 1)])
def test_lossless_containers(container: str, codec: str, rate: int, channels: int) -> None:
    decoded = whole(encode(tones(rate, 1.1, channels), rate, container, codec))
    expected = tones(SAMPLE_RATE, 1.1, channels).mean(axis=1)
    assert abs(len(decoded) - len(expected)) <= 1
    assert_close(decoded, expected, 0.02 if codec == "pcm_alaw" else 0.001)


def test_many_planar_channels() -> None:
    samples = tones(48000, 0.5, 8)
    decoded = whole(encode(samples, 48000, "ipod", "alac", layout="7.1(wide)"))
    assert_close(decoded, tones(SAMPLE_RATE, 0.5, 8).mean(axis=1), 0.001)


# ---- lossy: against the signal (level and shape) and against the ffmpeg command ----

LOSSY = {
    "mp3": ("mp3", "libmp3lame", {}),
    "mp3-no-xing": ("mp3", "libmp3lame", {"write_xing": "0"}),
    "adts": ("adts", "aac", {}),
    "m4a": ("ipod", "aac", {}),
    "m4a-faststart": ("ipod", "aac", {"movflags": "faststart"}),
    "mp4-fragmented": ("mp4", "aac", {"movflags": "frag_keyframe+empty_moov", "frag_duration": "200000"}),
    "ogg-opus": ("ogg", "libopus", {}),
    "webm-opus": ("webm", "libopus", {}),
    "webm-live": ("webm", "libopus", {"live": "1"}),
    "ogg-vorbis": ("ogg", "libvorbis", {}),
    "mka-vorbis": ("matroska", "libvorbis", {}),
    "flv": ("flv", "libmp3lame", {}),
    "mpegts": ("mpegts", "aac", {}),
}


def command(arguments: list[str], data: bytes) -> bytes:
    """What the ffmpeg command writes to its pipe, given `data`."""
    if FFMPEG is None:
        pytest.skip("needs the ffmpeg command")
    line = [FFMPEG, "-loglevel", "error", *arguments, "-"]
    return subprocess.run(line, input=data, capture_output=True, check=True).stdout


@cache
def lossy(name: str, rate: int = 48000, channels: int = 1, seconds: float = 2.0, pipe: bool = False) -> bytes:
    container, codec, options = LOSSY[name]
    if codec == "libvorbis":  # PyAV is built without it
        return command(
            ["-i", "pipe:0", "-c:a", codec, "-f", container], wav(tones(rate, seconds, channels), rate, "i2")
        )
    return encode(tones(rate, seconds, channels), rate, container, codec, options=options, pipe=pipe)


def align(decoded: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """`decoded` without the encoder's delay, found by cross-correlation."""
    size = 1 << (len(decoded) + len(expected)).bit_length()
    spectrum = np.fft.rfft(decoded, size) * np.conj(np.fft.rfft(expected, size))
    lag = int(np.argmax(np.fft.irfft(spectrum, size)[: SAMPLE_RATE // 4]))
    return decoded[lag:]


@pytest.mark.parametrize("name", LOSSY)
@pytest.mark.parametrize(("rate", "channels"), [(48000, 1), (48000, 2), (16000, 1)])
def test_lossy_formats_keep_the_signal(name: str, rate: int, channels: int) -> None:
    rate = 44100 if name == "flv" else rate
    expected = tones(SAMPLE_RATE, 2.0, channels).mean(axis=1)
    decoded = whole(lossy(name, rate, channels))
    assert 0 <= len(decoded) - len(expected) + 1 <= 0.2 * SAMPLE_RATE
    aligned = align(decoded, expected)[EDGE : len(expected) - 4 * EDGE]
    expected = expected[EDGE : len(expected) - 4 * EDGE]
    assert abs(rms(aligned) / rms(expected) - 1) < (0.055 if name.startswith(("mp3", "flv")) else 0.02)  # LAME: x 0.95
    assert np.corrcoef(aligned, expected)[0, 1] > 0.99


@pytest.mark.parametrize("name", ["mp3", "ogg-opus", "webm-opus", "ogg-vorbis"])
def test_priming_and_padding_are_cut(name: str) -> None:
    """Where the container says what the encoder added, nothing of it remains."""
    assert abs(len(whole(lossy(name, 48000, 1))) - 2 * SAMPLE_RATE) <= 1


@pytest.mark.parametrize("pipe", [False, True])
@pytest.mark.parametrize("name", LOSSY)
def test_equals_the_ffmpeg_command(name: str, pipe: bool, tmp_path: Path) -> None:
    if name == "flv":
        data = lossy(name, 44100)
    elif pipe and not name.startswith("m4a"):
        data = lossy(name, pipe=True)
    else:
        data = lossy(name)
    file = tmp_path / "clip"
    file.write_bytes(data)
    raw = command(["-i", str(file), "-f", "f32le", "-ar", "16000"], b"")
    expected, decoded = np.frombuffer(raw, "<f4"), whole(data)
    assert abs(len(expected) - len(decoded)) <= 1
    assert_close(decoded, expected)


def video(with_audio: bool) -> bytes:
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as out:
        picture: Any = out.add_stream("mpeg4", rate=10)
        picture.width = picture.height = 64
        picture.pix_fmt = "yuv420p"
        sound: Any = out.add_stream("aac", rate=48000, layout="mono") if with_audio else None
        for index in range(30):
            frame = av.VideoFrame.from_ndarray(np.full((64, 64, 3), index, np.uint8), format="rgb24")
            frame.pts = index
            out.mux(picture.encode(frame))
        out.mux(picture.encode(None))
        if sound is not None:
            frames = av.AudioFrame.from_ndarray(tones(48000, 1.0).T.astype("f4"), format="fltp", layout="mono")
            frames.sample_rate, frames.pts = 48000, 0
            fit = av.AudioResampler(format="fltp", layout="mono", rate=48000, frame_size=1024)
            for part in [*fit.resample(frames), *fit.resample(None), None]:
                out.mux(sound.encode(part))
        data = file.getvalue
        out.close()
    return data()


def test_audio_track_shorter_than_its_video() -> None:
    assert abs(len(whole(video(with_audio=True))) - SAMPLE_RATE) < 0.05 * SAMPLE_RATE


@pytest.mark.parametrize(("container", "codec"), [("mp3", "libmp3lame"), ("flac", "flac")])
def test_cover_art_is_ignored(container: str, codec: str) -> None:
    data = encode(tones(44100, 1.0), 44100, container, codec, cover=True)
    assert b"PNG" in data
    assert abs(len(whole(data)) - SAMPLE_RATE) <= 1


def test_chained_opus() -> None:
    first = encode(tones(48000, 0.5), 48000, "ogg", "libopus")
    second = encode(tones(24000, 0.5), 24000, "ogg", "libopus")
    assert abs(len(whole(first + second)) - SAMPLE_RATE) <= 1


def test_chained_ogg_changes_rate_and_channels() -> None:
    first = encode(tones(44100, 1.0, 1), 44100, "ogg", "flac")
    second = encode(tones(48000, 1.0, 2), 48000, "ogg", "flac")
    decoded = whole(first + second)
    assert abs(len(decoded) - 2 * SAMPLE_RATE) <= 2
    assert_close(decoded[:SAMPLE_RATE], tones(SAMPLE_RATE, 1.0)[:, 0], 0.001)
    assert_close(decoded[-SAMPLE_RATE:], tones(SAMPLE_RATE, 1.0, 2).mean(axis=1), 0.001)


@pytest.mark.parametrize("size", [0, 0xFFFFFFFF, 0x7FFFF000])
def test_wav_of_unknown_size_is_decoded_to_its_end(size: int) -> None:
    assert len(whole(wav(tones(16000, 1.0), 16000, "i2", size=size))) == SAMPLE_RATE


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the shared recordings")
def test_recordings_of_people() -> None:
    assert abs(len(whole((SHARED / "jfk.flac").read_bytes())) - 11 * SAMPLE_RATE) <= 0.1 * SAMPLE_RATE
    for path in sorted((SHARED / "human-digits").glob("*.wav"))[:20]:
        assert len(whole(path.read_bytes())) > 0.1 * SAMPLE_RATE


# ---- while it arrives ----


class Decoding:
    """Decodes a growing buffer in a thread; `first` is set by the first chunk."""

    def __init__(
        self,
        buffer: GrowingBuffer,
        decode: Callable[[GrowingBuffer], Iterator[np.ndarray]] = lambda source: decode(source, max_seconds=60),
    ) -> None:
        self.decode = decode
        self.chunks: list[np.ndarray] = []
        self.error: Exception | None = None
        self.first = threading.Event()
        self.thread = threading.Thread(target=self.work, args=(buffer,), daemon=True)
        self.thread.start()

    def work(self, buffer: GrowingBuffer) -> None:
        try:
            for chunk in self.decode(buffer):
                self.chunks.append(chunk)
                self.first.set()
        except Exception as exc:
            self.error = exc

    def join(self) -> None:
        self.thread.join(30)
        assert not self.thread.is_alive(), "the decoder hangs"


STREAMED = [name for name in LOSSY if name not in ("m4a", "flv")]


def streamed_file(name: str) -> bytes:
    if name == "wav":
        return wav(tones(48000, 4.0), 48000, "i2")
    if name == "flac":
        noisy = tones(48000, 4.0) + np.random.default_rng(0).uniform(-0.1, 0.1, (192000, 1))
        return encode(noisy, 48000, "flac", "flac")
    if name == "aiff":
        return encode(tones(48000, 4.0), 48000, "aiff", "pcm_s16be")
    return lossy(name, 48000, 1, 6.0)


@pytest.mark.parametrize("name", ["wav", "flac", "aiff", *STREAMED])
def test_chunks_come_before_the_upload_ends(name: str) -> None:
    data = streamed_file(name)
    buffer = GrowingBuffer(len(data))
    decoding = Decoding(buffer)
    buffer.feed(data[: len(data) // 2])
    assert decoding.first.wait(30), "nothing was decoded from the first half"
    buffer.feed(data[len(data) // 2 :])
    buffer.finish()
    decoding.join()
    assert decoding.error is None
    np.testing.assert_array_equal(np.concatenate(decoding.chunks), whole(data))


def test_moov_at_the_end_waits_and_decodes() -> None:
    data = lossy("m4a")
    buffer = GrowingBuffer(len(data))
    decoding = Decoding(buffer)
    buffer.feed(data[: len(data) // 2])
    buffer.feed(data[len(data) // 2 :])
    buffer.finish()
    decoding.join()
    np.testing.assert_array_equal(np.concatenate(decoding.chunks), whole(data))


@pytest.mark.parametrize("name", ["wav", "flac", "mp3", "webm-opus", "m4a", "ogg-opus"])
@pytest.mark.parametrize("part", [0.0, 0.001, 0.5, 1.0])
def test_an_aborted_upload_raises_its_own_error(name: str, part: float) -> None:
    data = streamed_file(name)
    buffer = GrowingBuffer(len(data))
    decoding = Decoding(buffer)
    buffer.feed(data[: int(len(data) * part)])
    gone = ConnectionError("client vanished")
    buffer.fail(gone)
    decoding.join()
    assert decoding.error is gone


@pytest.mark.parametrize("error", [UploadTooLarge("too large"), ValueError("from the source"), av.FFmpegError(1, "x")])
def test_errors_of_the_source_come_out_unchanged(error: Exception) -> None:
    class Failing(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            if self.tell() > 50_000:
                raise error
            return super().read(size)

    with pytest.raises(type(error)) as caught:
        list(decode(Failing(wav(tones(16000, 9.0), 16000, "i2")), max_seconds=60))
    assert caught.value is error
    assert len(whole(wav(tones(16000, 1.0), 16000, "i2"))) == SAMPLE_RATE  # nothing stays behind in the thread


# ---- refusals ----


def refuse(data: bytes, error: type[ApiError], match: str, max_seconds: float = 60) -> None:
    with pytest.raises(error, match=match) as caught:
        whole(data, max_seconds)
    assert type(caught.value) is error


PNG = encode(tones(44100, 0.2), 44100, "flac", "flac", cover=True)
PNG = PNG[PNG.index(b"\x89PNG") :]
PLAYLISTS = [
    b"#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:10\n#EXTINF:9,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n",
    b"ffconcat version 1.0\nfile /etc/hostname\n",
    b"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nm=audio 5004 RTP/AVP 96\na=rtpmap:96 opus/48000\n",
    b'<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static"></MPD>',
    b"; ffmpeg\n[streams]\n",
]
TEXT = b"This is a text file, and someone has named it hello.wav.\n" * 40
OTHERS = [TEXT, TEXT.decode().encode("utf-16"), PNG, b"\xff\xd8\xff\xe0\x00\x10JFIF\0" + PNG, b"%PDF-1.7\n" + TEXT]
OTHERS.append("hello".encode("utf-16") * 50)  # ffmpeg takes it for MP3 and decodes one frame


@pytest.mark.parametrize("data", [*OTHERS, *PLAYLISTS, bytes(5000), b"x"])
def test_what_is_not_audio(data: bytes) -> None:
    refuse(data, NotAudio, "known format. Send WAV")


def test_playlists_open_nothing(tmp_path: Path) -> None:
    secret = tmp_path / "secret.wav"
    secret.write_bytes(wav(tones(16000, 1.0), 16000, "i2"))
    refuse(f"ffconcat version 1.0\nfile '{secret}'\n".encode(), NotAudio, "known format")
    refuse(f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{secret}\n#EXT-X-ENDLIST\n".encode(), NotAudio, "known")


def test_empty_and_no_samples() -> None:
    refuse(b"", InvalidAudio, "is empty")
    refuse(wav(np.zeros((0, 1)), 16000, "i2"), InvalidAudio, "no samples")


def test_video_without_audio_track() -> None:
    refuse(video(with_audio=False), InvalidAudio, "no audio track")


def test_impossible_shapes() -> None:
    samples = tones(16000, 0.5)
    refuse(wav(samples, 16000, "i2", channels=0), InvalidAudio, "declares 0 channels")
    refuse(wav(samples, 16000, "i2", channels=65), InvalidAudio, "declares 65 channels; 1 to 64")
    refuse(wav(samples, 16000, "i2", channels=65535), InvalidAudio, "declares 65535 channels")
    refuse(wav(samples, 0, "i2"), InvalidAudio, "rate of 0 Hz")
    refuse(wav(samples, 999, "i2"), InvalidAudio, "rate of 999 Hz; 1000 to 768000")
    refuse(wav(samples, 2_000_000_000, "i2"), InvalidAudio, "rate of 2000000000 Hz")


@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("rate", [16000, 44100])
def test_samples_that_are_not_finite(dtype: str, value: float, rate: int) -> None:
    samples = tones(rate, 0.5, 2)
    samples[4000, 1] = value
    refuse(wav(samples, rate, dtype), InvalidAudio, "NaN or infinite")


@pytest.mark.parametrize("name", ["wav", "flac", "aiff", "mp3", "m4a-faststart"])
@pytest.mark.parametrize("part", [0.3, 0.8, 0.95])
def test_truncated_files_name_both_lengths(name: str, part: float) -> None:
    data = streamed_file(name)
    refuse(data[: int(len(data) * part)], TruncatedAudio, r"declares [46]\.\d\d s, \d\.\d\d s were decoded")


def test_truncated_m4a_without_its_index() -> None:
    data = lossy("m4a")
    refuse(data[: len(data) // 2], InvalidAudio, "damaged")


@pytest.mark.parametrize(
    ("name", "part"),
    [("webm-opus", "segment"), ("webm-live", "cluster"), ("ogg-opus", "page"), ("mp4-fragmented", "box 'mdat'")],
)
def test_files_that_end_within_an_element_are_truncated(name: str, part: str) -> None:
    data = lossy(name, 48000, 1, 6.0)
    assert 6 * SAMPLE_RATE - 1 <= len(whole(data)) <= 6.1 * SAMPLE_RATE
    refuse(
        data[: int(len(data) * 0.8)],
        TruncatedAudio,
        rf"truncated: the file ends within its {part}; [34]\.\d\d s were decoded",
    )
    refuse(data[:-1], TruncatedAudio, "truncated")


@pytest.mark.parametrize("name", ["mp3-no-xing", "adts"])
def test_cut_files_that_declare_nothing_are_decoded(name: str) -> None:
    data = lossy(name, 48000, 1, 6.0)
    assert 3 * SAMPLE_RATE < len(whole(data[: int(len(data) * 0.8)])) < 5 * SAMPLE_RATE


def test_damaged_middle() -> None:
    data = bytearray(streamed_file("flac"))
    data[len(data) // 4 : len(data) // 2] = np.random.default_rng(1).bytes(len(data) // 2 - len(data) // 4)
    refuse(bytes(data), TruncatedAudio, "damaged")


def test_packets_that_cannot_be_decoded() -> None:
    data = bytearray(lossy("adts"))
    frames = [place for place in range(len(data) - 7) if data[place : place + 2] == data[:2]]
    for start, end in pairwise(frames[20:40]):
        data[start + 9 : end] = b"\xff" * (end - start - 9)
    refuse(bytes(data), InvalidAudio, r"\d\.\d\d s of it could not be decoded")


def test_a_stream_that_cannot_be_read_on() -> None:
    mono = encode(tones(48000, 0.5), 48000, "ogg", "libopus")
    stereo = encode(tones(48000, 5.0, 2), 48000, "ogg", "libopus")
    refuse(mono + stereo, InvalidAudio, "damaged after 0.50 s")


def test_declared_length_beyond_the_limit_is_refused_at_once() -> None:
    data = wav(tones(16000, 5.0), 16000, "i2")
    source = io.BytesIO(data)
    with pytest.raises(AudioTooLong, match=r"lasts 5.0 s and exceeds the limit of 2 s"):
        next(iter(decode(source, max_seconds=2)))
    assert source.tell() < len(data)


@pytest.mark.parametrize("name", ["adts", "ogg-opus", "webm-live", "mp3-no-xing"])
def test_undeclared_length_stops_at_the_limit(name: str) -> None:
    data = lossy(name, 48000, 1, 30.0)
    source = io.BytesIO(data)
    chunks: list[np.ndarray] = []
    with pytest.raises(AudioTooLong, match=r"exceeds the limit of 1.5 s"):
        chunks.extend(decode(source, max_seconds=1.5))
    assert sum(map(len, chunks)) <= 1.5 * SAMPLE_RATE
    assert source.tell() < len(data) / 2


def test_exactly_the_limit_is_fine() -> None:
    assert len(whole(wav(tones(44100, 2.0), 44100, "i2"), max_seconds=2.0)) == 2 * SAMPLE_RATE


def test_no_limit() -> None:
    assert len(whole(wav(tones(16000, 1.0), 16000, "i2"), max_seconds=float("inf"))) == SAMPLE_RATE


def test_nothing_on_stderr(capfd: pytest.CaptureFixture[str]) -> None:
    for broken in (
        lossy("m4a")[:9000],
        b"RIFF\0\0\0\0WAVEfmt ",
        b"\xff\xfb" + bytes(999),
        streamed_file("flac")[:5000],
    ):
        with pytest.raises(ApiError):
            whole(broken)
    assert capfd.readouterr() == ("", "")


def test_metadata_that_is_not_utf8() -> None:
    data = encode(tones(16000, 0.5), 16000, "flac", "flac")
    tag = b"LIST" + struct.pack("<I", 16) + b"INFOINAM\x04\0\0\0\xff\xfe\xe9\0"
    clip = wav(tones(16000, 0.5), 16000, "i2")
    assert len(whole(clip[:36] + tag + clip[36:])) == len(whole(data)) == 8000


# ---- properties ----

SEEDS = {
    "wav": wav(tones(22050, 0.4, 2), 22050, "i3"),
    "float": wav(tones(16000, 0.2), 16000, "f4"),
    "flac": encode(tones(22050, 0.4), 22050, "flac", "flac"),
    "caf": encode(tones(22050, 0.2), 22050, "caf", "pcm_s16le"),
    "alac": encode(tones(22050, 0.2), 22050, "ipod", "alac"),
    **{name: lossy(name, 48000, 1, 0.5) for name in ("mp3", "m4a", "mp4-fragmented", "adts", "ogg-opus", "webm-opus")},
}


def decode_or_refuse(data: bytes) -> None:
    try:
        for chunk in decode(io.BytesIO(data), max_seconds=3):
            assert np.isfinite(chunk).all()
    except ApiError as exc:
        if exc.status not in (400, 413, 415) or not exc.message:
            raise


@settings(max_examples=200, deadline=None)
@given(head=st.sampled_from([b"", *sorted({data[:16] for data in SEEDS.values()})]), tail=st.binary(max_size=400))
def test_random_bytes_are_refused_or_decoded(head: bytes, tail: bytes) -> None:
    decode_or_refuse(head + tail)


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_mutated_files_are_refused_or_decoded(data: st.DataObject) -> None:
    clip = bytearray(SEEDS[data.draw(st.sampled_from(sorted(SEEDS)))])
    near = st.one_of(st.integers(0, min(300, len(clip) - 1)), st.integers(0, len(clip) - 1))
    for place, value in data.draw(st.lists(st.tuples(near, st.integers(0, 255)), min_size=1, max_size=8)):
        clip[place] = value
    cut = data.draw(st.one_of(st.none(), st.integers(0, len(clip))))
    decode_or_refuse(bytes(clip[:cut]))


def pieces_of(data: bytes, cuts: list[int]) -> Iterator[bytes]:
    edges = [0, *sorted(cut % len(data) for cut in cuts), len(data)]
    return (data[start:end] for start, end in pairwise(edges))


@settings(max_examples=60, deadline=None)
@given(name=st.sampled_from(sorted(SEEDS)), cuts=st.lists(st.integers(0, 100_000), max_size=12))
def test_the_way_it_arrives_does_not_matter(name: str, cuts: list[int]) -> None:
    data = SEEDS[name]
    buffer = GrowingBuffer(len(data))
    decoding = Decoding(buffer)
    for piece in pieces_of(data, cuts):
        buffer.feed(piece)
    buffer.finish()
    decoding.join()
    assert decoding.error is None
    np.testing.assert_array_equal(np.concatenate(decoding.chunks), whole(data))


def alac(n_samples: int) -> bytes:
    """A file of one packet that holds so many samples of silence, uncompressed; its header allows packets of any size."""
    bits = f"{'0' * 19}1001{n_samples:032b}" + "0" * 16 * n_samples + "111"
    data = int(bits + "0" * (-len(bits) % 8), 2).to_bytes(-(-len(bits) // 8), "big")
    file = io.BytesIO()
    with av.open(file, "w", format="ipod") as out:
        stream = out.add_stream("alac", rate=16000)
        assert isinstance(stream, av.AudioStream)
        stream.codec_context.layout, stream.codec_context.format = "mono", "s16p"
        out.start_encoding()
        packet = av.Packet(data)
        packet.stream, packet.pts, packet.dts, packet.duration = stream, 0, 0, n_samples
        assert stream.time_base is not None
        packet.time_base = stream.time_base
        out.mux(packet)
    largest, allowed = struct.pack(">I", 4096) + b"\0\x10", struct.pack(">I", 1 << 22) + b"\0\x10"
    assert largest in file.getvalue()
    return file.getvalue().replace(largest, allowed)


def test_a_packet_may_not_become_any_number_of_samples() -> None:
    assert len(whole(alac(8000))) == 8000
    with pytest.raises(InvalidAudio):
        whole(alac(MAX_FRAME_SAMPLES + 1), max_seconds=600)
