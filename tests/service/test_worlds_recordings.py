"""What the world's devices and programs write: gaps, late beginnings, placeholders, silence that is not sent, and every format of the list.

Files are written by the ffmpeg command, and by hand where it writes none of the kind.
"""

import base64
import io
import re
import shutil
import struct
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.audio.decode import EXPECTED, SAMPLE_RATE, decode
from service.audio.decoders import Decoders
from service.audio.headers import is_placeholder, is_silent_amr
from service.audio.structure import EBML, unfinished
from service.errors import ApiError, AudioTooLong, InvalidAudio, NotAudio

pytestmark = pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="needs the ffmpeg command")
PAGE = Path(__file__).parents[2] / "docs" / "api.md"
CUT = ["-af", "aselect='lt(t,1)+gt(t,1.6)'"]

# What docs/api.md lists: containers, what may be in each, and how ffmpeg writes that.
FORMATS: dict[str, dict[str, list[str]]] = {
    "WAV": {
        "PCM": ["wav"],
        "float": ["wav", "-c:a", "pcm_f64le"],
        "mu-law": ["wav", "-ar", "8000", "-c:a", "pcm_mulaw"],
        "A-law": ["wav", "-ar", "8000", "-c:a", "pcm_alaw"],
        "ADPCM": ["wav", "-c:a", "adpcm_ima_wav"],
        "GSM": ["wav", "-ar", "8000", "-c:a", "libgsm_ms"],
    },
    "RF64": {"PCM": ["wav", "-rf64", "always"]},
    "W64": {"PCM": ["w64"]},
    "FLAC": {"FLAC": ["flac"]},
    "MPEG audio": {"MP3": ["mp3"], "MP2": ["mp2"]},
    "Ogg": {
        "Opus": ["ogg", "-c:a", "libopus"],
        "Vorbis": ["ogg", "-c:a", "libvorbis"],
        "FLAC": ["ogg", "-c:a", "flac"],
        "Speex": ["ogg", "-ar", "16000", "-c:a", "libspeex"],
    },
    "WebM": {"Opus": ["webm", "-c:a", "libopus"], "Vorbis": ["webm", "-c:a", "libvorbis"]},
    "Matroska": {"Opus": ["matroska", "-c:a", "libopus"], "AAC": ["matroska", "-c:a", "aac"]},
    "MP4, M4A": {
        "AAC": ["ipod", "-c:a", "aac"],
        "ALAC": ["ipod", "-c:a", "alac"],
        "Opus": ["mp4", "-c:a", "libopus"],
    },
    "MOV": {"AAC": ["mov", "-c:a", "aac"], "PCM": ["mov", "-c:a", "pcm_s16le"]},
    "3GP": {"AMR": ["3gp", "-ar", "8000", "-ac", "1", "-c:a", "libopencore_amrnb"]},
    "AMR": {"narrow band": ["amr", "-ar", "8000", "-ac", "1", "-c:a", "libopencore_amrnb"]},
    "AAC": {"ADTS": ["adts", "-c:a", "aac"], "LATM": ["latm", "-c:a", "aac"]},
    "MPEG-TS": {"AAC": ["mpegts", "-c:a", "aac"], "MP2": ["mpegts", "-c:a", "mp2"]},
    "MPEG-PS": {"MP2": ["mpeg", "-c:a", "mp2"]},
    "AIFF": {"PCM": ["aiff"]},
    "CAF": {"PCM": ["caf"]},
    "AU": {"PCM": ["au"]},
    "WavPack": {"WavPack": ["wv"]},
    "TTA": {"TTA": ["tta"]},
    "VOC": {"PCM": ["voc"]},
    "FLV": {"MP3": ["flv", "-ar", "44100", "-c:a", "libmp3lame"]},
    "AVI": {"PCM": ["avi", "-c:a", "pcm_s16le"]},
    "ASF, WMA": {"WMA": ["asf", "-c:a", "wmav2"]},
    "AC-3": {"AC-3": ["ac3"], "E-AC-3": ["eac3"]},
}
LISTING = "".join(f"| {container} | {', '.join(codecs)} |\n" for container, codecs in FORMATS.items())


@cache
def clip(seconds: float = 3.0) -> bytes:
    """A WAV file of a voice-like sweep, in which every moment is another."""
    t = np.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    return wav((0.3 * np.sin(2 * np.pi * (150 * t + 60 * t**2)) * 32767).astype("<i2").tobytes())


