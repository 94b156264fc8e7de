"""Open WebUI, by the requests that it sends: its package needs more than a test should install.

open_webui/routers/audio/__init__.py (speech to text by the engine "openai") and routers/openai.py (models and chats).
"""

import base64
import json
from typing import Any

import httpx
import pytest

from tests.serving import Server
from tests.sounds import encoded, voice, wav

VERSION = "0.12.4"
HEADERS = {"Authorization": "Bearer none", "X-OpenWebUI-User-Name": "Ann", "X-OpenWebUI-User-Id": "1"}
"""With ENABLE_FORWARD_USER_INFO_HEADERS."""


@pytest.mark.parametrize("language", [{"language": "en"}, {}])
@pytest.mark.parametrize("name", ["0d3f.wav", "0d3f.webm", "0d3f.mp3"])
def test_a_dictation(server: Server, name: str, language: dict[str, str]) -> None:
    """audio, `_transcribe_openai` with the request format "multipart"; the file's part has no content type of its own."""
    audio = {"wav": lambda: wav(voice(2.0)), "webm": lambda: encoded("webm", "libopus", 2.0)}
    file = audio.get(name[5:], lambda: encoded("mp3", "libmp3lame", 2.0))()
    with server.client() as http:
        fields = {"model": server.model} | language
        reply = http.post("/v1/audio/transcriptions", headers=HEADERS, data=fields, files={"file": (name, file)})
    assert reply.status_code == 200, reply.text
    assert reply.json()["text"]


def test_a_dictation_in_json(server: Server) -> None:
    """The same with the request format "json"."""
    audio = {"data": base64.b64encode(wav(voice(2.0))).decode(), "format": "wav"}
    fields = {"model": server.model, "language": "en", "input_audio": audio}
    with server.client() as http:
        reply = http.post("/v1/audio/transcriptions", headers=HEADERS, json=fields)
        form = http.post("/v1/audio/transcriptions", files={"file": wav(voice(2.0))})
        unknown = http.post("/v1/audio/transcriptions", headers=HEADERS, json=fields | {"model": "whisper-1"})
    assert reply.status_code == 200, reply.text
    assert reply.json()["text"] == form.json()["text"]
    assert server.model in unknown.json()["error"]["message"]  # which it shows


def test_models(server: Server) -> None:
    """openai.py, `get_all_models`: the entries' `id` is what is offered."""
    with server.client() as http:
        reply = http.get("/v1/models", headers=HEADERS)
    assert [model["id"] for model in reply.json()["data"]] == [server.model]


def test_a_chat(server: Server) -> None:
    """openai.py, `generate_chat_completion`: what the page's settings add to a conversation in text."""
    body: dict[str, Any] = {
        "stream": True,
        "model": server.model,
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello."}],
        "stream_options": {"include_usage": True},
        "max_tokens": 8,
    }
    with server.client() as http, http.stream("POST", "/v1/chat/completions", headers=HEADERS, json=body) as reply:
        assert reply.status_code == 200
        *events, done = [line.removeprefix("data: ") for line in reply.iter_lines() if line]
    assert done == "[DONE]"
    assert "".join(text_of(json.loads(event)) for event in events)
    assert json.loads(events[-1])["usage"]["completion_tokens"] == 8


@pytest.mark.parametrize("path", ["/openai/v1/{}", "/openai/deployments/{model}/{}?api-version=2024-10-21"])
@pytest.mark.parametrize(
    ("endpoint", "body"),
    [
        ("chat/completions", {"messages": [{"role": "user", "content": "Hello."}], "max_tokens": 2}),
        ("responses", {"input": "Hello.", "max_output_tokens": 16}),
    ],
)
def test_a_chat_as_with_azure(server: Server, path: str, endpoint: str, body: dict[str, Any]) -> None:
    """openai.py, `generate_chat_completion` of a connection to Azure."""
    address = path.format(endpoint, model=server.model)
    with server.client() as http:
        reply = http.post(address, headers={"api-key": "none"}, json={"model": server.model} | body)
    assert reply.status_code == 200, reply.text


def text_of(event: dict[str, Any]) -> str:
    return "".join(choice["delta"].get("content") or "" for choice in event["choices"])


def test_what_is_wrong_is_shown(server: Server) -> None:
    """audio reads `error.message` of a refusal."""
    with httpx.Client(base_url=f"{server.url}/v1") as http:
        reply = http.post("/audio/transcriptions", data={"model": server.model}, files={"file": ("a.wav", b"no audio")})
    assert reply.status_code == 415
    assert reply.json()["error"]["message"]
