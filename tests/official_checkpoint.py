"""Tiny checkpoints in the layout of the official BLSP release, with random weights. Knows nothing about our own code."""

import io
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from sentencepiece import SentencePieceTrainer
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, WhisperConfig
from transformers.models.whisper.modeling_whisper import WhisperEncoder

HEAD_SIZE = 32  # the smallest that vLLM's CPU attention has
VOCABULARY = 512
BYTES = slice(3, 259)  # their ids
SENTENCES = """
The weather is fine today, and the children are playing in the garden.
Nobody was talking about the war, but everybody was thinking about it.
Please translate the following audio into German text.
Please repeat the following words: one, two, three, four, five.
Continue the following text in a coherent and engaging style with less than 40 words.
What did the speaker say about the price of bread in 1984?
"I will be there at 7:30," she said, "and I will not wait for you."
How far is it from here to the station? About 12 kilometres, I think.
Listen to the recording and answer the question in one short sentence.
No. Yes. Well... it depends!!! Hahahaha, zzzzzz.
###[Human]: Tell me a story. ###[Assistant]: Once upon a time there was a king.
def area(width, height):
    return width * height
        # four and eight and more spaces                at the end
Das Wetter ist heute schön, und die Kinder spielen im Garten.
Niemand sprach über den Krieg, aber alle dachten daran.
Bitte übersetze den folgenden Text ins Deutsche.
Schreibe ein kurzes Gedicht über den Frühling.
Was hat die Sprecherin über den Preis des Brotes gesagt?
Wie weit ist es von hier bis zum Bahnhof? Ungefähr zwölf Kilometer.
Die Straße ist naß, weil es gestern geregnet hat.
Er fährt mit dem Zug nach München und grüßt seine Mädchen.
Hör dir die Aufnahme an und antworte in einem kurzen Satz.
今天天气很好,孩子们在花园里玩。
请把这段语音翻译成德语。
请用中文回答问题。
没有人谈论战争,但是每个人都在想。
从这里到车站有多远?
请听录音,用一句话回答。
""".strip("\n").split("\n")


def make_official(
    folder: Path,
    *,
    safetensors: bool = True,
    shards: int = 1,
    encoder_dim: int = 48,
    llm_heads: int = 2,
    kernels: str = "5,3,7",
    n_mels: int = 80,
    context: int = 2048,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> Path:
    """Writes a checkpoint into `folder`, which may exist, and returns it; the LLM's width is 32 times `llm_heads`.

    The same arguments give the same checkpoint, and `safetensors` and `shards` change its files only.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config: dict[str, Any] = {
        "adapter_inner_dim": 24,
        "architectures": ["BlspModel"],
        "conv_kernel_sizes": kernels,
        "llama_config": _llama(HEAD_SIZE * llm_heads, llm_heads, context, dtype),
        "torch_dtype": str(dtype).removeprefix("torch."),
        "transformers_version": "4.31.0",
        "whisper_config": _whisper(encoder_dim, n_mels),
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    (folder / "tokenizer.model").write_bytes(_tokenizer())
    generator = torch.Generator().manual_seed(seed)
    weights = {name: _draw(name, shape, generator).to(dtype) for name, shape in _shapes(config).items()}
    weights["llama_model.lm_head.weight"][BYTES] *= 0.2  # or half of the output would be broken UTF-8
    inv_freq = 10_000 ** -(torch.arange(0, HEAD_SIZE, 2) / HEAD_SIZE)
    for layer in range(config["llama_config"]["num_hidden_layers"]):
        weights[f"llama_model.model.layers.{layer}.self_attn.rotary_emb.inv_freq"] = inv_freq.clone()
    _save(weights, folder, "safetensors" if safetensors else "bin", shards)
    return folder


def _llama(dim: int, heads: int, context: int, dtype: torch.dtype) -> dict:
    return {
        "architectures": ["LlamaForCausalLM"],
        "bos_token_id": 1,
        "eos_token_id": 2,
        "hidden_act": "silu",
        "hidden_size": dim,
        "intermediate_size": 2 * dim,
        "is_encoder_decoder": False,
        "max_length": 20,
        "max_position_embeddings": context,
        "model_type": "llama",
        "num_attention_heads": heads,
        "num_hidden_layers": 2,
        "num_key_value_heads": heads,
        "pad_token_id": 0,
        "pretraining_tp": 1,
        "rms_norm_eps": 1e-05,
        "rope_scaling": None,
        "temperature": 1.0,
        "tie_word_embeddings": False,
        "torch_dtype": str(dtype).removeprefix("torch."),
        "transformers_version": "4.31.0",
        "vocab_size": VOCABULARY,
    }


def _whisper(dim: int, n_mels: int) -> dict:
    return {
        "activation_function": "gelu",
        "architectures": ["WhisperForConditionalGeneration"],
        "begin_suppress_tokens": [220, 50257],
        "bos_token_id": 50257,
        "d_model": dim,
        "decoder_attention_heads": dim // 16,
        "decoder_ffn_dim": 2 * dim,
        "decoder_layers": 2,
        "decoder_start_token_id": 50258,
        "encoder_attention_heads": dim // 16,
        "encoder_ffn_dim": 2 * dim,
        "encoder_layers": 2,
        "eos_token_id": 50257,
        "forced_decoder_ids": [[1, 50259], [2, 50359], [3, 50363]],
        "is_encoder_decoder": True,
        "max_length": 448,
        "max_source_positions": 1500,
        "model_type": "whisper",
        "num_mel_bins": n_mels,
        "pad_token_id": 50257,
        "suppress_tokens": [1, 2, 7, 8, 9, 10, 14, 25],
        "vocab_size": 51865,
    }


def _tokenizer() -> bytes:
    """A SentencePiece model with Llama's settings, trained on the spot."""
    model = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES),
        model_writer=model,
        model_type="bpe",
        vocab_size=VOCABULARY,
        character_coverage=0.9995,
        byte_fallback=True,
        split_digits=True,
        allow_whitespace_only_pieces=True,
        normalization_rule_name="identity",
        add_dummy_prefix=True,
        remove_extra_whitespaces=False,
        num_threads=1,
        minloglevel=2,
    )
    return model.getvalue()