def wav(data: bytes, size: int | None = None, tail: bytes = b"", order: str = "<") -> bytes:
    """A WAV file, 16 kHz and 16 bits, whose header declares `size` bytes of data."""
    size = len(data) if size is None else size
    form = struct.pack(order + "HHIIHH", 1, 1, SAMPLE_RATE, 2 * SAMPLE_RATE, 2, 16)
    riff = struct.pack(order + "I", min(size + 36, 0xFFFFFFFF)) + b"WAVEfmt " + struct.pack(order + "I", 16) + form
    return (b"RIFF" if order == "<" else b"RIFX") + riff + b"data" + struct.pack(order + "I", size) + data + tail


def written(container: str, *arguments: str, source: bytes | None = None) -> bytes:
    """What ffmpeg writes of a clip into a file, in which it may go back; the test is skipped where it can't."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out"
        line = ["ffmpeg", "-hide_banner", "-loglevel", "error", "-i", "pipe:0", *arguments, "-f", container, str(out)]
        done = subprocess.run(line, input=clip() if source is None else source, capture_output=True, check=False)
        if done.returncode:
            pytest.skip(f"this ffmpeg can't: {done.stderr.decode()[-200:]}")
        return out.read_bytes()


def seconds(data: bytes, most: float = 60) -> float:
    return sum(map(len, decode(io.BytesIO(data), max_seconds=most))) / SAMPLE_RATE


def ffmpegs_seconds(data: bytes) -> float:
    """How long ffmpeg itself finds a file."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(data)
        file.flush()
        line = ["ffmpeg", "-loglevel", "error", "-i", file.name, "-ac", "1", "-ar", "16000", "-f", "s16le", "-"]
        return len(subprocess.run(line, capture_output=True, check=True).stdout) / 2 / SAMPLE_RATE


@pytest.mark.parametrize(
    ("container", "codec"), [(container, codec) for container, codecs in FORMATS.items() for codec in codecs]
)
def test_every_format_of_the_list_is_decoded(container: str, codec: str) -> None:
    data = written(*FORMATS[container][codec])
    assert abs(seconds(data) - ffmpegs_seconds(data)) < 0.065  # a frame
    assert 2.9 < seconds(data) < 3.3


def test_the_page_lists_what_is_tested() -> None:
    assert LISTING in PAGE.read_text(), f"it should have these rows:\n{LISTING}"


@pytest.mark.parametrize("container", ["webm", "matroska", "ipod", "ogg", "mov"])
@pytest.mark.parametrize("arguments", [["-output_ts_offset", "4"], CUT, [*CUT, "-output_ts_offset", "30"]])
def test_a_timeline_is_no_promise_of_samples(container: str, arguments: list[str]) -> None:
    codec = "aac" if container in ("ipod", "mov") else "libopus"
    data = written(container, *arguments, "-c:a", codec)
    assert abs(seconds(data) - (2.4 if "-af" in arguments else 3.0)) < 0.1


@pytest.mark.parametrize(("container", "late"), [("webm", 4), ("matroska", 4), ("ipod", 4), ("mpegts", 0), ("wav", 0)])
def test_where_a_track_begins(container: str, late: float) -> None:
    codec = {"wav": "pcm_s16le", "webm": "libopus", "matroska": "libopus"}.get(container, "aac")
    data = written(container, "-output_ts_offset", "4", "-c:a", codec)
    begins: list[float] = []
    decoders = Decoders(max_seconds=60, seconds=30, memory_bytes=256 << 20)
    try:
        assert sum(map(len, decoders.decode(io.BytesIO(data), begins.append))) >= 3 * SAMPLE_RATE
    finally:
        decoders.close()
    assert begins == ([pytest.approx(late, abs=0.1)] if late else [])


@pytest.mark.parametrize("container", ["webm", "ipod", "ogg", "mov"])
@pytest.mark.parametrize("cut", [1, 700])
def test_what_is_cut_short_is_still_told(container: str, cut: int) -> None:
    codec = "aac" if container in ("ipod", "mov") else "libopus"
    arguments = ["-movflags", "faststart"] if codec == "aac" else []
    data = written(container, *CUT, *arguments, "-c:a", codec)
    with pytest.raises(InvalidAudio, match="truncated"):
        seconds(data[:-cut])


