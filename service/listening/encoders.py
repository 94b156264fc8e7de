"""Encoders that are not in memory all the time: each is loaded when a window is to go through it, and leaves when others need the room."""

import asyncio
import logging
import math
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from contextvars import Context
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

import torch

from models.embedder import Embedder
from models.encoder import WhisperEncoder
from service import heap
from service.errors import Unavailable
from service.telemetry import metrics

log = logging.getLogger(__name__)

Load = Callable[[], WhisperEncoder]


@dataclass(eq=False)
class _Loaded:
    nbytes: int
    users: int = 0
    encoder: "asyncio.Task[WhisperEncoder]" = field(init=False)


class Encoders:
    """At most `max_bytes` of encoders, and more only while windows are in them or wait for them. Belongs to one event loop.

    They go by their outlines, see WhisperEncoder; where nobody has an outline any more, its encoder leaves, too.
    """

    def __init__(self, max_bytes: float = math.inf) -> None:
        self._max_bytes = max_bytes
        self._loaded: WeakKeyDictionary[WhisperEncoder, _Loaded] = WeakKeyDictionary()  # the one used last at the end
        metrics.ENCODERS.set_function(lambda: len(self._loaded))

    @asynccontextmanager
    async def loaded(self, embedder: Embedder, load: Load | None) -> AsyncIterator[Embedder]:
        """An embedder with its encoder, which stays for the duration of the block; without `load`, the embedder has it already.

        `load` is called in a thread, once for all that wait. Raises Unavailable where it fails; who comes then has it tried again.
        """
        if load is None:
            yield embedder
            return
        outline = embedder.encoder
        loaded = self._loaded.pop(outline, None) or self._begin(outline, load)
        self._loaded[outline] = loaded
        with self._used(loaded):
            yield embedder.with_encoder(await asyncio.shield(loaded.encoder))

    def _begin(self, outline: WhisperEncoder, load: Load) -> _Loaded:
        self._make_room(outline.nbytes)
        loaded = _Loaded(outline.nbytes)
        # In a context of its own: it is no part of the request that came first.
        loaded.encoder = asyncio.create_task(self._load(outline, loaded, load), context=Context())
        return loaded

    async def _load(self, outline: WhisperEncoder, loaded: _Loaded, load: Load) -> WhisperEncoder:
        with self._used(loaded):
            try:
                encoder = await asyncio.to_thread(_quietly, load)
            except Exception as error:
                self._loaded.pop(outline, None)
                log.error("An encoder can't be loaded: %s", error)
                raise Unavailable("The model's encoder can't be loaded; the server's log says why.") from error
            metrics.ENCODER_LOADS.inc()
            return encoder

    @contextmanager
    def _used(self, loaded: _Loaded) -> Iterator[None]:
        loaded.users += 1
        try:
            yield
        finally:
            loaded.users -= 1
            self._make_room()

    def _make_room(self, wanted: int = 0) -> None:
        """Where there is not so much left, encoders leave that nobody uses, the one used least recently first."""
        for outline, loaded in list(self._loaded.items()):
            if sum(each.nbytes for each in self._loaded.values()) + wanted <= self._max_bytes:
                return
            if not loaded.users:
                del self._loaded[outline]
                asyncio.get_running_loop().call_soon(_give_back)  # when the last that refers to it has returned


def _give_back() -> None:
    asyncio.get_running_loop().run_in_executor(None, heap.give_back)


def _quietly(load: Load) -> WhisperEncoder:
    without_helpers()
    return load()


def without_helpers() -> None:
    """Gives the calling thread one of torch's threads: idle helpers of it would slow the encoder's down.

    A thread that has not asked for its number gets, with its first operation, the one that some thread has set last.
    """
    torch.get_num_threads()
    torch.set_num_threads(1)
