"""Every reply is of the types of OpenAI's client, field by field."""

import base64
import json
from typing import Any

import httpx
import pytest
from openai.pagination import SyncPage
from openai.types import Completion, Model
from openai.types.audio import (
    Transcription,
    TranscriptionStreamEvent,
    TranscriptionVerbose,
    Translation,
    TranslationVerbose,
)
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.responses import Response, ResponseStreamEvent
from openai.types.shared import ErrorObject
from pydantic import ValidationError

from tests.openai_types import check
from tests.serving import Server
from tests.sounds import voice, wav

AUDIO = wav(voice(2.0))
SPOKEN = [
    {"type": "text", "text": "What is said?"},
    {"type": "input_audio", "input_audio": {"data": base64.b64encode(AUDIO).decode(), "format": "wav"}},
]
CHAT = {"messages": [{"role": "user", "content": SPOKEN}], "max_tokens": 4}
TEXT = {"prompt": "Once upon a time", "max_tokens": 4}
INPUT = {"input": "Once upon a time", "max_output_tokens": 16}
STREAM = {"stream": True, "stream_options": {"include_usage": True}}
REPLIES: dict[str, tuple[str, dict[str, Any], Any]] = {
    "chat": ("/v1/chat/completions", {"json": CHAT}, ChatCompletion),
    "chat with everything": (
        "/v1/chat/completions",
        {"json": CHAT | {"n": 2, "logprobs": True, "top_logprobs": 2, "return_token_ids": True}},
        ChatCompletion,
    ),
    "completion": ("/v1/completions", {"json": TEXT}, Completion),
    "completion with logprobs": ("/v1/completions", {"json": TEXT | {"logprobs": 1}}, Completion),
    "response": ("/v1/responses", {"json": INPUT}, Response),
    "transcription": ("/v1/audio/transcriptions", {"files": {"file": AUDIO}}, Transcription),
    "transcription with logprobs": (
        "/v1/audio/transcriptions",
        {"files": {"file": AUDIO}, "data": {"include[]": "logprobs"}},
        Transcription,
    ),
    "verbose transcription": (
        "/v1/audio/transcriptions",
        {"files": {"file": AUDIO}, "data": {"response_format": "verbose_json"}},
        TranscriptionVerbose,
    ),
    "translation": ("/v1/audio/translations", {"files": {"file": AUDIO}}, Translation),
    "verbose translation": (
        "/v1/audio/translations",
        {"files": {"file": AUDIO}, "data": {"response_format": "verbose_json"}},
        TranslationVerbose,
    ),
}
STREAMS: dict[str, tuple[str, dict[str, Any], Any]] = {
    "chat": ("/v1/chat/completions", {"json": CHAT | STREAM}, ChatCompletionChunk),
    "chat with logprobs": (
        "/v1/chat/completions",
        {"json": CHAT | STREAM | {"logprobs": True, "top_logprobs": 2}},
        ChatCompletionChunk,
    ),
    "completion": ("/v1/completions", {"json": TEXT | STREAM | {"logprobs": 1}}, Completion),
    "response": ("/v1/responses", {"json": INPUT | {"stream": True}}, ResponseStreamEvent),
    "transcription": (
        "/v1/audio/transcriptions",
        {"files": {"file": AUDIO}, "data": {"stream": "true"}},
        TranscriptionStreamEvent,
    ),
    "transcription with logprobs": (
        "/v1/audio/transcriptions",
        {"files": {"file": AUDIO}, "data": {"stream": "true", "include[]": "logprobs"}},
        TranscriptionStreamEvent,
    ),
}
REFUSALS: dict[str, tuple[str, dict[str, Any]]] = {
    "chat": ("/v1/chat/completions", {"json": CHAT | {"model": "nope"}}),
    "completion": ("/v1/completions", {"json": TEXT | {"model": "nope"}}),
    "response": ("/v1/responses", {"json": INPUT | {"model": "nope"}}),
    "transcription": ("/v1/audio/transcriptions", {"files": {"file": AUDIO}, "data": {"model": "nope"}}),
    "tokenize": ("/tokenize", {"json": {"prompt": "Hi", "model": "nope"}}),
    "detokenize": ("/detokenize", {"json": {"tokens": [5], "model": "nope"}}),
}


@pytest.mark.parametrize(("path", "request_", "kind"), REPLIES.values(), ids=REPLIES)
def test_a_reply(server: Server, path: str, request_: dict[str, Any], kind: Any) -> None:
    with server.client() as client:
        response = client.post(path, **request_)
    assert response.status_code == 200, response.text
    check(response.json(), kind)


@pytest.mark.parametrize(("path", "request_", "kind"), STREAMS.values(), ids=STREAMS)
def test_a_stream(server: Server, path: str, request_: dict[str, Any], kind: Any) -> None:
    with server.client() as client:
        response = client.post(path, **request_)
    assert response.status_code == 200, response.text
    events = data(response)
    assert len(events) >= 2  # where the machine is quick, vLLM hands over several tokens at once
    for event in events:
        if kind is Completion:
            for choice in event["choices"]:  # null before the last chunk, from OpenAI too; the type is of the last
                choice["finish_reason"] = choice["finish_reason"] or "stop"
        check(event, kind)


@pytest.mark.parametrize(("path", "request_"), REFUSALS.values(), ids=REFUSALS)
def test_a_refusal(server: Server, path: str, request_: dict[str, Any]) -> None:
    with server.client() as client:
        response = client.post(path, **request_)
    assert response.status_code == 404
    error = response.json()["error"]
    check(error, ErrorObject)
    assert (error["code"], error["param"]) == ("model_not_found", "model")


def test_models(server: Server) -> None:
    with server.client() as client:
        check(client.get("/v1/models").json(), SyncPage[Model])
        check(client.get(f"/v1/models/{server.model}").json(), Model)


def test_the_check_itself() -> None:
    check({"text": "Hi"}, Translation)
    with pytest.raises(AssertionError, match="usage"):
        check({"text": "Hi", "usage": None}, Translation)
    with pytest.raises(ValidationError, match="text"):
        check({}, Translation)


def data(response: httpx.Response) -> list[Any]:
    lines = [line.removeprefix("data: ") for line in response.text.splitlines() if line.startswith("data: ")]
    return [json.loads(line) for line in lines if line != "[DONE]"]
