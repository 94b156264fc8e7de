"""The modality adapter: the one trained part, from encoder states to the LLM's embedding space.

Paper section 2.2; official code: src/modeling_blsp.py and src/modeling_adapter.py. Parameter names are the official ones.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.config import AdapterSizes
from models.encoder import Linear, convolve


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
    """Subsampler, bottleneck and layer norm: encoder states to speech embeddings."""

    def __init__(self, encoder_dim: int, llm_dim: int, sizes: AdapterSizes) -> None:
        super().__init__()
        self.subsampler = Subsampler(encoder_dim, llm_dim, sizes.conv_kernel_sizes)
        self.adapter = Bottleneck(llm_dim, sizes.inner_dim)
        self.speech_ln = nn.LayerNorm(llm_dim, eps=1e-5)

    def forward(self, states: Tensor, lengths: Tensor) -> list[Tensor]:
        """Encoder states (batch, length, encoder_dim) with `lengths` (batch,) real positions each -> a list of (n_i, llm_dim)."""
        items = self.subsampler([item[:n] for item, n in zip(states, lengths.tolist(), strict=True)])  # (n_i, llm_dim)
        x = self.speech_ln(self.adapter(torch.cat(items)))  # (total, llm_dim)
        return list(x.split([len(item) for item in items]))
