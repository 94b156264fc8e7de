"""The micro-batcher: windows of all requests, encoded together, off the event loop.

While batches are on the device the next one gathers; nothing waits for a batch to fill. Clients take turns, and so do the requests of a
client: who sends a hundred long recordings delays another's short clip by little more than the batch that is running. Windows of several
adapters share a batch where these share an encoder. This file knows nothing about audio formats or prompts.
"""

import asyncio
import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

from torch import Tensor

from models.embedder import Embedder
from models.features import HOP_LENGTH, SAMPLE_RATE
from service.errors import ApiError, Unavailable
from service.gate.admission import current_client
from service.request import RequestContext, running
from service.telemetry import metrics

FRAMES_PER_SECOND = SAMPLE_RATE // HOP_LENGTH
MAX_CLIENTS = 10_000  # whose turns are remembered
BEHIND_SECONDS = 5  # of audio that wait for each reply that is being generated, when a batch begins beside another

log = logging.getLogger(__name__)

# The windows' embedders, what they have prepared, sample counts, and whether the batch has the machine to itself: no other runs, nothing
# waits, no reply is being generated.
Encode = Callable[[Sequence[Embedder], Sequence[Tensor], Sequence[int], bool], list[Tensor]]


@dataclass(eq=False)
class _Item:
    embedder: Embedder
    prepared: Tensor  # (…, frames)
    n_samples: int
    rows: asyncio.Future[Tensor]
    n_batches: int  # that had begun when it came
    request: RequestContext = field(default_factory=running)
    client: str = field(default_factory=current_client)
    queued: float = field(default_factory=time.perf_counter)

    @property
    def frames(self) -> int:
        return self.prepared.shape[1]


class EncodingFailed(ApiError):
    """The encoder could not encode this window."""

    code = "encoding_failed"


