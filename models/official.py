"""Checkpoints of the official BLSP release (github.com/cwang621/blsp), converted to our layout.

There, one config.json holds `whisper_config` and `llama_config`, and one set of weights holds everything, with the prefixes
whisper_model., llama_model., subsampler., speech_ln. and adapter.
"""

import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import Tensor
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, WhisperConfig

from models.adapter import ModalityAdapter
from models.config import AdapterSizes, BlspConfig, CheckpointError
from models.encoder import WhisperEncoder
from models.tokenizer import from_sentencepiece
from models.weights import ShardWriter, check_tensor, read_tensors, weight_files, write_file

ENCODER, LLM = "whisper_model.", "llama_model."
ADAPTER = ("subsampler.", "speech_ln.", "adapter.")

Progress = Callable[[str], None]


def is_official(folder: Path) -> bool:
    """Whether a folder's config.json is that of the official release."""
    try:
        config = json.loads((folder / "config.json").read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and {"whisper_config", "llama_config"} <= config.keys()


def cached_import(source: Path, cache: Path) -> Path:
    """The converted checkpoint in `cache`, made now if it is not there; other files, or newer ones, give another entry."""
    stamp = hashlib.sha256()
    for file in [source / "config.json", source / "tokenizer.model", *weight_files(source)]:
        if not file.exists():
            raise CheckpointError(f"{file} is missing")
        stat = file.stat()
        stamp.update(f"{file.resolve()} {stat.st_size} {stat.st_mtime_ns}\n".encode())
    target = cache / f"{source.resolve().name}-{stamp.hexdigest()[:16]}"
    if not (target / "config.json").exists():
        try:
            import_official(source, target)
        except OSError:
            if not (target / "config.json").exists():  # else another process was done first
                raise
    return target


def import_official(source: Path, target: Path, progress: Progress = lambda _: None) -> None:
    """Converts an official checkpoint at `source` to our layout at `target`, tensor by tensor.

    Holds at most 1 GiB each of encoder and LLM in memory, however large the checkpoint is. `progress` gets the name of each tensor.
    `target` appears when everything is written. Raises CheckpointError where a tensor is missing, unexpected, of another shape, or not
    finite, and OSError where the disk is full.
    """
    encoder_config, llm_config, sizes = _read_config(source / "config.json")
    tokenizer = from_sentencepiece(source / "tokenizer.model")
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f"{target.name}.partial-", dir=target.parent))
    try:
        _split_weights(source, partial, _expected_shapes(encoder_config, llm_config, sizes), progress)
        encoder_config.save_pretrained(partial / "encoder")
        llm_config.save_pretrained(partial / "llm")
        _write_generation_config(llm_config, partial / "llm")
        tokenizer.save_pretrained(partial / "llm")
        BlspConfig(adapter=sizes, prompt_format="blsp", padding="30s").write(partial)
        partial.chmod(0o755)
        partial.rename(target)
    except SafetensorError as error:  # its own name for what the system says
        raise OSError(f"{source} can't be converted into {target}: {error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _read_config(file: Path) -> tuple[WhisperConfig, LlamaConfig, AdapterSizes]:
    """The sizes of all parts, or CheckpointError that names the field."""
    try:
        config = json.loads(file.read_bytes())
        kernels = str(config["conv_kernel_sizes"]).split(",")
        sizes = {"conv_kernel_sizes": kernels, "inner_dim": config["adapter_inner_dim"]}
        return (
            WhisperConfig(**config["whisper_config"]),
            LlamaConfig(**config["llama_config"]),
            AdapterSizes.model_validate(sizes),
        )
    except (KeyError, TypeError, ValueError, StrictDataclassError) as error:
        raise CheckpointError(f"{file}: {type(error).__name__}: {error}") from error


def _expected_shapes(encoder: WhisperConfig, llm: LlamaConfig, sizes: AdapterSizes) -> dict[str, torch.Size]:
    """The official name and shape of every tensor that must be there."""
    with torch.device("meta"):
        modules: list[tuple[str, Any]] = [
            (ENCODER, WhisperEncoder(encoder)),
            (LLM, LlamaForCausalLM(llm)),
            ("", ModalityAdapter(encoder.d_model, llm.hidden_size, sizes)),
        ]
    return {prefix + name: p.shape for prefix, module in modules for name, p in module.named_parameters()}


def _split_weights(source: Path, target: Path, expected: dict[str, torch.Size], progress: Progress) -> None:
    """Sorts the tensors into encoder, LLM and adapter files."""
    writers = {ENCODER: ShardWriter(target / "encoder"), LLM: ShardWriter(target / "llm")}
    adapter: dict[str, Tensor] = {}
    missing, unexpected = set(expected), []
    for name, tensor in read_tensors(source):
        if name.endswith("rotary_emb.inv_freq"):
            continue
        if name not in expected:
            unexpected.append(name)
            continue
        progress(name)
        check_tensor(str(source), name, tensor)
        if tensor.shape != expected[name]:
            raise CheckpointError(f"{source}: {name!r} has shape {list(tensor.shape)}, not {list(expected[name])}")
        missing.discard(name)
        if name.startswith(ADAPTER):
            adapter[name] = tensor.clone()
        else:
            prefix = ENCODER if name.startswith(ENCODER) else LLM
            writers[prefix].add(name.removeprefix(prefix), tensor)
    if missing or unexpected:
        raise CheckpointError(f"{source}: missing tensors {sorted(missing)}, unexpected tensors {sorted(unexpected)}")
    for writer in writers.values():
        writer.close()
    write_file(adapter, target / "adapter.safetensors")


def _write_generation_config(config: LlamaConfig, folder: Path) -> None:
    """Only the special ids: temperature and the like are the request's."""
    ids = {name: getattr(config, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    GenerationConfig(**ids).save_pretrained(folder)
