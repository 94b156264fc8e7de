"""From the bytes of an audio file to mono 16 kHz samples, as the bytes arrive.

This file knows nothing about HTTP, windows, features or models, and not whether its source is complete or still
growing: it reads, and reading waits. Whatever ffmpeg (through PyAV) finds in one of the `CONTAINERS` is decoded as the
ffmpeg command decodes it, encoder delay and edit lists included, but channels are mixed by their plain mean.
"""

import importlib
import io
import pkgutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from typing import BinaryIO

import av
import av.logging
import numpy as np
from av.audio.codeccontext import AudioCodecContext
from av.audio.frame import AudioFrame
from av.audio.resampler import AudioResampler
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.packet import Packet

from service.audio.headers import disguise, has_magic, is_chunk, is_mp4, is_mpeg_sync, is_silent_amr, wave_header
from service.audio.structure import unfinished
from service.errors import ApiError, AudioTooLong, InvalidAudio, NotAudio, TruncatedAudio

SAMPLE_RATE = 16000
RATES = range(1_000, 768_001)  # Hz, of a source
MAX_CHANNELS = 64
MAX_FRAME_SAMPLES = 1 << 20  # per channel in one decoded frame
HEAD_BYTES = 1 << 16  # how far a WAV header may reach
UNKNOWN = b"\xff\xff\xff\xff"  # as the size of a WAV file's data: to the end of the file
BUFFER_BYTES = 4096
TOLERANCE_SECONDS = 0.1
TOLERANCE_RATIO = 0.01

CONTAINERS = (
    "aac,ac3,aiff,amr,amrnb,amrwb,asf,au,avi,caf,eac3,flac,flv,loas,matroska,"
    "mov,mp3,mpeg,mpegts,nistsphere,ogg,tta,voc,w64,wav,webm,wv"
)
# Only the source is ever opened (no protocol), little is probed before the first sample, and MP4 does not look behind its media data for
# more (ignidx).
OPTIONS = {
    "format_whitelist": CONTAINERS,
    "protocol_whitelist": "none",
    "probesize": "16384",  # more where no audio track is found in that
    "fflags": "ignidx",
    "max_size": str(
        1 << 14
    ),  # bytes of a packet of a WAV file: four times ffmpeg's own, for a packet costs more than its samples
}
# As ffmpeg does by itself: the sound of a transport stream may begin behind its pictures.
PROBE_FURTHER = {"probesize": "5000000"}
# Containers whose header counts the samples, so that fewer are a truncated track. Others have timelines, in which there may be gaps.
EXACT_CONTAINERS = {"flac", "mp3", "aiff", "au", "wv", "tta"}
MP4 = "mov,mp4,m4a,3gp,3g2,mj2"
EXPECTED = "Send WAV, FLAC, MP3, Ogg, WebM, MP4/M4A, AAC, AIFF, CAF or AMR."
NO_SAMPLES = "The audio file holds no samples. Send a recording that is not empty."

av.logging.set_level(None)  # ffmpeg's own messages go nowhere


def decode(
    source: BinaryIO | io.RawIOBase,
    *,
    max_seconds: float,
    start: int = 0,
    begins: Callable[[float], None] = lambda seconds: None,
) -> Iterator[np.ndarray]:
    """Decode the main audio track of `source` (bytes of a file, read from its start; may block while they arrive).

    Yields float32 arrays of shape (samples,), 16 kHz, full scale = 1.0, none empty. Integers are divided by their full
    scale, channels averaged. 16 kHz mono is passed on untouched.

    `begins` hears, before the first sample, at which second of the file's timeline the track begins, where that is not at once.

    With `start`, a number of samples at 16 kHz, the source must be a whole file; what comes before is left out, and not
    even decoded in FLAC and WAV files at 16 kHz. In others it is: a lossy decoder, or a resampler, that begins elsewhere
    gives other samples.

    Raises `NotAudio`, `TruncatedAudio` (behind all that is there), `InvalidAudio` (empty, damaged, not finite) or `AudioTooLong` (more than
    `max_seconds`); what `source.read` raises comes out as it is.
    """
    reader = _Reader(source, whole=start > 0)
    empty = not start
    try:
        for chunk in _chunks(reader, max_seconds, start, begins):
            empty = False
            yield chunk
        if empty:  # fewer samples than make one at 16 kHz
            raise InvalidAudio(NO_SAMPLES)
    except (av.FFmpegError, ValueError, ApiError) as exc:
        reader.check()
        if isinstance(exc, ApiError):
            raise
        raise InvalidAudio(f"The audio is damaged: {_reason(exc)}. Send an intact file.") from exc


