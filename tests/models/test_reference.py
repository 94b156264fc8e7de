"""The outputs of the official BLSP code (cwang621/blsp f7bf52f, transformers 4.31), which came with this repository's making."""

import json
import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

from models.checkpoint import Checkpoint, open_checkpoint
from models.embedder import Embedder
from models.features import N_SAMPLES
from models.packed import Packed
from models.prompt import Message, Prompt, PromptBuilder, Speech
from tests.models.test_packed import rows_on, strip_for

REFERENCE = Path(__file__).parents[2].parent / "shared" / "reference" / "official-blsp"
if not REFERENCE.exists():
    pytest.skip(f"no {REFERENCE}", allow_module_level=True)

CASES: dict[str, Any] = json.loads((REFERENCE / "cases.json").read_text())
AUDIOS = [audio["id"] for audio in CASES["audios"]]
SINGLE = {case["id"]: case for kind in ("cases", "text_only_cases", "variant_cases") for case in CASES[kind]}
# The first turn of a conversation that begins with text is left out: served alone, it has generate.py's form.
TURNS = {
    f"{chat['id']}_turn{i}": (chat, i)
    for chat in CASES["chat_cases"]
    for i, turn in enumerate(chat["turns"])
    if i > 0 or "speech" in turn["user"]
}


def samples(audio: str) -> Tensor:
    """What the official code hears of a recording: its first 30 s."""
    with wave.open(str(REFERENCE / "audio" / f"{audio}.wav")) as file:
        pcm = np.frombuffer(file.readframes(file.getnframes()), "<i2")
    return torch.from_numpy(pcm.astype(np.float32) / 32768)[:N_SAMPLES]


def stored(audio: str) -> dict[str, Tensor]:
    with np.load(REFERENCE / "npz" / f"{audio}.npz") as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays}


