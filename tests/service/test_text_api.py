"""What vLLM serves for text alone: completions, responses, tokenization."""

import base64
from collections.abc import Iterator

import httpx
import openai
import pytest

from tests.serving import Server
from tests.sounds import voice, wav


@pytest.fixture
def client(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_a_completion_and_its_stream(client: openai.OpenAI, server: Server) -> None:
    whole = client.completions.create(model=server.model, prompt="Once upon a time", temperature=0, max_tokens=8)
    chunks = client.completions.create(
        model=server.model, prompt="Once upon a time", temperature=0, max_tokens=8, stream=True
    )
    assert "".join(chunk.choices[0].text for chunk in chunks) == whole.choices[0].text != ""
    assert whole.usage is not None
    assert whole.usage.completion_tokens == 8


def test_completions_of_several_prompts(client: openai.OpenAI, server: Server) -> None:
    reply = client.completions.create(model=server.model, prompt=["One", "Two"], n=2, max_tokens=2, logprobs=1)
    assert [choice.index for choice in reply.choices] == [0, 1, 2, 3]


def test_a_completion_takes_no_embeddings(server: Server) -> None:
    with server.client() as http:
        response = http.post("/v1/completions", json={"prompt_embeds": "AAAA", "max_tokens": 1})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "prompt_embeds"


def test_a_response_is_what_chat_says(client: openai.OpenAI, server: Server) -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]
    chat = client.chat.completions.create(model=server.model, messages=messages, temperature=0, max_tokens=16)  # type: ignore[arg-type]
    options = {"model": server.model, "instructions": "Be brief.", "temperature": 0, "max_output_tokens": 16}
    plain = client.responses.create(**options, input="Hello")  # type: ignore[call-overload]
    parts = client.responses.create(
        **options,  # type: ignore[call-overload]
        input=[{"role": "user", "content": [{"type": "input_text", "text": "Hello"}]}],
    )
    assert plain.output_text == parts.output_text == chat.choices[0].message.content
    events = list(client.responses.create(**options, input="Hello", stream=True))  # type: ignore[call-overload]
    assert "".join(e.delta for e in events if e.type == "response.output_text.delta") == plain.output_text
    assert events[-1].type in ("response.completed", "response.incomplete")


def test_an_unknown_response_is_no_unknown_model(client: openai.OpenAI, server: Server) -> None:
    with pytest.raises(openai.BadRequestError, match="not found") as error:
        client.responses.create(model=server.model, input="Hello", previous_response_id="resp_1")
    assert error.value.param == "response_id"


def test_tokenize_and_detokenize(server: Server) -> None:
    with server.client() as http:
        text = http.post("/tokenize", json={"prompt": "Hello there"}).json()
        assert text["count"] == len(text["tokens"])
        assert text["max_model_len"] == 2048
        assert "Hello there" in http.post("/detokenize", json={"tokens": text["tokens"]}).json()["prompt"]


def test_tokenized_messages_are_the_prompt_of_a_completion(server: Server) -> None:
    request = {"messages": [{"role": "user", "content": "Hello there"}]}
    with server.client() as http:
        tokens = http.post("/tokenize", json=request).json()["tokens"]
        chat = http.post("/v1/chat/completions", json=request | {"max_tokens": 1, "return_token_ids": True}).json()
    assert tokens == chat["prompt_token_ids"]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", {"prompt": "Hello", "temperature": -1}),
        ("/v1/completions", {"prompt": "word " * 5000}),
        ("/v1/responses", {"input": "Hello", "temperature": -1}),
        ("/v1/responses", {"input": [{"role": "user", "content": "word " * 5000}]}),
        ("/tokenize", {}),
        ("/detokenize", {"tokens": ["a"]}),
        ("/detokenize", {"tokens": [5, 2**40]}),
        ("/v1/completions", {"prompt": [5, 2**40], "echo": True, "max_tokens": 1}),
        ("/v1/completions", {"prompt": [[5], [5, 2**40]], "echo": True, "max_tokens": 1}),
    ],
)
def test_refusals(server: Server, path: str, body: dict[str, object]) -> None:
    with server.client() as http:
        response = http.post(path, json=body)
    assert response.status_code == 400, response.text
    assert response.json()["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", {"prompt": "Hello", "max_tokens": 1500, "min_tokens": 1500}),
        ("/v1/responses", {"input": "Hello", "max_output_tokens": 1500, "ignore_eos": True}),
    ],
)
@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes(server: Server, path: str, body: dict[str, object], stream: bool) -> None:
    before = server.metric("blsp_aborted_generations_total")
    with server.client() as http:
        if stream:
            with http.stream("POST", path, json=body | {"stream": True}) as response:
                assert next(response.iter_lines())
        else:
            with pytest.raises(httpx.ReadTimeout):
                http.post(path, json=body, timeout=httpx.Timeout(60, read=0.5))
    server.wait_for(lambda: server.metric("blsp_aborted_generations_total") == before + 1)
    server.wait_for(lambda: server.metric("vllm:num_requests_running", model_name=server.model) == 0)
    assert server.metric("blsp_requests_total", endpoint=path) > 0


def test_speech_is_tokenized_as_zeros(server: Server) -> None:
    with server.client() as http:
        data = base64.b64encode(wav(voice(2))).decode()
        part = {"type": "input_audio", "input_audio": {"data": data, "format": "wav"}}
        tokens = http.post("/tokenize", json={"messages": [{"role": "user", "content": [part]}]}).json()["tokens"]
    assert tokens.count(0) == 13


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "Hi"}]}),
        ("/v1/completions", {"prompt": "Hi"}),
    ],
)
def test_a_grammar_over_the_limit_is_refused_before_it_is_compiled(
    server: Server, path: str, body: dict[str, object]
) -> None:
    choices = {"structured_outputs": {"choice": [f"{i:0200}" for i in range(200)]}}
    with server.client() as http:
        refusal = http.post(path, json=body | choices)
    assert refusal.status_code == 400
    assert refusal.json()["error"]["param"] == "structured_outputs"
    assert "--max-grammar-bytes" in refusal.json()["error"]["message"]
