"""Chat completions, as OpenAI's own client sees them."""

import base64
from collections.abc import Iterator

import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam

from tests.serving import Server
from tests.sounds import voice, wav


@pytest.fixture
def client(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def spoken(seconds: float, text: str = "What is said here?") -> list[ChatCompletionMessageParam]:
    data = base64.b64encode(wav(voice(seconds))).decode()
    return [
        {
            "role": "user",
            "content": [
                {"type": "text", "text": text},
                {"type": "input_audio", "input_audio": {"data": data, "format": "wav"}},
            ],
        }
    ]


def test_a_plain_completion(client: openai.OpenAI, server: Server) -> None:
    reply = client.chat.completions.create(model=server.model, messages=spoken(3), temperature=0, max_tokens=10)
    assert reply.choices[0].message.role == "assistant"
    assert reply.choices[0].message.content
    assert reply.choices[0].finish_reason in ("length", "stop")
    assert reply.usage is not None
    assert reply.usage.prompt_tokens > 19  # speech embeddings of 3 s


def test_a_streamed_completion_is_the_plain_one(client: openai.OpenAI, server: Server) -> None:
    arguments = {"model": server.model, "messages": spoken(3), "temperature": 0, "max_tokens": 10}
    plain = client.chat.completions.create(**arguments)  # type: ignore[call-overload]
    chunks = list(client.chat.completions.create(**arguments, stream=True, stream_options={"include_usage": True}))  # type: ignore[call-overload]
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == plain.choices[0].message.content
    for usage in (plain.usage, chunks[-1].usage):
        assert usage.prompt_tokens_details.audio_tokens == 19
        assert usage.prompt_tokens_details.text_tokens == usage.prompt_tokens - 19
    assert chunks[-1].usage.total_tokens == plain.usage.total_tokens


def test_a_second_turn_about_the_same_audio_encodes_and_prefills_it_no_more(
    client: openai.OpenAI, server: Server
) -> None:
    def hits() -> float:
        return server.metric("blsp_embedding_cache_windows_total", result="hit")

    question = spoken(29.5, "What is said here, in the first place?")
    first = client.chat.completions.create(model=server.model, messages=question, temperature=0, max_tokens=5)
    answer = {"role": "assistant", "content": first.choices[0].message.content}
    before, tokens = hits(), server.metric("blsp_speech_tokens_total")
    messages = [*question, answer, {"role": "user", "content": "And then?"}]
    second = client.chat.completions.create(model=server.model, messages=messages, temperature=0, max_tokens=5)  # type: ignore[arg-type]
    assert hits() == before + 1
    assert server.metric("blsp_speech_tokens_total") == tokens
    third = client.chat.completions.create(model=server.model, messages=messages, temperature=0, max_tokens=5)  # type: ignore[arg-type]
    assert third.usage.prompt_tokens_details.cached_tokens >= 128  # type: ignore[union-attr]
    assert third.choices[0].message.content == second.choices[0].message.content


def test_the_native_endpoint_says_the_same(client: openai.OpenAI, server: Server) -> None:
    chat = client.chat.completions.create(model=server.model, messages=spoken(3, "Hi"), temperature=0, max_tokens=10)
    with server.client() as http:
        native = http.post(
            "/v1/speech", files={"file": wav(voice(3))}, data={"instruction": "Hi", "max_tokens": "10"}
        ).json()
    assert native["text"] == chat.choices[0].message.content
    assert native["usage"]["prompt_tokens"] == chat.usage.prompt_tokens  # type: ignore[union-attr]


def test_text_only(client: openai.OpenAI, server: Server) -> None:
    reply = client.chat.completions.create(
        model=server.model, messages=[{"role": "user", "content": "Hello"}], temperature=0, max_tokens=5
    )
    assert reply.usage is not None
    assert reply.usage.completion_tokens == 5


def test_choices_and_logprobs_are_vllms(client: openai.OpenAI, server: Server) -> None:
    reply = client.chat.completions.create(
        model=server.model, messages=spoken(1), n=2, seed=7, temperature=1, max_tokens=4, logprobs=True, top_logprobs=2
    )
    assert len(reply.choices) == 2
    for choice in reply.choices:
        assert choice.logprobs is not None
        assert choice.logprobs.content is not None
        assert all(len(token.top_logprobs) >= 2 for token in choice.logprobs.content)


def test_models_are_listed(client: openai.OpenAI, server: Server) -> None:
    assert [model.id for model in client.models.list()] == [server.model]
    assert client.models.retrieve(server.model).id == server.model


def test_errors_are_openais(client: openai.OpenAI, server: Server) -> None:
    with pytest.raises(openai.NotFoundError) as error:
        client.chat.completions.create(model="nope", messages=spoken(1))
    assert error.value.code == "model_not_found"
    assert error.value.param == "model"
    with pytest.raises(openai.BadRequestError) as bad:
        client.chat.completions.create(model=server.model, messages=spoken(1), temperature=-1)
    assert bad.value.param == "temperature"
