import asyncio
import gc
import threading
import weakref
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from contextvars import copy_context
from types import SimpleNamespace
from typing import cast

import pytest
import torch
from torch import Tensor

from models.embedder import Embedder
from models.features import SAMPLE_RATE
from service.errors import Unavailable
from service.gate.admission import Admission, Limits, Queued
from service.listening.batcher import BEHIND_SECONDS, Batcher, EncodingFailed
from service.request import begin


def embedder(encoder: object) -> Embedder:
    """Stands in for one of those whose windows an encoder takes together."""
    return cast(Embedder, SimpleNamespace(batched_by=encoder))


EARS = embedder("one")


class Encoder:
    """Stands in for the embedder: notes its batches, and waits at a gate while that is closed."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.embedders: list[list[Embedder]] = []
        self.alone: list[bool] = []
        self.threads: list[str] = []
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()

    def __call__(
        self, embedders: Sequence[Embedder], features: Sequence[Tensor], n_samples: Sequence[int], alone: bool
    ) -> list[Tensor]:
        self.embedders.append(list(embedders))
        self.batches.append([f.shape[1] for f in features])
        self.alone.append(alone)
        self.threads.append(threading.current_thread().name)
        self.entered.set()
        assert self.gate.wait(20)
        if any(f.isnan().any() for f in features):
            raise RuntimeError("bad window")
        return [f[:1].T * n for f, n in zip(features, n_samples, strict=True)]


@asynccontextmanager
async def batcher(encoder: Encoder, max_windows: int = 4, max_seconds: float = 1e6) -> AsyncIterator[Batcher]:
    batcher = Batcher(encoder, max_windows, max_seconds)
    try:
        yield batcher
    finally:
        encoder.gate.set()
        await batcher.close()


def window(frames: int, value: float = 1.0) -> Tensor:
    return torch.full((2, frames), value)


async def occupy(batcher: Batcher, encoder: Encoder) -> asyncio.Task[Tensor]:
    """Holds the encoder with one window, so that what comes next gathers."""
    encoder.gate.clear()
    task = asyncio.create_task(batcher.embed(EARS, window(1), 1))
    await asyncio.to_thread(encoder.entered.wait, 20)
    return task


async def test_gives_each_window_its_own_rows() -> None:
    async with batcher(Encoder()) as b:
        results = await asyncio.gather(*(b.embed(EARS, window(n, n), 10 * n) for n in (3, 1, 2)))
    assert [(len(rows), rows[0].item()) for rows in results] == [(3, 90.0), (1, 10.0), (2, 40.0)]


async def test_batches_windows_of_similar_length_and_the_oldest_first() -> None:
    encoder = Encoder()
    async with batcher(encoder, max_windows=2) as b:
        first = await occupy(b, encoder)
        rest = [asyncio.create_task(b.embed(EARS, window(n), 1)) for n in (100, 10, 101, 11)]
        await asyncio.sleep(0)
        encoder.gate.set()
        await asyncio.gather(first, *rest)
    assert encoder.batches == [[1], [100, 101], [10, 11]]


async def test_only_windows_of_one_encoder_are_in_a_batch() -> None:
    encoder, other, same = Encoder(), embedder("another"), embedder("one")
    async with batcher(encoder, max_windows=8) as b:
        first = await occupy(b, encoder)
        order = [(EARS, 10), (other, 11), (same, 12), (other, 13)]
        rest = [asyncio.create_task(b.embed(by, window(n), 1)) for by, n in order]
        await asyncio.sleep(0)
        encoder.gate.set()
        await asyncio.gather(first, *rest)
    assert encoder.batches == [[1], [10, 12], [11, 13]]
    assert encoder.embedders == [[EARS], [EARS, same], [other, other]]


async def test_a_bad_window_costs_nobody_else() -> None:
    encoder = Encoder()
    async with batcher(encoder) as b:
        first = await occupy(b, encoder)
        rest = [asyncio.create_task(b.embed(EARS, window(5, value), 1)) for value in (1.0, float("nan"), 2.0)]
        await asyncio.sleep(0)
        encoder.gate.set()
        results = await asyncio.gather(first, *rest, return_exceptions=True)
    assert isinstance(results[2], EncodingFailed)
    assert [len(rows) for i, rows in enumerate(results) if i != 2] == [1, 5, 5]  # type: ignore[arg-type]


async def test_departed_clients_are_not_encoded() -> None:
    encoder = Encoder()
    async with batcher(encoder) as b:
        first = await occupy(b, encoder)
        gone, stays = (asyncio.create_task(b.embed(EARS, window(n), 1)) for n in (7, 8))
        await asyncio.sleep(0)
        gone.cancel()
        await asyncio.gather(gone, return_exceptions=True)
        encoder.gate.set()
        await asyncio.gather(first, stays)
    assert encoder.batches == [[1], [8]]


async def test_closing_releases_whoever_waits() -> None:
    encoder = Encoder()
    b = Batcher(encoder, 1)
    first = await occupy(b, encoder)
    waiting = asyncio.create_task(b.embed(EARS, window(3), 1))
    await asyncio.sleep(0)
    encoder.gate.set()
    await b.close()
    assert isinstance((await asyncio.gather(waiting, return_exceptions=True))[0], Unavailable)
    assert not b.queued_seconds
    first.cancel()
    with pytest.raises(Unavailable):
        await b.embed(EARS, window(1), 1)


async def test_books_queue_and_encode_on_the_request_that_asked() -> None:
    async with batcher(Encoder()) as b:
        times = begin().timeline
        await b.embed(EARS, window(3), 1)
    assert times.stages.keys() == {"queue", "encode"}


def ask(batcher: Batcher, client: str, *lengths: int) -> list[asyncio.Task[Tensor]]:
    """A request of a client that sends windows of these lengths."""

    def enqueue() -> list[asyncio.Task[Tensor]]:
        begin()
        return [asyncio.create_task(batcher.embed(EARS, window(n), 1)) for n in lengths]

    def as_client() -> list[asyncio.Task[Tensor]]:
        with Admission(Limits(0, 0, 0, 0, 0, 0), lambda: Queued(0, 0)).admit(client):
            return enqueue()

    return copy_context().run(as_client)


async def batches(max_windows: int, *requests: tuple[str, list[int]], max_seconds: float = 1e6) -> list[list[int]]:
    """The batches in which the windows of requests are encoded that came one after the other."""
    encoder = Encoder()
    async with batcher(encoder, max_windows, max_seconds) as b:
        first = await occupy(b, encoder)
        tasks = [task for client, lengths in requests for task in ask(b, client, *lengths)]
        await asyncio.sleep(0)
        encoder.gate.set()
        await asyncio.gather(first, *tasks)
    return encoder.batches[1:]


async def test_clients_take_turns() -> None:
    """The second client's window does not wait for the hundred that came before."""
    order = await batches(1, *[("many", [3000 + i]) for i in range(100)], ("one", [500]))
    assert [500] in order[:2]


