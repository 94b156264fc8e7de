"""The modality adapter: the one trained part, from encoder states to the LLM's embedding space.

Paper section 2.2; official code: src/modeling_blsp.py and src/modeling_adapter.py. Parameter names are the official ones.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.config import AdapterSizes
from models.encoder import EncoderLayer, Linear, convolve, through

HEAD_DIM = 64  # of the context layers' attention, as Whisper's


class Subsampler(nn.Module):
    """A stack of gated convolutions of stride 2, each of which halves the number of positions."""

    def __init__(self, in_dim: int, out_dim: int, kernel_sizes: Sequence[int]) -> None:
        super().__init__()
        widths = [in_dim] * len(kernel_sizes) + [out_dim]
        self.conv_layers = nn.ModuleList(
            nn.Conv1d(widths[i], 2 * widths[i + 1], size, stride=2, padding=size // 2)
            for i, size in enumerate(kernel_sizes)
        )

    def output_length(self, length: int) -> int:
        """Positions that come out where `length` go in."""
        for _ in self.conv_layers:
            length = (length - 1) // 2 + 1
        return length

    def forward(self, items: Sequence[Tensor]) -> list[Tensor]:
        """Items (length_i, in_dim) -> (output_length(length_i), out_dim), each as if it were alone."""
        for conv in self.conv_layers:
            assert isinstance(conv, nn.Conv1d)
            items = [F.glu(x, dim=-1) for x in convolve(conv, items)]
        return list(items)

    def padded(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """The same of a padded batch (batch, length, in_dim) with `lengths` (batch,), for training: what is padding stays zero."""
        for conv in self.conv_layers:
            y = F.glu(conv(x.transpose(1, 2)), dim=1).transpose(1, 2)
            lengths = (lengths - 1) // 2 + 1
            x = y * real_positions(y, lengths)[..., None]
        return x, lengths


def real_positions(x: Tensor, lengths: Tensor) -> Tensor:
    """Which positions of a padded batch x (batch, length, ...) are real: bool (batch, length)."""
    return torch.arange(x.shape[1], device=x.device) < lengths[:, None]


class Bottleneck(nn.Module):
    """A residual bottleneck without biases: x + fc2(gelu(fc1(x)))."""

    def __init__(self, dim: int, inner_dim: int) -> None:
        super().__init__()
        self.fc1 = Linear(dim, inner_dim, bias=False)
        self.fc2 = Linear(inner_dim, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(..., dim) -> (..., dim)."""
        return x + self.fc2(self.fc1(x, gelu=True))


class ModalityAdapter(nn.Module):
    """Encoder states to speech embeddings: subsampler, bottleneck and layer norm.

    Where the sizes ask for context layers, which the paper has none of, they stand behind the subsampler.
    """

    def __init__(self, encoder_dim: int, llm_dim: int, sizes: AdapterSizes) -> None:
        super().__init__()
        self.subsampler = Subsampler(encoder_dim, llm_dim, sizes.conv_kernel_sizes)
        heads = max(1, llm_dim // HEAD_DIM)
        self.context = nn.ModuleList(EncoderLayer(llm_dim, heads, 2 * llm_dim) for _ in range(sizes.context_layers))
        self.adapter = Bottleneck(llm_dim, sizes.inner_dim)
        self.speech_ln = nn.LayerNorm(llm_dim, eps=1e-5)

    def forward(self, states: Tensor, lengths: Tensor) -> list[Tensor]:
        """Encoder states (batch, length, encoder_dim) with `lengths` (batch,) real positions each -> a list of (n_i, llm_dim)."""
        items = self.subsampler([item[:n] for item, n in zip(states, lengths.tolist(), strict=True)])  # (n_i, llm_dim)
        counts = [len(item) for item in items]
        x = torch.cat(items)
        if self.context:
            x = through(self.context, x, counts)
        return list(self.speech_ln(self.adapter(x)).split(counts))  # (n_i, llm_dim)

    def padded(self, states: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """As forward, in a padded batch, which is quicker in training: rows (batch, n, llm_dim) and how many of each are real (batch,)."""
        x, lengths = self.subsampler.padded(states * real_positions(states, lengths)[..., None], lengths)
        mask = real_positions(x, lengths)[:, None, None]  # (batch, 1, 1, n)
        for layer in self.context:
            assert isinstance(layer, EncoderLayer)
            x = layer.padded(x, mask)
        return self.speech_ln(self.adapter(x)), lengths
