import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import GenerationConfig, LlamaForCausalLM

from models.checkpoint import Checkpoint
from models.embedder import Embedder
from models.evaluation.local import LocalModel
from models.manifest import AudioSpan, Example
from models.prompt import Message, Speech
from models.training.batches import Collator, transcript_message
from models.training.model import AdapterModel
from tests.models.training.conftest import read

INSTRUCTIONS = ["What is said?", "Translate it into German, please:", "Repeat:", "", "Answer.", "Continue:"]


@pytest.fixture(scope="module")
def model(checkpoint: Checkpoint) -> LocalModel:
    return LocalModel(checkpoint, read)


@pytest.fixture(scope="module")
def llm(checkpoint: Checkpoint) -> LlamaForCausalLM:
    return LlamaForCausalLM.from_pretrained(checkpoint.llm).eval()


def alone(checkpoint: Checkpoint, llm: LlamaForCausalLM, message: Message) -> str:
    """The reply to one prompt by itself, straight through transformers."""
    prompt = checkpoint.prompt_builder(torch.float32).build([message])
    text = llm.get_input_embeddings()(torch.tensor(prompt.token_ids))
    rows: Tensor = torch.where(torch.tensor(prompt.is_token)[:, None], text, prompt.rows)
    ids = llm.generate(inputs_embeds=rows[None], max_new_tokens=12, do_sample=False)[0]
    return checkpoint.tokenizer().decode(ids, skip_special_tokens=True).strip()


@torch.no_grad()
def test_replies_in_a_batch_are_those_alone(
    checkpoint: Checkpoint,
    embedder: Embedder,
    model: LocalModel,
    llm: LlamaForCausalLM,
    examples: list[Example],
) -> None:
    audio, texts = [example.audio for example in examples], [example.text for example in examples]
    heard = embedder.embed([read(span) for span in audio])
    assert model.from_speech(audio, INSTRUCTIONS, 12) == [
        alone(checkpoint, llm, Message("user", [instruction, Speech(rows)]))
        for instruction, rows in zip(INSTRUCTIONS, heard, strict=True)
    ]
    assert model.from_text(texts, INSTRUCTIONS, 12) == [
        alone(checkpoint, llm, transcript_message(*pair)) for pair in zip(INSTRUCTIONS, texts, strict=True)
    ]


def test_what_the_llm_would_be_penalised_for_elsewhere_does_not_count(
    checkpoint: Checkpoint, model: LocalModel, examples: list[Example], tmp_path: Path
) -> None:
    shutil.copytree(checkpoint.llm, tmp_path / "llm")
    GenerationConfig(eos_token_id=2, repetition_penalty=1.5, no_repeat_ngram_size=2).save_pretrained(tmp_path / "llm")
    penalised = LocalModel(replace(checkpoint, llm=tmp_path / "llm"), read)
    texts = [example.text for example in examples]
    assert penalised.from_text(texts, INSTRUCTIONS, 12) == model.from_text(texts, INSTRUCTIONS, 12)


@torch.no_grad()
def test_the_alignment_is_what_training_minimizes(
    checkpoint: Checkpoint,
    model: LocalModel,
    llm: LlamaForCausalLM,
    comparing: Collator,
    examples: list[Example],
) -> None:
    audio, texts, continuations = zip(*((e.audio, e.text, e.continuation) for e in examples), strict=True)
    found = list(model.align(audio, texts, continuations, "Continue:"))
    loss = AdapterModel(checkpoint.load_embedder(), llm)(**comparing(examples))["loss"]
    torch.testing.assert_close(torch.cat([item.divergence for item in found]).mean(), loss, rtol=1e-4, atol=0)
    for item, continuation in zip(found, continuations, strict=True):
        tokens = len(checkpoint.tokenizer().encode(continuation, add_special_tokens=False)) + 1
        assert len(item.divergence) == len(item.agree) == tokens
        assert (item.divergence > 0).all()
    assert 0 < torch.cat([item.agree for item in found]).float().mean() < 1


def test_long_recordings_are_heard_to_their_end(checkpoint: Checkpoint, embedder: Embedder) -> None:
    model = LocalModel(checkpoint, lambda span: torch.sin(torch.arange(31 * 16000) * 0.05))
    assert len(model._rows(AudioSpan(Path("x")))) == (
        embedder.speech_length(30 * 16000) + embedder.speech_length(16000)
    )
