import numpy as np
import pytest

from models.training.batches import LengthSampler

LENGTHS = np.random.default_rng(0).integers(1, 1000, 1003).tolist()


def order(*, seed: int = 0, epoch: int = 0, lengths: list[int] = LENGTHS) -> list[int]:
    return list(LengthSampler(lengths, 8, seed, lambda: epoch))


def test_every_index_comes_once() -> None:
    assert sorted(order()) == list(range(1003))


def test_neighbours_are_of_similar_length() -> None:
    batches = np.asarray(LENGTHS)[order()[:1000]].reshape(-1, 8)
    spread = batches.max(1) - batches.min(1)
    assert spread.mean() < 40  # of about 780 by chance
    assert np.corrcoef(batches.mean(1), np.arange(len(batches)))[0, 1] == pytest.approx(0, abs=0.3)


def test_the_order_depends_on_seed_and_epoch_alone() -> None:
    assert order() == order()
    assert order() != order(epoch=1)
    assert order() != order(seed=1)


def test_fewer_examples_than_a_batch() -> None:
    assert sorted(order(lengths=[5, 3, 4])) == [0, 1, 2]


def test_the_epoch_is_asked_when_it_begins() -> None:
    now = 0
    sampler = LengthSampler(LENGTHS, 8, 0, lambda: now)
    first = list(sampler)
    now = 1
    assert list(sampler) == order(epoch=1) != first
