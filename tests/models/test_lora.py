"""A LoRA that a checkpoint names is in the weights of the LLM that everything reads; one that does not fit is refused by name."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from models.checkpoint import Checkpoint, open_checkpoint
from models.config import CheckpointError
from models.lora import merged


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


def test_a_lora_for_another_llm_is_refused(checkpoint: Checkpoint, lora: Path, tmp_path: Path) -> None:
    halves = load_file(lora / "adapter_model.safetensors")
    save_file({name: half.repeat(2, 2) for name, half in halves.items()}, lora / "adapter_model.safetensors")
    with pytest.raises(CheckpointError, match="does not fit"):
        merged(checkpoint.llm, lora, tmp_path / "cache")
    assert not list((tmp_path / "cache" / "merged").iterdir())
