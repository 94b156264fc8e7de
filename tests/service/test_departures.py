"""Clients that go away, at every stage: their work ends, and nothing of it stays open in the server."""

import base64
import itertools
import json
import os
import socket
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import httpx
import pytest

from tests.serving import Server
from tests.sounds import voice, wav

seeds = itertools.count(1000)  # every recording is new to the server's cache
Leave = Callable[[Server], int]


def new(seconds: float) -> bytes:
    return wav(voice(seconds, seed=next(seeds)))


def sent(server: Server, path: str, missing: int = 0, **body: Any) -> socket.socket:
    """A connection that has sent a request, but for the last bytes of its body."""
    request = httpx.Request("POST", server.url + path, **body)
    content = request.read()
    head = f"POST {path} HTTP/1.1\r\nHost: test\r\nContent-Type: {request.headers.get('content-type', 'audio/wav')}\r\n"
    client = socket.create_connection((request.url.host, request.url.port or 0))
    client.sendall(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content[: len(content) - missing])
    return client


def while_a_recording_is_decoded(server: Server) -> int:
    before = server.metric("blsp_speech_tokens_total")
    with sent(server, "/v1/speech", missing=1000, content=new(65)):
        server.wait_for(lambda: server.metric("blsp_speech_tokens_total") > before)
    return 1


def while_recordings_wait_for_the_encoder(server: Server) -> int:
    clips = [base64.b64encode(new(60)).decode() for _ in range(6)]  # made before, to be sent at once
    parts = [{"type": "input_audio", "input_audio": {"data": clip, "format": "wav"}} for clip in clips]
    bodies = [{"messages": [{"role": "user", "content": [part]}]} for part in parts]
    with ExitStack() as stack:
        for body in bodies:
            stack.enter_context(sent(server, "/v1/chat/completions", json=body))
        server.wait_for(lambda: server.metric("blsp_queued_audio_seconds") > 0)
    return len(bodies)


def while_a_transcription_is_written(server: Server) -> int:
    with sent(server, "/v1/audio/transcriptions", files={"file": new(65)}):
        server.wait_for(lambda: server.metric("vllm:num_requests_running", model_name=server.model) > 0)
    return 1


def while_a_reply_is_streamed(server: Server) -> int:
    fields = {"stream": "true", "min_tokens": "1500"}
    with sent(server, "/v1/speech", files={"file": new(1)}, data=fields) as client:
        client.recv(1000)
    return 1


STAGES: list[Leave] = [
    while_a_recording_is_decoded,
    while_recordings_wait_for_the_encoder,
    while_a_transcription_is_written,
    while_a_reply_is_streamed,
]


def nothing_runs(server: Server) -> bool:
    paths = ("/v1/speech", "/v1/chat/completions", "/v1/audio/transcriptions")
    running = [server.metric("blsp_requests_in_flight", endpoint=path) for path in paths]
    running += [
        server.metric(f"vllm:num_requests_{state}", model_name=server.model) for state in ("running", "waiting")
    ]
    return not any([*running, server.metric("blsp_queued_audio_seconds"), server.metric("blsp_queued_prompt_tokens")])


def held(server: Server, what: str) -> int:
    """How many open files (`fd`) or threads (`task`) the server has."""
    return len(os.listdir(f"/proc/{server.process.pid}/{what}"))


@pytest.mark.parametrize("leave", STAGES, ids=lambda leave: leave.__name__)
def test_clients_that_go(server: Server, leave: Leave) -> None:
    def go() -> int:
        clients = leave(server)
        server.wait_for(lambda: nothing_runs(server))
        return clients

    go()  # the server now has the threads and decoders that it keeps
    before = {what: held(server, what) for what in ("fd", "task")}
    clients = sum(go() for _ in range(3))
    for what, number in before.items():
        server.wait_for(lambda what=what, number=number: held(server, what) < number + clients)  # type: ignore[misc]
    with server.client() as client:
        reply = client.post("/v1/speech", files={"file": new(1)}, data={"max_tokens": "2"})
        assert reply.status_code == 200, json.dumps(reply.json())
