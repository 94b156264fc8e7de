import asyncio
import io
import itertools
import json
import wave
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import uvicorn

from service.load.client import Load, Question, Sample, clips, first_model, summarize

SPEECH = [{"object": "speech.delta", "delta": text} for text in ("a", "", "b")] + [{"object": "speech", "text": "ab"}]
CHAT: list[dict[str, Any]] = [
    {"choices": [{"delta": {"role": "assistant", "content": ""}}]},
    {"choices": [{"delta": {"content": "a"}}]},
    {"choices": [{"delta": {"content": ""}}]},
    {"choices": [{"delta": {"content": "b"}}]},
    {"choices": [{"delta": {}, "finish_reason": "length"}]},
    {"choices": [], "usage": {}},
]

TYPE = [(b"content-type", b"application/json")]

Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]


class Sayer:
    """A server that says what it is told to, and notes what it was asked and how many asked at the same time."""

    def __init__(self, events: list[dict[str, Any]], status: int = 200, together: int = 1) -> None:
        self.events = events
        self.status = status
        self.together = together  # replies wait until so many have asked
        self.all_here = asyncio.Event()
        self.asked: list[tuple[str, str, dict[str, str], bytes]] = []
        self.running = self.most = 0

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        self.running += 1
        self.most = max(self.most, self.running)
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message.get("body", b""), message.get("more_body", False)
        if self.running == self.together:
            self.all_here.set()
        await self.all_here.wait()
        headers = {name.decode(): value.decode() for name, value in scope["headers"]}
        self.asked.append((scope["path"], scope["query_string"].decode(), headers, body))
        await send({"type": "http.response.start", "status": self.status, "headers": TYPE})
        if scope["path"] == "/v1/models":
            lines = [json.dumps({"data": [{"id": "m"}]}).encode()]
        else:
            lines = [f"data: {json.dumps(event)}\n\n".encode() for event in self.events] + [b"data: [DONE]\n\n"]
        for line in lines:
            await send({"type": "http.response.body", "body": line, "more_body": True})
        self.running -= 1
        await send({"type": "http.response.body"})


@asynccontextmanager
async def running(app: Sayer) -> AsyncIterator[str]:
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error", lifespan="off"))
    task = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0)
    try:
        port = server.servers[0].sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        await task


def ticking() -> Callable[[], float]:
    """A clock that is a second further each time it is read."""
    return itertools.count().__next__


async def test_a_sample_holds_when_each_byte_left_and_each_token_came() -> None:
    async with running(Sayer(SPEECH)) as url:
        (sample,) = await Load(url, Question(), clock=ticking()).closed(clips(1, 1.0), 1)
    # The clock is read as the first byte is due, after the only piece, for three tokens, at the end.
    assert sample == Sample(first_sent=0, last_sent=1, tokens=[2, 3, 4], end=5, status=200)
    assert sample.gaps == [1, 1]
    assert sample.measures() == {"ttft": 2, "ttft_after_upload": 1, "longest_gap": 1, "total": 5}


async def test_speech_requests_are_the_recording_with_fields_in_the_query() -> None:
    sayer = Sayer(SPEECH)
    async with running(sayer) as url:
        await Load(url, Question(model="m", instruction="Go on", tokens=3), api_key="k").closed([b"RIFF"], 1)
    ((path, query, headers, body),) = sayer.asked
    assert path == "/v1/speech"
    assert query == "max_tokens=3&min_tokens=3&temperature=0&model=m&instruction=Go+on&stream=true"
    assert headers["authorization"] == "Bearer k"
    assert headers["content-length"] == "4"
    assert body == b"RIFF"


async def test_chat_requests_hold_the_recording_in_base64_and_every_token_counts_with_text_or_without() -> None:
    sayer = Sayer(CHAT)
    async with running(sayer) as url:
        (sample,) = await Load(url, Question("chat", "m", "Hi", 2)).closed([b"RIFF"], 1)
    ((path, _, _, body),) = sayer.asked
    assert path == "/v1/chat/completions"
    assert json.loads(body) == {
        "model": "m",
        "max_tokens": 2,
        "min_tokens": 2,
        "temperature": 0,
        "stream": True,
        "messages": [
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "Hi"},
                    {"type": "input_audio", "input_audio": {"data": "UklGRg==", "format": "wav"}},
                ],
            }
        ],
    }
    assert len(sample.tokens) == 3


async def test_the_recording_of_a_chat_message_may_come_first() -> None:
    sayer = Sayer(CHAT)
    async with running(sayer) as url:
        await Load(url, Question("chat", recording_first=True)).closed([b"RIFF"], 1)
    (message,) = json.loads(sayer.asked[0][3])["messages"]
    assert [part["type"] for part in message["content"]] == ["input_audio", "text"]


async def test_a_question_may_be_asked_in_the_turn_after_the_recording() -> None:
    sayer = Sayer(CHAT)
    async with running(sayer) as url:
        await Load(url, Question("chat", next_turn="And then?")).closed([b"RIFF"], 1)
    first, reply, second = json.loads(sayer.asked[0][3])["messages"]
    assert [part["type"] for part in first["content"]] == ["text", "input_audio"]
    assert (reply["role"], second) == ("assistant", {"role": "user", "content": "And then?"})


