"""OpenAI's clients as they call Azure: the model in the path, the version in the query, the key in a header of its own."""

import base64
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from tests.serving import Server
from tests.sounds import voice, wav

VERSION = "2024-10-21"
AUDIO = wav(voice(2.0))
HEARD = {"type": "input_audio", "input_audio": {"data": base64.b64encode(AUDIO).decode(), "format": "wav"}}
CHAT: Any = {
    "messages": [{"role": "user", "content": [{"type": "text", "text": "What is said?"}, HEARD]}],
    "max_tokens": 8,
    "temperature": 0,
}


@pytest.fixture
def azure(server: Server) -> Iterator[openai.AzureOpenAI]:
    with openai.AzureOpenAI(azure_endpoint=server.url, api_version=VERSION, api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture
def today(server: Server) -> Iterator[openai.OpenAI]:
    """Azure's newer way: the plain client, and another address."""
    address = f"{server.url}/openai/v1/"
    with openai.OpenAI(base_url=address, default_query={"api-version": "preview"}, api_key="none") as client:
        yield client


def text_of(reply: Any) -> str:
    return reply.choices[0].message.content or ""


def test_a_chat(azure: openai.AzureOpenAI, today: openai.OpenAI, server: Server) -> None:
    reply = azure.chat.completions.create(model=server.model, **CHAT)
    assert reply.usage.prompt_tokens_details.audio_tokens == 13
    chunks = azure.chat.completions.create(model=server.model, **CHAT, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == text_of(reply)
    assert text_of(today.chat.completions.create(model=server.model, **CHAT)) == text_of(reply)


def test_a_transcription(azure: openai.AzureOpenAI, today: openai.OpenAI, server: Server) -> None:
    raw = azure.audio.transcriptions.with_raw_response.create(model=server.model, file=AUDIO)
    assert "x-ignored-fields" not in raw.headers
    reply = raw.parse()
    assert reply.text
    assert today.audio.transcriptions.create(model=server.model, file=AUDIO).text == reply.text
    with pytest.deprecated_call():  # the client's own
        assert azure.audio.translations.create(model=server.model, file=AUDIO).text


def test_what_is_no_deployments(azure: openai.AzureOpenAI, today: openai.OpenAI, server: Server) -> None:
    for client in (azure, today):
        assert [model.id for model in client.models.list()] == [server.model]
        assert client.completions.create(model=server.model, prompt="Hello", max_tokens=2).choices[0].text
        assert client.responses.create(model=server.model, input="Hello", max_output_tokens=16).output_text


def test_the_path_names_the_model_whatever_else_does(server: Server) -> None:
    """As at Azure, where `model` is a word for the client's user."""
    options: Any = {"azure_endpoint": server.url, "api_version": VERSION, "api_key": "none", "max_retries": 0}
    with openai.AzureOpenAI(**options, azure_deployment=server.model) as client:
        assert text_of(client.chat.completions.create(model="gpt-4o-audio", **CHAT))
        assert client.audio.transcriptions.create(model="whisper-1", file=AUDIO).text
    with server.client() as http:
        path = f"/openai/deployments/{server.model}/chat/completions"
        assert http.post(path, params={"api-version": VERSION}, json=CHAT).status_code == 200


def test_an_unknown_deployment(server: Server) -> None:
    options: Any = {"azure_endpoint": server.url, "api_version": VERSION, "api_key": "none", "max_retries": 0}
    with openai.AzureOpenAI(**options, azure_deployment="nope") as client:
        with pytest.raises(openai.NotFoundError, match="'nope'"):
            client.audio.transcriptions.create(model=server.model, file=AUDIO)
        with pytest.raises(openai.NotFoundError, match="'nope'"):
            client.chat.completions.create(model=server.model, **CHAT)


@pytest.mark.filterwarnings(
    "ignore:connect\\(\\) must be used as a context manager:DeprecationWarning"
)  # OpenAI's client
@pytest.mark.parametrize("is_there", [True, False])
def test_a_talk(server: Server, is_there: bool) -> None:
    socket = f"{server.url.replace('http', 'ws', 1)}/openai"
    client: Any = openai.AzureOpenAI(
        azure_endpoint=server.url, websocket_base_url=socket, api_version=VERSION, api_key="none"
    )
    if is_there:
        with client.realtime.connect(model=server.model) as talk:
            assert talk.recv().type == "session.created"
    else:
        with pytest.raises(Exception, match="HTTP 404"), client.realtime.connect(model="nope"):
            pass
