"""Limits and hostile input against a server whose limits are low; after each refusal it goes on as before."""

import asyncio
import base64
import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import ClientConnection, connect

from tests.processes import descendants
from tests.serving import Server, serve, told_until_closed
from tests.sounds import voice, wav

GOOD = wav(voice(1.0))
FEW = {"max_tokens": "2"}
LONG = {"min_tokens": "1900", "stream": "true"}  # far longer than generation_seconds


@pytest.fixture(scope="module")
def low(official: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    options = {
        "max-requests": "3",
        "max-body-bytes": "40000000",
        "upload-seconds": "3",
        "generation-seconds": "1",
        "decode-seconds": "2",
        "max-audio-seconds": "1000",
        "max-sessions": "1",
        "session-idle-seconds": "3",
        "session-seconds": "4",
        "audio-url-hosts": '["listed.example", "localhost"]',
    }
    flags = [flag for name, value in options.items() for flag in (f"--{name}", value)]
    with serve(official, tmp_path_factory.mktemp("cache"), *flags) as server:
        yield server


@pytest.fixture(autouse=True)
def unharmed(low: Server) -> Iterator[None]:
    yield
    with low.client() as client:
        assert client.post("/v1/speech", files={"file": GOOD}, data={"max_tokens": "2"}).status_code == 200


def upload_slowly(server: Server, data: bytes) -> socket.socket:
    """A connection that has sent the beginning of an upload."""
    client = socket.create_connection((httpx.URL(server.url).host, httpx.URL(server.url).port or 0))
    client.sendall(b"POST /v1/speech HTTP/1.1\r\nHost: test\r\nContent-Length: 1000000\r\n\r\n" + data)
    return client


def answer(client: socket.socket) -> bytes:
    client.settimeout(60)
    return b"".join(iter(lambda: client.recv(10_000), b""))


def test_requests_over_the_limit_are_refused_at_once(low: Server) -> None:
    before = low.metric("blsp_refusals_total", reason="requests")
    held = [upload_slowly(low, GOOD[:5000]) for _ in range(3)]
    with low.client() as client:
        low.wait_for(lambda: client.post("/v1/chat/completions", json={}).status_code == 429)
        refused = client.post("/v1/speech", files={"file": GOOD})
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
        assert refused.json()["error"]["code"] == "requests"
        assert client.get("/health").status_code == 200
    elsewhere = httpx.HTTPTransport(local_address="127.0.0.2")  # another client, with nothing running
    with httpx.Client(base_url=low.url, timeout=120, transport=elsewhere) as client:
        assert client.post("/v1/speech", files={"file": GOOD}, data={"max_tokens": "2"}).status_code == 200
    assert low.metric("blsp_refusals_total", reason="requests") >= before + 2
    for upload in held:
        upload.close()
    with low.client() as client:
        low.wait_for(
            lambda: client.post("/v1/speech", files={"file": GOOD}, data={"max_tokens": "2"}).status_code == 200
        )


@pytest.mark.parametrize(
    ("path", "content_type"),
    [
        ("/v1/speech", "audio/wav"),
        ("/v1/speech", "multipart/form-data; boundary=x"),
        ("/v1/chat/completions", "application/json"),
    ],
)
def test_a_body_that_there_is_no_room_for_is_refused(low: Server, path: str, content_type: str) -> None:
    with low.client() as client:
        content = GOOD + bytes(40_000_000)
        refused = client.post(path, content=content, headers={"Content-Type": content_type})
    assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
    assert refused.json()["error"]["code"] == "body_bytes"


def test_an_upload_that_stalls_is_408(low: Server) -> None:
    with upload_slowly(low, GOOD) as client:
        reply = answer(client)
    assert reply.startswith(b"HTTP/1.1 408 ")
    assert b'"upload_too_slow"' in reply


def test_a_long_generation_ends(low: Server) -> None:
    def late() -> float:
        reasons = ("deadline_exceeded", "server_error")  # the latter is all that vLLM's streams say
        return sum(low.metric("blsp_refusals_total", reason=reason) for reason in reasons)

    late_before = late()
    before = low.metric("blsp_requests_total", endpoint="/v1/speech", status="504")
    with low.client() as client:
        whole = client.post("/v1/speech", files={"file": GOOD}, data=LONG | {"stream": "false"})
        assert whole.status_code == 504
        assert whole.json()["error"]["code"] == "deadline_exceeded"
        stream = client.post("/v1/speech", files={"file": GOOD}, data=LONG)
        assert stream.status_code == 200
        assert '"deadline_exceeded"' in stream.text.strip().splitlines()[-1]
        chat: dict[str, Any] = {"messages": [{"role": "user", "content": "Hi"}], "min_tokens": 1900}
        assert client.post("/v1/chat/completions", json=chat).status_code == 504
        events = client.post("/v1/chat/completions", json=chat | {"stream": True}).text
        assert "took longer than 1 s" in events
        events = client.post("/v1/responses", json={"input": "Hi", "stream": True, "ignore_eos": True}).text
        assert "took longer than 1 s" in events
    assert late() == late_before + 5, "each is counted, also within streams"
    assert low.metric("blsp_requests_total", endpoint="/v1/speech", status="504") == before + 1
    low.wait_for(lambda: low.metric("vllm:num_requests_running", model_name=low.model) == 0)
    low.wait_for(lambda: low.metric("blsp_queued_prompt_tokens") == 0)


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGSTOP])
def test_a_decoder_that_crashes_or_hangs_costs_its_own_request(low: Server, number: signal.Signals) -> None:
    def decoders() -> set[int]:
        return descendants(low.process.pid, "decoder_process", children=False)

    results: list[httpx.Response] = []
    half = threading.Event()
    rest = threading.Event()

    def upload() -> Iterator[bytes]:
        clip = wav(voice(10.0, seed=int(number)))
        yield clip[:200_000]
        half.set()
        rest.wait(20)
        yield clip[200_000:]

    with low.client() as client:
        thread = threading.Thread(
            target=lambda: results.append(client.post("/v1/speech", content=upload(), params=FEW))
        )
        thread.start()
        assert half.wait(20)
        low.wait_for(lambda: bool(decoders()))
        for process in decoders():  # this one's, and those that are idle
            os.kill(process, number)
        rest.set()
        thread.join(60)
    (result,) = results
    if number == signal.SIGSTOP:
        assert (result.status_code, result.json()["error"]["code"]) == (400, "invalid_audio")
    else:
        assert result.status_code in (200, 400)  # 200 where it was decoded once more, by a new decoder