def load_everything() -> None:
    """Imports what the decoder would import when a file first needs it."""
    for module in pkgutil.walk_packages(av.__path__, "av."):
        if module.name != "av.__main__":
            importlib.import_module(module.name)


def _chunks(reader: "_Reader", max_seconds: float, start: int, begins: Callable[[float], None]) -> Iterator[np.ndarray]:
    with _open(reader) as container:
        reader.check()
        _check_wave(reader.head)
        stream = _audio_track(container)
        declared = _declared_seconds(container, stream, reader.head)
        if declared is not None and declared > max_seconds + _tolerance(declared, stream):
            raise _too_long(max_seconds, declared)
        if (late := _begin(container, stream)) > TOLERANCE_SECONDS:
            begins(late)
        first = _seek(container, stream, start) if reader.exact_seeks else 0
        tally = _Tally(Fraction(first, SAMPLE_RATE))
        resampler = _Resampler(skip=start - first)
        for frame in _frames(container, stream, reader, tally):
            _check_shape(frame.sample_rate, frame.layout.nb_channels)
            tally.decoded += Fraction(frame.samples, frame.sample_rate)
            if tally.decoded > max_seconds:
                raise _too_long(max_seconds, declared)
            yield from resampler.push(frame)
        reader.check()
        yield from resampler.flush()
        _check_complete(reader, tally, declared, _tolerance(declared or float(tally.decoded), stream))


def _seek(container: InputContainer, stream: AudioStream, start: int) -> int:
    """Goes to sample `start`, counted at 16 kHz, or some way before it; returns the number of the sample that will be decoded next."""
    codec = stream.codec_context
    lossless = codec.name == "flac" or codec.name.startswith("pcm_")
    if not lossless or codec.sample_rate != SAMPLE_RATE or stream.time_base != Fraction(1, SAMPLE_RATE):
        return 0
    try:
        container.seek(start, stream=stream)
        found = next(container.demux(stream)).pts
        container.seek(start, stream=stream)  # to the same packet again
    except av.FFmpegError:  # behind the end
        found = None
    if found is None or not 0 <= found <= start:
        container.seek(0)
        return 0
    return found


