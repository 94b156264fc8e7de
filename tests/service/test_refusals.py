"""Bad input: each has its status and OpenAI's error object, and the server goes on as if nothing had been."""

import base64
import json
import socket
import struct
from collections.abc import Iterator
from fractions import Fraction
from io import BytesIO
from typing import Any

import av
import httpx
import numpy as np
import pytest

from tests.serving import Server
from tests.sounds import RATE, encoded, voice, wav


def silent_opus(seconds: int) -> bytes:
    """Silence, which costs opus next to nothing: packets of 120 ms, each one byte."""
    file = BytesIO()
    with av.open(file, "w", format="ogg") as out:
        stream = out.add_stream("libopus", rate=48_000, options={"frame_duration": "120", "b": "500"})
        silence = bytes([0b01011_0_01])  # two empty frames of 60 ms
        for i in range(round(seconds / 0.12)):
            packet = av.Packet(silence)
            packet.stream, packet.time_base = stream, Fraction(1, 48_000)
            packet.pts = packet.dts = i * 5760
            packet.duration = 5760
            out.mux(packet)
    return file.getvalue()


def float_wav(samples: np.ndarray, channels: int = 1) -> bytes:
    data = samples.astype("<f4").tobytes()
    header = struct.pack(
        "<4sI4s4sIHHIIHH", b"RIFF", 36 + len(data), b"WAVE", b"fmt ", 16, 3, channels, RATE, 4 * RATE, 4, 32
    )
    return header + struct.pack("<4sI", b"data", len(data)) + data


JSON = {"content-type": "application/json"}
GOOD = wav(voice(1.0))
BAD_AUDIO = {
    "empty file": (b"", 400, "invalid_audio"),
    "wav without samples": (wav(voice(0.0)), 400, "invalid_audio"),
    "text named .wav": (b"This is a text, not a recording.\n" * 50, 415, "unsupported_media_type"),
    "truncated flac": (encoded("flac", "flac", 5)[:-8000], 400, "invalid_audio"),
    "truncated mp3": (encoded("mp3", "libmp3lame", 5)[:-20000], 400, "invalid_audio"),
    "truncated webm": (encoded("webm", "libopus", 5)[:-20000], 400, "invalid_audio"),
    "no channels": (float_wav(voice(0.5), channels=0), 400, "invalid_audio"),
    "NaN samples": (float_wav(np.full(RATE, np.nan)), 400, "invalid_audio"),
}
BAD_FIELDS: list[tuple[dict[str, str], int, str]] = [
    ({"model": "nope"}, 404, "model"),
    ({"temperature": "hot"}, 400, "temperature"),
    ({"temperature": "-1"}, 400, "temperature"),
    ({"top_p": "0"}, 400, "top_p"),
    ({"max_tokens": "0"}, 400, "max_tokens"),
    ({"min_tokens": "-1"}, 400, "min_tokens"),
    ({"stream": "perhaps"}, 400, "stream"),
    ({"stop": '["a"'}, 400, "stop"),
    ({"temprature": "1"}, 400, "temprature"),
    ({"stop": '["\\ud800"]'}, 400, "stop"),
    ({"stop": "[" * 5000}, 400, "stop"),
    ({"history": "[" * 5000}, 400, "history"),
    ({"history": '[{"role": "user", "content": "\\ud800"}]'}, 400, "history"),
    ({"history": "[1]"}, 400, "history.0"),
    ({"history": '[{"role": "bot", "content": "x"}]'}, 400, "history[0].role"),
    ({"history": '[{"role": "user", "content": [{"type": "image_url"}]}]'}, 400, "history[0].content[0]"),
]


@pytest.fixture(autouse=True)
def unharmed(server: Server) -> Iterator[None]:
    """After every test of this file a good request still gets its answer, and nothing is left running."""
    yield
    with server.client() as client:
        assert client.post("/v1/speech", files={"file": GOOD}, data={"max_tokens": "2"}).status_code == 200
        assert client.get("/health").json() == {"status": "ok"}


def refused(response: httpx.Response, status: int) -> dict[str, Any]:
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    assert error["message"]
    return dict(error)


def audio_message(data: str) -> dict[str, Any]:
    content = [{"type": "input_audio", "input_audio": {"data": data, "format": "wav"}}]
    return {"messages": [{"role": "user", "content": content}], "max_tokens": 2}


@pytest.mark.parametrize(("audio", "status", "code"), BAD_AUDIO.values(), ids=BAD_AUDIO.keys())
def test_bad_audio(server: Server, audio: bytes, status: int, code: str) -> None:
    with server.client() as client:
        form = client.post("/v1/speech", files={"file": ("speech.wav", audio)})
        raw = client.post("/v1/speech", content=audio)
        chat = client.post("/v1/chat/completions", json=audio_message(base64.b64encode(audio).decode()))
    assert [refused(r, status)["code"] for r in (form, raw, chat)] == [code] * 3


