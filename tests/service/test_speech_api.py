"""`POST /v1/speech` against the real server."""

import base64
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from typing import Any

import httpx
import pytest
import torch
from transformers import LlamaForCausalLM

from models.checkpoint import open_checkpoint
from models.embedder import Embedder
from models.features import split_windows
from models.prompt import Message, PromptBuilder, Speech
from tests.serving import Server
from tests.sounds import RATE, voice, wav

INSTRUCTIONS = ["", "Please translate the following audio into German text.", "请把这段语音翻译成德语。"]


Reference = tuple[LlamaForCausalLM, Embedder, PromptBuilder]


@pytest.fixture(scope="module")
def reference(server: Server) -> Reference:
    checkpoint = open_checkpoint(str(server.checkpoint), server.cache)
    llm = LlamaForCausalLM.from_pretrained(checkpoint.llm, dtype=torch.float32).eval()
    return llm, checkpoint.load_embedder(), checkpoint.prompt_builder(torch.float32)


@torch.no_grad()
def expected_ids(reference: Reference, seconds: float, instruction: str, tokens: int, seed: int = 0) -> list[int]:
    """Greedy ids without vLLM: the prompt's embeddings through transformers' generate."""
    llm, embedder, prompts = reference
    samples = torch.from_numpy((voice(seconds, seed).clip(-1, 1) * 32767).astype("<i2") / 32768).float()
    rows = torch.cat(embedder.embed(split_windows(samples)))
    prompt = prompts.build([Message("user", [instruction, Speech(rows)])])
    embeddings = llm.get_input_embeddings()(torch.tensor(prompt.token_ids))
    embeddings = torch.where(torch.tensor(prompt.is_token)[:, None], embeddings, prompt.rows)[None]
    mask = torch.ones(embeddings.shape[:2], dtype=torch.long)
    out = llm.generate(
        inputs_embeds=embeddings, attention_mask=mask, max_new_tokens=tokens, min_new_tokens=1, do_sample=False
    )
    return list(out[0].tolist())


def ask(server: Server, audio: bytes, **fields: Any) -> httpx.Response:
    with server.client() as client:
        return client.post("/v1/speech", files={"file": ("speech.wav", audio)}, data=fields)


@pytest.mark.parametrize("seconds", [0.4, 3.7, 12.0, 30.0, 41.5])
@pytest.mark.parametrize("instruction", INSTRUCTIONS)
def test_greedy_ids_equal_those_of_transformers(
    server: Server, reference: Reference, seconds: float, instruction: str
) -> None:
    reply = ask(
        server, wav(voice(seconds)), instruction=instruction, max_tokens=16, min_tokens=1, return_token_ids=True
    ).json()
    assert reply["token_ids"] == expected_ids(reference, seconds, instruction, 16)


def test_the_reply_says_what_was_done(server: Server) -> None:
    reply = ask(server, wav(voice(31.0)), instruction="Hi", max_tokens=5, min_tokens=5).json()
    assert reply["object"] == "speech"
    assert reply["model"] == server.model
    assert reply["finish_reason"] == "length"
    assert reply["audio"] == {"seconds": 31.0, "windows": 2, "speech_tokens": 188 + 7}
    usage = reply["usage"]
    assert usage["completion_tokens"] == 5
    assert usage["total_tokens"] == usage["prompt_tokens"] + 5
    details = usage["prompt_tokens_details"]
    assert details["audio_tokens"] == 195
    assert details["audio_tokens"] + details["text_tokens"] == usage["prompt_tokens"]
    assert reply["timings"].keys() == {
        "upload",
        "decode",
        "features",
        "queue",
        "encode",
        "prefill",
        "generate",
        "ttft",
        "ttft_after_upload",
        "total",
    }
    assert "token_ids" not in reply


def test_a_raw_body_is_the_same_as_a_form(server: Server) -> None:
    audio = wav(voice(2.0))
    with server.client() as client:
        raw = client.post("/v1/speech", params={"instruction": "Hi", "max_tokens": 8}, content=audio).json()
    assert raw["text"] == ask(server, audio, instruction="Hi", max_tokens=8).json()["text"] != ""