async def test_requests_of_a_client_take_turns() -> None:
    order = await batches(1, ("client", [3000] * 20), ("client", [500]))
    assert [500] in order[:2]


async def test_everybody_gets_on() -> None:
    """Turns, not precedence: a client that always has something waiting does not keep another out."""
    order = await batches(1, ("many", [3000] * 5), ("few", [500] * 5))
    assert [n for (n,) in order] == [3000, 500] * 5


async def test_newcomers_without_end_keep_nobody_out() -> None:
    encoder = Encoder()
    async with batcher(encoder, 1) as b:
        first = await occupy(b, encoder)
        recording = ask(b, "client", 3000, 3000, 3000)

        requests = []  # kept, so that none takes the place of an earlier one in memory

        async def newcomers() -> None:
            for _ in range(10):
                requests.append(ask(b, "client", 500))
                await asyncio.gather(*requests[-1])

        endless = [asyncio.create_task(newcomers()) for _ in range(20)]
        await asyncio.sleep(0)
        encoder.gate.set()
        await asyncio.gather(first, *recording)
        assert len(encoder.batches) < 100
        await asyncio.gather(*endless)


async def test_a_batch_takes_from_every_client() -> None:
    (first, *_) = await batches(4, *[("many", [1000]) for _ in range(20)], ("other", [1001, 1002]))
    assert sorted(first) == [1000, 1000, 1001, 1002]


async def test_a_short_window_is_not_held_up_by_long_ones_in_its_batch() -> None:
    order = await batches(16, ("short", [500, 900]), ("long", [3000] * 3))
    assert order == [[500, 900], [3000] * 3]


async def test_the_most_similar_lengths_come_first() -> None:
    assert await batches(2, ("a", [1000, 700, 990])) == [[1000, 990], [700]]


async def test_a_batch_has_a_limit_of_audio() -> None:
    assert await batches(16, ("a", [3000] * 5), max_seconds=60) == [[3000] * 2, [3000] * 2, [3000]]
    assert await batches(16, ("a", [3000] * 2), max_seconds=10) == [[3000]] * 2


