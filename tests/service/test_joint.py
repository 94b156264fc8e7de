"""The likeliest of several texts of one piece of speech."""

import asyncio
import math
from collections.abc import AsyncGenerator
from typing import Any, cast

import pytest
import torch

from models.lattice import Lattice
from models.prompt import Prompt
from models.spelling import Speller
from service.answers.joint import REPLIES, hear, likeliest
from service.engine import Delta, Engine, Sampling, Token

PROMPT = Prompt([1, 2], [True, True], torch.zeros(2, 16))
QUOTES = (9,)


@pytest.fixture
def speller() -> Speller:
    torch.manual_seed(0)
    speller = Speller(16, 8)
    words = [f"{a}{b}" for a in "bcd" for b in "aei"]
    speller.know({word: i for i, word in enumerate(words)}, torch.randn(len(words), 16))
    speller.query.weight.data *= 40
    return speller.eval()


class Replies:
    """Stands in for the engine: of each code, rising, what it is to say, and how likely the LLM finds each token of that."""

    def __init__(self, *replies: tuple[list[int], float]) -> None:
        self._replies = [*replies, *[replies[-1]] * (REPLIES - len(replies))]
        self.asked: list[tuple[Prompt, Sampling, str]] = []
        self.closed = 0

    async def stream(self, prompt: Prompt, sampling: Sampling, request_id: str) -> AsyncGenerator[Delta, None]:
        self.asked.append((prompt, sampling, request_id))
        assert sampling.guide is not None
        tokens, likely = self._replies[int(sampling.guide.code * REPLIES)]
        try:
            for token in [*tokens, *QUOTES]:
                said = [] if token in QUOTES else [Token(f" {token}", likely)]
                end = "stop" if token in QUOTES else None
                text = "" if token in QUOTES else f" {token}"
                yield Delta(text, [token], end, len(prompt.token_ids), 0, likely, said)
        finally:
            self.closed += 1


async def chosen(speller: Speller, rows: torch.Tensor, replies: Replies, **sampling: Any) -> Delta:
    engine = cast(Engine, cast(Any, replies))
    deltas = likeliest(engine, hear(speller, rows), PROMPT, Sampling(20, **sampling), QUOTES, "one")
    (delta,) = [delta async for delta in deltas]
    return delta


def heard(speller: Speller, rows: torch.Tensor) -> list[int]:
    """What is heard in so many rows, which are nearly one token each."""
    lattice = Lattice.of(speller, rows)
    return [int(lattice.tokens[place]) for place in lattice.scores[0].argmax(-1)]


async def test_the_text_counts_that_both_find_likely(speller: Speller) -> None:
    rows = torch.randn(3, 16)
    right = list(dict.fromkeys(heard(speller, rows)))
    wrong = right[::-1] if len(right) > 1 else []
    assert (await chosen(speller, rows, Replies((wrong, -1), (right, -1), (wrong, -1)))).token_ids == [*right, 9]
    assert (await chosen(speller, rows, Replies((right, -1), (wrong, -1), (wrong, -1)))).token_ids == [*right, 9]
    unlikely = await chosen(speller, rows, Replies((right, -1000), (wrong, -1), (wrong, -1)))
    assert unlikely.token_ids == [*wrong, 9]


async def test_it_is_one_delta_that_says_how_likely_each_token_was_heard(speller: Speller) -> None:
    rows = torch.randn(3, 16)
    right = list(dict.fromkeys(heard(speller, rows)))
    replies = Replies((right, -1.0))
    delta = await chosen(speller, rows, replies)
    assert delta.text == "".join(f" {token}" for token in right)
    assert (delta.finish_reason, delta.prompt_tokens) == ("stop", 2 + len(rows))
    assert [token.text for token in delta.tokens] == [f" {token}" for token in right]
    assert all(token.logprob <= 1e-9 for token in delta.tokens)
    assert delta.logprob == pytest.approx(sum(token.logprob for token in delta.tokens))
    assert not any(token.logprob == -1.0 for token in delta.tokens)
    first = Lattice.of(speller, rows)
    begins = first.scores[0, :, first.tokens.tolist().index(right[0])].exp().double()
    silent = torch.cat([torch.ones(1), first.blank[0].exp()[:-1].cumprod(0)]).double()
    assert delta.tokens[0].logprob == pytest.approx(math.log((silent * begins).sum()), abs=1e-4)


async def test_each_code_is_asked_once_with_the_same_lattice(speller: Speller) -> None:
    rows = torch.randn(2, 16)
    replies = Replies(([], -1))
    await chosen(speller, rows, replies)
    guides = [sampling.guide for _, sampling, _ in replies.asked]
    assert [guide and guide.code for guide in guides] == [(i + 0.5) / REPLIES for i in range(REPLIES)]
    assert {guide and guide.lattice for guide in guides} == {Lattice.of(speller, rows).pack()}
    assert len({request_id for _, _, request_id in replies.asked}) == replies.closed == REPLIES
    assert all(sampling.logprobs and sampling.max_tokens == 20 for _, sampling, _ in replies.asked)


async def test_with_a_temperature_codes_are_drawn_and_a_seed_draws_the_same(speller: Speller) -> None:
    async def codes(seed: int) -> list[float]:
        replies = Replies(([], -1))
        await chosen(speller, torch.randn(2, 16), replies, temperature=0.7, top_p=0.9, seed=seed)
        assert all(
            (sampling.temperature, sampling.top_p, sampling.seed) == (0, 1, None) for _, sampling, _ in replies.asked
        )
        return [sampling.guide.code for _, sampling, _ in replies.asked if sampling.guide]

    first = await codes(1)
    assert await codes(1) == first != await codes(2)
    assert [int(code * REPLIES) for code in first] == list(range(REPLIES))


async def test_each_token_counts_for_a_text() -> None:
    chances = torch.tensor([[0.1, 0.9, 1e-9], [0.6, 1e-9, 0.4]]).log()
    lattice = Lattice(torch.tensor([1, 2]), chances[None, :, 0], chances[None, :, 1:])
    engine = cast(Engine, cast(Any, Replies(([1], -1.0), ([1, 2], -0.5), ([1], -1.0))))
    (delta,) = [delta async for delta in likeliest(engine, lattice, PROMPT, Sampling(20), QUOTES, "one")]
    assert delta.token_ids == [1, 2, 9]  # -1.77 with the expected, against -1.62, before the tokens count


async def test_an_error_of_one_ends_all(speller: Speller) -> None:
    class Dead(Replies):
        async def stream(self, prompt: Prompt, sampling: Sampling, request_id: str) -> AsyncGenerator[Delta, None]:
            self.asked.append((prompt, sampling, request_id))
            try:
                if len(self.asked) == REPLIES:
                    raise KeyError("dead")
                await asyncio.Event().wait()
                yield Delta("", [], None, 0, 0, 0.0)
            finally:
                self.closed += 1

    replies = Dead(([1], -1))
    with pytest.raises(KeyError, match="dead"):
        await asyncio.wait_for(chosen(speller, torch.randn(2, 16), replies), 30)
    assert replies.closed == REPLIES
