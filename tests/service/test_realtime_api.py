"""Talks over real sockets with a real engine, by OpenAI's own client and by one that knows only WebSockets."""

import base64
import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from service.audio.decode import decode
from service.audio.raw import encode
from service.settings import DEFAULT_MODEL
from tests.serving import Server
from tests.sounds import RATE, voice, wav

PUSH_TO_TALK = {"type": "realtime", "audio": {"input": {"turn_detection": None}}}
SILENCE = np.zeros(RATE, np.float32)


@pytest.fixture(scope="module")
def speech() -> np.ndarray:
    """A person's question (samples,)."""
    with (DEFAULT_MODEL.parent / "samples" / "japan.flac").open("rb") as file:
        return np.concatenate(list(decode(file, max_seconds=60)))


@contextmanager
def talking(server: Server, query: str = "", **options: Any) -> Iterator[ClientConnection]:
    address = f"{server.url.replace('http', 'ws', 1)}/v1/realtime{query}"
    with connect(address, max_size=None, open_timeout=60, **options) as socket:
        yield socket


def send(socket: ClientConnection, kind: str, **fields: Any) -> None:
    socket.send(json.dumps({"type": kind, **fields}))


def say(socket: ClientConnection, samples: np.ndarray, rate: int = 24000) -> None:
    """A tenth of a second in each event."""
    data = encode(samples.astype(np.float32), "pcm_s16le", rate)
    for begin in range(0, len(data), rate // 5):
        send(socket, "input_audio_buffer.append", audio=base64.b64encode(data[begin : begin + rate // 5]).decode())


def until(socket: ClientConnection, kind: str) -> list[dict[str, Any]]:
    """All that is told up to an event of this kind."""
    told: list[dict[str, Any]] = []
    while not told or told[-1]["type"] != kind:
        told.append(json.loads(socket.recv(timeout=60)))
    return told


def kinds(told: list[dict[str, Any]]) -> list[str]:
    return [event["type"] for event in told]


def text(told: list[dict[str, Any]]) -> str:
    return "".join(event["delta"] for event in told if event["type"] == "response.output_text.delta")


@pytest.mark.filterwarnings(
    "ignore:connect\\(\\) must be used as a context manager:DeprecationWarning"
)  # OpenAI's client
def test_push_to_talk_with_openais_client(server: Server, speech: np.ndarray) -> None:
    """Two turns; the second stands on the first, which is in the prefix cache."""
    client: Any = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none")
    usages = []
    with client.realtime.connect(model=server.model) as talk:
        assert talk.recv().type == "session.created"
        talk.session.update(session=PUSH_TO_TALK | {"max_output_tokens": 8})
        for _ in range(2):
            audio = base64.b64encode(encode(speech, "pcm_s16le", 24000)).decode()
            talk.input_audio_buffer.append(audio=audio)
            talk.input_audio_buffer.commit()
            talk.response.create()
            told = ""
            for event in talk:
                assert event.type != "error", event
                if event.type == "response.output_text.delta":
                    told += event.delta
                if event.type == "response.done":
                    break
            (item,) = event.response.output
            assert item.content[0].text == told
            assert event.response.usage is not None
            usages.append(event.response.usage.to_dict())
    first, second = (usage["input_token_details"] for usage in usages)
    assert usages[1]["input_tokens"] > usages[0]["input_tokens"] + first["audio_tokens"]
    assert second["cached_tokens"] >= usages[0]["input_tokens"] // 32 * 32


def test_the_answer_is_what_a_chat_says_about_the_same_recording(server: Server) -> None:
    said = voice(2.5)
    with talking(server) as socket:
        session = {"audio": {"input": {"turn_detection": None, "format": {"type": "audio/pcm", "rate": 16000}}}}
        send(socket, "session.update", session={**session, "max_output_tokens": 30})
        say(socket, said, rate=16000)
        send(socket, "input_audio_buffer.commit")
        send(socket, "response.create")
        told = until(socket, "response.done")
    audio = {"type": "input_audio", "input_audio": {"data": base64.b64encode(wav(said)).decode(), "format": "wav"}}
    with server.client() as client:
        question = {"messages": [{"role": "user", "content": [audio]}], "max_tokens": 30, "temperature": 0}
        answer = client.post("/v1/chat/completions", json=question).json()["choices"][0]["message"]["content"]
    assert text(told).strip() == answer.strip() != ""


def test_turns_that_the_server_tells(server: Server, speech: np.ndarray) -> None:
    """With what was said written down, too."""
    before = server.metric("blsp_realtime_audio_seconds_total", encoded="ahead")
    with talking(server, f"?model={server.model}") as socket:
        send(
            socket,
            "session.update",
            session={"max_output_tokens": 8, "audio": {"input": {"transcription": {"model": "whisper-1"}}}},
        )
        tokens = server.metric("blsp_speech_tokens_total")
        say(socket, np.concatenate([SILENCE, speech, SILENCE[: RATE // 4]]))
        server.wait_for(lambda: server.metric("blsp_speech_tokens_total") > tokens)  # in the pause
        say(socket, SILENCE)
        told = until(socket, "response.done")
        if "conversation.item.input_audio_transcription.completed" not in kinds(told):
            told += until(socket, "conversation.item.input_audio_transcription.completed")
    order = [
        "session.created",
        "session.updated",
        "input_audio_buffer.speech_started",
        "input_audio_buffer.speech_stopped",
        "input_audio_buffer.committed",
        "response.created",
        "response.output_text.delta",
        "response.done",
    ]
    assert [kind for kind in dict.fromkeys(kinds(told)) if kind in order] == order
    started, stopped = told[2], next(event for event in told if event["type"] == order[3])
    assert 500 < started["audio_start_ms"] < 1500
    assert abs(stopped["audio_end_ms"] - 1000 - len(speech) / 16) < 1000
    assert server.metric("blsp_realtime_audio_seconds_total", encoded="ahead") > before


def test_a_response_is_cancelled(server: Server) -> None:
    aborted = server.metric("blsp_aborted_generations_total")
    with talking(server) as socket:
        send(socket, "session.update", session=PUSH_TO_TALK)
        send(socket, "response.create")
        until(socket, "response.output_text.delta")
        send(socket, "response.cancel")
        done = until(socket, "response.done")[-1]["response"]
    assert (done["status"], done["status_details"]["reason"]) == ("cancelled", "client_cancelled")
    assert done["output"][0]["status"] == "incomplete"
    server.wait_for(lambda: server.metric("blsp_aborted_generations_total") == aborted + 1)


def test_who_speaks_interrupts(server: Server, speech: np.ndarray) -> None:
    with talking(server) as socket:
        send(socket, "response.create")
        until(socket, "response.output_text.delta")
        say(socket, speech)
        told = until(socket, "response.done")
    assert "input_audio_buffer.speech_started" in kinds(told)
    assert told[-1]["response"]["status_details"] == {"type": "cancelled", "reason": "turn_detected"}


def test_a_client_that_goes_ends_its_generation(server: Server) -> None:
    aborted = server.metric("blsp_aborted_generations_total")
    with talking(server) as socket:
        send(socket, "response.create")
        until(socket, "response.output_text.delta")
        socket.socket.shutdown(2)
    server.wait_for(lambda: server.metric("blsp_aborted_generations_total") == aborted + 1)
    server.wait_for(lambda: server.metric("vllm:num_requests_running", model_name=server.model) == 0)
    server.wait_for(lambda: server.metric("blsp_realtime_sessions") == 0)


def test_a_transcription_session(server: Server, speech: np.ndarray) -> None:
    with talking(server, "?intent=transcription&model=gpt-4o-transcribe") as socket:
        session = {"type": "transcription", "audio": {"input": {"transcription": {"model": "gpt-4o-transcribe"}}}}
        send(socket, "session.update", session=session)
        say(socket, np.concatenate([speech, SILENCE]))
        told = until(socket, "conversation.item.input_audio_transcription.completed")
    assert told[-1]["usage"]["type"] == "tokens"
    assert not [kind for kind in kinds(told) if kind.startswith("response.")]


@pytest.mark.parametrize(("coding", "kind"), [("pcm_mulaw", "audio/pcmu"), ("pcm_alaw", "audio/pcma")])
def test_telephones(server: Server, speech: np.ndarray, coding: Any, kind: str) -> None:
    with talking(server) as socket:
        send(socket, "session.update", session={"max_output_tokens": 2, "audio": {"input": {"format": {"type": kind}}}})
        audio = base64.b64encode(encode(np.concatenate([speech, SILENCE]), coding, 8000)).decode()
        send(socket, "input_audio_buffer.append", audio=audio)
        told = until(socket, "response.done")
    assert "input_audio_buffer.speech_stopped" in kinds(told)


def test_sixteen_talks_at_once(server: Server, speech: np.ndarray) -> None:
    def talk(_: int) -> str:
        with talking(server) as socket:
            send(socket, "session.update", session={"max_output_tokens": 8})
            say(socket, np.concatenate([speech, SILENCE]))
            return text(until(socket, "response.done"))

    with ThreadPoolExecutor(16) as pool:
        assert all(pool.map(talk, range(16)))
    server.wait_for(lambda: server.metric("blsp_realtime_sessions") == 0)


def test_a_flood_of_audio_waits_its_turn(server: Server) -> None:
    """A minute as fast as the socket takes it, from a client that reads nothing meanwhile; others are answered."""
    with talking(server) as socket, server.client() as other:
        send(socket, "session.update", session=PUSH_TO_TALK | {"max_output_tokens": 2})
        flood = threading.Thread(target=say, args=(socket, voice(60.0)))
        flood.start()
        assert other.get("/version").status_code == 200
        flood.join()
        send(socket, "input_audio_buffer.commit")
        send(socket, "response.create")
        done = until(socket, "response.done")[-1]["response"]
    assert done["status"] == "incomplete"
    assert done["usage"]["input_token_details"]["audio_tokens"] > 60


def test_events_that_are_wrong_leave_the_socket_open(server: Server) -> None:
    with talking(server) as socket:
        for bad in ("", "[]", '{"type": "nothing", "event_id": "mine"}', "[" * 20_000, '{"type": "response.cancel"}'):
            socket.send(bad)
        told = until(socket, "session.created")
        told = [json.loads(socket.recv(timeout=60)) for _ in range(5)]
        assert set(kinds(told)) == {"error"}
        assert told[2]["error"]["event_id"] == "mine"
        send(socket, "session.update", session={})
        until(socket, "session.updated")


def test_bytes_end_the_socket(server: Server) -> None:
    with talking(server) as socket:
        socket.send(b"\x00\x01")
        assert until(socket, "error")
        with pytest.raises(ConnectionClosed) as closed:
            socket.recv(timeout=60)
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 1003


@pytest.mark.parametrize(
    ("query", "headers", "status", "code"),
    [
        ("?model=nobody", {}, 404, "model_not_found"),
        ("?call_id=rtc_1", {}, 400, "invalid_value"),
        ("", {"Origin": "https://elsewhere.example"}, 403, "origin_not_allowed"),
    ],
)
def test_handshakes_that_are_refused(
    server: Server, query: str, headers: dict[str, str], status: int, code: str
) -> None:
    with pytest.raises(InvalidStatus) as refused, talking(server, query, additional_headers=headers):
        pass
    assert refused.value.response.status_code == status
    assert json.loads(refused.value.response.body or b"")["error"]["code"] == code


def test_the_subprotocol_is_echoed_where_there_is_one(server: Server) -> None:
    with talking(server, subprotocols=["realtime", "openai-insecure-api-key.none"]) as socket:
        assert socket.subprotocol == "realtime"
    with talking(server, additional_headers={"Origin": server.url}) as socket:
        assert socket.subprotocol is None
    with httpx.Client() as client:
        assert client.get(f"{server.url}/v1/realtime").status_code == 404  # no socket
