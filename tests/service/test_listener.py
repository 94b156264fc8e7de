import asyncio
import io
import threading
import weakref
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, closing
from dataclasses import replace
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor

from models.embedder import Embedder
from models.features import N_SAMPLES, SAMPLE_RATE
from service.audio.decoders import Decoders
from service.audio.upload import GrowingBuffer
from service.errors import ApiError, AudioTooLong, ContextTooLong, DeadlineExceeded, NotAudio
from service.gate.admission import Admission, Limits, Queued
from service.listening.batcher import EncodingFailed
from service.listening.listener import AT_ONCE_BYTES, Ahead, Budget, Cut, Listener, Recording
from tests.sounds import voice, wav


class Ears:
    """Stands in for the embedder: a window becomes one row that holds its length; waits at a gate before one of `held` samples."""

    width = 1
    dtype = torch.float32

    def __init__(self, held: int = 0) -> None:
        self.held = held
        self.gate = threading.Event()
        self.threads: dict[int, int] = {}  # torch's, by samples
        self.decoding: set[int] = set()  # torch's threads where recordings are decoded
        self.batched_by = self.adapter = self

    def prepare(self, window: Tensor) -> Tensor:
        self.decoding.add(torch.get_num_threads())
        return window[None]

    def embed_prepared(self, prepared: Sequence[Tensor], n_samples: Sequence[int]) -> list[Tensor]:
        self.threads |= dict.fromkeys(n_samples, torch.get_num_threads())
        if self.held in n_samples:
            assert self.gate.wait(20)
        return [torch.tensor([[float(n)]]) for n in n_samples]

    def least_rows(self, n_samples: int) -> int:
        return 1


class SilentUpload(GrowingBuffer):
    """An upload that has begun, without a byte so far."""

    def __init__(self) -> None:
        super().__init__(1000)
        self._read = threading.Event()

    def readinto(self, target: "bytearray | memoryview") -> int:  # type: ignore[override]
        self._read.set()
        return super().readinto(target)

    async def is_read(self) -> None:
        """Waits until a decoder waits for the first byte."""
        assert await asyncio.to_thread(self._read.wait, 20)


@asynccontextmanager
async def listener(
    ears: Ears, encode_seconds: float = 60, cache_bytes: int = 1 << 20, context: int = 1000
) -> AsyncIterator[Listener]:
    listener = Listener(
        cast(Embedder, cast(Any, ears)),
        Decoders(max_seconds=600, seconds=30, memory_bytes=256 << 20),
        max_windows=4,
        max_batch_seconds=1,
        batches_at_a_time=1,
        encoder_threads=(1, 2),
        speech=lambda samples: float(np.abs(samples).max()),
        answered=lambda: 0,
        context=context,
        max_uploads=2,
        encode_seconds=encode_seconds,
        cache_bytes=cache_bytes,
    )
    try:
        yield listener
    finally:
        ears.gate.set()
        await listener.close()


async def hear(listener: Listener, seconds: float, ahead: Ahead) -> Recording:
    return await listener.hear(io.BytesIO(wav(voice(seconds))), ahead=ahead)


async def test_what_was_heard_so_far_is_handed_on_window_by_window_but_not_the_last() -> None:
    handed: list[list[float]] = []
    ears = Ears(held=SAMPLE_RATE)

    async def ahead(rows: Tensor) -> None:
        handed.append(rows.flatten().tolist())
        if len(handed) == 2:
            ears.gate.set()

    async with listener(ears) as ear:
        recording = await hear(ear, 61, ahead)
    assert handed == [[N_SAMPLES], [N_SAMPLES, N_SAMPLES]]
    assert recording.rows.flatten().tolist() == [N_SAMPLES, N_SAMPLES, SAMPLE_RATE]


