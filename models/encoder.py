"""The Whisper encoder, for windows of any length.

Parameter names are those of transformers' WhisperEncoder, so its weights load as they are. What differs is the forward pass: the real
positions of all windows are packed after each other, so that windows of different lengths share every matrix product, no work is spent
on padding, and each window gets what it would get alone (Whisper itself always sees 30 s).
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import WhisperConfig

ROWS = 64  # what numbers of packed rows are multiples of
QUERIES = 320  # whose scores fit in the cache together
ONEDNN = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
ONEDNN_BFLOAT16 = ONEDNN and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def encoder_length(frames: int) -> int:
    """Positions that the encoder makes of `frames` feature frames: its second convolution halves them, rounded up."""
    return (frames - 1) // 2 + 1


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, gelu: bool = False) -> Tensor:
    """A linear layer: x (..., in), dense weight (out, in) and bias (out,) -> (..., out), through a GELU if wanted.

    Without gradients it is oneDNN's on CPUs. torch itself takes MKL for float32, which uses only half the width of AMD's vector units.
    Weights with gaps between their rows would take oneDNN's reference code, which is hundreds of times as slow.
    """
    multiplies = (x.dtype == torch.float32 and ONEDNN) or (x.dtype == torch.bfloat16 and ONEDNN_BFLOAT16)
    if multiplies and x.device.type == "cpu" and not torch.is_grad_enabled():
        y: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "gelu" if gelu else "none", [], "none")
        return y
    y = F.linear(x, weight, bias)
    return F.gelu(y) if gelu else y


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, gelu: bool = False) -> Tensor:
    """A linear layer over packed rows (total, in) -> (total, out), filled up to a multiple of `ROWS` rows; through a GELU if wanted.

    Kernels are compiled, or chosen, for each number of rows: so there are few of them however long the windows are.
    """
    return product(F.pad(x, (0, 0, 0, -len(x) % ROWS)), weight, bias, gelu=gelu)[: len(x)]


class Linear(nn.Linear):
    """nn.Linear by way of `product`."""

    def forward(self, x: Tensor, *, gelu: bool = False) -> Tensor:
        """(..., in) -> (..., out), through a GELU if wanted."""
        return product(x, self.weight, self.bias, gelu=gelu)


def convolve(conv: nn.Conv1d, items: Sequence[Tensor], *, gelu: bool = False) -> tuple[Tensor, ...]:
    """A convolution over items of different lengths, (length_i, in) -> (length'_i, out), as one matrix product; through a GELU if wanted.

    Each item has zeros of half the kernel's width at both ends, as if it were alone. On CPUs this is as fast as a batched convolution.
    """
    width, stride = conv.kernel_size[0], conv.stride[0]
    padded = (F.pad(x, (0, 0, width // 2, width // 2)) for x in items)
    rows = [x.unfold(0, width, stride).flatten(1) for x in padded]  # (length'_i, in * width)
    y = linear(torch.cat(rows), conv.weight.flatten(1), conv.bias, gelu=gelu)  # (total, out)
    return torch.split(y, [len(row) for row in rows])


class SelfAttention(nn.Module):
    """Multi-head self-attention within each window; the key projection has no bias (Radford et al. 2022)."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.k_proj = Linear(dim, dim, bias=False)
        self.v_proj = Linear(dim, dim)
        self.q_proj = Linear(dim, dim)
        self.out_proj = Linear(dim, dim)

    def forward(self, x: Tensor, lengths: list[int], filler: int) -> Tensor:
        """x (total, dim), the positions of windows of `lengths` and `filler` more rows after each other -> (total, dim)."""
        qkv = (proj(x)[: len(x) - filler] for proj in (self.q_proj, self.k_proj, self.v_proj))
        q, k, v = (t.unflatten(-1, (self.heads, -1)) for t in qkv)
        if len(set(lengths)) == 1:
            y = _attend(*(t.unflatten(0, (len(lengths), -1)) for t in (q, k, v))).flatten(0, 1)
        else:
            windows = zip(*(t.split(lengths) for t in (q, k, v)), strict=True)
            y = torch.cat([_attend(*(t[None] for t in window))[0] for window in windows])
        return self.out_proj(F.pad(y, (0, 0, 0, filler)))

    def padded(self, x: Tensor, mask: Tensor) -> Tensor:
        """The same of a padded batch x (batch, length, dim) with `mask` (batch, 1, 1, length), True at real positions."""
        projections = (self.q_proj, self.k_proj, self.v_proj)
        q, k, v = (proj(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for proj in projections)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.out_proj(y.transpose(1, 2).flatten(2))


def _attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Three of (windows, length, heads, dim / heads) -> (windows, length, dim)."""
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))  # with fewer than four dimensions torch's fused attention is slow
    by_head = q.device.type == "cpu" and not torch.is_grad_enabled()
    y = _attend_by_head(q, k, v) if by_head else F.scaled_dot_product_attention(q, k, v)
    return y.transpose(1, 2).flatten(2)


def _attend_by_head(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention of (windows, heads, length, dim / heads) in plain products, which are quicker on CPUs than those of the fused one."""
    heads = zip(*(t.flatten(0, 1).contiguous() for t in (q * q.shape[-1] ** -0.5, k, v)), strict=True)
    y = [
        product(product(queries, keys).softmax(-1), values.T)
        for all_queries, keys, values in heads
        for queries in all_queries.split(QUERIES)
    ]
    return torch.cat(y).view(q.shape)


class EncoderLayer(nn.Module):
    """A pre-norm transformer layer."""

    def __init__(self, dim: int, heads: int, ffn_dim: int) -> None:
        super().__init__()
        self.self_attn = SelfAttention(dim, heads)
        self.self_attn_layer_norm = nn.LayerNorm(dim)
        self.fc1 = Linear(dim, ffn_dim)
        self.fc2 = Linear(ffn_dim, dim)
        self.final_layer_norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor, lengths: list[int], filler: int) -> Tensor:
        """x (total, dim) -> the same shape."""
        x = x + self.self_attn(self.self_attn_layer_norm(x), lengths, filler)
        return x + self.fc2(self.fc1(self.final_layer_norm(x), gelu=True))

    def padded(self, x: Tensor, mask: Tensor) -> Tensor:
        """The same of a padded batch x (batch, length, dim), for training; `mask` (batch, 1, 1, length) is True at real positions."""
        x = x + self.self_attn.padded(self.self_attn_layer_norm(x), mask)
        return x + self.fc2(self.fc1(self.final_layer_norm(x), gelu=True))


def through(layers: nn.ModuleList, x: Tensor, lengths: list[int]) -> Tensor:
    """Packed rows x (total, dim) of windows of `lengths` through encoder layers, filled up to a multiple of `ROWS` rows meanwhile."""
    filler = -len(x) % ROWS
    x = F.pad(x, (0, 0, 0, filler))
    for layer in layers:
        x = layer(x, lengths, filler)
    return x[: len(x) - filler]


class WhisperEncoder(nn.Module):
    """Log-mel features to encoder states, 20 ms each.

    One on torch's device "meta" is an outline: it has the sizes, and no weights.
    """

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

    @property
    def is_outline(self) -> bool:
        """Whether there are no weights."""
        return self.conv1.weight.is_meta

    @property
    def nbytes(self) -> int:
        """How much memory the weights take, or would take."""
        return sum(parameter.nbytes for parameter in self.parameters())

    def forward(self, features: Tensor, frames: Tensor) -> Tensor:
        """Encodes a batch of windows.

        features (batch, n_mels, T) hold `frames` (batch,) real frames each. Returns (batch, longest, d_model), of which the first
        `encoder_length(frames)` positions of each window are real, the rest zero.
        """
        items: Sequence[Tensor] = [f[:, :n].T for f, n in zip(features, frames.tolist(), strict=True)]
        for conv in (self.conv1, self.conv2):
            items = convolve(conv, items, gelu=True)  # (length_i, dim)
        lengths = [len(x) for x in items]
        x = torch.cat([x + self.embed_positions.weight[: len(x)] for x in items])  # (total, dim)
        x = self.layer_norm(through(self.layers, x, lengths))
        return nn.utils.rnn.pad_sequence(x.split(lengths), batch_first=True)

    def padded(self, features: Tensor, frames: Tensor) -> Tensor:
        """As forward, in a padded batch, with anything behind the real positions.

        On GPUs, where many small kernels wait for each other, this is quicker for many windows of similar length.
        """
        real = torch.arange(features.shape[2], device=features.device) < frames.to(features.device)[:, None]
        x = F.gelu(self.conv1(features * real[:, None])) * real[:, None]
        x = F.gelu(self.conv2(x)).transpose(1, 2)  # (batch, length, dim)
        x = x + self.embed_positions.weight[: x.shape[1]]
        mask = real[:, None, None, ::2]
        for layer in self.layers:
            assert isinstance(layer, EncoderLayer)
            x = layer.padded(x, mask)
        return self.layer_norm(x)
