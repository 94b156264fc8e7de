"""What the first bytes of an audio file say, where ffmpeg does not tell: a WAV file's declared length, and whether it is audio at all."""

import struct
from collections.abc import Iterator
from typing import NamedTuple

MAGIC = (b"fLaC", b"OggS", b"ID3", b"caff", b"#!AMR", b".snd", b"FLV", b"wvpk", b"riff", b"RF64")
MAGIC_BINARY = (b"\x1aE\xdf\xa3", b"0&\xb2u")  # EBML (WebM, Matroska), ASF
MP4_BOXES = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip")


class WaveHeader(NamedTuple):
    """What a RIFF/WAVE header declares; `seconds` is None for compressed codecs and for a size not filled in."""

    channels: int
    rate: int
    seconds: float | None


def wave_header(head: bytes) -> WaveHeader | None:
    """Reads the header from the first bytes of a file; None where they are no RIFF/WAVE with a format."""
    if head[:4] not in (b"RIFF", b"RF64") or head[8:12] != b"WAVE":
        return None
    chunks = dict(_riff_chunks(head))
    if b"fmt " not in chunks or len(chunks[b"fmt "][1]) < 14:
        return None
    tag, channels, rate, _, block = struct.unpack_from("<HHIIH", chunks[b"fmt "][1])
    size = chunks[b"data"][0] if b"data" in chunks else 0
    if size == 0xFFFFFFFF and len(chunks.get(b"ds64", (0, b""))[1]) >= 16:
        size = struct.unpack_from("<8xQ", chunks[b"ds64"][1])[0]
    elif size >= 0x7FFF0000:  # what ffmpeg, sox and others write when they cannot seek back
        size = 0
    exact = tag in (1, 3, 6, 7, 0xFFFE) and size and block and rate
    return WaveHeader(channels, rate, size / (block * rate) if exact else None)


def _riff_chunks(head: bytes) -> Iterator[tuple[bytes, tuple[int, bytes]]]:
    """(name, (declared size, first bytes)) of each chunk up to the data."""
    position = 12
    while position + 8 <= len(head):
        name, size = struct.unpack_from("<4sI", head, position)
        yield name, (size, head[position + 8 : position + 8 + min(size, 40)])
        if name == b"data":
            return
        position += 8 + size + size % 2


def has_magic(head: bytes) -> bool:
    """Whether a file begins like audio of a known format."""
    form = head[:4] in (b"RIFF", b"FORM") and head[8:12] in (b"WAVE", b"AVI ", b"AIFF", b"AIFC")
    return form or head.startswith(MAGIC + MAGIC_BINARY) or is_mp4(head) or is_mpeg_sync(head)


def is_mpeg_sync(head: bytes) -> bool:
    """The start of an MPEG layer III or ADTS frame."""
    return len(head) > 1 and head[0] == 0xFF and (head[1] & 0xE6 == 0xE2 or head[1] & 0xF6 == 0xF0)


def is_mp4(head: bytes) -> bool:
    """Whether a file begins with a box of MP4 or QuickTime."""
    return head[4:8] in MP4_BOXES
