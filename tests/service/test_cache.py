import numpy as np
import torch
from torch import Tensor

from service.listening.cache import EmbeddingCache, fingerprint


def rows(n: int, value: float = 0.0) -> Tensor:
    return torch.full((n, 4), value)  # 16 n bytes


def test_gives_back_the_very_rows() -> None:
    cache, kept = EmbeddingCache(1000), rows(3, 1.5)
    assert cache.get(b"a") is None
    cache.put(b"a", kept)
    assert cache.get(b"a") is kept


def test_what_was_used_least_recently_makes_room() -> None:
    cache = EmbeddingCache(16 * 10)
    for key in (b"a", b"b"):
        cache.put(key, rows(4))
    cache.get(b"a")
    cache.put(b"c", rows(4))
    assert [cache.get(key) is not None for key in (b"a", b"b", b"c")] == [True, False, True]


def test_replacing_a_key_does_not_count_twice() -> None:
    cache = EmbeddingCache(16 * 10)
    for _ in range(5):
        cache.put(b"a", rows(5))
    cache.put(b"b", rows(5))
    assert cache.get(b"a") is not None


def test_rows_larger_than_the_cache_are_not_kept() -> None:
    cache = EmbeddingCache(16)
    cache.put(b"a", rows(2))
    assert cache.get(b"a") is None


def test_every_sample_counts_in_the_fingerprint() -> None:
    samples = np.arange(1000, dtype=np.float32)
    other = samples.copy()
    other[-1] += 1
    assert fingerprint(samples) == fingerprint(samples.copy()) != fingerprint(other)
    assert fingerprint(samples) != fingerprint(samples[:-1])
    assert fingerprint(samples[::2]) == fingerprint(samples[::2].copy())
