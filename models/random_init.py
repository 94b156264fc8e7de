"""Checkpoints with random weights of given shapes, for benchmarks and tests."""

from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import torch
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers, processors
from tokenizers.models import BPE
from torch import nn
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, WhisperConfig

from models.adapter import ModalityAdapter
from models.config import AdapterSizes, BlspConfig, PaddingPolicy, PromptFormat
from models.encoder import WhisperEncoder
from models.weights import write_file

Module = TypeVar("Module", bound=nn.Module)
SPECIAL = ["<unk>", "<s>", "</s>"]


def init_checkpoint(
    *,
    target: Path,
    encoder_dim: int,
    encoder_layers: int,
    encoder_heads: int,
    n_mels: int,
    llm_dim: int,
    llm_layers: int,
    llm_heads: int,
    llm_ffn_dim: int,
    vocabulary: int,
    context: int,
    conv_kernel_sizes: Sequence[int],
    adapter_inner_dim: int,
    padding: PaddingPolicy,
    prompt_format: PromptFormat,
    seed: int,
    whole_llm: bool = True,
) -> None:
    """Writes a checkpoint in our layout whose weights are drawn with `seed`: normal, with a deviation of 1 / sqrt(inputs).

    Without the `whole_llm` only its embeddings are there, in bfloat16, for vLLM's `--load-format dummy`.
    """
    torch.manual_seed(seed)
    whisper = WhisperConfig(
        d_model=encoder_dim,
        encoder_layers=encoder_layers,
        encoder_attention_heads=encoder_heads,
        encoder_ffn_dim=4 * encoder_dim,
        num_mel_bins=n_mels,
    )
    llama = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=llm_dim,
        intermediate_size=llm_ffn_dim,
        num_hidden_layers=llm_layers,
        num_attention_heads=llm_heads,
        max_position_embeddings=context,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    sizes = AdapterSizes(conv_kernel_sizes=tuple(conv_kernel_sizes), inner_dim=adapter_inner_dim)
    encoder = _randomize(WhisperEncoder(whisper))
    llm = _randomize(LlamaForCausalLM(llama)) if whole_llm else None
    adapter = _randomize(ModalityAdapter(encoder_dim, llm_dim, sizes))

    (target / "encoder").mkdir(parents=True)
    whisper.save_pretrained(target / "encoder")
    write_file(encoder.state_dict(), target / "encoder" / "model.safetensors")
    if llm is not None:
        llm.save_pretrained(target / "llm")
    else:
        llama.update({"architectures": ["LlamaForCausalLM"], "dtype": "bfloat16"})
        llama.save_pretrained(target / "llm")
        embeddings = torch.randn(vocabulary, llm_dim, dtype=torch.bfloat16) * llm_dim**-0.5
        write_file({"model.embed_tokens.weight": embeddings}, target / "llm" / "model.safetensors")
    GenerationConfig(bos_token_id=1, eos_token_id=2, pad_token_id=0).save_pretrained(target / "llm")
    byte_tokenizer(vocabulary).save_pretrained(target / "llm")
    write_file(adapter.state_dict(), target / "adapter.safetensors")
    BlspConfig(adapter=sizes, prompt_format=prompt_format, padding=padding).write(target)


def _randomize(module: Module) -> Module:
    """Redraws matrices and embeddings, so that activations keep their size; norms and biases stay at one and zero."""
    for parameter in module.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
    return module


def byte_tokenizer(vocabulary: int) -> PreTrainedTokenizerFast:
    """A tokenizer whose tokens are the special ones, the 256 bytes, and made-up words up to `vocabulary` that no text encodes to."""
    pieces = [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    pieces += [f"Ġw{i}" for i in range(len(pieces), vocabulary)]
    tokenizer = Tokenizer(BPE({piece: i for i, piece in enumerate(pieces)}, [], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in SPECIAL])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<unk>"
    )
    fast.chat_template = (
        "{{ bos_token }}{% for m in messages %}<{{ m.role }}>{{ m.content }}</{{ m.role }}>\n{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    return fast
