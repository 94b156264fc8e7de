"""The encoder and the adapter on padded batches: the same weights and results as their own forward passes, faster in training on a CPU.

Serving packs windows of any length; training wants few shapes (oneDNN compiles its kernels for each) and attention in plain
matrix products, which trains a third faster here than torch's fused one.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from models.adapter import ModalityAdapter
from models.encoder import EncoderLayer, SelfAttention, WhisperEncoder


def length_mask(lengths: Tensor, width: int) -> Tensor:
    """(batch,) lengths -> bool (batch, width), True on the real positions."""
    return torch.arange(width) < lengths[:, None]


def encode(encoder: WhisperEncoder, features: Tensor, frames: Tensor, middle: int) -> tuple[Tensor, Tensor]:
    """Features (batch, n_mels, T) of `frames` (batch,) real frames, zeros behind them, to states (batch, length, d_model).

    Returns the states after layer `middle` (counted from 1) and the encoder's output; both are undefined behind the real positions.
    """
    x = F.gelu(encoder.conv1(features)) * length_mask(frames, features.shape[-1])[:, None]  # (batch, dim, T)
    x = F.gelu(encoder.conv2(x)).transpose(1, 2)  # (batch, length, dim)
    x = x + encoder.embed_positions.weight[: x.shape[1]]
    padding = ~length_mask((frames - 1) // 2 + 1, x.shape[1])[:, None, None]  # (batch, 1, 1, length)
    between = x
    for number, layer in enumerate(encoder.layers, 1):
        assert isinstance(layer, EncoderLayer)
        x = x + _attend(layer.self_attn, layer.self_attn_layer_norm(x), padding)
        x = x + layer.fc2(F.gelu(layer.fc1(layer.final_layer_norm(x))))
        between = x if number == middle else between
    return between, encoder.layer_norm(x)


def _attend(attention: SelfAttention, x: Tensor, padding: Tensor) -> Tensor:
    """x (batch, length, dim) -> the same shape."""
    projections = (attention.q_proj, attention.k_proj, attention.v_proj)
    q, k, v = (proj(x).unflatten(-1, (attention.heads, -1)).transpose(1, 2) for proj in projections)
    scores = (q @ k.transpose(-1, -2)) * q.shape[-1] ** -0.5  # (batch, heads, length, length)
    y = scores.masked_fill(padding, -1e4).softmax(-1) @ v
    return torch.as_tensor(attention.out_proj(y.transpose(1, 2).flatten(2)))


def adapt(adapter: ModalityAdapter, states: Tensor, lengths: Tensor) -> list[Tensor]:
    """Encoder states (batch, length, encoder_dim) with `lengths` (batch,) real ones to speech embeddings, a list of (n_i, llm_dim)."""
    x = states.transpose(1, 2)
    for conv in adapter.subsampler.conv_layers:
        x = F.glu(conv(x * length_mask(lengths, x.shape[-1])[:, None]), dim=1)
        lengths = (lengths - 1) // 2 + 1
    x = adapter.speech_ln(adapter.adapter(x.transpose(1, 2)))  # (batch, n, llm_dim)
    return [item[:n] for item, n in zip(x, lengths.tolist(), strict=True)]
