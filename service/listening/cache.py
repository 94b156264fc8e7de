"""Speech embeddings that were made before, by the content of their window.

A conversation sends its recordings again with every turn: they are then neither encoded again, nor, because the rows are the same to the
bit, prefilled again by an engine with a prefix cache.
"""

import hashlib
from collections import OrderedDict
from threading import Lock

import numpy as np
import numpy.typing as npt
from torch import Tensor

from service.telemetry import metrics


def fingerprint(samples: npt.NDArray[np.float32]) -> bytes:
    """A key for a window's samples (n,); two windows with the same key have the same samples."""
    return hashlib.blake2b(np.ascontiguousarray(samples).data, digest_size=32).digest()


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