class Batcher:
    """Feeds windows of concurrent requests to an encoder, in batches of windows of similar length.

    `encode` takes each window's embedder, all of which are `batched_by` the same, what was prepared of it (…, frames_i), sample counts and
    whether nothing else is to be done, and returns rows (n_i, llm_dim); it runs in threads of its own: one for each batch that is encoded
    at the same time, and one for batches that are alone. Those may use all cores, and OpenMP wakes helpers quickly only while its threads,
    idle ones of other pools included, are no more than the cores.
    """

    def __init__(
        self,
        encode: Encode,
        max_windows: int,
        max_seconds: float = math.inf,
        at_a_time: int = 1,
        answered: Callable[[], int] = lambda: 0,
    ) -> None:
        """A batch has at most `max_windows` windows and, where there is more than one, `max_seconds` of audio.

        On a CPU, batches beside the first one take from those who are being answered: they begin only while more than
        `BEHIND_SECONDS` of audio wait for each reply that is being generated, of which `answered` tells the number.
        """
        self._encode = encode
        self._answered = answered
        self._max_windows = max_windows
        self._max_seconds = max_seconds
        self._n_batches = 0
        self._encoding = 0  # batches
        self._led: dict[str, int] = {}  # the number of the batch that each client last led
        self._request_led: WeakKeyDictionary[RequestContext, int] = WeakKeyDictionary()  # and each request
        self._waiting: list[_Item] = []
        self._arrived = asyncio.Event()
        self._threads = ThreadPoolExecutor(at_a_time, thread_name_prefix="encoder")
        self._thread_alone = ThreadPoolExecutor(1, thread_name_prefix="encoder-alone")
        self._loops = [asyncio.create_task(self._run(beside=i > 0), name="batcher") for i in range(at_a_time)]
        metrics.QUEUE_WINDOWS.set_function(lambda: len(self._waiting))
        metrics.QUEUED_AUDIO_SECONDS.set_function(lambda: self.queued_seconds)

    @property
    def queued_seconds(self) -> float:
        """Audio that waits."""
        return sum(item.n_samples for item in self._waiting) / SAMPLE_RATE

    async def embed(self, embedder: Embedder, prepared: Tensor, n_samples: int) -> Tensor:
        """Speech embeddings (n, llm_dim) of one window, of which the embedder has prepared (…, frames).

        Cancelling it takes the window out of the queue. Raises EncodingFailed where the encoder fails on this window, Unavailable where
        the batcher was closed.
        """
        if all(loop.done() for loop in self._loops):
            raise Unavailable("The encoder has stopped.")
        item = _Item(embedder, prepared, n_samples, asyncio.get_running_loop().create_future(), self._n_batches)
        self._waiting.append(item)
        self._arrived.set()
        try:
            return await item.rows
        finally:
            del item  # else it, an error and its traceback hold each other, and the audio, until garbage is collected

    async def close(self) -> None:
        """Stops after the running batches; whoever still waits gets Unavailable."""
        for loop in self._loops:
            loop.cancel()
        await asyncio.gather(*self._loops, return_exceptions=True)
        for item in self._waiting:
            if not item.rows.done():
                item.rows.set_exception(Unavailable("The service is shutting down."))
        self._waiting.clear()
        self._threads.shutdown()
        self._thread_alone.shutdown()

    async def _run(self, beside: bool) -> None:
        while True:
            while (not beside or self._is_behind()) and await self._encode_next():
                pass
            self._arrived.clear()
            await self._arrived.wait()

    async def _encode_next(self) -> bool:
        """Encodes a batch, and keeps nothing of it; whether there was one."""
        batch = self._take_batch()
        if batch:
            await self._encode_batch(batch)
        return bool(batch)

    def _is_behind(self) -> bool:
        return self.queued_seconds > BEHIND_SECONDS * self._answered()

    def _take_batch(self) -> list[_Item]:
        """The first window of whose turn it is, and others of similar length, from each client about as many."""
        self._waiting = [item for item in self._waiting if not item.rows.done()]
        if not self._waiting:
            return []
        first = min(self._waiting, key=self._turn)
        self._note_turn(first)
        batch = [first]
        frames = first.frames
        for item in _similar(first, self._waiting):
            if len(batch) < self._max_windows and frames + item.frames <= self._max_seconds * FRAMES_PER_SECOND:
                batch.append(item)
                frames += item.frames
        taken = set(map(id, batch))
        self._waiting = [item for item in self._waiting if id(item) not in taken]
        return batch

    def _turn(self, item: _Item) -> tuple[int, int]:
        """Whose turn it is, least first: the client, then the request, that has not led a batch for longest.

        Who has led none comes before those who lead now, but after those who were waiting already: else newcomers without end would
        keep all others out.
        """
        newcomer = item.n_batches - 1
        return self._led.get(item.client, newcomer), self._request_led.get(item.request, newcomer)

    def _note_turn(self, item: _Item) -> None:
        self._n_batches += 1
        if len(self._led) > MAX_CLIENTS:
            self._led.clear()
        self._led[item.client] = self._request_led[item.request] = self._n_batches

    async def _encode_batch(self, batch: list[_Item]) -> None:
        """Encodes a batch; where that fails, each of its windows alone, so that one bad window costs nobody else."""
        start = time.perf_counter()
        alone = not (self._encoding or self._waiting or self._answered())
        self._encoding += 1
        try:
            rows = await asyncio.get_running_loop().run_in_executor(
                self._thread_alone if alone else self._threads,
                self._encode,
                [i.embedder for i in batch],
                [i.prepared for i in batch],
                [i.n_samples for i in batch],
                alone,
            )
        except Exception as error:
            await self._after_failure(batch, error)
            return
        finally:
            self._encoding -= 1
        end = time.perf_counter()
        metrics.BATCH_WINDOWS.observe(len(batch))
        for item, embeddings in zip(batch, rows, strict=True):
            item.request.timeline.add("queue", item.queued, start)
            item.request.timeline.add("encode", start, end)
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


def _similar(first: _Item, waiting: Sequence[_Item]) -> list[_Item]:
    """The other windows of half to twice the length that may be in its batch: in turn from each client, the most similar first."""
    others = [i for i in waiting if i is not first and first.frames <= 2 * i.frames and i.frames <= 2 * first.frames]
    others = [i for i in others if i.embedder.batched_by is first.embedder.batched_by]
    others.sort(key=lambda item: abs(item.frames - first.frames))
    of_client = Counter([first.client])
    ranks: dict[int, int] = {}
    for item in others:
        ranks[id(item)] = of_client[item.client]
        of_client[item.client] += 1
    return sorted(others, key=lambda item: ranks[id(item)])