def test_a_live_stream_without_sizes_is_whole_between_its_blocks() -> None:
    """As browsers record: neither segment nor clusters have a size."""
    unknown = b"\x01" + b"\xff" * 7
    cluster = b"\x1fC\xb6u" + unknown + b"\xe7\x81\x00" + b"\xa3\x88" + b"\x81\x00\x00\x80fram"
    data = EBML + b"\x80" + b"\x18S\x80g" + unknown + cluster + cluster
    assert unfinished(io.BytesIO(data), data[:12]) is None
    assert unfinished(io.BytesIO(data[:-1]), data[:12]) == "block"


def test_an_element_of_which_nothing_but_its_size_is_there_is_missing() -> None:
    data = EBML + b"\x80" + b"\xec\x85"
    assert unfinished(io.BytesIO(data), data[:12]) == "element"


def test_a_size_beyond_any_file_is_only_a_size() -> None:
    data = b"\0\0\0\x01mdat" + b"\xff" * 8
    assert unfinished(io.BytesIO(data), data[:12]) == "box 'mdat'"


def test_sound_that_begins_behind_pictures() -> None:
    pictures = ["-f", "lavfi", "-i", "testsrc2=s=640x360:r=30", "-shortest", "-c:v", "mpeg2video", "-b:v", "12M"]
    data = written("mpegts", *pictures, "-map", "0:a", "-map", "1:v", "-c:a", "mp2", "-muxdelay", "1.5")
    assert abs(seconds(data) - 3) < 0.1


def amr(codec: str, rate: int) -> bytes:
    """AMR that sends nothing while nobody speaks: 1 s of a tone, 2 s of silence, 1 s of the tone again."""
    tone = (8000 * np.sin(2 * np.pi * 300 * np.arange(rate) / rate)).astype(np.int16)
    sound = np.concatenate([tone, np.zeros(2 * rate, np.int16), tone])
    size = rate // 50
    with io.BytesIO() as file:
        with av.open(file, "w", format="amr") as out:
            stream: Any = out.add_stream(codec, rate=rate)
            stream.layout, stream.options = "mono", {"dtx": "1"}
            for start in range(0, len(sound), size):
                frame = av.AudioFrame.from_ndarray(sound[None, start : start + size], format="s16", layout="mono")
                frame.sample_rate, frame.pts = rate, start
                out.mux(stream.encode(frame))
            out.mux(stream.encode(None))
        return file.getvalue()


def test_silence_that_amr_does_not_send_is_no_damage() -> None:
    data = amr("libopencore_amrnb", 8000)
    assert len(data) < 150 * 32 + 100  # 200 frames of 32 bytes, if all were sent
    assert abs(seconds(data) - 4) < 0.05
    assert abs(seconds(written("3gp", "-c:a", "copy", source=data)) - 4) < 0.05


def test_wide_band_amr_without_frames_of_speech() -> None:
    data = b"#!AMR-WB\n" + bytes([9 << 3 | 4, *bytes(5)]) + bytes([15 << 3 | 4]) * 49
    assert seconds(data) == 1.0


@pytest.mark.parametrize(
    ("codec", "silent"), [("amrnb", [8, 9, 10, 11, 15]), ("amrwb", [9, 14, 15]), ("mp3", [])], ids=["nb", "wb", "other"]
)
def test_frames_of_amr_in_which_nobody_speaks(codec: str, silent: list[int]) -> None:
    """Comfort noise of each sender, and nothing sent, or lost: 3GPP TS 26.101 and 26.201, table 1."""
    assert [kind for kind in range(16) if is_silent_amr(codec, bytes([kind << 3 | 4]))] == silent
    assert not is_silent_amr(codec, b"")


def test_frames_of_amr_that_are_damaged_are_damage() -> None:
    data = bytearray(amr("libopencore_amrnb", 8000))
    for place in range(6, 6 + 32 * 45, 32):
        data[place] = 12 << 3 | 4  # a type of frame that does not exist
    with pytest.raises(ApiError):
        seconds(bytes(data))


SPOKEN = clip()[44:]
PLACEHOLDERS = [2 * 10**9, 10**9, 0x40000000, 0x7FFFFFFF, 0x7FFFFF00, 0xFFFFFFFF, 0xFFFFFFF0, 0, 0x7FFFFFDB, 1 << 28]


