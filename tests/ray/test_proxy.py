"""deploy/ray/proxy.py: by which key a request goes, and what clients get when a replica dies. No Ray is needed."""

import base64
import json
from typing import Any

import httpx
import pytest
from starlette.types import Message, Receive, Scope, Send

from deploy.ray.proxy import HEAD_BYTES, KEY, SAMPLE_BYTES, Keyed, Whole, key_of, middlewares
from tests.sounds import voice, wav

ONE, OTHER, SHORT = (wav(voice(2.0, seed=1)), wav(voice(2.0, seed=2)), wav(voice(0.2, seed=1)))


def multipart(recording: bytes, **fields: str) -> tuple[str, bytes]:
    """Content type and body of a form whose file comes behind its fields."""
    request = httpx.Request("POST", "http://x", data=fields, files={"file": ("a.wav", recording)})
    return request.headers["content-type"], request.read()


def chat(recording: bytes, *texts: str) -> tuple[str, bytes]:
    """Content type and body of a conversation that begins with a recording."""
    part = {"type": "input_audio", "input_audio": {"data": base64.b64encode(recording).decode(), "format": "wav"}}
    messages: list[dict[str, Any]] = [{"role": "user", "content": [{"type": "text", "text": texts[0]}, part]}]
    messages += [{"role": "user", "content": text} for text in texts[1:]]
    return "application/json", json.dumps({"model": "m", "messages": messages}).encode()


def key(kind: str, body: bytes) -> str | None:
    return key_of(kind, body[:HEAD_BYTES])


@pytest.mark.parametrize("recording", [ONE, SHORT], ids=["long", "short"])
def test_a_recording_has_one_key_whatever_is_asked(recording: bytes) -> None:
    forms = {key(*multipart(recording, instruction=text)) for text in ("What?", "What is said there?")}
    chats = {key(*chat(recording, *texts)) for texts in (("What?",), ("What?", "And why?"), ("Who is it, then?",))}
    raw = {key("audio/wav", recording), key("application/octet-stream", recording)}
    assert None not in forms | chats | raw
    assert len(forms) == len(chats) == len(raw) == 1
    assert forms == raw  # the same bytes


def test_another_recording_has_another_key() -> None:
    assert key(*multipart(ONE)) != key(*multipart(OTHER))
    assert key(*chat(ONE, "What?")) != key(*chat(OTHER, "What?"))
    assert key("audio/wav", ONE) != key("audio/wav", OTHER)
    assert key("audio/wav", wav(0 * voice(2.0))) != key("audio/wav", wav(0 * voice(2.1)))  # silence


def test_what_has_no_recording_near_its_begin_has_no_key() -> None:
    assert key("application/json", b'{"prompt": "Hi"}') is None
    assert key(*chat(ONE, "long " * HEAD_BYTES)) is None
    assert key(*chat(ONE, "x" * (HEAD_BYTES - SAMPLE_BYTES))) is None  # a part of a sample: it would depend on the text
    assert key(*multipart(ONE, instruction="long " * HEAD_BYTES)) is None
    assert key("audio/wav", b"") is None


async def asked(headers: dict[str, str], body: bytes = ONE) -> dict[str, str]:
    """The headers that arrive behind `Keyed`, which leaves the body as it is."""
    seen: dict[str, str] = {}

    async def inner(scope: Scope, receive: Receive, send: Send) -> None:
        seen.update((name.decode(), value.decode()) for name, value in scope["headers"])
        whole = b""
        while True:
            message = await receive()
            whole += message["body"]
            if not message["more_body"]:
                break
        assert whole == body
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    pieces = [body[begin : begin + 5000] for begin in range(0, len(body), 5000)] if body else [b""]
    messages = [{"type": "http.request", "body": piece, "more_body": piece is not pieces[-1]} for piece in pieces]

    async def receive() -> Message:
        return messages.pop(0)

    async def send(_: Message) -> None: ...

    scope = {"type": "http", "path": "/v1/speech", "headers": [(k.encode(), v.encode()) for k, v in headers.items()]}
    await Keyed(inner)(scope, receive, send)
    return seen


async def test_a_key_is_added_where_there_is_none() -> None:
    seen = await asked({"content-length": str(len(ONE)), "content-type": "audio/wav"})
    assert seen[KEY] == key("audio/wav", ONE)
    own = await asked({"content-length": str(len(ONE)), KEY: "mine"})
    assert own[KEY] == "mine"
    assert KEY not in await asked({"transfer-encoding": "chunked"})
    assert KEY not in await asked({"content-length": "0"}, b"")


