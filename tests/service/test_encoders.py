"""Encoders that come into memory when they are needed, and leave when others need the room."""

import asyncio
import threading
import weakref
from collections.abc import Iterator

import pytest
import torch
from prometheus_client import REGISTRY
from transformers import WhisperConfig

from models.adapter import ModalityAdapter
from models.config import AdapterSizes
from models.embedder import Embedder
from models.encoder import WhisperEncoder
from service import heap
from service.errors import Unavailable
from service.listening.encoders import Encoders

CONFIG = WhisperConfig(d_model=16, encoder_layers=1, encoder_attention_heads=2, encoder_ffn_dim=32)


class Ears:
    """An embedder with an outline, and what loads its encoder: at an open gate, and once `error` is None."""

    def __init__(self) -> None:
        with torch.device("meta"):
            encoder = WhisperEncoder(CONFIG)
        self.embedder = Embedder(encoder, ModalityAdapter(16, 8, AdapterSizes(inner_dim=4)), "exact")
        self.gate = threading.Event()
        self.gate.set()
        self.error: Exception | None = None
        self.loaded: list[weakref.ref[WhisperEncoder]] = []

    def load(self) -> WhisperEncoder:
        assert self.gate.wait(20)
        if self.error:
            raise self.error
        encoder = WhisperEncoder(CONFIG)
        self.loaded.append(weakref.ref(encoder))
        return encoder

    def are_in_memory(self) -> bool:
        return any(encoder() is not None for encoder in self.loaded)


SIZE = Ears().embedder.encoder.nbytes


@pytest.fixture
def ears() -> Iterator[list[Ears]]:
    """Three, whose gates are open at last, for threads that wait there."""
    found = [Ears() for _ in range(3)]
    yield found
    for each in found:
        each.gate.set()


async def use(encoders: Encoders, ears: Ears) -> None:
    async with encoders.loaded(ears.embedder, ears.load) as embedder:
        assert not embedder.encoder.is_outline
        assert embedder.adapter is ears.embedder.adapter


async def in_memory(ears: list[Ears], expected: list[bool]) -> None:
    """Waits until these are: the thread and the event loop that have brought an encoder hold it a moment longer."""
    async with asyncio.timeout(20):
        while [each.are_in_memory() for each in ears] != expected:
            await asyncio.sleep(0)


async def test_one_that_is_there_is_not_loaded() -> None:
    embedder = Ears().embedder
    async with Encoders(0).loaded(embedder, None) as found:
        assert found is embedder


async def test_all_that_wait_get_one(ears: list[Ears]) -> None:
    encoders = Encoders()
    loads = REGISTRY.get_sample_value("blsp_encoder_loads_total") or 0
    await asyncio.gather(*(use(encoders, each) for each in (*ears, *ears)))
    await use(encoders, ears[0])
    assert [len(each.loaded) for each in ears] == [1, 1, 1]
    await in_memory(ears, [True, True, True])
    assert REGISTRY.get_sample_value("blsp_encoders") == 3
    assert REGISTRY.get_sample_value("blsp_encoder_loads_total") == loads + 3


async def test_the_one_used_least_recently_leaves(ears: list[Ears]) -> None:
    encoders = Encoders(2 * SIZE)
    for i in (0, 1, 0, 2):
        await use(encoders, ears[i])
    await in_memory(ears, [True, False, True])
    assert REGISTRY.get_sample_value("blsp_encoders") == 2
    await use(encoders, ears[1])
    await in_memory(ears, [False, True, True])
    assert len(ears[1].loaded) == 2


async def test_room_is_made_before_one_comes(ears: list[Ears]) -> None:
    encoders = Encoders(SIZE)
    await use(encoders, ears[0])
    ears[1].gate.clear()
    coming = asyncio.create_task(use(encoders, ears[1]))
    await in_memory(ears[:1], [False])
    assert not coming.done()
    ears[1].gate.set()
    await coming


@pytest.mark.parametrize("limit", [0, SIZE - 1, SIZE])
async def test_one_that_is_used_stays(ears: list[Ears], limit: int) -> None:
    """However little room there is; it leaves when it is used no longer."""
    encoders = Encoders(limit)
    async with encoders.loaded(ears[0].embedder, ears[0].load) as embedder:
        await use(encoders, ears[1])
        await in_memory(ears[:2], [True, False])
        assert embedder.encoder is ears[0].loaded[0]()
    del embedder
    await in_memory(ears[:2], [limit == SIZE, False])


async def test_what_left_goes_back_to_the_system(ears: list[Ears], monkeypatch: pytest.MonkeyPatch) -> None:
    given_back = threading.Event()
    monkeypatch.setattr(heap, "give_back", given_back.set)
    await use(Encoders(SIZE), ears[0])
    assert not given_back.is_set()
    await use(Encoders(0), ears[1])
    assert await asyncio.to_thread(given_back.wait, 20)


async def test_others_are_used_while_one_comes(ears: list[Ears]) -> None:
    encoders = Encoders()
    ears[0].gate.clear()
    coming = asyncio.create_task(use(encoders, ears[0]))
    await use(encoders, ears[1])
    assert not coming.done()
    ears[0].gate.set()
    await coming


async def test_who_leaves_takes_it_from_nobody(ears: list[Ears]) -> None:
    encoders = Encoders()
    ears[0].gate.clear()
    first, second = (asyncio.create_task(use(encoders, ears[0])) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    ears[0].gate.set()
    await second
    assert len(ears[0].loaded) == 1


async def test_where_all_have_left_it_keeps_to_the_limit(ears: list[Ears]) -> None:
    encoders = Encoders(0)
    ears[0].gate.clear()
    only = asyncio.create_task(use(encoders, ears[0]))
    await asyncio.sleep(0)
    only.cancel()
    with pytest.raises(asyncio.CancelledError):
        await only
    ears[0].gate.set()
    async with asyncio.timeout(20):
        while REGISTRY.get_sample_value("blsp_encoders") or ears[0].are_in_memory() or not ears[0].loaded:
            await asyncio.sleep(0)


async def test_one_that_can_not_be_loaded_is_told_to_all_that_wait_and_tried_again(
    ears: list[Ears], caplog: pytest.LogCaptureFixture
) -> None:
    encoders = Encoders()
    ears[0].error = OSError("the disk is gone")
    told = await asyncio.gather(*(use(encoders, each) for each in (ears[0], ears[0], ears[1])), return_exceptions=True)
    assert [type(each) for each in told] == [Unavailable, Unavailable, type(None)]
    assert [record.message for record in caplog.records] == ["An encoder can't be loaded: the disk is gone"]
    ears[0].error = None
    await use(encoders, ears[0])
    await in_memory(ears[:2], [True, True])


async def test_it_leaves_with_the_last_that_has_its_outline(ears: list[Ears]) -> None:
    encoders = Encoders()
    await use(encoders, ears[0])
    other = Embedder(ears[0].embedder.encoder, ears[0].embedder.adapter, "30s")
    del ears[0].embedder
    await in_memory(ears[:1], [True])
    del other
    await in_memory(ears[:1], [False])
    assert REGISTRY.get_sample_value("blsp_encoders") == 0
