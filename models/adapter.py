"""The modality adapter: the one trained part, from encoder states to the LLM's embedding space.

Paper section 2.2; official code: src/modeling_blsp.py and src/modeling_adapter.py. Parameter names are the official ones.
"""

from collections.abc import Sequence
from copy import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.config import AdapterSizes
from models.encoder import Linear, convolve
from models.spelling import Speller

REACH = 4  # positions to both sides that a context layer sees


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

    def padded(self, x: Tensor, lengths: Tensor, begin: int = 0, end: int | None = None) -> tuple[Tensor, Tensor]:
        """The layers from `begin` to `end` on a padded batch (batch, length, in_dim) with `lengths` (batch,), for training.

        What is padding is zero, and stays so.
        """
        for conv in self.conv_layers[begin:end]:
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


class ContextLayer(nn.Module):
    """A convolution of each channel for itself, then a residual MLP, after ConvNeXt (Liu et al. 2022): what is around a position."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.conv = nn.Conv1d(dim, dim, 2 * REACH + 1, padding=REACH, groups=dim)
        self.fc1 = Linear(dim, 2 * dim)
        self.fc2 = Linear(2 * dim, dim)

    def forward(self, x: Tensor, real: Tensor) -> Tensor:
        """A padded batch x (batch, length, dim) -> the same shape; `real` (batch, length) says which positions are no padding."""
        y = self.conv((self.norm(x) * real[..., None]).transpose(1, 2)).transpose(1, 2)
        return x + self.fc2(self.fc1(y, gelu=True))


class ModalityAdapter(nn.Module):
    """Encoder states to speech embeddings: subsampler, bottleneck and layer norm.

    Where the sizes ask for them, which the paper has none of, context layers stand behind the subsampler, and a speller at the end turns
    the rows into the LLM's own embeddings of the tokens that are heard. A row stands for several positions, and it is chance at which of
    them the first begins: a speller is given rows in all phases, of which phase p leaves out p positions.
    """

    def __init__(self, encoder_dim: int, llm_dim: int, sizes: AdapterSizes) -> None:
        super().__init__()
        self.subsampler = Subsampler(encoder_dim, llm_dim, sizes.conv_kernel_sizes)
        self.context = nn.ModuleList(ContextLayer(llm_dim) for _ in range(sizes.context_layers))
        self.adapter = Bottleneck(llm_dim, sizes.inner_dim)
        self.speech_ln = nn.LayerNorm(llm_dim, eps=1e-5)
        self.speller = Speller(llm_dim, sizes.spelling_dim) if sizes.spelling_dim else None
        self._phases = 2 ** len(sizes.conv_kernel_sizes) if sizes.spelling_dim else 1

    def forward(self, states: Tensor, lengths: Tensor) -> list[Tensor]:
        """Encoder states (batch, length, encoder_dim) with `lengths` (batch,) real positions each -> a list of (n_i, width)."""
        windows = [item[:n] for item, n in zip(states, lengths.tolist(), strict=True)]
        items = self.subsampler([F.pad(item, (0, 0, 0, p))[p:] for item in windows for p in range(self._phases)])
        counts = [len(item) for item in items]
        if self.context:
            x = nn.utils.rnn.pad_sequence(items, batch_first=True)
            real = real_positions(x, torch.tensor(counts, device=x.device))
            x = self._in_context(x, real)[real]
        else:
            x = torch.cat(items)
        phases = self.speech_ln(self.adapter(x)).split(counts)  # (n_i, llm_dim) each
        rows = [torch.cat(phases[i : i + self._phases], 1) for i in range(0, len(phases), self._phases)]
        return rows if self.speller is None else [self.speller(item) for item in rows]

    @property
    def width(self) -> int:
        """That of the rows: llm_dim, or as much for each phase."""
        dim = self.speech_ln.normalized_shape[0]
        return self._phases * dim if self.speller is None else dim

    def without_speller(self) -> "ModalityAdapter":
        """One of the same layers, whose rows are those that the speller would get: of all phases side by side (n_i, phases * llm_dim)."""
        other = copy(self)
        other._modules = self._modules | {"speller": None}
        return other

    def padded(self, states: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """The rows of a padded batch, before any speller, which is quicker in training.

        Returns rows (batch, n, llm_dim) and how many of each are real (batch,).
        """
        rows, counts, _, _ = self.padded_with_first(states, lengths)
        return rows, counts

    def padded_with_first(self, states: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """As padded, and what comes out of the first convolution (batch, n, channels), with how much of it is real (batch,)."""
        first, first_counts = self.subsampler.padded(
            states * real_positions(states, lengths)[..., None], lengths, end=1
        )
        x, counts = self.subsampler.padded(first, first_counts, begin=1)
        x = self._in_context(x, real_positions(x, counts))
        return self.speech_ln(self.adapter(x)), counts, first, first_counts

    def _in_context(self, x: Tensor, real: Tensor) -> Tensor:
        for layer in self.context:
            x = layer(x, real)
        return x
