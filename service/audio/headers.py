"""What bytes of an audio file say, where ffmpeg does not tell: a WAV file's length, whether it is audio at all, what is no damage."""

import base64
import re
import struct
from collections.abc import Iterator
from typing import NamedTuple

MAGIC = (
    *(b"fLaC", b"OggS", b"ID3", b"caff", b"#!AMR", b".snd", b"FLV", b"wvpk", b"riff", b"RF64", b"TTA1"),
    *(b"Creative Voice File", b"NIST_1A"),
)
MAGIC_BINARY = (b"\x1aE\xdf\xa3", b"0&\xb2u")  # EBML (WebM, Matroska), ASF
MP4_BOXES = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip")


class WaveHeader(NamedTuple):
    """What a RIFF/WAVE header declares; `seconds` is None for compressed codecs and for a size not filled in.

    `data_start` is where the data begin, 0 where they do not begin in the first bytes; `data_size` how many bytes there are, None where
    the header has a placeholder in that place.
    """

    channels: int
    rate: int
    seconds: float | None
    data_start: int
    data_size: int | None


def wave_header(head: bytes) -> WaveHeader | None:
    """Reads the header from the first bytes of a file; None where they are no RIFF/WAVE with a format."""
    if head[:4] not in (b"RIFF", b"RF64") or head[8:12] != b"WAVE":
        return None
    chunks = {name: (size, start) for name, size, start in _riff_chunks(head)}
    form = head[chunks[b"fmt "][1] :][:14] if b"fmt " in chunks else b""
    if len(form) < 14:
        return None
    tag, channels, rate, _, block = struct.unpack("<HHIIH", form)
    size, start = chunks.get(b"data", (0, 0))
    wide = head[chunks[b"ds64"][1] :][8:16] if b"ds64" in chunks else b""
    if size == 0xFFFFFFFF and len(wide) == 8:
        size = int.from_bytes(wide, "little")
    elif is_placeholder(size):
        size = 0
    exact = tag in (1, 3, 6, 7, 0xFFFE) and size and block and rate
    return WaveHeader(channels, rate, size / (block * rate) if exact else None, start, size or None)


def is_placeholder(size: int) -> bool:
    """Whether a size looks like what a program writes that cannot go back and fill it in: next to 2 or 4 GiB, or a large round number."""
    binary = size >= 1 << 24 and min(size % (1 << 24), -size % (1 << 24)) <= 256
    decimal = size >= 10**8 and size % 10**6 == 0
    return size == 0 or size >= 0x7FFF0000 or binary or decimal


def is_chunk(data: bytes) -> bool:
    """Whether bytes behind a WAV file's data begin another chunk, and are no sound."""
    name, size = data[:4], data[4:8]
    return len(data) < 8 or (re.fullmatch(rb"[\w ~-]{4}", name) is not None and size[3] < 4)


def is_silent_amr(codec: str, packet: bytes) -> bool:
    """Whether a packet of AMR says that nobody speaks: comfort noise, or nothing at all (3GPP TS 26.101 and 26.201, table 1)."""
    frame_type = packet[0] >> 3 & 15 if packet else -1
    return frame_type in {"amrnb": (8, 9, 10, 11, 15), "amrwb": (9, 14, 15)}.get(codec, ())


def _riff_chunks(head: bytes) -> Iterator[tuple[bytes, int, int]]:
    """(name, declared size, where it begins) of each chunk up to the data."""
    position = 12
    while position + 8 <= len(head):
        name, size = struct.unpack_from("<4sI", head, position)
        yield name, size, position + 8
        if name == b"data":
            return
        position += 8 + size + size % 2


def has_magic(head: bytes) -> bool:
    """Whether a file begins like audio of a known format."""
    form = head[:4] in (b"RIFF", b"FORM") and head[8:12] in (b"WAVE", b"AVI ", b"AIFF", b"AIFC")
    return form or head.startswith(MAGIC + MAGIC_BINARY) or is_mp4(head) or is_mpeg_sync(head)


def disguise(head: bytes) -> str | None:
    """What a recording is wrapped in, as whoever sent it should hear: bytes that stand for bytes are not unwrapped here."""
    text = head.lstrip()
    if text.startswith(b"data:"):
        return "a data: URL"
    if text.startswith((b"{", b"[")):
        return "JSON"
    try:
        inside = base64.b64decode(text[: len(text) // 4 * 4], validate=True)
    except ValueError:
        return None
    return "base64" if len(inside) >= 4 and has_magic(inside) and not has_magic(head) else None


def is_mpeg_sync(head: bytes) -> bool:
    """The start of an MPEG layer III or ADTS frame."""
    return len(head) > 1 and head[0] == 0xFF and (head[1] & 0xE6 == 0xE2 or head[1] & 0xF6 == 0xF0)


def is_mp4(head: bytes) -> bool:
    """Whether a file begins with a box of MP4 or QuickTime."""
    return head[4:8] in MP4_BOXES