def test_a_stream_is_the_reply_in_pieces(server: Server) -> None:
    audio, fields = wav(voice(2.0)), {"instruction": "Hi", "max_tokens": 40, "min_tokens": 40, "return_token_ids": True}
    whole = ask(server, audio, **fields).json()
    response = ask(server, audio, **fields, stream=True)
    assert response.headers["content-type"].startswith("text/event-stream")
    lines = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line]
    assert lines.pop() == "[DONE]"
    *deltas, last = map(json.loads, lines)
    assert len(deltas) > 1
    assert {event["object"] for event in deltas} == {"speech.delta"}
    assert "".join(event["delta"] for event in deltas) == last["text"] == whole["text"]
    assert list(chain.from_iterable(event["token_ids"] for event in deltas)) == last["token_ids"] == whole["token_ids"]
    assert last.keys() == whole.keys()
    assert last["usage"]["completion_tokens"] == 40


def test_concurrent_requests_get_what_each_gets_alone(server: Server) -> None:
    clips = [wav(voice(0.5 + 1.3 * i, seed=i)) for i in range(12)]

    def text(clip: bytes) -> str:
        return str(ask(server, clip, instruction="Hi", max_tokens=12, min_tokens=1).json()["text"])

    alone = [text(clip) for clip in clips]
    with ThreadPoolExecutor(len(clips)) as pool:
        assert list(pool.map(text, clips)) == alone
    assert len(set(alone)) > 6


def test_history_is_the_conversation_before(server: Server) -> None:
    first, second = wav(voice(1.0, 1)), wav(voice(1.5, 2))

    def spoken(audio: bytes) -> dict[str, Any]:
        return {"type": "input_audio", "input_audio": {"data": base64.b64encode(audio).decode(), "format": "wav"}}

    history = [{"role": "user", "content": [spoken(first)]}, {"role": "assistant", "content": "Hello there."}]
    reply = ask(server, second, history=json.dumps(history), max_tokens=8, min_tokens=1, return_token_ids=True).json()
    messages = [*history, {"role": "user", "content": [spoken(second)]}]
    with server.client() as client:
        body = {"messages": messages, "max_tokens": 8, "min_tokens": 1, "temperature": 0, "return_token_ids": True}
        chat = client.post("/v1/chat/completions", json=body).json()
    assert reply["token_ids"] == chat["choices"][0]["token_ids"]
    assert reply["usage"]["prompt_tokens"] == chat["usage"]["prompt_tokens"]
    assert reply["usage"]["prompt_tokens_details"]["audio_tokens"] == 7 + 10


def test_stop_seed_and_temperature_do_their_work(server: Server) -> None:
    audio = wav(voice(2.0))
    greedy = ask(server, audio, max_tokens=20, min_tokens=5).json()
    stop = greedy["text"][4:8]
    stopped = ask(server, audio, max_tokens=20, stop=json.dumps([stop, "never"])).json()
    assert stopped["finish_reason"] == "stop"
    assert stopped["text"] == greedy["text"][: greedy["text"].index(stop)]
    warm = [
        ask(server, audio, max_tokens=20, min_tokens=20, temperature=1.5, seed=seed).json()["text"]
        for seed in (1, 1, 2)
    ]
    assert warm[0] == warm[1] != warm[2]


def test_audio_of_a_few_samples_is_heard(server: Server) -> None:
    reply = ask(server, wav(voice(1 / RATE)), max_tokens=1).json()
    assert reply["audio"]["speech_tokens"] == 1


def test_windows_that_are_full_are_prefilled_while_the_upload_goes_on(server: Server, reference: Reference) -> None:
    audio = wav(voice(65.0, seed=77))
    computed = server.metric("vllm:prompt_tokens_total")

    def body() -> Iterator[bytes]:
        yield audio[: len(audio) - 2 * RATE]
        server.wait_for(
            lambda: server.metric("vllm:prompt_tokens_total") > computed
        )  # the first window, before the last
        yield audio[len(audio) - 2 * RATE :]

    with server.client() as client:
        reply = client.post("/v1/speech", params={"max_tokens": 4, "return_token_ids": "true"}, content=body()).json()
    assert reply["audio"]["windows"] == 3
    assert reply["usage"]["prompt_tokens_details"]["cached_tokens"] >= 128
    ids = expected_ids(reference, 65.0, "", 4, seed=77)
    assert reply["token_ids"][: len(ids)] == ids
