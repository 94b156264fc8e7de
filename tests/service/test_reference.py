"""The official code's own outputs, through HTTP and vLLM; skipped where the reference files are not at hand."""

import base64
import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.serving import SHARED, Server, serve

REFERENCE = SHARED / "reference" / "official-blsp"
if not REFERENCE.is_dir():
    pytest.skip("the official code's outputs are not here", allow_module_level=True)

CASES = json.loads((REFERENCE / "cases.json").read_text())
AUDIO = {audio["id"]: (REFERENCE / audio["file"]).read_bytes() for audio in CASES["audios"]}
# The official code drops what is over 30 s; we don't.
TOO_LONG = {audio["id"] for audio in CASES["audios"] if audio["truncated"]}
SINGLE_TURN = [case for case in CASES["cases"] + CASES["variant_cases"] if case["audio"] not in TOO_LONG]


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serve(REFERENCE / "checkpoint_safetensors", tmp_path_factory.mktemp("cache")) as server:
        yield server


@pytest.mark.parametrize("case", SINGLE_TURN, ids=lambda case: case["id"])
def test_single_turn(reference: Server, case: dict[str, Any]) -> None:
    overrides = case.get("generation_overrides", {})
    fields = {
        "instruction": case["instruction"],
        "max_tokens": overrides.get("max_new_tokens", 24),
        "min_tokens": overrides.get("min_new_tokens", 1),
        "return_token_ids": True,
    }
    with reference.client() as client:
        reply = client.post("/v1/speech", files={"file": AUDIO[case["audio"]]}, data=fields).json()
    assert reply["token_ids"] == case["new_ids"]
    assert reply["text"] == case["text"]
    assert reply["usage"]["prompt_tokens"] == case["prompt_length"]


def complete(server: Server, messages: list[dict[str, Any]]) -> tuple[list[int], str, list[int]]:
    """The reply's ids and text, and the prompt's ids."""
    body = {"messages": messages, "max_tokens": 24, "min_tokens": 1, "temperature": 0, "return_token_ids": True}
    with server.client() as client:
        reply = client.post("/v1/chat/completions", json=body).json()
    choice = reply["choices"][0]
    return choice["token_ids"], choice["message"]["content"], reply["prompt_token_ids"]


@pytest.mark.parametrize("case", CASES["text_only_cases"], ids=lambda case: case["id"])
def test_text_only(reference: Server, case: dict[str, Any]) -> None:
    ids, text, prompt = complete(reference, [{"role": "user", "content": case["instruction"]}])
    assert (ids, text) == (case["new_ids"], case["text"])
    assert prompt == case["prefix_ids"] + case["suffix_ids"]


def message(user: dict[str, str]) -> dict[str, Any]:
    if "text" in user:
        return {"role": "user", "content": user["text"]}
    data = base64.b64encode(AUDIO[user["speech"]]).decode()
    return {"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": data, "format": "wav"}}]}


@pytest.mark.parametrize("case", CASES["chat_cases"], ids=lambda case: case["id"])
def test_chat(reference: Server, case: dict[str, Any]) -> None:
    """A conversation that begins with text is left out at its first turn: one text message alone is a text-only request, which the
    official generate.py tokenizes in one piece, and its chat_demo.py in two."""
    messages: list[dict[str, Any]] = []
    for turn in case["turns"]:
        messages.append(message(turn["user"]))
        if len(messages) > 1 or "speech" in turn["user"]:
            ids, text, prompt = complete(reference, messages)
            assert (ids, text) == (turn["new_ids"], turn["text"])
            assert len(prompt) == turn["prompt_length"]
        messages.append({"role": "assistant", "content": turn["text"]})
