"""From a recording's bytes to its speech embeddings, while the bytes are still arriving."""

import asyncio
import math
import threading
from collections.abc import Awaitable, Callable, Generator, Hashable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, suppress
from contextvars import copy_context
from copy import copy
from dataclasses import dataclass, replace
from functools import partial
from io import SEEK_END
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from models.embedder import Embedder, embed_together
from models.features import N_SAMPLES, SAMPLE_RATE
from service.audio.decode import TOLERANCE_SECONDS
from service.audio.decoders import Decoders
from service.audio.upload import GrowingBuffer
from service.errors import AudioTooLong, ContextTooLong, DeadlineExceeded, TruncatedAudio
from service.gate.admission import NEWCOMERS, current_client
from service.gate.places import Places
from service.listening.batcher import Batcher
from service.listening.cache import EmbeddingCache, RecordingCache, fingerprint, fingerprint_of_file
from service.listening.encoders import Encoders, Load, without_helpers
from service.request import running, stage
from service.telemetry import metrics

REMEMBERED_WINDOWS = 20_000  # of recordings, of 200 bytes each
A_MOMENT = 0.02  # seconds: an upload that ends within them is looked for, before it is decoded
AT_ONCE_BYTES = 1 << 20  # of which the event loop makes a key itself, within a millisecond

# What to do with the rows (n, llm_dim) of the windows that a recording has begun with, while it goes on.
Ahead = Callable[[Tensor], Awaitable[None]]

# How probably somebody speaks in samples (n,).
Speech = Callable[[npt.NDArray[np.float32]], float]


@dataclass(frozen=True)
class Cut:
    """How a recording becomes windows of at most `longest` samples: where there are more, `end` tells of so many how many it takes.

    With `least_speech`, it is told how probably somebody speaks in each; where less probably than that, it is not encoded, and has no rows.
    """

    longest: int = N_SAMPLES
    end: Callable[[npt.NDArray[np.float32]], int] = len
    least_speech: float | None = None


FULL = Cut()  # windows of 30 s


@dataclass(frozen=True)
class Recording:
    """What was heard: the speech embeddings (n_i, llm_dim) of each window in order, and how many samples each window had.

    A window in which nobody speaks may have none.
    """

    windows: list[Tensor]
    lengths: list[int]
    truncated: TruncatedAudio | None = None
    """Why it is not the whole of a recording, where that was allowed."""
    begins: float = 0.0
    """At which second of the file's timeline it begins."""
    speech: Sequence[float | None] = ()
    """How probably somebody speaks in each window, where that was to be told."""

    @property
    def rows(self) -> Tensor:
        """The embeddings (n, llm_dim) of all windows after each other."""
        return torch.cat(self.windows)

    @property
    def seconds(self) -> float:
        """How long the recording is."""
        return sum(self.lengths) / SAMPLE_RATE

    def spoken(self, least: float | None) -> "Recording":
        """It without the rows of windows in which somebody speaks less probably than that."""
        if not self.speech or least is None:
            return self
        windows = zip(self.windows, self.speech, strict=True)
        return replace(
            self, windows=[rows[:0] if told is not None and told < least else rows for rows, told in windows]
        )


class Budget:
    """How much audio a request of one prompt may bring, in all its recordings together; threads may share it."""

    def __init__(self, max_seconds: float, context: int, spent_seconds: float = 0.0) -> None:
        self._max_seconds = max_seconds
        self._context = context
        self._spent_seconds = spent_seconds
        self._rows = 0
        self._lock = threading.Lock()

    def spend(self, n_samples: int, rows: int) -> None:
        """Takes so much more, which becomes that many rows at least.

        Raises AudioTooLong where there is not as much left, ContextTooLong for more rows than the LLM's context has tokens.
        """
        with self._lock:
            self._rows += rows
            if self._rows > self._context:
                raise ContextTooLong(
                    f"The audio alone takes {self._rows} tokens or more; the model's context of {self._context} can't hold them. "
                    "Send less audio."
                )
            self._spent_seconds += n_samples / SAMPLE_RATE
            if self._spent_seconds > self._max_seconds + TOLERANCE_SECONDS:  # resampling may add a little
                raise AudioTooLong(
                    f"The recordings of the request last {self._spent_seconds:.1f} s or more together, and exceed the limit of "
                    f"{self._max_seconds:g} s. Send less audio."
                )


