"""A LoRA that a checkpoint names is in the weights of the LLM that everything reads; one that does not fit is refused by name."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from models.checkpoint import Checkpoint, open_checkpoint
from models.config import CheckpointError
from models.lora import check, merged


@pytest.fixture
def lora(checkpoint: Checkpoint, tmp_path: Path) -> Path:
    """A LoRA of rank 2 for the queries, whose halves are random."""
    model = AutoModelForCausalLM.from_pretrained(checkpoint.llm)
    tuned = get_peft_model(model, LoraConfig(r=2, lora_alpha=6, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    for name, weight in tuned.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(weight)
    tuned.save_pretrained(tmp_path / "lora")
    return tmp_path / "lora"


def test_a_named_lora_is_in_the_llm(checkpoint: Checkpoint, lora: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(checkpoint.folder, tmp_path / "checkpoint")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"llm_lora": str(lora)}))
    opened = open_checkpoint(str(folder), tmp_path / "cache")
    before, after = (load_file(llm / "model.safetensors") for llm in (checkpoint.llm, opened.llm))
    halves = load_file(lora / "adapter_model.safetensors")
    assert before.keys() == after.keys()
    for name, weight in after.items():
        if name.endswith("q_proj.weight"):
            a, b = (halves[f"base_model.model.{name.replace('weight', f'lora_{half}.weight')}"] for half in "AB")
            torch.testing.assert_close(weight.float(), before[name].float() + 3 * b @ a, atol=2e-2, rtol=1e-2)
            assert not weight.equal(before[name])
        else:
            assert weight.equal(before[name]), name
    opened.tokenizer()


def test_it_is_merged_once_for_each_llm_and_lora(checkpoint: Checkpoint, lora: Path, tmp_path: Path) -> None:
    first = merged(checkpoint.llm, lora, tmp_path / "cache")
    made = (first / "model.safetensors").stat().st_mtime_ns
    assert merged(checkpoint.llm, lora, tmp_path / "cache") == first
    assert (first / "model.safetensors").stat().st_mtime_ns == made
    halves = load_file(lora / "adapter_model.safetensors")
    save_file({name: half * 2 for name, half in halves.items()}, lora / "adapter_model.safetensors")
    assert merged(checkpoint.llm, lora, tmp_path / "cache") != first
    assert not list(first.parent.glob(".partial-*"))


def test_what_is_no_lora_is_refused_by_name(checkpoint: Checkpoint, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"lora: no adapter_config\.json"):
        merged(checkpoint.llm, tmp_path / "lora", tmp_path / "cache")


def with_halves(change: Callable[[str, torch.Tensor], tuple[str, torch.Tensor]]) -> Callable[[Path], None]:
    """Changes the name and the values of each half of each layer's LoRA."""

    def spoil(lora: Path) -> None:
        halves = load_file(lora / "adapter_model.safetensors")
        save_file(dict(change(*half) for half in halves.items()), lora / "adapter_model.safetensors")

    return spoil


def test_a_lora_that_fits_passes(checkpoint: Checkpoint, lora: Path) -> None:
    check(checkpoint.llm, lora)


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (shutil.rmtree, r"lora: no adapter_config\.json"),
        (lambda lora: (lora / "adapter_model.safetensors").write_bytes(b"half"), "can't be read as weights"),
        (with_halves(lambda name, half: (name, half * torch.nan)), "holds NaN"),
        (
            with_halves(lambda name, half: (name, half[:, 1:].clone() if "_A" in name else half)),
            r"A\.weight' has shape \[2, 63\]",
        ),
        (
            with_halves(lambda name, half: (name, half[1:].clone() if "_B" in name else half)),
            r"B\.weight' has shape \[63, 2\]",
        ),
        (with_halves(lambda name, half: (name.replace("q_proj", "z_proj"), half)), "z_proj.* is for no linear layer"),
        (
            with_halves(lambda name, half: (name.replace("layers.1", "layers.9"), half)),
            "layers.9.* is for no linear layer",
        ),
        (with_halves(lambda name, half: (name.replace("A.weight", "embedding_A"), half)), "is for no linear layer"),
        (
            with_halves(lambda name, half: (name.replace("layers.0.self_attn.q_proj", "embed_tokens"), half)),
            "embed_tokens.* is for no linear layer",
        ),
    ],
    ids=["none", "damaged", "nan", "in", "out", "module", "layer", "embedding", "embedding's name"],
)
def test_what_does_not_fit_is_refused_by_name(checkpoint: Checkpoint, lora: Path, spoil: Any, why: str) -> None:
    spoil(lora)
    with pytest.raises(CheckpointError, match=why):
        check(checkpoint.llm, lora)


def test_a_lora_for_another_llm_is_refused(checkpoint: Checkpoint, lora: Path, tmp_path: Path) -> None:
    halves = load_file(lora / "adapter_model.safetensors")
    save_file({name: half.repeat(2, 2) for name, half in halves.items()}, lora / "adapter_model.safetensors")
    with pytest.raises(CheckpointError, match="does not fit"):
        merged(checkpoint.llm, lora, tmp_path / "cache")
    assert not list((tmp_path / "cache" / "merged").iterdir())
