"""The ladder of recorded strips, with work that is done again where a GPU would replay a graph."""

from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from models.adapter import ModalityAdapter
from models.config import AdapterSizes
from models.embedder import Embedder
from models.graphs import Ladder, Work, lengths, longest_within
from models.packed import Packed
from tests.models.test_packed import noise, random_embedder


class Recorder:
    """Stands in for CUDA's graphs: notes what is replayed, by the order in which it was recorded."""

    def __init__(self) -> None:
        self.recorded = 0
        self.replayed: list[int] = []

    def __call__(self, work: Work) -> Work:
        number, self.recorded = self.recorded, self.recorded + 1

        def replay() -> None:
            self.replayed.append(number)
            work()

        work()
        return replay


def ladder_of(embedder: Embedder, hops: list[int], record: Callable[[Work], Work] | None = None) -> Ladder:
    return Ladder(
        Packed(embedder.encoder, embedder.adapter, embedder.padding), 4, hops, record=record or (lambda work: work)
    )


def spelling_embedder() -> Embedder:
    torch.manual_seed(0)
    embedder = random_embedder(AdapterSizes(inner_dim=16, context_layers=1, spelling_dim=32))
    words = {f"Ġ{letter}{end}": i for i, (letter, end) in enumerate((a, b) for a in "abcdefgh" for b in "ox")}
    assert embedder.adapter.speller is not None
    embedder.adapter.speller.know(words, torch.randn(len(words), 64))
    return embedder


