"""What clients are used to: audio in responses, refusals in OpenAI's words, fields of other servers."""

import base64
import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from tests.serving import Server
from tests.sounds import encoded, voice, wav

AUDIO = base64.b64encode(wav(voice(2.0))).decode()
HEARD = {"type": "input_audio", "input_audio": {"data": AUDIO, "format": "wav"}}
FILE = {"type": "input_file", "filename": "a.wav", "file_data": f"data:audio/wav;base64,{AUDIO}"}


@pytest.fixture
def client(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.mark.parametrize("part", [HEARD, FILE], ids=["input_audio", "input_file"])
def test_a_response_hears_what_a_chat_hears(client: openai.OpenAI, server: Server, part: Any) -> None:
    content: Any = [{"type": "text", "text": "Hello."}, HEARD]
    chat = client.chat.completions.create(
        model=server.model, messages=[{"role": "user", "content": content}], max_tokens=16, temperature=0
    )
    asked: Any = [{"role": "user", "content": [{"type": "input_text", "text": "Hello."}, part]}]
    fields: Any = {"model": server.model, "input": asked, "max_output_tokens": 16, "temperature": 0}
    whole = client.responses.create(**fields)
    assert whole.output_text == chat.choices[0].message.content
    assert whole.usage is not None
    assert chat.usage is not None
    assert whole.usage.input_tokens == chat.usage.prompt_tokens
    deltas = [
        event.delta
        for event in client.responses.create(**fields, stream=True)
        if event.type == "response.output_text.delta"
    ]
    assert "".join(deltas) == whole.output_text


def chat(content: Any, **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": content}], "max_tokens": 2} | more


REFUSED: dict[str, tuple[dict[str, Any], str, str]] = {
    "a picture": (
        chat([{"type": "image_url", "image_url": {"url": "https://a.example/b.png"}}]),
        "[0].content[0]",
        "A part is",
    ),
    "audio without data": (
        chat([{"type": "input_audio", "input_audio": {"format": "wav"}}]),
        "[0].content[0]",
        "A part is",
    ),
    "a part of another kind": (chat(["Hello.", {"type": "audio", "audio": "x"}]), "[0].content", "A part is"),
    "a file without data": (chat([{"type": "file", "file": {"file_id": "x"}}]), "[0].content[0]", "A part is"),
    "audio to come": (
        chat("Hello.", modalities=["text", "audio"], audio={"voice": "alloy"}),
        "modalities",
        "answers in text",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_fit_is_refused_in_words(server: Server, name: str) -> None:
    body, param, words = REFUSED[name]
    with server.client() as http:
        response = http.post("/v1/chat/completions", json=body)
    error = response.json()["error"]
    assert response.status_code == 400
    assert param in error["param"]
    assert words in error["message"]
    assert "pydantic" not in error["message"]


def test_a_file_of_a_chat_is_heard(server: Server) -> None:
    with server.client() as http:
        file = {"type": "file", "file": {"filename": "a.wav", "file_data": f"data:audio/wav;base64,{AUDIO}"}}
        replies = [http.post("/v1/chat/completions", json=chat([part])).json() for part in (file, HEARD)]
    assert [reply["usage"]["prompt_tokens_details"]["audio_tokens"] for reply in replies] == [13, 13]
    assert replies[0]["usage"]["prompt_tokens"] == replies[1]["usage"]["prompt_tokens"]


# Every field that OpenAI's newest client has for a chat and that asks for nothing impossible, and nulls as some frameworks send them.
EVERYTHING: dict[str, Any] = {
    "messages": [
        {"role": "developer", "content": "Be brief.", "name": "maker"},
        {"role": "system", "content": [{"type": "text", "text": "Be kind."}]},
        {"role": "user", "content": [{"type": "text", "text": "What is said?"}, HEARD], "name": "ann"},
        {"role": "assistant", "content": None, "refusal": None, "audio": None, "tool_calls": []},
        {"role": "assistant", "content": [{"type": "text", "text": "Nothing."}], "refusal": None},
        {"role": "user", "content": "Really?"},
    ],
    "tools": [],
    "tool_choice": "auto",
    "parallel_tool_calls": False,
    "response_format": {"type": "text"},
    "reasoning_effort": "minimal",
    "verbosity": "low",
    "store": False,
    "metadata": {"topic": "demo"},
    "user": "ann",
    "safety_identifier": "ann",
    "prompt_cache_key": "demo",
    "prompt_cache_retention": "24h",
    "service_tier": "auto",
    "modalities": ["text"],
    "prediction": None,
    "web_search_options": None,
    "max_completion_tokens": 2,
    "max_tokens": None,
    "n": 1,
    "stop": None,
    "logit_bias": {},
    "logprobs": None,
    "top_logprobs": None,
    "presence_penalty": 0,
    "frequency_penalty": None,
    "temperature": None,
    "top_p": None,
    "seed": None,
    "function_call": None,
    "functions": None,
}


@pytest.mark.parametrize(
    "stream",
    [
        {},
        {"stream": False, "stream_options": None},
        {"stream": True, "stream_options": {"include_usage": True, "include_obfuscation": False}},
    ],
    ids=["plain", "nulls", "streamed"],
)
def test_every_field_of_a_chat_is_taken(server: Server, stream: dict[str, Any]) -> None:
    with server.client() as http:
        response = http.post("/v1/chat/completions", json=EVERYTHING | stream)
    assert response.status_code == 200, response.text
    assert '"error"' not in response.text
    last = response.text.split("data: ")[-2] if stream.get("stream") else response.text
    usage = json.loads(last)["usage"]
    assert usage["completion_tokens"] == 2
    assert usage["prompt_tokens_details"]["audio_tokens"] == 13


def test_no_tools_are_no_tools(server: Server) -> None:
    with server.client() as http:
        required = http.post("/v1/chat/completions", json=chat("Hello.", tools=[], tool_choice="required"))
    assert required.status_code == 400
    assert "tool" in required.json()["error"]["message"]


def test_fields_that_nobody_knows_are_named(server: Server) -> None:
    with server.client() as http:
        response = http.post("/v1/chat/completions", json=chat("Hello.", modalities=["text"], store=False, zork=1))
    assert response.status_code == 200
    assert response.headers["x-ignored-fields"] == "modalities, store, zork"


@pytest.mark.parametrize(("content_type", "said"), [(None, "is missing"), ("text/plain", "is 'text/plain'")])
def test_json_that_is_not_said_to_be_json_is_refused_in_words(
    server: Server, content_type: str | None, said: str
) -> None:
    with server.client() as http:
        headers = {} if content_type is None else {"content-type": content_type}
        response = http.post("/v1/chat/completions", content=b'{"messages": []}', headers=headers)
    assert response.status_code == 415
    assert f"content type {said}; send JSON, with the header" in response.json()["error"]["message"]


CUT = encoded("flac", "flac", 5)[:-8000]


@pytest.mark.parametrize("where", ["query", "form", "raw", "transcription", "chat"])
def test_what_there_is_of_a_file_is_answered_about_where_that_is_allowed(server: Server, where: str) -> None:
    heard = {"type": "input_audio", "input_audio": {"data": base64.b64encode(CUT).decode(), "format": "flac"}}
    allowed: Any = {"allow_truncated": "true", "max_tokens": "2"}
    requests: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
        "query": ("/v1/speech", {"files": {"file": CUT}}, {"params": allowed}),
        "form": ("/v1/speech", {"files": {"file": CUT}}, {"data": allowed}),
        "raw": ("/v1/speech", {"content": CUT}, {"params": allowed}),
        "transcription": ("/v1/audio/transcriptions", {"files": {"file": CUT}}, {"data": {"allow_truncated": "true"}}),
        "chat": ("/v1/chat/completions", {}, {"json": chat([heard], allow_truncated=True)}),
    }
    path, audio, fields = requests[where]
    with server.client() as http:
        plain: Any = {"json": chat([heard])} if where == "chat" else {}
        refused = http.post(path, **audio, **plain)
        answered = http.post(path, **audio, **fields)
    assert refused.status_code == 400
    assert "allow_truncated=true" in refused.json()["error"]["message"]
    assert "x-audio-truncated" not in refused.headers
    assert answered.status_code == 200
    assert answered.headers["x-audio-truncated"] == "true"
    assert "x-ignored-fields" not in answered.headers
    if path == "/v1/speech":
        assert answered.json()["audio"]["truncated"]
        assert 2 < answered.json()["audio"]["seconds"] < 5
    if where == "transcription":
        assert "truncated" in answered.json()["warnings"][0]


def test_a_file_of_which_nothing_is_there_stays_an_error(server: Server) -> None:
    with server.client() as http:
        response = http.post("/v1/speech", content=CUT[:200], params={"allow_truncated": "true"})
    assert response.status_code == 400
