"""The trained parts as a checkpoint in our layout: what `blsp serve` loads."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoTokenizer, GenerationConfig, LlamaForCausalLM, PreTrainedTokenizerFast, WhisperConfig

from models.adapter import ModalityAdapter
from models.config import AdapterSizes, BlspConfig
from models.demo.generation import MAX_NEW_TOKENS
from models.encoder import WhisperEncoder


def write(
    folder: Path,
    encoder: WhisperEncoder,
    adapter: ModalityAdapter,
    sizes: AdapterSizes,
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    """Writes the checkpoint: encoder and adapter in float16, the LLM in bfloat16."""
    write_llm(folder / "llm", model, tokenizer)
    (folder / "encoder").mkdir(exist_ok=True)
    encoder.config.save_pretrained(folder / "encoder")
    _save_half(encoder, folder / "encoder" / "model.safetensors")
    _save_half(adapter, folder / "adapter.safetensors")
    BlspConfig(adapter=sizes, prompt_format="blsp", padding="exact").write(folder)


def write_llm(folder: Path, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    """Writes the LLM in bfloat16 with its tokenizer and generation settings."""
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        max_new_tokens=MAX_NEW_TOKENS,
    )
    model.to(torch.bfloat16).save_pretrained(folder)
    model.float()
    tokenizer.save_pretrained(folder)
    file = folder / "tokenizer_config.json"
    settings = json.loads(file.read_text())
    file.write_text(
        json.dumps(settings | {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 2048}, indent=2) + "\n"
    )


def read_llm(folder: Path) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """The LLM in float32 and its tokenizer."""
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    return model.eval(), AutoTokenizer.from_pretrained(folder)


def read_encoder(folder: Path) -> WhisperEncoder:
    """The encoder of a checkpoint, in float32."""
    encoder = WhisperEncoder(WhisperConfig.from_pretrained(folder / "encoder"))
    encoder.load_state_dict(
        {name: weight.float() for name, weight in load_file(folder / "encoder" / "model.safetensors").items()}
    )
    return encoder.eval()


def read_adapter(folder: Path, encoder_dim: int, llm_dim: int) -> ModalityAdapter:
    """The adapter of a checkpoint, in float32."""
    adapter = ModalityAdapter(encoder_dim, llm_dim, BlspConfig.read(folder).adapter)
    adapter.load_state_dict(
        {name: weight.float() for name, weight in load_file(folder / "adapter.safetensors").items()}
    )
    return adapter.eval()


def _save_half(module: nn.Module, file: Path) -> None:
    """float16 keeps three bits more of a weight than bfloat16, and no weight here is out of its range."""
    save_file({name: tensor.detach().half().contiguous() for name, tensor in module.state_dict().items()}, file)
