"""LoRAs (Hu et al. 2021, in PEFT's layout): whether one fits an LLM, and merged into it: what trains and serves then reads one folder."""

import hashlib
import json
import shutil
import tempfile
from pathlib import Path

from torch import Tensor

from models.config import CheckpointError
from models.weights import check_tensor, read_tensors, weight_files

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
# Which dimension of a half is the LLM's, and not the rank: A (rank, in), B (out, rank).
WIDTHS = {"A.weight": 1, "B.weight": 0}
ENDS = ("embed_tokens", "wte", "wpe", "tok_embeddings", "lm_head")


def check(llm: Path, lora: Path) -> None:
    """Raises CheckpointError where `lora` can't be read, holds NaN, or has weights for other than linear layers of `llm` in their shapes.

    Engines leave out what they have no module for, and take as much of a matrix as there is.
    """
    _check_is_lora(lora)
    layers = _linear_layers(llm)
    for name, tensor in read_tensors(lora):
        check_tensor(str(lora), name, tensor)
        layer, _, half = name.removeprefix("base_model.model.").rpartition(".lora_")
        if layer not in layers or half not in WIDTHS:
            raise CheckpointError(f"{lora}: {name!r} is for no linear layer of {llm}")
        weight = layers[layer]
        if weight is not None and (tensor.dim() != 2 or tensor.shape[WIDTHS[half]] != weight.shape[WIDTHS[half]]):
            raise CheckpointError(
                f"{lora}: {name!r} has shape {list(tensor.shape)}, and that of {llm} {list(weight.shape)}"
            )


def targets(llm: Path) -> list[str]:
    """The last parts of the names of an LLM's linear layers: q_proj, down_proj and the like."""
    return sorted({layer.rpartition(".")[2] for layer in _linear_layers(llm)})


def _linear_layers(llm: Path) -> dict[str, Tensor | None]:
    """The weights (out, in) of linear layers by the names of these; None where they are quantized. Without embeddings and the output's."""
    layers: dict[str, Tensor | None] = {}
    for name, tensor in read_tensors(llm):
        layer, _, kind = name.rpartition(".")
        if tensor.dim() == 2 and not layer.endswith(ENDS):
            layers[layer] = tensor if kind == "weight" and tensor.is_floating_point() else None
    return layers


def _check_is_lora(lora: Path) -> None:
    for name in (CONFIG, WEIGHTS):
        if not (lora / name).is_file():
            raise CheckpointError(f"{lora}: no {name}; a LoRA is a folder in PEFT's layout")


def merged(llm: Path, lora: Path, cache: Path) -> Path:
    """The folder of `llm` with `lora` added to its weights, in `cache`: made now if it is not there.

    Another LLM or another LoRA gives another entry; a kill leaves the whole folder or none. Raises CheckpointError where the LoRA can't be
    read or was made for another LLM.
    """
    _check_is_lora(lora)
    stamp = hashlib.sha256()
    for name in (CONFIG, WEIGHTS):
        stamp.update((lora / name).read_bytes())
    for file in weight_files(llm):
        stat = file.stat()
        stamp.update(f"{file.resolve()} {stat.st_size} {stat.st_mtime_ns}\n".encode())
    target = cache / "merged" / f"{llm.resolve().name}-{stamp.hexdigest()[:16]}"
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=".partial-", dir=target.parent))
    try:
        shutil.copytree(
            llm, partial, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.safetensors", "*.bin", "*.index.json")
        )
        _merge(llm, lora, partial)
        partial.chmod(0o755)
        partial.rename(target)
    except OSError:
        if not target.is_dir():  # else another process was done first
            raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return target


def _merge(llm: Path, lora: Path, target: Path) -> None:
    from peft import PeftConfig, PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(llm, dtype="auto")
    try:
        config = PeftConfig.from_pretrained(lora)
        tuned = PeftModel.from_pretrained(model, lora, config=config)
    except (ValueError, RuntimeError, TypeError, KeyError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{lora}: this LoRA does not fit {llm}: {error}") from error
    tuned.merge_and_unload().save_pretrained(target)
