"""What was heard before: speech embeddings by the samples of their window, and the windows of a recording by its bytes.

A conversation sends its recordings again with every turn: they are then neither decoded nor encoded again, nor, because the rows are the
same to the bit, prefilled again by an engine with a prefix cache.
"""

import hashlib
from collections.abc import Hashable, Sequence
from io import RawIOBase
from threading import Lock
from typing import BinaryIO, TypeVar

import numpy as np
import numpy.typing as npt
from cachetools import LRUCache
from torch import Tensor

from service.telemetry import metrics

BLOCK_BYTES = 1 << 20

Key = TypeVar("Key")
Value = TypeVar("Value")


def fingerprint(samples: npt.NDArray[np.float32]) -> bytes:
    """A key for a window's samples (n,); two windows with the same key have the same samples."""
    return hashlib.blake2b(np.ascontiguousarray(samples).data, digest_size=32).digest()


def fingerprint_of_file(file: BinaryIO | RawIOBase) -> bytes:
    """A key for the bytes of a file, which is read from its beginning."""
    digest = hashlib.blake2b(digest_size=32)
    file.seek(0)
    while block := file.read(BLOCK_BYTES):
        digest.update(block)
    return digest.digest()


# Of a window of a recording: its key, None where it has no rows, how many samples it has, and how probably somebody speaks in it.
Window = tuple[Hashable | None, int, float | None]


class EmbeddingCache:
    """The rows (n, llm_dim) that were used last, up to `max_bytes` in all; threads may share it."""

    def __init__(self, max_bytes: int) -> None:
        self._rows: LRUCache[Hashable, Tensor] = LRUCache(max_bytes, getsizeof=lambda rows: rows.nbytes)
        self._lock = Lock()

    def get(self, key: Hashable) -> Tensor | None:
        """The rows of a window, where they are there; counts the hit or miss."""
        with self._lock:
            rows = self._rows.get(key)
        metrics.CACHE.labels("miss" if rows is None else "hit").inc()
        return rows

    def get_all(self, keys: Sequence[Hashable]) -> list[Tensor] | None:
        """The rows of all these windows; None, and nothing counted, where those of one are not there."""
        with self._lock:
            if not all(key in self._rows for key in keys):
                return None
            rows = [self._rows[key] for key in keys]
        metrics.CACHE.labels("hit").inc(len(rows))
        return rows

    def put(self, key: Hashable, rows: Tensor) -> None:
        """Keeps the rows of a window, unless they alone are too many; the ones used least recently make room."""
        with self._lock:
            _keep(self._rows, key, rows)
            metrics.CACHE_BYTES.set(self._rows.currsize)


class RecordingCache:
    """The windows of the recordings that were used last, `max_windows` in all."""

    def __init__(self, max_windows: int) -> None:
        self._recordings: LRUCache[Hashable, list[Window]] = LRUCache(max_windows, getsizeof=len)

    def get(self, key: Hashable) -> list[Window] | None:
        """The windows of a recording, where they are there."""
        return self._recordings.get(key)

    def put(self, key: Hashable, windows: list[Window]) -> None:
        """Keeps the windows of a recording; the recordings used least recently make room."""
        _keep(self._recordings, key, windows)


def _keep(cache: "LRUCache[Key, Value]", key: Key, value: Value) -> None:
    """Replaces what the cache has of a key, by nothing where the value is larger than the cache."""
    cache.pop(key, None)
    if cache.getsizeof(value) <= cache.maxsize:
        cache[key] = value
