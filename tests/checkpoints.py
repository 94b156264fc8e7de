"""Tiny checkpoints with random weights, and adapters beside them."""

import json
import os
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from models.config import BlspConfig
from models.random_init import init_checkpoint


def init(target: Path, seed: int = 0, llm_of: Path | None = None) -> None:
    """A checkpoint, whose LLM is that of another one where that is given."""
    init_checkpoint(
        target=target,
        encoder_dim=64,
        encoder_layers=2,
        encoder_heads=4,
        n_mels=80,
        llm_dim=64,
        llm_layers=2,
        llm_heads=2,
        llm_ffn_dim=172,
        vocabulary=640,
        context=2048,
        conv_kernel_sizes=(5, 5, 5),
        adapter_inner_dim=32,
        padding="exact",
        prompt_format="blsp",
        seed=seed,
    )
    if llm_of is not None:
        config = BlspConfig.read(target)
        config.model_copy(update={"llm": os.path.relpath(llm_of / "llm", target)}).write(target)


def add_lora(target: Path, llm: Path, seed: int, rank: int = 4) -> None:
    """A LoRA for all linear layers of an LLM, in PEFT's layout, that changes each as much as a layer like it."""
    generator = torch.Generator().manual_seed(seed)
    target.mkdir(exist_ok=True)
    halves: dict[str, torch.Tensor] = {}
    for name, weight in load_file(llm / "model.safetensors").items():
        if name.endswith("_proj.weight"):
            module = f"base_model.model.{name.removesuffix('.weight')}"
            halves[f"{module}.lora_A.weight"] = torch.randn(rank, weight.shape[1], generator=generator)
            halves[f"{module}.lora_B.weight"] = (
                torch.randn(weight.shape[0], rank, generator=generator) / weight.shape[1]
            )
    modules = sorted({name.split(".")[-3] for name in halves})
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": rank,
        "lora_alpha": 2 * rank,
        "target_modules": modules,
    }
    (target / "adapter_config.json").write_text(json.dumps(config))
    save_file(halves, target / "adapter_model.safetensors")


def add_adapter(target: Path, beside: Path, seed: int, lora: bool = False) -> None:
    """A checkpoint with weights of its own for the adapter alone; encoder and LLM are those of the other, but for a `lora`."""
    target.mkdir()
    config = BlspConfig.read(beside)
    parts = {name: os.path.relpath(beside / getattr(config, name), target) for name in ("encoder", "llm")}
    config.model_copy(update=parts | ({"lora": "lora"} if lora else {})).write(target)
    if lora:
        add_lora(target / "lora", beside / config.llm, seed)
    generator = torch.Generator().manual_seed(seed)
    weights = {
        name: torch.randn(tensor.shape, generator=generator) * tensor[0].numel() ** -0.5 if tensor.ndim > 1 else tensor
        for name, tensor in load_file(beside / "adapter.safetensors").items()
    }
    save_file(weights, target / "adapter.safetensors")
