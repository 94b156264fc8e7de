"""The modality adapter: the one trained part, from encoder states to the LLM's embedding space.

Paper section 2.2; official code: src/modeling_blsp.py and src/modeling_adapter.py. Parameter names are the official ones.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.config import AdapterSizes
from models.encoder import length_mask


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

    def forward(self, states: Tensor, lengths: Tensor) -> Tensor:
        """states (batch, length, in_dim), of which `lengths` (batch,) are real -> (batch, output_length(length), out_dim).

        What stands behind an item's real length is taken for zero at every layer, as if the item were alone.
        """
        x = states.transpose(1, 2)  # (batch, in_dim, length)
        for conv in self.conv_layers:
            x = x * length_mask(lengths, x.shape[-1])[:, None]
            x = F.glu(conv(x), dim=1)
            lengths = (lengths - 1) // 2 + 1
        return x.transpose(1, 2)


class Bottleneck(nn.Module):
    """A residual bottleneck without biases: x + fc2(gelu(fc1(x)))."""

    def __init__(self, dim: int, inner_dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, inner_dim, bias=False)
        self.fc2 = nn.Linear(inner_dim, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(..., dim) -> (..., dim)."""
        return x + self.fc2(F.gelu(self.fc1(x)))


class ModalityAdapter(nn.Module):
    """Subsampler, bottleneck and layer norm: encoder states to speech embeddings."""

    def __init__(self, encoder_dim: int, llm_dim: int, sizes: AdapterSizes) -> None:
        super().__init__()
        self.subsampler = Subsampler(encoder_dim, llm_dim, sizes.conv_kernel_sizes)
        self.adapter = Bottleneck(llm_dim, sizes.inner_dim)
        self.speech_ln = nn.LayerNorm(llm_dim, eps=1e-5)

    def forward(self, states: Tensor, lengths: Tensor) -> list[Tensor]:
        """Encoder states (batch, length, encoder_dim) with `lengths` (batch,) real positions each -> a list of (n_i, llm_dim)."""
        x = self.speech_ln(self.adapter(self.subsampler(states, lengths)))  # (batch, n, llm_dim)
        return [item[: self.subsampler.output_length(n)] for item, n in zip(x, lengths.tolist(), strict=True)]

    @torch.no_grad()
    def mean_norm(self) -> float:
        """The expected Euclidean norm of a speech embedding, from the layer norm's gain and bias."""
        return float((self.speech_ln.weight.square().sum() + self.speech_ln.bias.square().sum()).sqrt())