async def test_batches_at_the_same_time() -> None:
    """Both are in the encoder before either ends; then the next is taken, and nobody's rows are another's."""
    together = threading.Barrier(2)

    def encode(
        _: Sequence[Embedder], features: Sequence[Tensor], n_samples: Sequence[int], alone: bool
    ) -> list[Tensor]:
        together.wait(20)
        return [f[:1].T * n for f, n in zip(features, n_samples, strict=True)]

    b = Batcher(encode, max_windows=1, at_a_time=2)
    results = await asyncio.gather(*(b.embed(EARS, window(n, n), 10 * n) for n in (3, 1, 2, 5)))
    await b.close()
    assert [(len(rows), rows[0].item()) for rows in results] == [(3, 90.0), (1, 10.0), (2, 40.0), (5, 250.0)]
    with pytest.raises(Unavailable):
        await b.embed(EARS, window(1), 1)


async def test_a_batch_beside_another_begins_only_while_audio_waits_for_each_reply() -> None:
    encoder = Encoder()
    b = Batcher(encoder, 1, at_a_time=2, answered=lambda: 2)
    embedding = [await occupy(b, encoder)]
    wait = []
    for n in (2, 3, 4):
        embedding.append(asyncio.create_task(b.embed(EARS, window(n), BEHIND_SECONDS * SAMPLE_RATE)))
        for _ in range(3):  # the window comes, and the batcher looks
            await asyncio.sleep(0)
        wait.append(b.queued_seconds / BEHIND_SECONDS)
    assert wait == [1, 2, 2]
    encoder.gate.set()
    await asyncio.gather(*embedding)
    await b.close()
    assert encoder.batches == [[1], [2], [3], [4]]


async def test_a_batch_is_alone_without_another_that_runs_or_waits_and_without_replies() -> None:
    encoder, replies = Encoder(), 0
    b = Batcher(encoder, 1, at_a_time=2, answered=lambda: replies)
    first = await occupy(b, encoder)  # alone
    second = asyncio.create_task(b.embed(EARS, window(2), SAMPLE_RATE))  # beside it
    while len(encoder.batches) < 2:
        await asyncio.sleep(0)
    encoder.gate.set()
    await asyncio.gather(first, second)
    await asyncio.gather(
        *(b.embed(EARS, window(n), SAMPLE_RATE) for n in (4, 5))
    )  # the first of them does not come alone
    replies = 1
    await b.embed(EARS, window(6), SAMPLE_RATE)
    replies = 0
    await b.embed(EARS, window(7), SAMPLE_RATE)
    await b.close()
    alone = dict(zip([n for (n,) in encoder.batches], encoder.alone, strict=True))
    assert [alone[n] for n in (1, 2, 4, 6, 7)] == [True, False, False, False, True]
    by_itself = {thread for thread, was_alone in zip(encoder.threads, encoder.alone, strict=True) if was_alone}
    beside = {thread for thread, was_alone in zip(encoder.threads, encoder.alone, strict=True) if not was_alone}
    assert len(by_itself) == 1  # which is the only one with helpers
    assert not by_itself & beside


async def test_counts_the_seconds_that_wait() -> None:
    encoder = Encoder()
    async with batcher(encoder) as b:
        first = await occupy(b, encoder)
        waiting = [asyncio.create_task(b.embed(EARS, window(n), 160 * n)) for n in (100, 300)]
        await asyncio.sleep(0)
        assert b.queued_seconds == 4.0
        encoder.gate.set()
        await asyncio.gather(first, *waiting)
        assert b.queued_seconds == 0.0


async def test_it_keeps_nothing_of_what_it_has_encoded() -> None:
    """Neither of its loops does, so that adapters which are unloaded, and their encoders, leave memory."""
    encoder = Encoder()
    both = Batcher(encoder, 1, at_a_time=2)
    try:
        for _ in range(5):
            encoder.gate.clear()
            windows = [window(10) for _ in range(3)]
            coming = [asyncio.create_task(both.embed(EARS, w, BEHIND_SECONDS * SAMPLE_RATE)) for w in windows]
            kept = [weakref.ref(w) for w in windows]
            del windows
            await asyncio.to_thread(encoder.entered.wait, 20)
            encoder.gate.set()
            await asyncio.gather(*coming)
            coming.clear()
            async with asyncio.timeout(20):  # a thread lets go of its last work a moment after that is done
                while any(ref() is not None for ref in kept):
                    await asyncio.sleep(0)
                    gc.collect()
    finally:
        await both.close()
