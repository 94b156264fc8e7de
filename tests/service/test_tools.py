"""Tools and instructions: what an LLM with a chat template and a server with settings for it can do beyond the shared server."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from service.cli import Init
from tests.javascript import needs_node, run
from tests.openai_types import check
from tests.service.test_chat_api import heard, said
from tests.serving import Server, serve
from tests.sounds import voice, wav

# In the manner of Hermes: tools are listed first, calls and results are JSON in tags.
TEMPLATE = (
    "{{ bos_token }}{% for t in tools or [] %}<tool>{{ t | tojson }}</tool>\n{% endfor %}"
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}"
    "{% for c in m.tool_calls or [] %}<tool_call>{{ c.function | tojson }}</tool_call>{% endfor %}</{{ m.role }}>\n"
    "{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)
PARAMETERS = {
    "type": "object",
    "properties": {"on": {"type": "boolean"}},
    "required": ["on"],
    "additionalProperties": False,
}
TOOLS: list[dict[str, Any]] = [
    {
        "type": "function",
        "function": {"name": name, "description": f"The {name}.", "parameters": PARAMETERS, "strict": True},
    }
    for name in ("lamp", "radio")
]
AUDIO = wav(voice(2.0))
QUESTION = said("Do what is said.", heard(AUDIO))


@pytest.fixture(scope="module")
def tooled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server of an LLM with random weights whose replies to `tools` are tool calls by force of grammar alone."""
    folder = tmp_path_factory.mktemp("tools") / "tooled"
    Init(target=folder, prompt_format="chat-template").cli_cmd()
    (folder / "llm" / "chat_template.jinja").write_text(TEMPLATE)
    options = ("--tool-call-parser", "hermes", "--transcribe-instruction", "Write it down.")
    with serve(folder, tmp_path_factory.mktemp("cache"), *options) as server:
        yield server


@pytest.fixture
def client(tooled: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{tooled.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def ask(client: openai.OpenAI, server: Server, **options: Any) -> Any:
    request: dict[str, Any] = {"messages": [QUESTION], "tools": TOOLS, "temperature": 1, "seed": 1, "max_tokens": 500}
    return client.chat.completions.create(model=server.model, **(request | options))


def test_a_tool_is_called(client: openai.OpenAI, tooled: Server) -> None:
    reply = ask(client, tooled, tool_choice="required", parallel_tool_calls=False)
    check(reply.to_dict(), ChatCompletion)
    [choice] = reply.choices
    assert choice.finish_reason == "tool_calls"
    [call] = choice.message.tool_calls
    assert call.function.name in ("lamp", "radio")
    assert json.loads(call.function.arguments)["on"] in (True, False)
    assert reply.usage.prompt_tokens_details.audio_tokens == 13


def test_the_tool_that_is_named_is_called(client: openai.OpenAI, tooled: Server) -> None:
    reply = ask(client, tooled, tool_choice={"type": "function", "function": {"name": "radio"}})
    [call] = reply.choices[0].message.tool_calls
    assert call.function.name == "radio"
    assert json.loads(call.function.arguments)["on"] in (True, False)


def test_a_streamed_call(client: openai.OpenAI, tooled: Server) -> None:
    chunks = list(ask(client, tooled, tool_choice="required", parallel_tool_calls=False, stream=True))
    for chunk in chunks:
        check(chunk.to_dict(), ChatCompletionChunk)
    calls = [call.function for chunk in chunks for call in chunk.choices[0].delta.tool_calls or ()]
    assert "".join(call.name or "" for call in calls) in ("lamp", "radio")
    assert json.loads("".join(call.arguments or "" for call in calls))["on"] in (True, False)
    assert chunks[-1].choices[0].finish_reason == "tool_calls"


def test_a_response_calls_a_tool(client: openai.OpenAI, tooled: Server) -> None:
    tools: list[Any] = [{"type": "function", **tool["function"]} for tool in TOOLS]
    reply = client.responses.create(
        model=tooled.model, input="Lights!", tools=tools, tool_choice="required", max_output_tokens=500
    )
    [call] = [item for item in reply.output if item.type == "function_call"][:1]
    assert call.name in ("lamp", "radio")


def test_no_tool_is_called_where_none_is_wanted(client: openai.OpenAI, tooled: Server) -> None:
    reply = ask(client, tooled, tool_choice="none", max_tokens=20)
    assert reply.choices[0].message.tool_calls is None
    assert reply.choices[0].message.content


def test_calls_and_results_are_in_the_prompt(tooled: Server) -> None:
    call = {"id": "1", "type": "function", "function": {"name": "lamp", "arguments": '{"on": true}'}}
    messages = [
        QUESTION,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": "It is on."},
    ]
    with tooled.client() as http:
        tokens = http.post("/tokenize", json={"messages": messages, "tools": TOOLS}).json()["tokens"]
        asked = {"messages": messages, "tools": TOOLS, "add_generation_prompt": False}
        unanswered = http.post("/tokenize", json=asked).json()["tokens"]
        assert len(unanswered) < len(tokens)
        assert tokens[: len(unanswered)] == unanswered
        prompt = http.post("/detokenize", json={"tokens": [token for token in tokens if token]}).json()["prompt"]
    assert '<tool>{"type": "function", "function": {"name": "lamp"' in prompt
    assert '<tool_call>{"arguments": {"on": true}, "name": "lamp"}</tool_call>' in prompt
    assert "<tool>It is on.</tool>" in prompt
    assert tokens.count(0) == 13


def test_a_second_turn_finds_the_first_in_the_cache(client: openai.OpenAI, tooled: Server) -> None:
    question = said("What is said here? " * 8, heard(wav(voice(29.0, 9))))
    first = ask(client, tooled, messages=[question], tool_choice="none", max_tokens=5)
    turns = [question, {"role": "assistant", "content": first.choices[0].message.content}, said("And then?")]
    tokens = tooled.metric("blsp_speech_tokens_total")
    hits = tooled.metric("blsp_embedding_cache_windows_total", result="hit")
    second = ask(client, tooled, messages=turns, tool_choice="none", max_tokens=5)
    assert second.usage.prompt_tokens_details.cached_tokens > second.usage.prompt_tokens_details.audio_tokens
    assert tooled.metric("blsp_speech_tokens_total") == tokens
    assert tooled.metric("blsp_embedding_cache_windows_total", result="hit") == hits + 1


def test_arguments_that_are_no_json(client: openai.OpenAI, tooled: Server) -> None:
    call = {"id": "1", "type": "function", "function": {"name": "lamp", "arguments": "{on"}}
    with pytest.raises(openai.BadRequestError) as error:
        ask(client, tooled, messages=[QUESTION, {"role": "assistant", "tool_calls": [call]}])
    assert error.value.param == "messages[1].tool_calls[0].function.arguments"


def test_the_settings_instruction_is_what_a_transcription_asks(client: openai.OpenAI, tooled: Server) -> None:
    transcript = client.audio.transcriptions.create(model=tooled.model, file=AUDIO).text
    with tooled.client() as http:
        native = http.post(
            "/v1/speech", files={"file": AUDIO}, data={"instruction": "Write it down.", "max_tokens": "35"}
        ).json()
    assert transcript == native["text"].strip()


@needs_node
def test_the_javascript_client(tooled: Server, tmp_path: Path) -> None:
    (tmp_path / "speech.wav").write_bytes(AUDIO)
    run("tools.test.js", tooled, tmp_path / "speech.wav")