@pytest.mark.parametrize(("fields", "status", "param"), BAD_FIELDS, ids=lambda value: str(value)[:40])
def test_bad_fields(server: Server, fields: dict[str, str], status: int, param: str) -> None:
    with server.client() as client:
        assert refused(client.post("/v1/speech", files={"file": GOOD}, data=fields), status)["param"] == param
        assert refused(client.post("/v1/speech", content=GOOD, params=fields), status)["param"] == param


def test_hours_of_silence_in_a_small_file(server: Server) -> None:
    bomb = silent_opus(3 * 3600)
    assert len(bomb) < 500_000
    with server.client() as client:
        error = refused(client.post("/v1/speech", content=bomb), 413)
    assert error["code"] == "audio_too_long"
    assert "120" in error["message"]


def test_an_instruction_longer_than_the_context(server: Server) -> None:
    with server.client() as client:
        native = client.post("/v1/speech", files={"file": GOOD}, data={"instruction": "word " * 5000})
        chat = client.post("/v1/chat/completions", json={"messages": [{"role": "user", "content": "word " * 5000}]})
    for response in (native, chat):
        error = refused(response, 400)
        assert error["code"] == "context_length_exceeded"
        assert "2048" in error["message"]


@pytest.mark.parametrize(
    ("path", "fields", "param"),
    [
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x" * 7_000_000}]}, "messages"),
        ("/v1/responses", {"input": "x" * 7_000_000}, "messages"),
        ("/tokenize", {"prompt": "x" * 7_000_000}, "prompt"),
        ("/tokenize", {"messages": [{"role": "user", "content": "x" * 7_000_000}]}, "messages"),
    ],
)
def test_megabytes_of_text(server: Server, path: str, fields: dict[str, Any], param: str) -> None:
    with server.client() as client:
        error = refused(client.post(path, json=fields), 400)
    assert (error["code"], error["param"]) == ("context_length_exceeded", param)
    assert "characters" in error["message"]


def test_messages_are_counted_before_they_are_read(server: Server) -> None:
    """More than the context has tokens: what is wrong with the last of them is not looked for."""
    history = [{"role": "user", "content": ""}] * 2048 + [{"role": "nobody"}]
    with server.client() as client:
        error = refused(client.post("/v1/speech", files={"file": GOOD}, data={"history": json.dumps(history)}), 400)
    assert (error["code"], error["param"]) == ("context_length_exceeded", "history")


def test_a_transcription_with_a_prompt_longer_than_the_context(server: Server) -> None:
    with server.client() as client:
        fields = {"prompt": "word " * 200_000}
        error = refused(client.post("/v1/audio/transcriptions", files={"file": GOOD}, data=fields), 400)
    assert (error["code"], error["param"]) == ("context_length_exceeded", "prompt")


@pytest.mark.parametrize(
    ("path", "fields", "param"),
    [
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "Hi"}], "n": 129}, "n"),
        ("/v1/completions", {"prompt": "Hi", "n": 129}, "n"),
        ("/v1/completions", {"prompt": ["Hi"] * 129}, "prompt"),
        ("/v1/completions", {"prompt": [[5, 6]] * 65, "n": 2}, "prompt"),
    ],
)
def test_more_choices_than_a_request_may_have(server: Server, path: str, fields: dict[str, Any], param: str) -> None:
    with server.client() as client:
        error = refused(client.post(path, json=fields | {"max_tokens": 1}), 400)
    assert error["param"] == param
    assert "128" in error["message"]


def test_audio_longer_than_the_context(server: Server) -> None:
    """Not cut in silence: 119 s are under the limit of the audio, and with the instruction over that of the context."""
    with server.client() as client:
        response = client.post("/v1/speech", files={"file": wav(voice(119.0))}, data={"instruction": "word " * 700})
    assert refused(response, 400)["code"] == "context_length_exceeded"


def test_invalid_base64(server: Server) -> None:
    with server.client() as client:
        error = refused(client.post("/v1/chat/completions", json=audio_message("&&&")), 400)
    assert error["param"] == "messages[0].content[0].input_audio.data"


@pytest.mark.parametrize("path", ["/v1/speech", "/v1/chat/completions"])
@pytest.mark.parametrize("announced", [True, False])
def test_a_body_of_100_mb(server: Server, path: str, announced: bool) -> None:
    megabyte = bytes(1_000_000)
    body = bytes(100_000_000) if announced else (megabyte for _ in range(100))
    with server.client() as client:
        assert refused(client.post(path, content=body, headers=JSON), 413)["code"] == "upload_too_large"


def test_a_file_over_the_limit_in_a_body_under_it(server: Server) -> None:
    with server.client() as client:
        assert (
            refused(client.post("/v1/speech", content=wav(voice(10.0)) + bytes(8_000_000)), 413)["code"]
            == "upload_too_large"
        )


def hi(**fields: Any) -> bytes:
    return json.dumps({"messages": [{"role": "user", "content": "Hi"}]} | fields).encode()