def test_fields_for_the_operator(low: Server) -> None:
    chat: dict[str, Any] = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2}
    fields: list[dict[str, Any]] = [
        {"chat_template": "{% for i in range(10**9) %}{% endfor %}"},
        {"chat_template_kwargs": {"chat_template": "{{ messages }}"}},
        {"kv_transfer_params": {"do_remote_prefill": True, "remote_host": "127.0.0.1", "remote_port": 1}},
        {"ec_transfer_params": {"remote_host": "127.0.0.1"}},
        {"mm_processor_kwargs": {"x": 1}},
        {"media_io_kwargs": {"audio": {"x": 1}}},
    ]
    with low.client() as client:
        for extra in fields:
            refused = client.post("/v1/chat/completions", json=chat | extra)
            assert refused.status_code == 400, extra
            assert refused.json()["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize("url", ["http://127.0.0.1:{port}/health", "http://listed.example/x", "http://localhost/x"])
def test_urls_that_may_not_be_fetched(low: Server, url: str) -> None:
    url = url.replace("{port}", str(httpx.URL(low.url).port))
    part = {"type": "audio_url", "audio_url": {"url": url}}
    with low.client() as client:
        refused = client.post(
            "/v1/chat/completions", json={"messages": [{"role": "user", "content": [part]}], "max_tokens": 2}
        )
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == "messages[0].content[0].audio_url.url"


def test_special_tokens_in_a_message_do_not_end_it(low: Server) -> None:
    def prompt_ids(text: str) -> list[int]:
        chat = {"messages": [{"role": "user", "content": text}], "max_tokens": 1, "return_token_ids": True}
        with low.client() as client:
            return list(client.post("/v1/chat/completions", json=chat).json()["prompt_token_ids"])

    assert [i for i in prompt_ids("Hello</s> you <s> and <unk>") if i < 3] == [1]


async def test_a_short_clip_gets_past_a_client_with_many_long_ones(low: Server) -> None:
    """The long ones are still being worked on when the short one has its answer."""
    done: list[str] = []

    async def ask(client: httpx.AsyncClient, name: str, clip: bytes) -> None:
        reply = await client.post("/v1/speech", content=clip, params={"max_tokens": "2"})
        assert reply.status_code == 200, reply.text
        done.append(name)

    clips = [base64.b64encode(wav(voice(75.0, seed=i))).decode() for i in range(4)]
    content = [{"type": "input_audio", "input_audio": {"data": clip, "format": "wav"}} for clip in clips]
    async with httpx.AsyncClient(base_url=low.url, timeout=120) as client:

        async def many() -> None:
            body = {"messages": [{"role": "user", "content": content}], "max_tokens": 1}
            reply = await client.post("/v1/chat/completions", json=body)
            assert reply.status_code == 200, reply.text
            done.append("many")

        long = asyncio.create_task(many())
        await asyncio.to_thread(low.wait_for, lambda: low.metric("blsp_queued_audio_seconds") > 0)
        await ask(client, "short", wav(voice(1.0, seed=99)))
        assert not long.done()
        await long
    assert done == ["short", "many"]


@contextmanager
def talk(server: Server) -> Iterator[ClientConnection]:
    with connect(f"{server.url.replace('http', 'ws', 1)}/v1/realtime", open_timeout=60) as socket:
        yield socket


def test_as_many_sockets_as_there_may_be(low: Server) -> None:
    with talk(low) as first:
        first.recv(timeout=60)
        with pytest.raises(InvalidStatus) as refused, talk(low):
            pass
        assert refused.value.response.status_code == 429
        assert refused.value.response.headers["retry-after"] == "1"
    low.wait_for(lambda: low.metric("blsp_realtime_sessions") == 0)
    with talk(low) as another:
        another.recv(timeout=60)


def test_a_socket_on_which_nothing_comes_ends(low: Server) -> None:
    with talk(low) as socket:
        assert told_until_closed(socket)[-1]["error"]["code"] == "session_idle"
        assert socket.close_code == 1000


def test_a_talk_that_is_too_long_ends(low: Server) -> None:
    with talk(low) as socket:
        told = told_until_closed(socket, '{"type": "session.update", "session": {}}')
        assert [event["error"]["code"] for event in told if event["type"] == "error"] == ["session_expired"]
        assert socket.close_code == 1001
