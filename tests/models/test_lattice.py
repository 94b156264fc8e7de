"""Probabilities of texts and of their beginnings, beside sums over all paths."""

import itertools
from math import inf, log

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.lattice import LEAST, NEAR, Beginning, Lattice
from models.spelling import Speller


def a_lattice(moments: int, tokens: int, seed: int, phases: int = 1) -> Lattice:
    generator = torch.Generator().manual_seed(seed)
    scores = (2 * torch.randn(phases, moments, 1 + tokens, generator=generator)).log_softmax(-1)
    return Lattice(torch.arange(tokens) * 7, scores[..., 0], scores[..., 1:])


def texts(lattice: Lattice) -> dict[tuple[int, ...], float]:
    """The probability of every text, by a sum over all paths, in the one phase there is."""
    blank = lattice.scores.shape[-1]
    chances = torch.cat([lattice.scores[0], lattice.blank[0, :, None]], 1).double().exp().tolist()
    found: dict[tuple[int, ...], float] = {}
    for path in itertools.product(range(blank + 1), repeat=len(chances)):
        text = tuple(token for token, _ in itertools.groupby(path) if token != blank)
        found[text] = found.get(text, 0.0) + float(np.prod([chances[i][token] for i, token in enumerate(path)]))
    return found


def logarithm(chance: float) -> float:
    return log(chance) if chance else -inf


@settings(deadline=None)
@given(st.integers(1, 5), st.integers(1, 3), st.integers(0, 99), st.lists(st.integers(0, 2), max_size=4))
def test_beginnings_and_ends_are_sums_over_all_paths(moments: int, tokens: int, seed: int, said: list[int]) -> None:
    lattice = a_lattice(moments, tokens, seed)
    every = texts(lattice)
    beginning = Beginning(lattice)
    text = tuple(token % tokens for token in said)
    for token in text:
        beginning.add(token)
    assert beginning.whole() == pytest.approx(logarithm(every.get(text, 0.0)), rel=1e-5, abs=1e-5)
    for token, score in enumerate(beginning.longer()):
        follows = sum(chance for other, chance in every.items() if other[: len(text) + 1] == (*text, token))
        assert score == pytest.approx(logarithm(follows), rel=1e-5, abs=1e-5)


def test_what_was_heard_several_times_is_as_likely_as_the_mean_of_its_logarithms() -> None:
    lattice = a_lattice(4, 3, seed=2, phases=3)
    alone = [Lattice(lattice.tokens, lattice.blank[p : p + 1], lattice.scores[p : p + 1]) for p in range(3)]
    together, parts = Beginning(lattice), [Beginning(part) for part in alone]
    for token in (1, 1, 0):
        np.testing.assert_allclose(together.longer(), np.mean([part.longer() for part in parts], 0))
        for beginning in (together, *parts):
            beginning.add(token)
        assert together.whole() == pytest.approx(np.mean([part.whole() for part in parts]))


def test_a_long_recording_has_no_sum_that_is_lost() -> None:
    lattice = a_lattice(1500, 40, seed=1)
    beginning = Beginning(lattice)
    for token in range(40):
        before, follows = beginning.whole(), beginning.longer()
        assert np.isfinite(follows).all()
        assert np.isfinite(before)
        beginning.add(token)


def test_a_lattice_has_the_tokens_that_are_near() -> None:
    torch.manual_seed(0)
    speller = Speller(16, 8)
    words = [f"{a}{b}" for a in "bcdfgh" for b in "aeiou"]
    speller.know({word: 3 * i for i, word in enumerate(words)}, torch.randn(3 * len(words), 16))
    speller.query.weight.data *= 40  # decided, as an adapter is that was trained
    rows = torch.randn(6, 2, 16)
    lattice = Lattice.of(speller, rows.flatten(1))
    scores = speller.scores(rows.transpose(0, 1)).log_softmax(-1)
    torch.testing.assert_close(lattice.blank, scores[..., 0])
    places = [speller.ids.tolist().index(token) for token in lattice.tokens.tolist()]
    torch.testing.assert_close(lattice.scores, scores[..., [1 + place for place in places]])
    near = scores[..., 1:].topk(NEAR, -1)
    assert set(places) == set(near.indices[near.values > log(LEAST)].tolist())
    assert 0 < len(places) < len(words)


def test_a_lattice_goes_through_bytes() -> None:
    lattice = a_lattice(5, 4, seed=3)
    unpacked = Lattice.unpack(lattice.pack())
    for name in ("tokens", "blank", "scores"):
        assert getattr(unpacked, name).equal(getattr(lattice, name))


def test_nothing_may_have_been_said() -> None:
    beginning = Beginning(Lattice(torch.zeros(0, dtype=torch.int64), torch.zeros(1, 3), torch.zeros(1, 3, 0)))
    assert beginning.whole() == 0
    assert beginning.longer().shape == (0,)
