"""What was heard before: speech embeddings by the samples of their window, and the windows of a recording by its bytes.

A conversation sends its recordings again with every turn: they are then neither decoded nor encoded again, nor, because the rows are the
same to the bit, prefilled again by an engine with a prefix cache.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Hashable, Sequence
from io import RawIOBase
from threading import Lock
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
from torch import Tensor

from service.telemetry import metrics

BLOCK_BYTES = 1 << 20


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


class EmbeddingCache:
    """The rows (n, llm_dim) that were used last, up to `max_bytes` in all; threads may share it."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._bytes = 0
        self._rows: OrderedDict[bytes, Tensor] = OrderedDict()
        self._lock = Lock()

    def get(self, key: bytes) -> Tensor | None:
        """The rows of a window, where they are there; counts the hit or miss."""
        with self._lock:
            rows = self._rows.get(key)
            if rows is not None:
                self._rows.move_to_end(key)
        metrics.CACHE.labels("miss" if rows is None else "hit").inc()
        return rows

    def get_all(self, keys: Sequence[bytes]) -> list[Tensor] | None:
        """The rows of all these windows; None, and nothing counted, where those of one are not there."""
        with self._lock:
            if not all(key in self._rows for key in keys):
                return None
            for key in keys:
                self._rows.move_to_end(key)
            rows = [self._rows[key] for key in keys]
        metrics.CACHE.labels("hit").inc(len(rows))
        return rows

    def put(self, key: bytes, rows: Tensor) -> None:
        """Keeps the rows of a window; the ones used least recently make room."""
        with self._lock:
            replaced = self._rows.pop(key, None)
            self._bytes += rows.nbytes - (0 if replaced is None else replaced.nbytes)
            self._rows[key] = rows
            while self._bytes > self._max_bytes:
                _, dropped = self._rows.popitem(last=False)
                self._bytes -= dropped.nbytes
            metrics.CACHE_BYTES.set(self._bytes)


class RecordingCache:
    """The key of each window of a recording, and how many samples it has; of those used last, `max_windows` in all."""

    def __init__(self, max_windows: int) -> None:
        self._max_windows = max_windows
        self._n_windows = 0
        self._recordings: OrderedDict[Hashable, list[tuple[bytes, int]]] = OrderedDict()

    def get(self, key: Hashable) -> list[tuple[bytes, int]] | None:
        """The windows of a recording, where they are there."""
        if key in self._recordings:
            self._recordings.move_to_end(key)
        return self._recordings.get(key)

    def put(self, key: Hashable, windows: list[tuple[bytes, int]]) -> None:
        """Keeps the windows of a recording; the recordings used least recently make room."""
        self._n_windows += len(windows) - len(self._recordings.pop(key, []))
        self._recordings[key] = windows
        while self._n_windows > self._max_windows:
            self._n_windows -= len(self._recordings.popitem(last=False)[1])