@pytest.fixture(scope="module", params=["checkpoint", "checkpoint_safetensors"])
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return open_checkpoint(str(REFERENCE / request.param), tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def embedder(checkpoint: Checkpoint) -> Embedder:
    return checkpoint.load_embedder()


@pytest.fixture(scope="module")
def rows(embedder: Embedder) -> dict[str, Tensor]:
    """All recordings' speech embeddings, out of one batch."""
    return dict(zip(AUDIOS, embedder.embed([samples(audio) for audio in AUDIOS]), strict=True))


@pytest.fixture(scope="module")
def tokenizer(checkpoint: Checkpoint) -> PreTrainedTokenizerBase:
    return checkpoint.tokenizer()


@pytest.fixture(scope="module")
def builder(checkpoint: Checkpoint) -> PromptBuilder:
    return checkpoint.prompt_builder(torch.float32)


@pytest.fixture(scope="module")
def llm(checkpoint: Checkpoint) -> LlamaForCausalLM:
    return LlamaForCausalLM.from_pretrained(checkpoint.llm).eval()


@pytest.fixture(scope="module")
def first_logits() -> dict[str, Tensor]:
    return stored("first_logits")


def single_prompt(builder: PromptBuilder, rows: dict[str, Tensor], case: dict[str, Any]) -> Prompt:
    speech = [Speech(rows[case["audio"]])] if case["audio"] else []
    return builder.build([Message("user", [case["instruction"], *speech])])


def turn_prompt(builder: PromptBuilder, rows: dict[str, Tensor], chat: dict[str, Any], turn: int) -> Prompt:
    messages = []
    for step in chat["turns"][: turn + 1]:
        user = step["user"]
        messages.append(Message("user", [Speech(rows[user["speech"]]) if "speech" in user else user["text"]]))
        messages.append(Message("assistant", [step["text"]]))
    return builder.build(messages[:-1])


def embeddings(llm: LlamaForCausalLM, prompt: Prompt) -> Tensor:
    """(1, length, llm_dim): the rows of text from the LLM, those of speech from the prompt."""
    text = llm.get_input_embeddings()(torch.tensor(prompt.token_ids))
    return torch.where(torch.tensor(prompt.is_token)[:, None], text, prompt.rows)[None]


@pytest.mark.parametrize("audio", CASES["audios"], ids=AUDIOS)
def test_features_states_and_rows(embedder: Embedder, rows: dict[str, Tensor], audio: dict[str, Any]) -> None:
    expected = stored(audio["id"])
    features = embedder.features(samples(audio["id"]))
    close(features[:, expected["input_features_frames"]], expected["input_features"])
    states = embedder.encode([features])[0].detach()
    close(states[expected["encoder_output_rows"]], expected["encoder_output"])
    close(rows[audio["id"]], expected["speech_embeds"])
    assert embedder.speech_length(audio["n_samples_used"]) == audio["speech_length"]


@pytest.mark.parametrize(
    "device",
    ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU"))],
)
def test_rows_of_the_packed_networks(checkpoint: Checkpoint, device: str) -> None:
    embedder = checkpoint.load_embedder(device=device)
    packed = Packed(embedder.encoder, embedder.adapter, embedder.padding)
    windows = [samples(audio) for audio in AUDIOS]
    for audio, rows in zip(AUDIOS, rows_on(packed, strip_for(packed, list(map(len, windows))), windows), strict=True):
        close(rows.cpu(), stored(audio)["speech_embeds"])


def close(actual: Tensor, expected: Tensor, tolerance: float = 1e-4) -> None:
    torch.testing.assert_close(actual, expected, atol=tolerance, rtol=0)


@pytest.mark.parametrize("case", CASES["tokenizer"]["encode_cases"], ids=lambda case: repr(case["text"]))
def test_token_ids(tokenizer: PreTrainedTokenizerBase, case: dict[str, Any]) -> None:
    assert tokenizer.encode(case["text"]) == case["ids"]


# Well-formed are ids whose bytes are UTF-8 and which text can be encoded to: a space is never <0x20> (id 35).
WELL_FORMED = [
    case
    for case in CASES["tokenizer"]["decode_cases_skip_special"]
    if "�" not in case["text"] and 35 not in case["ids"]
]


@pytest.mark.parametrize("case", WELL_FORMED, ids=lambda case: repr(case["text"]))
def test_decoded_text(tokenizer: PreTrainedTokenizerBase, case: dict[str, Any]) -> None:
    assert tokenizer.decode(case["ids"], skip_special_tokens=True) == case["text"]


@pytest.mark.parametrize("case", SINGLE.values(), ids=SINGLE.keys())
def test_prompt_ids(builder: PromptBuilder, rows: dict[str, Tensor], case: dict[str, Any]) -> None:
    speech = len(rows[case["audio"]]) if case["audio"] else 0
    prompt = single_prompt(builder, rows, case)
    assert prompt.token_ids == case["prefix_ids"] + [0] * speech + case["suffix_ids"]
    assert prompt.speech_tokens == speech
    assert len(prompt.token_ids) == case["prompt_length"]


@pytest.mark.parametrize(("chat", "turn"), TURNS.values(), ids=TURNS.keys())
def test_chat_prompt_ids(builder: PromptBuilder, rows: dict[str, Tensor], chat: dict[str, Any], turn: int) -> None:
    prompt = turn_prompt(builder, rows, chat, turn)
    history = chat["history"][: chat["turns"][turn]["n_history_segments"]]
    expected = [i for part in history for i in part.get("ids", [0] * len(rows.get(part.get("audio"), ())))]
    assert prompt.token_ids == expected
    assert len(expected) == chat["turns"][turn]["prompt_length"]


@torch.no_grad()
@pytest.mark.parametrize("case", SINGLE.values(), ids=SINGLE.keys())
def test_first_logits(
    llm: LlamaForCausalLM,
    builder: PromptBuilder,
    rows: dict[str, Tensor],
    first_logits: dict[str, Tensor],
    case: dict[str, Any],
) -> None:
    prompt = single_prompt(builder, rows, case)
    close(llm(inputs_embeds=embeddings(llm, prompt)).logits[0, -1], first_logits[case["id"]], 5e-4)


@torch.no_grad()
@pytest.mark.parametrize("turn", TURNS)
def test_first_logits_of_chats(
    llm: LlamaForCausalLM,
    builder: PromptBuilder,
    rows: dict[str, Tensor],
    first_logits: dict[str, Tensor],
    turn: str,
) -> None:
    prompt = turn_prompt(builder, rows, *TURNS[turn])
    close(llm(inputs_embeds=embeddings(llm, prompt)).logits[0, -1], first_logits[turn], 5e-4)


@pytest.mark.parametrize("name", ["yes_0p4s__i0", "en_2s__i1", "de_7s__i2", "en_31p3s__i1", "textonly_1"])
def test_greedy_ids(
    llm: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    builder: PromptBuilder,
    rows: dict[str, Tensor],
    name: str,
) -> None:
    case, options = SINGLE[name], CASES["meta"]["generation"]
    prompt = single_prompt(builder, rows, case)
    limits = {key: options[key] for key in ("max_new_tokens", "min_new_tokens")}
    [ids] = llm.generate(inputs_embeds=embeddings(llm, prompt), do_sample=False, **limits).tolist()
    assert ids == case["new_ids"]
    assert tokenizer.decode(ids, skip_special_tokens=True).strip() == case["text"].strip()