def test_lengths_are_at_most_an_eighth_apart() -> None:
    found = lengths(128, 48_384)
    assert found[:9] == [128 * i for i in range(1, 10)]
    assert found[-2] < 48_384 <= found[-1]
    assert all(n % 128 == 0 for n in found)
    assert all(b - a <= max(128, a // 8) for a, b in pairwise(found))
    assert len(found) < 60
    assert lengths(128, 1) == [128]


@pytest.mark.parametrize(
    ("limit", "found"),
    [(0.0, 30), (29.0, 30), (45.0, 40), (60.0, 60), (99.0, 60)],
)
def test_the_longest_that_does_not_take_too_long_but_never_less_than_is_needed(limit: float, found: int) -> None:
    asked: list[int] = []

    def took(size: int) -> float:
        asked.append(size)
        return float(size)

    assert longest_within(limit, [10, 20, 30, 40, 50, 60], 25, took) == found
    assert min(asked) == 40  # what is needed anyhow is not timed
    assert max(asked) <= max(found + 10, 40)


def assert_as_alone(embedder: Embedder, ladder: Ladder, sizes: list[int]) -> None:
    windows = [noise(n) for n in sizes]
    together = ladder.embed([ladder.packed.prepare(window) for window in windows], sizes)
    for rows, window in zip(together, windows, strict=True):
        torch.testing.assert_close(rows, embedder.embed([window])[0], atol=1e-5, rtol=1e-5)


def test_a_batch_takes_the_shortest_strip_that_it_fits_on() -> None:
    embedder, recorder = random_embedder(AdapterSizes(inner_dim=16)), Recorder()
    ladder = ladder_of(embedder, [256, 512, 1024], recorder)
    assert recorder.recorded == 3
    assert ladder.seconds == 10.24
    for sizes in ([16_000], [16_000, 1, 20_000], [60_000], [20_000] * 4, [1]):  # longest first: 0 is 1024 hops
        assert_as_alone(embedder, ladder, sizes)
    assert recorder.replayed == [2, 1, 1, 0, 2]


def test_a_batch_that_fits_on_none_gets_its_own() -> None:
    embedder, recorder = random_embedder(AdapterSizes(inner_dim=16)), Recorder()
    ladder = ladder_of(embedder, [256, 512], recorder)
    for sizes in ([100_000], [50_000, 50_000], [1] * 5):
        assert_as_alone(embedder, ladder, sizes)
    assert not recorder.replayed


def test_rows_are_kept_when_the_next_batch_comes() -> None:
    embedder = random_embedder(AdapterSizes(inner_dim=16))
    ladder = ladder_of(embedder, [512])
    [rows] = ladder.embed([ladder.packed.prepare(noise(30_000))], [30_000])
    before = rows.clone()
    ladder.embed([ladder.packed.prepare(noise(40_000))], [40_000])
    assert torch.equal(rows, before)


def test_each_windows_rows_are_memory_of_their_own() -> None:
    """A cache that keeps one of them does not keep the whole batch."""
    ladder = ladder_of(random_embedder(AdapterSizes(inner_dim=16)), [512])
    for rows in ladder.embed([ladder.packed.prepare(noise(n)) for n in (30_000, 20_000)], [30_000, 20_000]):
        assert rows.untyped_storage().nbytes() == rows.nbytes


def test_an_adapter_that_spells_spells_behind_the_graph() -> None:
    embedder = spelling_embedder()
    sizes = [50_000, 16_000, 30_000]
    assert embedder.adapter.speller is not None
    unspelled = embedder.without_speller()
    first = [unspelled.embed([noise(n)])[0][:, : embedder.width] for n in sizes]  # the one phase that a graph has
    expected = [embedder.adapter.speller(rows) for rows in first]
    assert len({len(rows) for rows in expected}) > 1
    ladder = ladder_of(embedder, [1024])
    for rows, wanted in zip(
        ladder.embed([ladder.packed.prepare(noise(n)) for n in sizes], sizes), expected, strict=True
    ):
        torch.testing.assert_close(rows, wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("with_ladder", [False, True])
def test_an_embedder_without_its_speller_has_the_rows_that_it_would_get(with_ladder: bool) -> None:
    embedder = spelling_embedder()
    speller = embedder.adapter.speller
    assert speller is not None
    sizes = [50_000, 16_000]
    embedder.ladder = ladder_of(embedder, [1024]) if with_ladder else None
    spelled = embedder.embed_prepared([embedder.prepare(noise(n)) for n in sizes], sizes)
    unspelled = embedder.without_speller()
    assert (unspelled.batched_by is embedder.batched_by) is not with_ladder
    found = unspelled.embed_prepared([unspelled.prepare(noise(n)) for n in sizes], sizes)
    assert [len(rows) for rows in found] == [unspelled.least_rows(n) for n in sizes]
    assert {rows.shape[1] for rows in found} == {unspelled.width} == {embedder.width * (1 if with_ladder else 8)}
    for rows, wanted in zip(found, spelled, strict=True):
        torch.testing.assert_close(speller(rows), wanted, atol=1e-4, rtol=1e-4)
    again = embedder.embed_prepared([embedder.prepare(noise(n)) for n in sizes], sizes)
    assert [len(rows) for rows in again] == [len(rows) for rows in spelled]


def test_an_embedder_with_a_ladder_prepares_for_it() -> None:
    embedder = random_embedder(AdapterSizes(inner_dim=16))
    windows = [noise(n) for n in (20_000, 300)]
    expected = embedder.embed_prepared([embedder.prepare(window) for window in windows], [20_000, 300])
    assert embedder.prepare(windows[0]).shape == (80, 125)
    embedder.ladder = ladder_of(embedder, [512])
    assert embedder.prepare(windows[0]).shape == (160, embedder.ladder.packed.hops(20_000))
    found = embedder.embed_prepared([embedder.prepare(window) for window in windows], [20_000, 300])
    for rows, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(rows, wanted, atol=1e-5, rtol=1e-5)


def test_in_half_precision() -> None:
    embedder = random_embedder(AdapterSizes(inner_dim=16))
    expected: Tensor = embedder.embed([noise(30_000)])[0]
    embedder.to(torch.bfloat16)
    ladder = ladder_of(embedder, [512])
    [rows] = ladder.embed([ladder.packed.prepare(noise(30_000))], [30_000])
    assert rows.dtype == torch.bfloat16
    assert torch.nn.functional.cosine_similarity(rows.float(), expected).min() > 0.99


def test_the_adapter_of_the_paper_has_one_row_for_16_hops() -> None:
    adapter = ModalityAdapter(48, 64, AdapterSizes(inner_dim=16))
    assert Packed(random_embedder(AdapterSizes(inner_dim=16)).encoder, adapter, "exact").unit == 16