@dataclass(frozen=True)
class _Window:
    """A window of `n_samples` samples: its rows where nobody speaks or it was heard before, else what is prepared to encode."""

    n_samples: int
    is_last: bool
    key: Hashable | None
    """None where nobody speaks."""
    rows: Tensor | None
    prepared: Tensor | None
    speech: float | None


class Listener:
    """Has recordings decoded, cuts them into 30 s windows, and has each window encoded as soon as it is full.

    A window that was heard before is not encoded again, and a recording that was is not even decoded again. `encoder_threads` are CPU
    threads of a batch, beside other work and where it has none beside it; `speech` tells how probably somebody speaks, `answered` how
    many replies are being generated, `context` how many tokens a prompt may have; `encoder_bytes` are for encoders that come and go.
    """

    def __init__(
        self,
        embedder: Embedder,
        decoders: Decoders,
        *,
        max_windows: int,
        max_batch_seconds: float,
        batches_at_a_time: int,
        encoder_threads: tuple[int, int],
        speech: Speech,
        answered: Callable[[], int],
        context: int,
        max_uploads: int,
        encode_seconds: float,
        cache_bytes: int,
        encoder_bytes: float = math.inf,
    ) -> None:
        self._embedder = embedder
        self._load_encoder: Load | None = None
        self._encoders = Encoders(encoder_bytes)
        self._ears = object()  # those whose rows they are, among the cached
        self._decoders = decoders
        self._cache = EmbeddingCache(cache_bytes)
        self._recordings = RecordingCache(REMEMBERED_WINDOWS)
        self._places = Places(max_uploads)
        self._threads = ThreadPoolExecutor(
            NEWCOMERS * max_uploads, thread_name_prefix="decode", initializer=without_helpers
        )
        self._batcher = Batcher(self._encode, max_windows, max_batch_seconds, batches_at_a_time, answered)
        self._encoder_threads = encoder_threads
        self._speech = speech
        self._max_ahead = max_windows
        self._context = context
        self._encode_seconds = encode_seconds

    def with_embedder(self, embedder: Embedder, load_encoder: Load | None = None) -> "Listener":
        """One that hears by another embedder, and shares everything else: decoders, places, memory of the caches, batches; and `close`.

        Where the embedder has only an outline of its encoder, `load_encoder` loads it.
        """
        other = copy(self)
        other._embedder, other._load_encoder, other._ears = embedder, load_encoder, object()
        return other

    @property
    def queued_seconds(self) -> float:
        """Audio that is decoded and waits for the encoder."""
        return self._batcher.queued_seconds

    def budget(self, spent_seconds: float = 0.0) -> Budget:
        """What a request may bring that has brought so much already."""
        return Budget(self._decoders.max_seconds, self._context, spent_seconds)

    async def hear(
        self,
        source: BinaryIO | GrowingBuffer,
        cut: Cut = FULL,
        ahead: Ahead | None = None,
        budget: Budget | None = None,
        allow_truncated: bool = False,
    ) -> Recording:
        """Listens to a recording of any format and length up to the limit; `cut` ends a window before it is full.

        `ahead` is called as soon as a window is encoded, after every one but the last, one call at a time; it is cancelled when all
        is heard, and its errors are nobody's. `budget` is for what belongs to a request of several recordings. With `allow_truncated`
        a file that was cut short is heard as far as it goes. No recording has more windows waiting for the encoder than a batch
        holds. Raises the errors of `Decoders.decode`, DeadlineExceeded, and what the source itself raises. When it fails or is
        cancelled, so does a GrowingBuffer: whoever feeds it or waits for it hears of the error.
        """
        try:
            with stage("decode"):
                key = await self._key(source, cut)
            recording = self._recall(key, budget)
            if recording is None:
                file = _File(allow_truncated)
                recording, keys = await self._listen(self._windows(source, cut, budget, file), ahead)
                recording = replace(recording, truncated=file.truncated, begins=file.begins)
                if file.truncated:
                    running().truncated = True
                elif key and not file.begins:
                    self._recordings.put(key, list(zip(keys, recording.lengths, recording.speech, strict=True)))
        except BaseException as error:
            if isinstance(source, GrowingBuffer):
                source.fail(
                    error if isinstance(error, Exception) else ConnectionAbortedError("nobody listens any more")
                )
            raise
        metrics.AUDIO_SECONDS.inc(recording.seconds)
        running().audio_seconds += recording.seconds
        return recording

    async def hear_samples(self, samples: np.ndarray) -> Tensor:
        """Speech embeddings (n, llm_dim) of float32 samples (m,) at 16 kHz, 0 < m <= 480,000, that are a window by themselves.

        Raises DeadlineExceeded and what the batcher raises.
        """
        context = copy_context()
        make = partial(context.run, partial(self._window, samples, FULL, is_last=True))
        window = await asyncio.get_running_loop().run_in_executor(self._threads, make)
        (rows,) = await self._in_time([asyncio.ensure_future(self._embed(window))])
        metrics.AUDIO_SECONDS.inc(len(samples) / SAMPLE_RATE)
        running().audio_seconds += len(samples) / SAMPLE_RATE
        return rows

    def _recall(self, key: Hashable, budget: Budget | None) -> Recording | None:
        """A recording that was heard before, where the rows of all its windows are still there."""
        windows = self._recordings.get(key)
        if not windows or (heard := self._cache.get_all([key for key, _, _ in windows if key])) is None:
            return None
        rows = iter(heard)
        keys, lengths, speech = zip(*windows, strict=True)
        recording = Recording([next(rows) if key else self._nothing() for key in keys], list(lengths), speech=speech)
        if budget:
            budget.spend(sum(recording.lengths), len(recording.rows))
        return recording

    async def _listen(self, windows: Iterator[_Window], ahead: Ahead | None) -> tuple[Recording, list[Hashable | None]]:
        """Has windows encoded; also returns their keys."""
        encoding: list[asyncio.Task[Tensor]] = []
        lengths: list[int] = []
        speech: list[float | None] = []
        keys: list[Hashable | None] = []
        preparing: asyncio.Task[None] | None = None
        try:
            while (window := await self._in_thread(windows)) is not None:
                lengths.append(window.n_samples)
                speech.append(window.speech)
                keys.append(window.key)
                if len(encoding) >= self._max_ahead:
                    await self._in_time([encoding[-self._max_ahead]])
                encoding.append(asyncio.create_task(self._embed(window)))
                if window.is_last:
                    break
                if ahead:
                    preparing = asyncio.create_task(_prepare(preparing, list(encoding), ahead))
            return Recording(await self._in_time(encoding), lengths, speech=speech), keys
        except BaseException:
            for task in encoding:
                task.cancel()
            encoding.clear()  # the error's traceback would hold them, and they the error and what was heard
            raise
        finally:
            if preparing:
                preparing.cancel()
                await asyncio.gather(preparing, return_exceptions=True)

    async def _in_time(self, encoding: Sequence[asyncio.Task[Tensor]]) -> list[Tensor]:
        try:
            async with asyncio.timeout(self._encode_seconds) as clock:
                return await asyncio.gather(*encoding)
        except TimeoutError as error:
            if not clock.expired():
                raise
            raise DeadlineExceeded(
                f"The audio waited longer than {self._encode_seconds:g} s for the encoder."
            ) from error

    def _encode(
        self, embedders: Sequence[Embedder], prepared: Sequence[Tensor], n_samples: Sequence[int], alone: bool
    ) -> list[Tensor]:
        """Rows of a batch; runs in a thread, for which torch's number of threads is set."""
        beside_others, by_itself = self._encoder_threads
        torch.set_num_threads(by_itself if alone else beside_others)
        return embed_together(embedders, prepared, n_samples)

    async def _embed(self, window: _Window) -> Tensor:
        if window.rows is not None:
            return window.rows
        assert window.prepared is not None
        assert window.key is not None
        async with self._encoders.loaded(self._embedder, self._load_encoder) as embedder:
            rows = (await self._batcher.embed(embedder, window.prepared, window.n_samples)).cpu()
        self._cache.put(window.key, rows)
        return rows

    async def _in_thread(self, windows: Iterator[_Window]) -> _Window | None:
        """The next window. Raises DeadlineExceeded where no decoder is free in time; one that has begun ends by its own limits."""
        client = current_client()
        try:
            async with asyncio.timeout(self._encode_seconds):
                await self._places.take(client)
        except TimeoutError as error:
            raise DeadlineExceeded(f"The audio waited longer than {self._encode_seconds:g} s for a decoder.") from error
        return await asyncio.wrap_future(self._submit(windows, client))

    def _submit(self, windows: Iterator[_Window], client: str) -> Future[_Window | None]:
        """The next window is made in a thread; then the client gives its place back, whether or not anybody still waits for it."""
        context, loop = copy_context(), asyncio.get_running_loop()
        work = self._threads.submit(lambda: context.run(lambda: next(windows, None)))

        def done(_: Future[_Window | None]) -> None:
            with suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(self._places.give_back, client)

        work.add_done_callback(done)
        return work

    def _windows(
        self,
        source: BinaryIO | GrowingBuffer,
        cut: Cut,
        budget: Budget | None,
        file: "_File",
    ) -> Generator[_Window, None, None]:
        """Yields one window after the other; runs in a thread."""
        pending: list[np.ndarray] = []
        with closing(self._decoders.decode(source, file.begin)) as decoded, closing(file.chunks(decoded)) as chunks:
            while True:
                with stage("decode"):
                    samples = _fill(chunks, pending, cut)
                if not len(samples):
                    return
                if budget:
                    budget.spend(len(samples), self._embedder.least_rows(len(samples)))
                window = self._window(samples, cut, is_last=not pending)
                if window.is_last:
                    break
                yield window
        yield window

    def _window(self, samples: np.ndarray, cut: Cut, *, is_last: bool) -> _Window:
        speech = None
        if cut.least_speech is not None:
            with stage("features"):
                speech = self._speech(samples)
            if speech < cut.least_speech:
                return _Window(len(samples), is_last, None, self._nothing(), None, speech)
        key = self._ears, fingerprint(samples)
        if (rows := self._cache.get(key)) is not None:
            return _Window(len(samples), is_last, key, rows, None, speech)
        with stage("features"):
            prepared = self._embedder.prepare(torch.from_numpy(samples))
        return _Window(len(samples), is_last, key, None, prepared, speech)

    async def _key(self, source: BinaryIO | GrowingBuffer, cut: Cut) -> Hashable:
        """What a recording is remembered by: whose ears hear it, its bytes and how it is cut.

        None of an upload that does not end in a moment.
        """
        if isinstance(source, GrowingBuffer):
            await asyncio.wait([asyncio.wrap_future(source.ended)], timeout=A_MOMENT)
            if not source.is_complete:
                return None
        if source.seek(0, SEEK_END) > AT_ONCE_BYTES:
            return self._ears, await asyncio.to_thread(fingerprint_of_file, source), cut
        return self._ears, fingerprint_of_file(source), cut

    def _nothing(self) -> Tensor:
        return torch.empty(0, self._embedder.width, dtype=self._embedder.dtype)

    async def close(self) -> None:
        """Stops the batcher, the decoders and the threads."""
        await self._batcher.close()
        await asyncio.to_thread(self._decoders.close)
        self._threads.shutdown(wait=False, cancel_futures=True)


