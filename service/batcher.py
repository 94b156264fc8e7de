"""The micro-batcher: windows of all requests, encoded together, off the event loop.

While one batch is on the device the next one gathers; nothing waits for a batch to fill. This file knows nothing about audio formats or
prompts.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from torch import Tensor

from service import metrics, timeline
from service.errors import ApiError, Unavailable

log = logging.getLogger(__name__)

Encode = Callable[[Sequence[Tensor], Sequence[int]], list[Tensor]]


@dataclass(eq=False)
class _Item:
    features: Tensor  # (n_mels, frames)
    n_samples: int
    rows: asyncio.Future[Tensor]
    times: timeline.Timeline = field(default_factory=timeline.get)
    queued: float = field(default_factory=time.perf_counter)


class EncodingFailed(ApiError):
    """The encoder could not encode this window."""

    code = "encoding_failed"


class Batcher:
    """Feeds windows of concurrent requests to an encoder, in batches of windows of similar length.

    `encode` takes features (n_mels, frames_i) and sample counts and returns rows (n_i, llm_dim); it runs in one thread of its own.
    """

    def __init__(self, encode: Encode, max_windows: int) -> None:
        self._encode = encode
        self._max_windows = max_windows
        self._waiting: list[_Item] = []
        self._arrived = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="encoder")
        self._loop = asyncio.create_task(self._run(), name="batcher")

    async def embed(self, features: Tensor, n_samples: int) -> Tensor:
        """Speech embeddings (n, llm_dim) of one window.

        Cancelling it takes the window out of the queue. Raises EncodingFailed where the encoder fails on this window, Unavailable where
        the batcher was closed.
        """
        if self._loop.done():
            raise Unavailable("The encoder has stopped.")
        item = _Item(features, n_samples, asyncio.get_running_loop().create_future())
        self._waiting.append(item)
        self._arrived.set()
        return await item.rows

    async def close(self) -> None:
        """Stops after the running batch; whoever still waits gets Unavailable."""
        self._loop.cancel()
        await asyncio.gather(self._loop, return_exceptions=True)
        for item in self._waiting:
            if not item.rows.done():
                item.rows.set_exception(Unavailable("The service is shutting down."))
        self._waiting.clear()
        self._thread.shutdown()

    async def _run(self) -> None:
        while True:
            await self._arrived.wait()
            self._arrived.clear()
            while batch := self._take_batch():
                await self._encode_batch(batch)

    def _take_batch(self) -> list[_Item]:
        """The window that has waited longest and those of most similar length, so that little of the batch is padding."""
        self._waiting = [item for item in self._waiting if not item.rows.done()]
        if not self._waiting:
            return []
        frames = self._waiting[0].features.shape[1]
        by_distance = sorted(self._waiting, key=lambda item: abs(item.features.shape[1] - frames))
        batch = by_distance[: self._max_windows]
        taken = set(map(id, batch))
        self._waiting = [item for item in self._waiting if id(item) not in taken]
        return batch

    async def _encode_batch(self, batch: list[_Item]) -> None:
        """Encodes a batch; where that fails, each of its windows alone, so that one bad window costs nobody else."""
        start = time.perf_counter()
        try:
            work = asyncio.get_running_loop().run_in_executor(
                self._thread, self._encode, [i.features for i in batch], [i.n_samples for i in batch]
            )
            rows = await work
        except Exception as error:
            await self._after_failure(batch, error)
            return
        seconds = time.perf_counter() - start
        metrics.BATCH_WINDOWS.observe(len(batch))
        for item, embeddings in zip(batch, rows, strict=True):
            item.times.add("queue", start - item.queued)
            item.times.add("encode", seconds)
            metrics.SPEECH_TOKENS.inc(len(embeddings))
            if not item.rows.done():
                item.rows.set_result(embeddings)

    async def _after_failure(self, batch: list[_Item], error: Exception) -> None:
        if len(batch) > 1:
            for item in batch:
                await self._encode_batch([item])
            return
        log.error("encoding a window of %d samples failed", batch[0].n_samples, exc_info=error)
        if not batch[0].rows.done():
            batch[0].rows.set_exception(EncodingFailed("The audio could not be encoded."))
