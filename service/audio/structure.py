"""Whether a file ends where its container says: what is declared, and missing.

Containers are lists of elements with sizes; a file that was cut short ends within one. Timelines are no help: a recorder that was paused,
or a piece of a longer stream, leaves gaps in them, and every byte is there.
"""

from collections.abc import Callable, Iterator
from typing import Protocol


class File(Protocol):
    """What is read here: reading gives no bytes at the end of the file, and only there."""

    def seek(self, offset: int, /) -> int:
        """Goes there."""

    def read(self, size: int, /) -> bytes | None:
        """Up to as many bytes."""


def unfinished(file: File, head: bytes) -> str | None:
    """The name of the first element of a file that is cut off; None where it is whole, or of a container without sizes.

    `head` are the file's first bytes.
    """
    walk = _walk_of(head)
    if walk is None:
        return None
    return next((name for name, end in walk(file) if end > FARTHEST or not _at(file, end - 1, 1)), None)


def _walk_of(head: bytes) -> "Callable[[File], Iterator[tuple[str, int]]] | None":
    if head[4:8] in MP4_BOXES:
        return _boxes
    if head.startswith(EBML):
        return _ebml
    if head.startswith(b"OggS"):
        return _ogg_pages
    return None


def _at(file: File, position: int, size: int) -> bytes:
    """The bytes at a position; fewer at the end of the file."""
    file.seek(position)
    data = b""
    while len(data) < size and (more := file.read(size - len(data))):
        data += more
    return data


def _boxes(file: File) -> Iterator[tuple[str, int]]:
    """The boxes of an MP4 or QuickTime file, of the highest level (ISO/IEC 14496-12, 4.2)."""
    position = 0
    while len(header := _at(file, position, 16)) >= 8:
        size, kind = int.from_bytes(header[:4], "big"), header[4:8]
        if size == 1:
            size = int.from_bytes(header[8:16], "big")
        if size < 8 or not kind.isascii():  # 0: to the end of the file; else no box
            return
        position += size
        yield f"box {kind.decode()!r}", position


def _ebml(file: File) -> Iterator[tuple[str, int]]:
    """The elements of a Matroska or WebM file (RFC 8794); of one whose size is not known, as of a live stream, those in it."""
    position = 0
    while len(header := _at(file, position, 12)) >= 2:
        id_length = _vint_length(header[0], 4)
        if id_length is None or len(header) <= id_length:
            return
        size_length = _vint_length(header[id_length], 8)
        if size_length is None or len(header) < id_length + size_length:
            return
        coded = int.from_bytes(header[id_length : id_length + size_length], "big")
        unknown = (1 << 7 * size_length) - 1
        size = coded & unknown
        position += id_length + size_length
        if size == unknown:
            continue
        position += size
        yield ELEMENTS.get(header[:id_length], "element"), position


def _vint_length(first: int, most: int) -> int | None:
    """How many bytes a number has by its first one."""
    length = 9 - first.bit_length()
    return length if length <= most else None


def _ogg_pages(file: File) -> Iterator[tuple[str, int]]:
    """The pages of an Ogg file (RFC 3533, 6), as long as they follow each other."""
    position = 0
    while (header := _at(file, position, 27 + 255)).startswith(b"OggS"):
        segments = header[26] if len(header) > 26 else 0
        position += 27 + segments + sum(header[27 : 27 + segments])
        yield "page", position


FARTHEST = 1 << 40  # bytes: what a damaged file declares may be beyond any file
EBML = b"\x1aE\xdf\xa3"
ELEMENTS = {b"\x18S\x80g": "segment", b"\x1fC\xb6u": "cluster", b"\xa3": "block", b"\xa0": "block"}
MP4_BOXES = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip")
