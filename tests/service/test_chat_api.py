"""Chat completions, as OpenAI's own client sees them."""

import base64
import json
from collections.abc import Callable, Iterator
from typing import Any

import openai
import pytest
from openai.types.chat import ChatCompletion, ChatCompletionMessageParam

from tests.serving import Server
from tests.sounds import encoded, voice, wav

Ask = Callable[..., ChatCompletion]


@pytest.fixture
def client(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture
def ask(client: openai.OpenAI, server: Server) -> Ask:
    """A greedy completion of twelve tokens, unless the request says otherwise."""

    def ask(messages: Any = None, **options: Any) -> ChatCompletion:
        options = {"temperature": 0, "max_tokens": 12} | options
        reply = client.chat.completions.create(model=server.model, messages=messages or spoken(2), **options)
        assert isinstance(reply, ChatCompletion)
        return reply

    return ask


def heard(data: bytes, form: str = "wav") -> dict[str, Any]:
    return {"type": "input_audio", "input_audio": {"data": base64.b64encode(data).decode(), "format": form}}


def linked(url: str) -> list[Any]:
    return [{"role": "user", "content": [{"type": "audio_url", "audio_url": {"url": url}}]}]


def said(*parts: Any) -> dict[str, Any]:
    return {"role": "user", "content": [{"type": "text", "text": p} if isinstance(p, str) else p for p in parts]}


def spoken(seconds: float, text: str = "What is said here?") -> list[ChatCompletionMessageParam]:
    return [said(text, heard(wav(voice(seconds))))]  # type: ignore[list-item]


def text_of(reply: ChatCompletion) -> str:
    return reply.choices[0].message.content or ""


def audio_tokens(reply: ChatCompletion) -> int:
    return reply.usage.prompt_tokens_details.audio_tokens  # type: ignore[union-attr, return-value]


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
    messages: list[Any] = [*question, answer, {"role": "user", "content": "And then?"}]
    second = client.chat.completions.create(model=server.model, messages=messages, temperature=0, max_tokens=5)
    assert hits() == before + 1
    assert server.metric("blsp_speech_tokens_total") == tokens
    # The blsp format writes a single turn otherwise than a conversation, so that the LLM has its prefix from the second turn on.
    messages += [{"role": "assistant", "content": text_of(second)}, {"role": "user", "content": "And then?"}]
    third: Any = client.chat.completions.create(model=server.model, messages=messages, temperature=0, max_tokens=5)
    assert third.usage.prompt_tokens_details.cached_tokens >= 128
    assert server.metric("blsp_speech_tokens_total") == tokens


def test_what_has_another_salt_is_cached_by_itself(client: openai.OpenAI, server: Server) -> None:
    question: list[Any] = [{"role": "user", "content": "Count to ten. " * 40}]
    question += [{"role": "assistant", "content": "One."}, *spoken(3, "And then?")]

    def cached(salt: str) -> int:
        asked: dict[str, Any] = {"extra_body": {"cache_salt": salt}, "max_tokens": 1}
        reply: Any = client.chat.completions.create(model=server.model, messages=question, **asked)
        return int(reply.usage.prompt_tokens_details.cached_tokens)

    assert [cached(salt) > 0 for salt in ("alice", "alice", "bob", "bob")] == [False, True, False, True]


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


class TestOptions:
    """vLLM's sampling, over speech."""

    def test_max_completion_tokens(self, ask: Ask) -> None:
        reply = ask(max_tokens=None, max_completion_tokens=3)
        assert reply.usage is not None
        assert (reply.usage.completion_tokens, reply.choices[0].finish_reason) == (3, "length")

    def test_stop(self, ask: Ask) -> None:
        whole = text_of(ask())
        middle = whole[5:8]
        reply = ask(stop=[middle])
        assert text_of(reply) == whole[: whole.index(middle)]
        assert reply.choices[0].finish_reason == "stop"

    def test_seed(self, ask: Ask) -> None:
        one, same, other = (text_of(ask(temperature=1, seed=seed)) for seed in (1, 1, 2))
        assert one == same != other

    def test_top_p(self, ask: Ask) -> None:
        assert text_of(ask(temperature=2, top_p=1e-6)) == text_of(ask()) != text_of(ask(temperature=2, seed=1))

    @pytest.mark.parametrize("penalty", ["frequency_penalty", "presence_penalty"])
    def test_penalties(self, ask: Ask, penalty: str) -> None:
        """Seven tokens are forced to be of two kinds, until a penalty makes the first too dear."""
        bias = {"logit_bias": {"40": 100, "41": 99}, "extra_body": {"return_token_ids": True}, "max_tokens": 7}
        [free] = ask(**bias).choices
        [dear] = ask(**bias, **{penalty: 2}).choices
        assert free.token_ids == [40] * 7  # type: ignore[attr-defined]
        assert set(dear.token_ids) == {40, 41}  # type: ignore[attr-defined]

    def test_return_token_ids(self, ask: Ask) -> None:
        reply = ask(extra_body={"return_token_ids": True})
        assert reply.usage is not None
        assert len(reply.choices[0].token_ids) == reply.usage.completion_tokens  # type: ignore[attr-defined]
        assert len(reply.prompt_token_ids) == reply.usage.prompt_tokens  # type: ignore[attr-defined]

    def test_json_object(self, ask: Ask) -> None:
        assert text_of(ask(response_format={"type": "json_object"})).lstrip().startswith("{")

    def test_json_schema(self, ask: Ask) -> None:
        schema = {
            "type": "object",
            "properties": {"heard": {"enum": ["music", "speech"]}, "loud": {"type": "boolean"}},
            "required": ["heard", "loud"],
            "additionalProperties": False,
        }
        form = {"type": "json_schema", "json_schema": {"name": "sound", "schema": schema, "strict": True}}
        reply = json.loads(text_of(ask(response_format=form, max_tokens=500, temperature=2, seed=1)))
        assert reply["heard"] in ("music", "speech")
        assert isinstance(reply["loud"], bool)

    def test_tools_need_a_chat_template(self, ask: Ask) -> None:
        tools = [{"type": "function", "function": {"name": "play", "parameters": {}}}]
        with pytest.raises(openai.BadRequestError, match="chat template") as error:
            ask(tools=tools)
        assert error.value.param == "tools"

    @pytest.mark.parametrize(
        ("options", "param"),
        [({"top_logprobs": 2}, "top_logprobs"), ({"extra_body": {"tool_choice": "auto"}}, "tool_choice")],
        ids=str,
    )
    def test_what_vllm_refuses(self, ask: Ask, options: dict[str, Any], param: str) -> None:
        with pytest.raises(openai.BadRequestError) as error:
            ask(**options)
        assert error.value.param == param


class TestAudio:
    """Where and how a message may hold audio."""

    def test_several_in_a_message(self, ask: Ask) -> None:
        one, two = (heard(wav(voice(seconds, seed))) for seconds, seed in ((2, 1), (3, 2)))
        forth, back = ask([said("Compare.", one, two)]), ask([said("Compare.", two, one)])
        assert audio_tokens(forth) == audio_tokens(back) == 13 + 19
        assert text_of(forth) != text_of(back)

    def test_in_several_turns(self, ask: Ask, server: Server) -> None:
        turns = [
            {"role": "system", "content": "Be brief."},
            said("First?", heard(wav(voice(2, 1)))),
            {"role": "assistant", "content": "One."},
            said(heard(wav(voice(3, 2))), "And this?"),
        ]
        reply = ask(turns)
        assert audio_tokens(reply) == 13 + 19
        with server.client() as http:
            fields = {"history": json.dumps(turns[:-1]), "max_tokens": "12"}
            native = http.post("/v1/speech", files={"file": wav(voice(3, 2))}, data=fields).json()
        assert native["audio"]["speech_tokens"] == 19
        assert native["usage"]["prompt_tokens_details"]["audio_tokens"] == 13 + 19

    def test_a_system_message_is_read(self, ask: Ask) -> None:
        plain = ask()
        told = ask([{"role": "system", "content": "Answer in German."}, *spoken(2)])
        assert told.usage.prompt_tokens > plain.usage.prompt_tokens  # type: ignore[union-attr]
        assert text_of(told) != text_of(plain)

    @pytest.mark.parametrize(
        ("container", "codec", "rate"),
        [
            ("flac", "flac", 44_100),
            ("mp3", "libmp3lame", 48_000),
            ("ogg", "libopus", 48_000),
            ("webm", "libopus", 48_000),
            ("ipod", "aac", 22_050),
            ("wav", "pcm_s16le", 8_000),
        ],
    )
    def test_any_format_whatever_it_is_called(self, ask: Ask, container: str, codec: str, rate: int) -> None:
        data = encoded(container, codec, 2, rate)
        for form in ("wav", "mp3", container):
            assert audio_tokens(ask([said("Well?", heard(data, form))])) in (13, 14)
            assert audio_tokens(ask([said(heard(data, form))])) in (13, 14)

    def test_a_data_url_is_input_audio(self, ask: Ask) -> None:
        data = base64.b64encode(wav(voice(2))).decode()
        by_url = ask(linked(f"data:audio/wav;base64,{data}"))
        assert text_of(by_url) == text_of(ask([said(heard(wav(voice(2))))]))
        assert audio_tokens(by_url) == 13

    @pytest.mark.parametrize(
        ("url", "reason"),
        [
            ("http://127.0.0.1:9/a.wav", "off by default"),
            ("HTTPS://example.com/a.wav", "off by default"),
            ("file:///etc/passwd", "data: URL"),
            ("data:audio/wav,RIFF", "data: URL"),
            ("data:audio/wav;base64,&&&", "base64"),
        ],
    )
    def test_other_urls_are_refused(self, ask: Ask, url: str, reason: str) -> None:
        with pytest.raises(openai.BadRequestError, match=reason) as error:
            ask(linked(url))
        assert error.value.param == "messages[0].content[0].audio_url.url"


def test_errors_are_openais(client: openai.OpenAI, server: Server) -> None:
    with pytest.raises(openai.NotFoundError) as error:
        client.chat.completions.create(model="nope", messages=spoken(1))
    assert error.value.code == "model_not_found"
    assert error.value.param == "model"
    with pytest.raises(openai.BadRequestError) as bad:
        client.chat.completions.create(model=server.model, messages=spoken(1), temperature=-1)
    assert bad.value.param == "temperature"