@pytest.mark.parametrize(
    "body",
    [
        b"{{{",
        b"[]",
        b"{}",
        b'{"messages": []}',
        b'{"messages": [{"role": "bot"}]}',
        hi(tool_choice="auto"),  # vLLM's own exception
        hi(structured_outputs=[0]),  # a value that vLLM's validator stumbles over
        hi(messages=[{"role": "user", "content": "\ud800"}]),
        hi(stop=["\ud800"]),
        hi(user="\ud800"),
        hi(chat_template_kwargs={"x": "\udfff"}),
        hi(chat_template_kwargs="X").replace(b'"X"', b'{"x": ' + b"[" * 900 + b"]" * 900 + b"}"),
        hi(response_format="X").replace(b'"X"', b'{"a": ' * 900 + b"1" + b"}" * 900),
        hi(messages=[{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "[" * 5000}}]}]),
    ],
)
def test_bad_json(server: Server, body: bytes) -> None:
    with server.client() as client:
        refused(client.post("/v1/chat/completions", content=body, headers=JSON), 400)


HI = [{"role": "user", "content": "Hi"}]
SPOKEN = [
    {"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": base64.b64encode(GOOD).decode()}}]}
]
UNKNOWN = {"logit_bias": {"99999999": 1}}


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("/v1/chat/completions", {"messages": HI, "stream": True} | UNKNOWN),
        ("/v1/completions", {"prompt": "Hi", "stream": True} | UNKNOWN),
        ("/v1/responses", {"input": "Hi", "stream": True} | UNKNOWN),
        ("/v1/chat/completions", {"messages": HI, "temperature": 1, "top_k": 1 << 70}),
    ],
)
def test_what_the_engine_would_refuse_later_is_a_status_too(server: Server, path: str, fields: dict[str, Any]) -> None:
    with server.client() as client:
        assert refused(client.post(path, json=fields), 400)["message"]


@pytest.mark.parametrize(
    ("path", "fields", "param"),
    [
        ("/v1/chat/completions", {"messages": SPOKEN, "use_beam_search": True, "n": 2}, "use_beam_search"),
        (
            "/v1/chat/completions",
            {"messages": HI, "continue_final_message": True, "add_generation_prompt": False},
            "continue_final_message",
        ),
        ("/v1/chat/completions", {"messages": HI, "truncate_prompt_tokens": 5}, "truncate_prompt_tokens"),
        ("/v1/responses", {"input": "Hi", "background": True, "store": "false"}, "background"),
    ],
)
def test_fields_of_vllm_that_messages_have_not(server: Server, path: str, fields: dict[str, Any], param: str) -> None:
    with server.client() as client:
        assert refused(client.post(path, json=fields), 400)["param"] == param


def test_unknown_paths_and_methods(server: Server) -> None:
    with server.client() as client:
        refused(client.get("/v1/nothing"), 404)
        refused(client.get("/v1/speech"), 405)
        assert refused(client.get("/v1/models/nope"), 404)["code"] == "model_not_found"


def test_a_client_that_goes_in_the_middle_of_the_upload(server: Server) -> None:
    before = server.metric("blsp_requests_total", endpoint="/v1/speech", status="499")
    with socket.create_connection((httpx.URL(server.url).host, httpx.URL(server.url).port)) as client:
        client.sendall(b"POST /v1/speech HTTP/1.1\r\nHost: test\r\nContent-Length: 1000000\r\n\r\n" + GOOD)
    server.wait_for(lambda: server.metric("blsp_requests_total", endpoint="/v1/speech", status="499") == before + 1)


STREAM = {"stream": "true", "min_tokens": "1500"}
CHAT = {"messages": [{"role": "user", "content": "Hi"}], "min_tokens": 1500}


@pytest.mark.parametrize(
    "request_",
    [
        {"url": "/v1/speech", "files": {"file": GOOD}, "data": STREAM},
        {"url": "/v1/chat/completions", "json": CHAT | {"stream": True}},
    ],
    ids=["native", "chat"],
)
def test_a_client_that_goes_in_the_middle_of_the_stream(server: Server, request_: dict[str, Any]) -> None:
    before = server.metric("blsp_aborted_generations_total")
    with server.client() as client, client.stream("POST", **request_) as response:
        assert json.loads(next(response.iter_lines()).removeprefix("data: "))
    server.wait_for(lambda: server.metric("blsp_aborted_generations_total") == before + 1)
    server.wait_for(lambda: server.metric("vllm:num_requests_running", model_name=server.model) == 0)


@pytest.mark.parametrize(
    "request_",
    [
        {"url": "/v1/speech", "files": {"file": GOOD}, "data": {"min_tokens": "1500"}},
        {"url": "/v1/chat/completions", "json": CHAT},
    ],
    ids=["native", "chat"],
)
def test_a_client_that_goes_before_the_whole_reply(server: Server, request_: dict[str, Any]) -> None:
    before = server.metric("blsp_aborted_generations_total")
    with server.client() as client, pytest.raises(httpx.ReadTimeout):
        client.post(**request_, timeout=httpx.Timeout(60, read=0.5))
    server.wait_for(lambda: server.metric("blsp_aborted_generations_total") == before + 1)
    server.wait_for(lambda: server.metric("vllm:num_requests_running", model_name=server.model) == 0)