class _Reader:
    """What ffmpeg reads from: never raises into it (the error is kept for `check`), never looks for the end.

    ffmpeg asks a seekable file for its size, and some demuxers then look behind the media data; both would wait for the
    whole upload. So a file is seekable only where its container needs it, or where it is `whole` and of a container in
    which any sample is found by its number.
    """

    def __init__(self, source: BinaryIO | io.RawIOBase, whole: bool) -> None:
        self._source = source
        self.error: Exception | None = None
        self.ended = False
        self.head = b""
        self._position = 0
        self._front = b""  # what ffmpeg reads in place of the file's first bytes
        self._data_end: int | None = None  # of a WAV file, where its header says that sound ends
        while len(self.head) < 12 and self.read(12 - len(self.head)):
            pass
        self._is_mp3 = self.head.startswith(b"ID3") or is_mpeg_sync(self.head)
        self.exact_seeks = whole and (self.head.startswith(b"fLaC") or self.head[8:] == b"WAVE")
        self._seekable = self.exact_seeks or self._is_mp3 or is_mp4(self.head) or self.head.startswith(b"caff")
        if not self.exact_seeks:
            self._front = self._open_end()
        self.seek(0)

    def _open_end(self) -> bytes:
        """The header of a WAV file, up to its data and without their size: what stands behind them may be sound, too. Else nothing."""
        if not self.head.startswith(b"RIFF"):
            return b""
        while (wave := wave_header(self.head)) is None or not wave.data_start:
            if len(self.head) >= HEAD_BYTES or not self.read(BUFFER_BYTES):
                return b""
        if wave.data_size is None:
            return b""
        self._data_end = wave.data_start + wave.data_size
        return self.head[: wave.data_start - 4] + UNKNOWN

    def check(self) -> None:
        """Raise what the source raised."""
        if self.error is not None:
            raise self.error

    def seekable(self) -> bool:
        return self._seekable

    def read(self, size: int) -> bytes:
        if self._position < len(self._front):
            data = self._front[self._position : self._position + size]
            self.seek(self._position + len(data))
            return data
        if self._data_end is not None and self._position < self._data_end:
            size = min(size, self._data_end - self._position)
        elif self._position == self._data_end and self._ends_here():
            return b""
        return self._read(size)

    def _ends_here(self) -> bool:
        """Whether what stands behind the declared end of a WAV file's data is no sound; else the file has no declared end any more."""
        end = self._position
        behind = b"".join(iter(lambda: self._read(9 - self._position + end), b""))
        self.seek(end)
        if is_chunk(behind[:8]) or is_chunk(behind[1:9]):  # behind an odd number of bytes stands one more
            self.ended = True
            return True
        self._data_end = None
        return False

    def missing(self) -> str | None:
        """What the file declares and has not got; None where it is whole."""
        if self._data_end is not None and self._position < self._data_end:
            return "chunk 'data'"
        return unfinished(self._source, self.head[:12])

    def _read(self, size: int) -> bytes:
        if self.error is not None or not size:
            return b""
        try:
            data = self._source.read(size) or b""
        except Exception as exc:
            self.error = exc
            return b""
        if self._position <= len(self.head) < HEAD_BYTES:
            self.head += data[len(self.head) - self._position :]
        self._position += len(data)
        self.ended = self.ended or not data
        return data

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        if whence == io.SEEK_END and not self.exact_seeks:
            # The mp3 demuxer trusts a Xing header only if it knows a file size, no larger than the header's.
            return 0 if self._is_mp3 else -1
        if self.error is not None:
            return -1
        if whence == io.SEEK_CUR:
            offset, whence = self._position + offset, io.SEEK_SET
        try:
            self._position = self._source.seek(offset, whence)
        except Exception as exc:
            self.error = exc
            return -1
        return self._position

    def tell(self) -> int:
        return self._position


@dataclass
class _Tally:
    """Seconds decoded, seconds of packets that the decoder refused, and where the container could not be read on."""

    decoded: Fraction = field(default_factory=Fraction)
    lost: float = 0.0
    broken: str | None = None


def _open(reader: _Reader) -> InputContainer:
    if reader.error is None and not reader.head:
        raise InvalidAudio("The audio file is empty. " + EXPECTED)
    if reader.head.startswith(b"RIFX"):
        raise NotAudio("The file is a WAV file with big-endian samples (RIFX), which can't be read. " + EXPECTED)
    try:
        container = _probe(reader, {})
        if container.streams.best("audio") is None:
            container.close()
            reader.seek(0)
            container = _probe(reader, PROBE_FURTHER)
        return container
    except (av.FFmpegError, ValueError) as exc:
        reader.check()
        _check_wave(reader.head)
        if has_magic(reader.head):
            raise InvalidAudio(f"The header of the file is damaged: {_reason(exc)}. Send an intact file.") from exc
        wrapping = disguise(reader.head[:64])
        wrapped = f"The body is {wrapping}, not the recording itself. " if wrapping else ""
        raise NotAudio(wrapped + "The file is not audio of a known format. " + EXPECTED) from exc


def _probe(reader: _Reader, options: dict[str, str]) -> InputContainer:
    return av.open(reader, "r", options=OPTIONS | options, metadata_errors="replace", buffer_size=BUFFER_BYTES)