@dataclass
class _File:
    """What turns out about a file while it is decoded."""

    allow_truncated: bool
    truncated: TruncatedAudio | None = None
    begins: float = 0.0

    def begin(self, seconds: float) -> None:
        """Hears where its track begins."""
        self.begins = seconds

    def chunks(self, decoded: Iterator[np.ndarray]) -> Generator[np.ndarray, None, None]:
        """What was decoded. That the file is cut short ends it, and is an error where it is not allowed, or nothing is there."""
        any_yet = False
        try:
            for chunk in decoded:
                any_yet = True
                yield chunk
        except TruncatedAudio as error:
            if not (self.allow_truncated and any_yet):
                raise
            self.truncated = TruncatedAudio(error.message)  # without the traceback, and all that it holds


async def _prepare(before: asyncio.Task[None] | None, encoding: list[asyncio.Task[Tensor]], ahead: Ahead) -> None:
    if before:
        await before
    await ahead(torch.cat(await asyncio.gather(*encoding)))


def _fill(chunks: Iterator[np.ndarray], pending: list[np.ndarray], cut: Cut) -> np.ndarray:
    """Takes chunks until there is more than a window may have, or the recording ends; what is behind the cut stays in `pending`."""
    length = sum(map(len, pending))
    while length <= cut.longest and (chunk := next(chunks, None)) is not None:
        pending.append(chunk)
        length += len(chunk)
    samples = np.concatenate(pending) if pending else np.empty(0, np.float32)
    end = min(cut.end(samples[: cut.longest]), cut.longest) if len(samples) > cut.longest else len(samples)
    pending[:] = [samples[end:]] if end < len(samples) else []
    return samples[:end]