async def behind(kind: str, *messages: Message) -> list[Message]:
    """What a client gets where only these messages come from a replica."""
    sent: list[Message] = []

    async def replica(scope: Scope, receive: Receive, send: Send) -> None:
        for message in messages:
            await send(message)

    async def send(message: Message) -> None:
        sent.append(message)

    async def receive() -> Message:
        return {"type": "http.disconnect"}

    await Whole(replica)({"type": kind, "path": "/v1/speech", "headers": [(b"x-request-id", b"7")]}, receive, send)
    return sent


def start(status: int, kind: str) -> Message:
    return {"type": "http.response.start", "status": status, "headers": [(b"content-type", kind.encode())]}


def piece(body: bytes, more: bool) -> Message:
    return {"type": "http.response.body", "body": body, "more_body": more}


async def test_a_whole_answer_is_left_as_it_is() -> None:
    whole: list[list[Message]] = [
        [start(200, "text/event-stream"), piece(b"data: 1\n\n", True), piece(b"", False)],
        [start(429, "application/json"), piece(b"{}", False)],
        [start(200, "text/plain"), piece(b"words", False)],
    ]
    for messages in whole:
        assert await behind("http", *messages) == messages
    socket: list[Message] = [{"type": "websocket.accept"}, {"type": "websocket.close", "code": 1000}]
    assert await behind("websocket", *socket) == socket
    denied: list[Message] = [{"type": "websocket.http.response.start", "status": 404, "headers": []}]
    assert await behind("websocket", *denied) == denied


async def test_a_request_has_one_id() -> None:
    """Ray adds its own to that of the service, which has taken it from Ray."""
    message = start(200, "text/plain")
    message["headers"] += [(b"x-request-id", b"7"), (b"x-request-id", b"7")]
    begin, _ = await behind("http", message, piece(b"words", False))
    assert [value for name, value in begin["headers"] if name == b"x-request-id"] == [b"7"]


async def test_who_has_no_answer_yet_is_to_try_again() -> None:
    begin, body = await behind("http")
    assert begin["status"] == 503
    assert dict(begin["headers"])[b"retry-after"]
    assert dict(begin["headers"])[b"x-request-id"] == b"7"
    assert json.loads(body["body"])["error"]["code"] == "unavailable"


async def test_a_stream_ends_with_an_error() -> None:
    *_, last = await behind("http", start(200, "text/event-stream; charset=utf-8"), piece(b"data: 1\n\n", True))
    assert json.loads(last["body"].removeprefix(b"data: "))["error"]["code"] == "unavailable"
    assert not last.get("more_body")


async def test_what_is_half_a_document_is_not_made_to_look_whole() -> None:
    messages = [start(200, "application/json"), piece(b'{"text": "And th', True)]
    assert await behind("http", *messages) == messages


async def test_a_socket_is_closed_so_that_its_client_comes_again() -> None:
    *_, last = await behind("websocket", {"type": "websocket.accept"}, {"type": "websocket.send", "text": "{}"})
    assert last == {"type": "websocket.close", "code": 1012}
    begin, body = await behind("websocket")
    assert begin["type"] == "websocket.http.response.start"
    assert begin["status"] == 503
    assert json.loads(body["body"])["error"]["type"] == "service_unavailable"


@pytest.mark.parametrize(("status", "kind"), [(429, "rate_limit_error"), (503, "service_unavailable")])
async def test_refusals_of_rays_are_put_into_openais_form(status: int, kind: str) -> None:
    begin, body = await behind("http", start(status, "text/plain"), piece(b"Too many ", True), piece(b"wait.", False))
    assert begin["status"] == status
    assert dict(begin["headers"])[b"retry-after"]
    assert json.loads(body["body"])["error"] | {"code": ""} == {
        "message": "Too many wait.",
        "type": kind,
        "param": None,
        "code": "",
    }


async def test_rays_own_pages_are_left_as_they_are() -> None:
    sent: list[Message] = []

    async def healthz(scope: Scope, receive: Receive, send: Send) -> None:
        await send(start(503, "text/plain"))

    async def send(message: Message) -> None:
        sent.append(message)

    async def receive() -> Message:
        raise AssertionError

    await Whole(healthz)({"type": "http", "path": "/-/healthz", "headers": []}, receive, send)
    assert sent == [start(503, "text/plain")]


def test_both_are_asked_for() -> None:
    classes: list[object] = [middleware.cls for middleware in middlewares()]
    assert classes == [Keyed, Whole]
