from io import SEEK_END, BytesIO

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import REGISTRY
from torch import Tensor

from service.listening.cache import EmbeddingCache, RecordingCache, fingerprint, fingerprint_of_file


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


def test_rows_of_several_windows_are_all_there_or_none() -> None:
    cache = EmbeddingCache(16 * 10)
    for key in (b"a", b"b", b"c"):
        cache.put(key, rows(3))
    assert [len(r) for r in cache.get_all([b"a", b"b"]) or []] == [3, 3]
    cache.put(b"d", rows(3))  # for which the one goes that was not asked for
    assert cache.get_all([b"a", b"c"]) is None
    assert cache.get_all([b"a", b"b", b"d"]) is not None


def test_hits_and_misses_are_counted() -> None:
    def counted() -> list[float]:
        name = "blsp_embedding_cache_windows_total"
        return [REGISTRY.get_sample_value(name, {"result": result}) or 0.0 for result in ("hit", "miss")]

    cache, (hits, misses) = EmbeddingCache(1000), counted()
    cache.get(b"a")
    assert counted() == [hits, misses + 1]
    cache.put(b"a", rows(1))
    cache.get(b"a")
    assert counted() == [hits + 1, misses + 1]
    cache.get_all([b"a", b"a"])
    cache.get_all([b"a", b"b"])
    assert counted() == [hits + 3, misses + 1]


def test_recordings_make_room_by_their_windows() -> None:
    cache = RecordingCache(5)
    for key, n in (("a", 1), ("a", 2), ("b", 2)):
        cache.put(key, [(b"", 0, None)] * n)
    assert len(cache.get("a") or []) == 2
    cache.put("c", [(b"", 0, None)] * 2)
    assert [cache.get(key) is not None for key in "abc"] == [True, False, True]


@given(st.binary(), st.binary())
def test_files_have_the_same_key_only_with_the_same_bytes(one: bytes, other: bytes) -> None:
    file = BytesIO(one)
    file.seek(0, SEEK_END)
    assert (fingerprint_of_file(file) == fingerprint_of_file(BytesIO(other))) == (one == other)
