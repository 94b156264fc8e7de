"""Checkpoints with random weights."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from transformers import AutoConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from models.checkpoint import Checkpoint, open_checkpoint
from models.prompt import Message, Speech
from models.random_init import byte_tokenizer, init_checkpoint
from models.weights import read_tensors


def init(target: Path, **changes: Any) -> Checkpoint:
    sizes: dict[str, Any] = {
        "encoder_dim": 48, "encoder_layers": 1, "encoder_heads": 3, "n_mels": 128, "llm_dim": 64, "llm_layers": 1,
        "llm_heads": 2, "llm_ffn_dim": 96, "vocabulary": 300, "context": 128, "conv_kernel_sizes": [3, 5],
        "adapter_inner_dim": 16, "padding": "exact", "prompt_format": "chat-template", "seed": 0,
    }  # fmt: skip
    init_checkpoint(target=target, **(sizes | changes))
    return open_checkpoint(str(target), target.parent)


@pytest.fixture(scope="module")
def initialized(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return init(tmp_path_factory.mktemp("random") / "a")


@pytest.fixture(scope="module")
def tokenizer(initialized: Checkpoint) -> PreTrainedTokenizerBase:
    return initialized.tokenizer()


def test_loads_and_runs(initialized: Checkpoint) -> None:
    embedder = initialized.load_embedder()
    [rows] = embedder.embed([0.1 * torch.randn(16_000)])
    assert rows.shape == (13, 64)
    prompt = initialized.prompt_builder(torch.float32).build([Message("user", [Speech(rows), "Hi"])])
    llm = LlamaForCausalLM.from_pretrained(initialized.llm)
    assert llm(inputs_embeds=prompt.rows[None]).logits.isfinite().all()
    config = llm.config
    assert (config.vocab_size, config.max_position_embeddings, config.num_hidden_layers) == (300, 128, 1)
    assert initialized.config.adapter.conv_kernel_sizes == (3, 5)
    assert (initialized.config.padding, initialized.config.prompt_format) == ("exact", "chat-template")


def test_an_llm_for_dummy_weights_has_its_embeddings_alone(initialized: Checkpoint, tmp_path: Path) -> None:
    without = init(tmp_path / "without", whole_llm=False)
    assert {name: tensor.shape for name, tensor in read_tensors(without.llm)} == {
        "model.embed_tokens.weight": (300, 64)
    }
    assert without.llm_dim() == 64
    assert without.load_embedder().embed([0.1 * torch.randn(16_000)])[0].shape == (13, 64)
    config = AutoConfig.from_pretrained(without.llm)
    assert (config.architectures, config.dtype) == (["LlamaForCausalLM"], torch.bfloat16)


def test_the_seed_decides(initialized: Checkpoint, tmp_path: Path) -> None:
    def files(checkpoint: Checkpoint) -> dict[str, bytes]:
        return {str(f.relative_to(checkpoint.folder)): f.read_bytes() for f in checkpoint.folder.rglob("*.*")}

    torch.manual_seed(1)
    assert files(init(tmp_path / "same")) == files(initialized)
    other = files(init(tmp_path / "other", seed=1))
    changed = {name for name, data in files(initialized).items() if other[name] != data}
    assert changed == {"adapter.safetensors", "encoder/model.safetensors", "llm/model.safetensors"}


def test_activations_keep_their_size(tmp_path: Path) -> None:
    """Neither logits nor speech embeddings explode in a deep model."""
    checkpoint = init(tmp_path / "deep", encoder_layers=12, llm_layers=12)
    states = checkpoint.load_embedder().encode([torch.randn(128, 100)])
    assert 0.5 < states.std() < 2
    logits = LlamaForCausalLM.from_pretrained(checkpoint.llm)(torch.arange(100)[None]).logits
    assert 0.5 < logits.std() < 2


@given(text=st.text())
@example(text="")
@example(text=" . ,  n't 's <s></s>\0\r\n")
@settings(max_examples=200, deadline=None)
def test_any_text_survives_the_tokenizer(tokenizer: PreTrainedTokenizerBase, text: str) -> None:
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert tokenizer.decode(ids) == text
    assert tokenizer.encode(text) == [1, *ids]
    if "<" not in text:
        assert len(ids) == len(text.encode())


@pytest.mark.parametrize("vocabulary", [259, 300, 1000])
def test_the_vocabulary_has_its_size(vocabulary: int) -> None:
    tokenizer = byte_tokenizer(vocabulary)
    assert len(tokenizer) == vocabulary
    assert (tokenizer.unk_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (
        0,
        1,
        2,
        0,
    )
    assert all(tokenizer.decode([i]) for i in range(vocabulary))