def _shapes(config: dict) -> dict[str, torch.Size]:
    """The official name and the shape of every weight."""
    with torch.device("meta"):
        parts = {
            "whisper_model.": WhisperEncoder(WhisperConfig(**config["whisper_config"])),
            "llama_model.": LlamaForCausalLM(LlamaConfig(**config["llama_config"])),
        }
    shapes = {prefix + name: p.shape for prefix, part in parts.items() for name, p in part.named_parameters()}
    encoder_dim, llm_dim = config["whisper_config"]["d_model"], config["llama_config"]["hidden_size"]
    inner_dim = config["adapter_inner_dim"]
    kernels = [int(kernel) for kernel in config["conv_kernel_sizes"].split(",")]
    for i, kernel in enumerate(kernels):
        out = 2 * (llm_dim if i == len(kernels) - 1 else encoder_dim)
        shapes[f"subsampler.conv_layers.{i}.weight"] = torch.Size([out, encoder_dim, kernel])
        shapes[f"subsampler.conv_layers.{i}.bias"] = torch.Size([out])
    return shapes | {
        "speech_ln.weight": torch.Size([llm_dim]),
        "speech_ln.bias": torch.Size([llm_dim]),
        "adapter.fc1.weight": torch.Size([inner_dim, llm_dim]),
        "adapter.fc2.weight": torch.Size([llm_dim, inner_dim]),
    }


def _draw(name: str, shape: torch.Size, generator: torch.Generator) -> Tensor:
    """Large enough that the LLM's greedy output changes from token to token and with its input."""
    x = torch.randn(shape, generator=generator)
    if name.endswith("bias"):
        return 0.2 * x
    if x.ndim == 1:
        return 1 + 0.25 * x
    if "embed" in name:
        return 0.7 * x
    return (2.5 if "lm_head" in name else 1.5) * x / x[0].numel() ** 0.5


def _save(weights: dict[str, Tensor], folder: Path, suffix: str, shards: int) -> None:
    stem = "model" if suffix == "safetensors" else "pytorch_model"
    names = list(weights)
    files: dict[str, str] = {}
    for i in range(shards):
        file = f"{stem}.{suffix}" if shards == 1 else f"{stem}-{i + 1:05d}-of-{shards:05d}.{suffix}"
        shard = {name: weights[name] for name in names[i::shards]}
        files |= dict.fromkeys(shard, file)
        if suffix == "safetensors":
            save_file(shard, folder / file, metadata={"format": "pt"})
        else:
            torch.save(shard, folder / file)
    if shards > 1:
        index = {"metadata": {"total_size": sum(w.nbytes for w in weights.values())}, "weight_map": files}
        (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps(index, indent=2))