def _audio_track(container: InputContainer) -> AudioStream:
    if not len(container.streams):
        raise InvalidAudio("The file is damaged or truncated: no audio track could be found. Send an intact file.")
    stream = container.streams.best("audio")
    if not isinstance(stream, AudioStream):
        raise InvalidAudio("The file has no audio track. " + EXPECTED)
    if stream.codec_context is None:
        raise InvalidAudio("The codec of the audio track is not known. " + EXPECTED)
    context = stream.codec_context
    if context.sample_rate or context.channels:
        _check_shape(context.sample_rate, context.channels)
    context.options = {"max_samples": str(MAX_FRAME_SAMPLES)}
    return stream


def _check_wave(head: bytes) -> None:
    wave = wave_header(head)
    if wave is not None:
        _check_shape(wave.rate, wave.channels)


def _check_shape(rate: int, channels: int) -> None:
    if not 1 <= channels <= MAX_CHANNELS:
        raise InvalidAudio(f"The audio declares {channels} channels; 1 to {MAX_CHANNELS} are possible.")
    if rate not in RATES:
        raise InvalidAudio(f"The audio declares a sample rate of {rate} Hz; {RATES[0]} to {RATES[-1]} Hz are possible.")


def _frames(container: InputContainer, stream: AudioStream, reader: _Reader, tally: _Tally) -> Iterator[AudioFrame]:
    """All frames of the track, as far as the container can be read; it may well break off where the file ends."""
    try:
        for packet in container.demux(stream):
            reader.check()
            yield from _decode_packet(stream, packet, tally)
    except av.FFmpegError as exc:
        reader.check()
        tally.broken = None if reader.ended else _reason(exc)
        yield from _decode_packet(stream, None, tally)


def _decode_packet(stream: AudioStream, packet: "Packet[AudioStream] | None", tally: _Tally) -> list[AudioFrame]:
    """The frames of one packet; a packet that cannot be decoded is skipped and counted, as ffmpeg does."""
    try:
        return stream.codec_context.decode(packet)
    except av.FFmpegError:
        if packet is not None and is_silent_amr(stream.codec_context.name, bytes(packet)):
            return [_silence(stream.codec_context)]
        if packet is not None and packet.duration:
            tally.lost += float(packet.duration * packet.time_base)
        return []