async def test_a_window_is_handed_on_while_the_next_one_is_still_being_spoken() -> None:
    said = wav(voice(45))
    handed = asyncio.Event()

    async def ahead(rows: Tensor) -> None:
        handed.set()

    async with listener(Ears()) as ear:
        source = GrowingBuffer(len(said))
        hearing = asyncio.create_task(ear.hear(source, ahead=ahead))
        source.feed(said[: len(said) * 32 // 45])
        async with asyncio.timeout(20):
            await handed.wait()
        source.feed(said[source.received :])
        source.finish()
        assert len((await hearing).windows) == 2


@pytest.mark.parametrize("seconds", [1, 30])
async def test_a_recording_of_one_window_is_not_handed_on(seconds: float) -> None:
    async def ahead(rows: Tensor) -> None:
        raise AssertionError("there is nothing ahead of the last window")

    async with listener(Ears()) as ear:
        assert len((await hear(ear, seconds, ahead)).windows) == 1


async def test_an_error_of_the_work_ahead_is_nobodys() -> None:
    ears = Ears(held=SAMPLE_RATE)

    async def ahead(rows: Tensor) -> None:
        ears.gate.set()
        raise RuntimeError("no room")

    async with listener(ears) as ear:
        assert len((await hear(ear, 31, ahead)).windows) == 2


async def test_work_ahead_that_is_not_done_when_all_is_heard_is_cancelled() -> None:
    ears = Ears(held=SAMPLE_RATE)
    ended = False

    async def ahead(rows: Tensor) -> None:
        nonlocal ended
        ears.gate.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended = True

    async with listener(ears) as ear:
        await hear(ear, 31, ahead)
        assert ended


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """The recordings that are decoded."""
    sources: list[object] = []
    decode = Decoders.decode

    def counted(self: Decoders, source: Any, begins: Any) -> Any:
        sources.append(source)
        return decode(self, source, begins)

    monkeypatch.setattr(Decoders, "decode", counted)
    return sources


def upload(data: bytes) -> GrowingBuffer:
    """One that has come whole."""
    source = GrowingBuffer(len(data))
    source.feed(data)
    source.finish()
    return source


async def test_a_recording_that_was_heard_before_is_not_decoded_again(decoded: list[object]) -> None:
    said = wav(voice(31))
    async with listener(Ears()) as ear:
        first = await ear.hear(io.BytesIO(said))
        again = [await ear.hear(source) for source in (io.BytesIO(said), upload(said))]
        assert len(decoded) == 1
        for recording in again:
            assert recording.lengths == first.lengths == [N_SAMPLES, SAMPLE_RATE]
            assert [id(rows) for rows in recording.windows] == [id(rows) for rows in first.windows]
        await ear.hear(io.BytesIO(said + b"more"))
        assert len(decoded) == 2


async def test_what_one_adapter_has_heard_is_not_what_another_hears(decoded: list[object]) -> None:
    """Nor are its windows: they share decoders and batches, not rows."""

    class OtherEars(Ears):
        def embed_prepared(self, prepared: Sequence[Tensor], n_samples: Sequence[int]) -> list[Tensor]:
            return [torch.tensor([[-float(n)]]) for n in n_samples]

    said = wav(voice(1))
    async with listener(Ears()) as ear:
        other = ear.with_embedder(cast(Embedder, cast(Any, OtherEars())))
        for _ in range(2):
            assert [(await each.hear(io.BytesIO(said))).rows.item() for each in (ear, other)] == [16000, -16000]
            assert [(await each.hear_samples(voice(1))).item() for each in (ear, other)] == [16000, -16000]
    assert len(decoded) == 2


async def test_a_recording_that_is_cut_elsewhere_is_another_one(decoded: list[object]) -> None:
    said = wav(voice(35))
    assert len(said) > AT_ONCE_BYTES
    async with listener(Ears()) as ear:
        for cut, lengths in (
            (Cut(), [N_SAMPLES, 5 * SAMPLE_RATE]),
            (Cut(end=lambda _: N_SAMPLES // 2), [N_SAMPLES // 2, 20 * SAMPLE_RATE]),
            (Cut(10 * SAMPLE_RATE), [10 * SAMPLE_RATE] * 3 + [5 * SAMPLE_RATE]),
            (Cut(20 * SAMPLE_RATE, lambda there: len(there) // 4 * 3), [15 * SAMPLE_RATE, 20 * SAMPLE_RATE]),
        ):
            assert (await ear.hear(io.BytesIO(said), cut)).lengths == lengths
        assert len(decoded) == 4


LOUD, SILENT = np.full(SAMPLE_RATE, 0.5, np.float32), np.zeros(SAMPLE_RATE, np.float32)


@pytest.mark.parametrize(
    ("seconds", "heard"), [([SILENT, LOUD, SILENT], [0, 1, 0]), ([LOUD, SILENT], [1, 0]), ([SILENT] * 3, [0, 0, 0])]
)
async def test_windows_in_which_nobody_speaks_are_not_encoded(
    seconds: list[np.ndarray], heard: list[int], decoded: list[object]
) -> None:
    said, ears = wav(np.concatenate(seconds)), Ears()
    spoken = Cut(SAMPLE_RATE, least_speech=0.3)
    async with listener(ears) as ear:
        for _ in range(2):  # the second time it is remembered
            recording = await ear.hear(io.BytesIO(said), spoken)
            assert [len(rows) for rows in recording.windows] == heard
            assert recording.lengths == [SAMPLE_RATE] * len(seconds)
            assert recording.rows.shape == (sum(heard), 1)
            assert recording.speech == pytest.approx([0.5 * loud for loud in heard], abs=1e-3)
        assert len(ears.decoding) == any(heard)
        assert len(decoded) == 1
        for cut in (Cut(SAMPLE_RATE), replace(spoken, least_speech=0.0)):  # nor is silence unheard where all is to be
            assert [len(rows) for rows in (await ear.hear(io.BytesIO(said), cut)).windows] == [1] * len(seconds)


async def test_a_recording_whose_embeddings_had_to_make_room_is_decoded_again(decoded: list[object]) -> None:
    said, other = wav(voice(31)), wav(voice(32))
    async with listener(Ears(), cache_bytes=2 * 4) as ear:
        for data in (said, other, said):
            assert len((await ear.hear(io.BytesIO(data))).windows) == 2
        assert len(decoded) == 3


async def test_a_recording_that_can_not_be_decoded_is_not_remembered(decoded: list[object]) -> None:
    async with listener(Ears()) as ear:
        for _ in range(2):
            with pytest.raises(NotAudio):
                await ear.hear(upload(b"no audio at all"))
        assert len(decoded) == 2


async def test_who_feeds_a_recording_hears_why_nobody_listens_any_more() -> None:
    async with listener(Ears()) as ear:
        damaged, silent = upload(b"no audio at all"), SilentUpload()
        with pytest.raises(NotAudio):
            await ear.hear(damaged)
        with pytest.raises(NotAudio):
            damaged.feed(b"more")
        hearing = asyncio.create_task(ear.hear(silent))
        await silent.is_read()
        hearing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await hearing
        with pytest.raises(ConnectionAbortedError, match="nobody listens"):
            silent.feed(b"more")


async def test_recordings_of_one_budget() -> None:
    async with listener(Ears()) as ear:
        budget = ear.budget(spent_seconds=500)
        await ear.hear(io.BytesIO(wav(voice(65))), budget=budget)
        for seconds in (65, 64):  # heard before, and not
            with pytest.raises(AudioTooLong, match="limit of 600 s"):
                await ear.hear(io.BytesIO(wav(voice(seconds))), budget=budget)


def test_a_budget_lasts_to_its_last_token() -> None:
    Budget(max_seconds=60, context=3).spend(60 * SAMPLE_RATE, 3)
    with pytest.raises(ContextTooLong, match="4 tokens or more"):
        Budget(max_seconds=60, context=3).spend(1, 4)


async def test_audio_that_can_not_fit_the_context_is_refused_before_it_is_encoded() -> None:
    ears = Ears(held=N_SAMPLES)
    async with listener(ears, context=3) as ear:
        with pytest.raises(ContextTooLong, match="4 tokens or more"):
            await ear.hear(io.BytesIO(wav(voice(200, seed=1))), budget=ear.budget())


async def test_a_window_is_full_at_its_last_sample() -> None:
    async with listener(Ears()) as ear:
        samples = np.zeros(N_SAMPLES + 1, np.float32)
        assert (await ear.hear(io.BytesIO(wav(samples)))).lengths == [N_SAMPLES, 1]
        assert (await ear.hear(io.BytesIO(wav(samples[:-1])))).lengths == [N_SAMPLES]


async def test_no_recording_has_more_windows_waiting_than_a_batch_holds() -> None:
    ears = Ears(held=N_SAMPLES)
    async with listener(ears) as ear:
        hearing = asyncio.create_task(ear.hear(io.BytesIO(wav(voice(300)))))
        most = 0.0
        for _ in range(200):  # time in which all ten windows could come
            await asyncio.sleep(0.005)
            most = max(most, ear.queued_seconds)
        assert 0 < most <= 4 * 30
        ears.gate.set()
        assert len((await hearing).windows) == 10


async def test_windows_are_handed_on_one_call_at_a_time() -> None:
    ears = Ears(held=SAMPLE_RATE)  # the last window
    running = most = calls = 0

    async def ahead(rows: Tensor) -> None:
        nonlocal running, most, calls
        running, calls = running + 1, calls + 1
        most = max(most, running)
        await asyncio.sleep(0.1)  # in which the next windows come
        running -= 1
        if calls == 3:
            ears.gate.set()

    async with listener(ears) as ear:
        await hear(ear, 121, ahead)
    assert calls >= 3
    assert most == 1


async def test_a_recording_that_no_decoder_is_free_for_is_late() -> None:
    async with listener(Ears(), encode_seconds=0.5) as ear:
        silent = [SilentUpload() for _ in range(2)]  # as many as there are places
        held = [asyncio.create_task(ear.hear(source)) for source in silent]
        for source in silent:
            await source.is_read()
        with pytest.raises(DeadlineExceeded, match="for a decoder"):
            await ear.hear(io.BytesIO(wav(voice(1))))
        assert not any(task.done() for task in held)  # whoever uploads has the time that uploads have
        for source in silent:
            source.fail(ConnectionAbortedError())
        with pytest.raises(ConnectionAbortedError):
            await asyncio.gather(*held)
        assert len((await ear.hear(io.BytesIO(wav(voice(1))))).windows) == 1


async def test_a_recording_that_the_encoder_does_not_get_to_is_late() -> None:
    async with listener(Ears(held=SAMPLE_RATE), encode_seconds=0.5) as ear:
        with pytest.raises(DeadlineExceeded, match=r"longer than 0\.5 s for the encoder"):
            await ear.hear(io.BytesIO(wav(voice(1))))


async def test_slow_uploads_of_one_client_do_not_keep_anothers_recording_waiting() -> None:
    async with listener(Ears()) as ear:
        silent = [SilentUpload() for _ in range(3)]
        held = [asyncio.create_task(ear.hear(source)) for source in silent]
        for source in silent[:2]:
            await source.is_read()
        with Admission(Limits(0, 0, 0, 0, 0, 0), lambda: Queued(0, 0)).admit("another"):
            async with asyncio.timeout(20):
                assert len((await ear.hear(io.BytesIO(wav(voice(65))))).windows) == 3
        assert not any(task.done() for task in held)
        for source in silent:
            source.fail(ConnectionAbortedError())
        await asyncio.gather(*held, return_exceptions=True)


async def test_a_recording_with_nothing_beside_it_is_encoded_with_more_threads_and_none_is_decoded_with_them() -> None:
    ears = Ears(held=12 * SAMPLE_RATE)
    async with listener(ears) as ear:
        for seconds in (2, 11):
            await ear.hear(io.BytesIO(wav(voice(seconds))))
        held = asyncio.create_task(ear.hear(io.BytesIO(wav(voice(12)))))
        while 12 * SAMPLE_RATE not in ears.threads:
            await asyncio.sleep(0)
        beside = asyncio.create_task(ear.hear(io.BytesIO(wav(voice(13)))))
        while not ear.queued_seconds:
            await asyncio.sleep(0)
        after = asyncio.create_task(ear.hear(io.BytesIO(wav(voice(14)))))
        while ear.queued_seconds < 20:
            await asyncio.sleep(0)
        ears.gate.set()
        await asyncio.gather(held, beside, after)
    threads = {n // SAMPLE_RATE: number for n, number in ears.threads.items()}
    assert (threads[2], threads[11], threads[13]) == (2, 2, 1)
    assert ears.decoding == {1}


class Deaf(Ears):
    def embed_prepared(self, prepared: Sequence[Tensor], n_samples: Sequence[int]) -> list[Tensor]:
        raise MemoryError


@pytest.mark.usefixtures("no_garbage_collection")
@pytest.mark.parametrize(("ears", "spent_seconds", "failure"), [(Ears, 540, AudioTooLong), (Deaf, 0, EncodingFailed)])
async def test_a_recording_that_fails_is_forgotten(
    ears: type[Ears], spent_seconds: float, failure: type[ApiError], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("CRITICAL")  # what pytest keeps of the log would hold the error

    async def fail() -> weakref.ref[GrowingBuffer]:
        source = GrowingBuffer(1 << 22)
        with closing(source):
            source.feed(wav(voice(65)))
            source.finish()
            try:
                await ear.hear(source, budget=ear.budget(spent_seconds))
            except failure:
                return weakref.ref(source)
        raise AssertionError

    async with listener(ears()) as ear:
        forgotten = await fail()
        async with asyncio.timeout(10):
            while forgotten():  # its threads end
                await asyncio.sleep(0)
