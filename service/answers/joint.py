"""The likeliest text of a piece of speech, by what was heard and what the LLM expects people to say: joint decoding (service/guide.py).

The engine chooses token by token, and can't go back. So it is asked several times at once, each time by another code, and the text counts
that has the highest score in the end.
"""

import asyncio
import random
from collections.abc import AsyncGenerator, Coroutine, Iterable, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from torch import Tensor

from models.lattice import Beginning, Lattice
from models.prompt import Prompt
from models.spelling import Speller
from service.engine import Delta, Engine, Sampling
from service.guide import EXPECTED, LONGER, Guide
from service.listening.encoders import without_helpers

REPLIES = 8  # of which the best counts


def hear(speller: Speller, rows: Tensor) -> Lattice:
    """The lattice of rows (n, phases * llm_dim), n > 0, before the speller; for a thread."""
    without_helpers()
    return Lattice.of(speller, rows.to(speller.blank.weight))


async def likeliest(
    engine: Engine, lattice: Lattice, prompt: Prompt, sampling: Sampling, ends: tuple[int, ...], request_id: str
) -> AsyncGenerator[Delta, None]:
    """The text of a lattice, as one delta: the LLM expects it after `prompt`, and one of the tokens `ends` after it.

    The log-probabilities of its tokens tell how likely they were heard behind those before; moments count as tokens of the prompt.
    With a temperature codes are drawn, the same ones by the same seed. Raises what `Engine.stream` raises.
    """
    packed = lattice.pack()
    begin = random.Random(sampling.seed).random() if sampling.temperature else 0.5
    greedy = replace(sampling, temperature=0.0, top_p=1.0, seed=None, logprobs=True)
    asked = [
        _whole(engine, prompt, replace(greedy, guide=Guide(packed, (i + begin) / REPLIES, ends)), f"{request_id}-{i}")
        for i in range(REPLIES)
    ]
    replies = {tuple(reply.token_ids): reply for reply in await _all(asked)}.values()
    best, heard = await asyncio.to_thread(_best, lattice, replies)
    tokens = [replace(token, logprob=logprob) for token, logprob in zip(best.tokens, heard, strict=False)]
    read = best.prompt_tokens + lattice.moments
    yield replace(best, tokens=tokens, logprob=sum(heard), prompt_tokens=read)


async def _all(asked: Sequence[Coroutine[Any, Any, Delta]]) -> list[Delta]:
    """All replies; where one fails, its error, and the others are aborted."""
    tasks = [asyncio.create_task(reply) for reply in asked]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _whole(engine: Engine, prompt: Prompt, sampling: Sampling, request_id: str) -> Delta:
    """All deltas of a reply in one."""
    deltas: list[Delta] = []
    async with aclosing(engine.stream(prompt, sampling, request_id)) as stream:
        async for delta in stream:
            deltas.append(delta)
    return replace(
        deltas[-1],
        text="".join(delta.text for delta in deltas),
        token_ids=[token for delta in deltas for token in delta.token_ids],
        logprob=sum(delta.logprob for delta in deltas),
        tokens=[token for delta in deltas for token in delta.tokens],
    )


def _best(lattice: Lattice, replies: Iterable[Delta]) -> tuple[Delta, list[float]]:
    """The reply with the highest score, and how likely each of its tokens was heard."""
    scored = [(reply, *_scored(lattice, reply.token_ids)) for reply in replies]
    best, _, heard = max(scored, key=lambda item: _judged(item[0], item[1]))
    return best, heard


def _scored(lattice: Lattice, token_ids: Sequence[int]) -> tuple[float, list[float]]:
    """The logarithm of the probability that a text was heard, and those of its tokens behind those before."""
    places = {token: place for place, token in enumerate(lattice.tokens.tolist())}
    beginning, so_far = Beginning(lattice), 0.0
    heard = []
    for token in token_ids:
        if token in places:  # else it is the end
            likely = float(beginning.longer()[places[token]])
            heard.append(likely - so_far)
            so_far = likely
            beginning.add(places[token])
    return beginning.whole(), heard


def _judged(reply: Delta, heard: float) -> float:
    return heard + EXPECTED * reply.logprob + LONGER * len(reply.tokens)