@pytest.mark.parametrize("size", PLACEHOLDERS)
def test_a_placeholder_is_no_size(size: int) -> None:
    assert is_placeholder(size)
    assert seconds(wav(SPOKEN, size)) == 3.0


@given(st.integers(1000, 0x7FFE0000))
def test_few_sizes_are_placeholders(size: int) -> None:
    round_ones = size % 10**6 == 0 or (size + 256) % (1 << 24) <= 512
    assert is_placeholder(size) <= round_ones


def test_a_size_that_is_there_and_too_long_is_refused_before_all_is_read() -> None:
    source = io.BytesIO(wav(bytes(1 << 24), 1 << 24))  # a round size, all of which is there
    with pytest.raises(AudioTooLong):
        list(decode(source, max_seconds=2))
    assert source.tell() < 1 << 20


@pytest.mark.parametrize("declared", [0.5, 0.9, 0.001])
def test_sound_behind_the_declared_end_is_heard(declared: float) -> None:
    assert seconds(wav(SPOKEN, round(len(SPOKEN) * declared) // 2 * 2)) == 3.0


@pytest.mark.parametrize("odd", [0, 1])
@pytest.mark.parametrize("name", [b"LIST", b"id3 ", b"_PMX", b"bext"])
def test_chunks_behind_the_data_are_not_heard(name: bytes, odd: int) -> None:
    data = SPOKEN + b"\0" * odd
    tail = b"\0" * odd + name + struct.pack("<I", 200) + b"INFO" + b"x" * 196
    assert abs(seconds(wav(data, tail=tail)) - 3.0) < 1e-3


@pytest.mark.parametrize("arguments", [[], ["-c:a", "adpcm_ima_wav"]])
def test_a_wav_file_that_is_cut_short_is_truncated(arguments: list[str]) -> None:
    data = written("wav", *arguments)
    with pytest.raises(InvalidAudio, match="truncated"):
        seconds(data[: len(data) // 2])


def test_big_endian_wav_files_are_refused_by_name() -> None:
    swapped = np.frombuffer(SPOKEN, "<i2").astype(">i2").tobytes()
    with pytest.raises(NotAudio, match=re.escape("(RIFX), which can't be read. " + EXPECTED)):
        seconds(wav(swapped, order=">"))


@settings(max_examples=30, deadline=None)
@given(
    kind=st.sampled_from([("webm", "libopus"), ("matroska", "flac"), ("matroska", "aac"), ("ipod", "aac"), ("mov", "alac"),
                          ("mov", "pcm_s16le"), ("ogg", "libopus"), ("ogg", "flac"), ("mpegts", "aac"), ("mp4", "libopus")]),
    offset=st.sampled_from([0.0, 0.3, 7.0]),
    gap=st.tuples(st.floats(0.1, 2.5), st.floats(0, 1.5)),
    channels=st.integers(1, 2),
    fragmented=st.booleans(),
)  # fmt: skip
def test_what_ffmpeg_writes_and_reads_back_whole_is_never_refused(
    kind: tuple[str, str], offset: float, gap: tuple[float, float], channels: int, fragmented: bool
) -> None:
    container, codec = kind
    start, length = gap
    arguments = [
        "-af",
        f"aselect='lt(t,{start})+gt(t,{start + length})'",
        "-ac",
        str(channels),
        "-ar",
        "48000",
        "-c:a",
        codec,
    ]
    arguments += ["-output_ts_offset", str(offset)] if offset else []
    if fragmented and container in ("ipod", "mov", "mp4"):
        arguments += ["-movflags", "frag_keyframe+empty_moov", "-frag_duration", "200000"]
    data = written(container, *arguments, "-strict", "-2")
    assert abs(seconds(data) - ffmpegs_seconds(data)) < 0.065


@pytest.mark.parametrize(
    ("body", "wrapping"),
    [
        (b"data:audio/wav;base64," + base64.b64encode(clip()), "a data: URL"),
        (base64.b64encode(clip()), "base64"),
        (b'{"audio": "' + base64.b64encode(clip()) + b'"}', "JSON"),
    ],
)
def test_a_recording_in_a_wrapping_is_refused_in_words(body: bytes, wrapping: str) -> None:
    with pytest.raises(NotAudio, match=f"The body is {wrapping}, not the recording itself"):
        seconds(body)