async def test_a_client_goes_away_when_its_patience_ends() -> None:
    never = Sayer(SPEECH, together=2)  # no reply before a second request is there
    async with running(never) as url:
        (sample,) = await Load(url, Question(patience=0.01)).closed([b"a"], 1)
        never.all_here.set()
    assert (sample.status, sample.error) == (None, "The client went away.")


async def test_a_closed_loop_sends_each_clip_once_from_as_many_clients_as_asked() -> None:
    sayer = Sayer(SPEECH, together=3)
    async with running(sayer) as url:
        samples = await Load(url, Question()).closed((bytes([i]) * 1000 for i in range(20)), 3)
    assert len(samples) == 20
    assert {asked[3][0] for asked in sayer.asked} == set(range(20))
    assert sayer.most == 3


async def test_clients_begin_one_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    async with running(Sayer(SPEECH)) as url:
        with monkeypatch.context() as patch:
            patch.setattr("service.load.client.sleep", sleep)
            await Load(url, Question()).closed([b"a"] * 3, 3, ramp=6.0)
    assert waits == [0, 2, 4]


async def test_an_open_loop_does_not_wait_for_replies() -> None:
    sayer = Sayer(SPEECH, together=3)
    async with running(sayer) as url:
        samples = await Load(url, Question()).open([b"a", b"b", b"c"], rate=1e6)
    assert [sample.error for sample in samples] == [None] * 3
    assert sorted(asked[3] for asked in sayer.asked) == [b"a", b"b", b"c"]


async def test_a_spoken_upload_comes_in_pieces_each_when_it_has_been_said(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    sayer = Sayer(SPEECH)
    async with running(sayer) as url:
        load = Load(url, Question(upload_seconds=0.5), clock=lambda: 0.0)
        with monkeypatch.context() as patch:
            patch.setattr("service.load.client.sleep", sleep)
            async with load.session() as session:
                sample = await load.ask(session, bytes(1000))
    assert sample.error is None
    assert waits == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5])
    assert sayer.asked[0][3] == bytes(1000)


@pytest.mark.parametrize(
    ("sayer", "message"),
    [
        (Sayer([], status=503), "HTTP 503"),
        (Sayer([SPEECH[0], {"error": {"message": "The engine has died."}}]), "The engine has died."),
        (Sayer([]), "no tokens"),
    ],
)
async def test_what_goes_wrong_is_the_error_of_that_sample(sayer: Sayer, message: str) -> None:
    heard: list[Sample] = []
    async with running(sayer) as url:
        samples = await Load(url, Question(), heard=heard.append).closed([b"a", b"b"], 1)
    assert heard == samples
    assert all(message in str(sample.error) for sample in samples)
    assert {sample.status for sample in samples} == {sayer.status}
    assert summarize(samples)["errors"] == 2


async def test_nobody_there_is_an_error_of_each_sample() -> None:
    (sample,) = await Load("http://127.0.0.1:9", Question()).closed([b"a"], 1)
    assert sample.error


async def test_the_first_model_is_asked_for() -> None:
    async with running(Sayer([])) as url:
        assert await first_model(url) == "m"


def test_clips_are_wav_files_each_different_or_a_few_that_repeat() -> None:
    unique = list(clips(20, 0.5, seed=1))
    with wave.open(io.BytesIO(unique[0])) as wav:
        assert (wav.getframerate(), wav.getnchannels(), wav.getsampwidth(), wav.getnframes()) == (16_000, 1, 2, 8000)
    assert len(set(unique)) == 20
    assert len({len(clip) for clip in unique}) == 1
    assert unique == list(clips(20, 0.5, seed=1))
    assert not set(unique) & set(clips(20, 0.5, seed=2))
    assert len(set(clips(20, 0.5, unique=False, seed=1))) == 8
    assert not set(clips(5, 0.5)) & set(clips(5, 0.5))


def test_a_summary_counts_only_what_succeeded() -> None:
    samples = [
        Sample(first_sent=0.0, last_sent=0.5, tokens=[1.0, 1.25, 2.25], end=2.5),
        Sample(first_sent=1.0, last_sent=1.5, tokens=[3.0, 3.25, 3.5], end=4.0),
        Sample(first_sent=2.0, last_sent=2.0, end=3.0, error="HTTP 503"),
    ]
    summary = summarize(samples)
    assert (summary["requests"], summary["errors"], summary["first_error"]) == (3, 1, "HTTP 503")
    assert summary["requests_per_second"] == 0.5
    assert summary["tokens_per_second"] == 1.5
    assert summary["ttft"]["p50"] == 1.5
    assert summary["ttft_after_upload"]["p50"] == 1.0
    assert summary["longest_gap"]["p50"] == 0.625
    assert summary["gap"]["p50"] == 0.25
    assert summary["gap"]["p95"] == pytest.approx(0.8875)
    assert summary["total"]["p95"] == pytest.approx(2.975)
