"""The Whisper encoder, for windows of any length.

Parameter names are those of transformers' WhisperEncoder, so its weights load as they are. What differs is the forward pass: windows of
different lengths share a batch, and each gets what it would get alone (Whisper itself always sees 30 s).
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import WhisperConfig


def encoder_length(frames: int) -> int:
    """Positions that the encoder makes of `frames` feature frames: its second convolution halves them, rounded up."""
    return (frames - 1) // 2 + 1


def length_mask(lengths: Tensor, width: int) -> Tensor:
    """(batch,) lengths -> bool (batch, width), True on the real positions."""
    return torch.arange(width, device=lengths.device) < lengths[:, None]


class SelfAttention(nn.Module):
    """Multi-head self-attention over all real positions; the key projection has no bias (Radford et al. 2022)."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.k_proj = nn.Linear(dim, dim, bias=False)
        self.v_proj = nn.Linear(dim, dim)
        self.q_proj = nn.Linear(dim, dim)
        self.out_proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """x (batch, length, dim), mask bool (batch, 1, 1, length) -> (batch, length, dim)."""
        q, k, v = (
            proj(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (batch, heads, length, dim / heads)
            for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.out_proj(y.transpose(1, 2).flatten(2))


class EncoderLayer(nn.Module):
    """A pre-norm transformer layer."""

    def __init__(self, dim: int, heads: int, ffn_dim: int) -> None:
        super().__init__()
        self.self_attn = SelfAttention(dim, heads)
        self.self_attn_layer_norm = nn.LayerNorm(dim)
        self.fc1 = nn.Linear(dim, ffn_dim)
        self.fc2 = nn.Linear(ffn_dim, dim)
        self.final_layer_norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """x (batch, length, dim) -> the same shape."""
        x = x + self.self_attn(self.self_attn_layer_norm(x), mask)
        return x + self.fc2(F.gelu(self.fc1(self.final_layer_norm(x))))


class WhisperEncoder(nn.Module):
    """Log-mel features to encoder states, 20 ms each."""

    def __init__(self, config: WhisperConfig) -> None:
        super().__init__()
        dim = config.d_model
        self.config = config
        self.conv1 = nn.Conv1d(config.num_mel_bins, dim, kernel_size=3, padding=1)
        self.conv2 = nn.Conv1d(dim, dim, kernel_size=3, stride=2, padding=1)
        self.embed_positions = nn.Embedding(config.max_source_positions, dim)
        self.layers = nn.ModuleList(
            EncoderLayer(dim, config.encoder_attention_heads, config.encoder_ffn_dim)
            for _ in range(config.encoder_layers)
        )
        self.layer_norm = nn.LayerNorm(dim)

    def forward(self, features: Tensor, frames: Tensor) -> Tensor:
        """Encodes a batch of windows.

        features (batch, n_mels, T) hold `frames` (batch,) real frames each, zeros after them. Returns (batch, (T - 1) // 2 + 1, d_model),
        of which the first `encoder_length(frames)` positions of each window are real; the rest is undefined.
        """
        x = F.gelu(self.conv1(features))  # (batch, dim, T)
        if ragged := bool((frames < features.shape[-1]).any()):
            x = x * length_mask(frames, x.shape[-1])[:, None]
        x = F.gelu(self.conv2(x)).transpose(1, 2)  # (batch, length, dim)
        x = x + self.embed_positions.weight[: x.shape[1]]
        mask = length_mask((frames - 1) // 2 + 1, x.shape[1])[:, None, None] if ragged else None
        for layer in self.layers:
            x = layer(x, mask)
        return self.layer_norm(x)