def _silence(codec: AudioCodecContext) -> AudioFrame:
    """A frame of AMR, 20 ms, in which nobody speaks."""
    silence = np.zeros((1, codec.sample_rate // 50), np.float32)
    frame = AudioFrame.from_ndarray(silence, format=codec.format.name, layout=codec.layout.name)
    frame.sample_rate = codec.sample_rate
    return frame


class _Resampler:
    """Frames of any format to chunks of mono 16 kHz float32; rate, channels and format may change on the way.

    The first `skip` samples of the result are left out.
    """

    def __init__(self, skip: int) -> None:
        self._skip = skip
        self._shape: tuple[int, str, str] | None = None
        self._to_float = AudioResampler(format="flt")
        self._to_16k: AudioResampler | None = None

    def push(self, frame: AudioFrame) -> Iterator[np.ndarray]:
        shape = (frame.sample_rate, frame.layout.name, frame.format.name)
        if shape != self._shape:
            yield from self.flush()
            self._shape = shape
            self._to_float = AudioResampler(format="flt")
            self._to_16k = None if frame.sample_rate == SAMPLE_RATE else AudioResampler(rate=SAMPLE_RATE)
        frame.pts = None
        for part in self._to_float.resample(frame):
            yield from self._resample(_mono(part), frame.sample_rate)

    def flush(self) -> Iterator[np.ndarray]:
        if self._to_16k is not None:
            yield from self._behind_skip(_mono(part) for part in self._to_16k.resample(None))

    def _resample(self, samples: np.ndarray, rate: int) -> Iterator[np.ndarray]:
        if not np.isfinite(samples).all():
            raise InvalidAudio("The audio has samples that are NaN or infinite. Send finite samples between -1 and 1.")
        if self._to_16k is None:
            yield from self._behind_skip([samples])
            return
        frame = AudioFrame.from_ndarray(samples[np.newaxis], format="flt", layout="mono")
        frame.sample_rate = rate
        yield from self._behind_skip(_mono(part) for part in self._to_16k.resample(frame))

    def _behind_skip(self, chunks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        for chunk in chunks:
            skipped = min(self._skip, len(chunk))
            self._skip -= skipped
            if skipped < len(chunk):
                yield chunk[skipped:]


def _mono(frame: AudioFrame) -> np.ndarray:
    """The mean over the channels of a packed float32 frame; float32, shape (samples,)."""
    channels = frame.layout.nb_channels
    samples: np.ndarray = frame.to_ndarray().reshape(-1, channels)
    if channels == 1:
        return samples[:, 0]
    mixed: np.ndarray = samples.mean(axis=1, dtype=np.float32)
    return mixed


def _begin(container: InputContainer, stream: AudioStream) -> float:
    """At which second the track begins; the clock of a broadcast, which begins anywhere, is that of its earliest track."""
    if stream.start_time is None or stream.time_base is None:
        return 0.0
    clock = (container.start_time or 0) / av.time_base if container.format.name in ("mpegts", "mpeg") else 0.0
    return float(stream.start_time * stream.time_base) - clock


def _declared_seconds(container: InputContainer, stream: AudioStream, head: bytes) -> float | None:
    """How long the header says the track is; None where it does not say, or ffmpeg would be guessing."""
    name = container.format.name
    if name == "wav":
        wave = wave_header(head)
        return wave.seconds if wave else None
    frame_size, rate = stream.codec_context.frame_size, stream.codec_context.sample_rate
    if name == MP4 and stream.frames and frame_size and rate:
        return stream.frames * frame_size / rate
    if name in EXACT_CONTAINERS and stream.duration and stream.time_base:
        return float(stream.duration * stream.time_base)
    return None


def _tolerance(seconds: float, stream: AudioStream) -> float:
    """Seconds by which a healthy file may differ from its header: rounding, the encoder's priming and padding."""
    context = stream.codec_context
    priming = 3 * context.frame_size / context.sample_rate if context.sample_rate else 0.0
    return max(TOLERANCE_SECONDS, TOLERANCE_RATIO * seconds, priming)


def _check_complete(reader: _Reader, tally: _Tally, declared: float | None, tolerance: float) -> None:
    decoded = float(tally.decoded)
    if not has_magic(reader.head) and (decoded < TOLERANCE_SECONDS or tally.lost > tolerance):
        raise NotAudio("The file is not audio of a known format. " + EXPECTED)
    missing = (declared or 0.0) - decoded
    if declared and missing > tolerance:
        raise TruncatedAudio(
            f"The audio is truncated or damaged: its header declares {declared:.2f} s, {decoded:.2f} s were decoded."
            " Send the whole file, or allow_truncated=true."
        )
    if part := reader.missing():
        raise TruncatedAudio(
            f"The audio is truncated: the file ends within its {part}; {decoded:.2f} s were decoded. "
            "Send the whole file, or allow_truncated=true."
        )
    if not decoded:
        raise InvalidAudio(NO_SAMPLES)
    if tally.broken and (not declared or missing > 0):
        raise InvalidAudio(f"The audio is damaged after {decoded:.2f} s: {tally.broken}. Send an intact file.")
    if tally.lost > tolerance:
        raise InvalidAudio(f"The audio is damaged: {tally.lost:.2f} s of it could not be decoded. Send an intact file.")


def _too_long(max_seconds: float, declared: float | None) -> AudioTooLong:
    length = "" if declared is None else f" lasts {declared:.1f} s and"
    return AudioTooLong(f"The audio{length} exceeds the limit of {max_seconds:g} s. Send a shorter recording.")


def _reason(exc: Exception) -> str:
    return getattr(exc, "strerror", None) or str(exc)
