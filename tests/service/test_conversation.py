"""The recordings of one request: a few at a time, all within one budget, and nothing of them goes on after the first error."""

import asyncio
import base64
import weakref
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, BinaryIO, cast

import pytest
import torch

from models.prompt import Message, Prompt
from service.answers.conversation import AT_A_TIME, Conversations, parse_messages
from service.answers.speech import SpeechRequest, SpeechService
from service.errors import ApiError, AudioTooLong, InvalidAudio
from service.listening.listener import Budget, Recording

RATE = 16_000


class Ears:
    """Stands in for the listener and its fetcher: a recording's bytes are its seconds; one of 0 s is damaged, one of 99 s never ends."""

    def __init__(self, max_seconds: float = 60.0) -> None:
        self.max_seconds = max_seconds
        self.running = self.most = self.heard = 0
        self.fetched: list[str] = []
        self.sources: list[BinaryIO] = []

    def budget(self, spent_seconds: float = 0.0) -> Budget:
        return Budget(self.max_seconds, 1000, spent_seconds)

    async def fetch(self, url: str, param: str) -> bytes:
        self.fetched.append(url)
        return await self._working(lambda: url.rpartition("/")[2].encode())

    async def hear(self, source: BinaryIO, *, budget: Budget, allow_truncated: bool) -> Recording:
        self.sources.append(source)
        seconds = int(source.read())
        if seconds == 99:
            await self._working(asyncio.Event().wait)
        await self._working(lambda: b"")
        for _ in range(20 - 2 * min(seconds, 10)):  # shorter ones take longer, so that they don't end in their order
            await asyncio.sleep(0)
        if not seconds:
            raise InvalidAudio("damaged")
        budget.spend(seconds * RATE, 1)
        self.heard += 1
        return Recording([torch.full((1, 1), float(seconds))], [seconds * RATE])

    async def _working(self, work: Callable[[], Any]) -> bytes:
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            for _ in range(3):  # lets the others run
                await asyncio.sleep(0)
            result = work()
            return result if isinstance(result, bytes) else await result
        finally:
            self.running -= 1


def spoken(*seconds: int) -> list[dict[str, Any]]:
    data = [base64.b64encode(str(n).encode()).decode() for n in seconds]
    return [{"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": text}} for text in data]}]


def linked(*seconds: int) -> list[dict[str, Any]]:
    urls = [f"https://listed.example/{n}" for n in seconds]
    return [{"role": "user", "content": [{"type": "audio_url", "audio_url": {"url": url}} for url in urls]}]


async def heard(ears: Ears, messages: list[dict[str, Any]], heard_seconds: float = 0.0) -> list[float]:
    """What the messages' recordings became, in their order."""
    (message,) = await Conversations(cast(Any, ears), cast(Any, ears)).hear(parse_messages(messages), heard_seconds)
    return [part.rows.item() for part in message.parts if not isinstance(part, str)]


@pytest.mark.parametrize("audio", [spoken, linked])
async def test_a_few_recordings_at_a_time_in_their_order(audio: Callable[..., list[dict[str, Any]]]) -> None:
    ears = Ears()
    assert await heard(ears, audio(*range(1, 10))) == [*map(float, range(1, 10))]
    assert ears.most == AT_A_TIME


async def test_all_recordings_together_may_be_as_long_as_one() -> None:
    assert await heard(Ears(60.0), spoken(20, 20, 20)) == [20.0, 20.0, 20.0]
    with pytest.raises(AudioTooLong, match=r"last 61\.0 s or more together, and exceed the limit of 60 s"):
        await heard(Ears(60.0), spoken(20, 20, 21))


async def test_what_the_request_has_brought_elsewhere_counts() -> None:
    assert await heard(Ears(60.0), spoken(20), heard_seconds=40.0) == [20.0]
    with pytest.raises(AudioTooLong):
        await heard(Ears(60.0), spoken(20), heard_seconds=41.0)


async def test_a_recording_and_the_history_before_it_may_be_as_long_as_one_together() -> None:
    class Built(Exception):
        """The prompt is being built: nothing was refused."""

    async def build(messages: list[Message], param: str) -> Prompt:
        raise Built

    ears, prompts = Ears(60.0), SimpleNamespace(check_pieces=lambda count, param: None, build=build)
    service = SpeechService(
        cast(Any, None), Conversations(cast(Any, ears), cast(Any, ears)), cast(Any, prompts), "tiny"
    )
    for seconds, outcome in ((40, Built), (41, AudioTooLong)):
        recording = Recording([torch.zeros(1, 1)], [seconds * RATE])
        with pytest.raises(outcome):
            await anext(service.answer(SpeechRequest(history=spoken(20)), recording))


async def test_after_an_error_nothing_goes_on() -> None:
    ears = Ears()
    with pytest.raises(InvalidAudio):
        await heard(ears, spoken(99, 99, 0, *[1] * 100))
    assert not ears.running
    assert ears.heard < AT_A_TIME
    assert all(source.closed for source in ears.sources)


async def test_after_an_error_nothing_more_is_fetched() -> None:
    ears = Ears()
    with pytest.raises(ApiError):
        await heard(ears, linked(0, *[99] * 100))
    assert not ears.running
    assert len(ears.fetched) == AT_A_TIME


async def test_when_the_client_goes_nothing_goes_on() -> None:
    ears = Ears()
    hearing = asyncio.create_task(heard(ears, spoken(*[99] * 10)))
    while ears.running < AT_A_TIME:
        await asyncio.sleep(0)
    hearing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await hearing
    assert not ears.running
    assert all(source.closed for source in ears.sources)


@pytest.mark.usefixtures("no_garbage_collection")
async def test_an_error_frees_the_audio_at_once() -> None:
    """Its traceback must not keep the request alive until garbage is collected."""

    class Noted(Ears):
        async def hear(self, source: BinaryIO, *, budget: Budget, allow_truncated: bool) -> Recording:
            files.append(weakref.ref(source))
            return await super().hear(source, budget=budget, allow_truncated=allow_truncated)

    files: list[weakref.ref[BinaryIO]] = []
    ears = Noted()
    with pytest.raises(InvalidAudio):
        await heard(ears, spoken(0))
    ears.sources.clear()
    await asyncio.sleep(0)
    assert [file() for file in files] == [None]


@pytest.mark.parametrize("way", ["plain", "lines", "of URLs", "data URL", "without padding"])
async def test_every_way_of_base64(way: str) -> None:
    data = base64.b64encode(b"5").decode()
    text = {
        "plain": data,
        "lines": f"{data[:2]}\r\n{data[2:]}\n",
        "of URLs": data.replace("+", "-").replace("/", "_"),
        "data URL": f"data:audio/wav;base64,{data}",
        "without padding": data.rstrip("="),
    }[way]
    message = {"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": text}}]}
    assert await heard(Ears(), [message]) == [5.0]
