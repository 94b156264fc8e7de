"""Encoder and adapter over a strip on which windows stand behind each other: for GPUs, where each step is then one kernel.

A window begins where all strides of the network divide its place, and the silence behind it is as long as any convolution reaches. So the
strip is convolved as if it were one window, and none hears another. Shapes depend on the strip alone, not on what stands on it, and nothing
waits for the device, so that CUDA can record the whole (graphs.py). The rows are `Embedder`'s own within 1e-5 in float32.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.adapter import REACH, ContextLayer, ModalityAdapter
from models.config import PaddingPolicy
from models.encoder import EncoderLayer, SelfAttention, WhisperEncoder, encoder_length
from models.features import (
    HOP_LENGTH,
    N_FFT,
    N_FRAMES,
    check_length,
    counted_frames,
    framed,
    log_mels_of_strip,
    n_frames,
)

TAIL = 5  # hops behind a window's real frames that its signal reaches into, at most
FLASH = (8, 0)  # the least compute capability of torch's attention over packed rows

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Strip:
    """Room for `windows` windows on `hops` hops of 10 ms; it can be filled again and again."""

    hops: int
    windows: int
    signal: Tensor
    """(hops * 160 + 240,) float32, on the device: what all frames are cut from."""
    numbers: Tensor
    """int32, on the device; its `sections` tell where the windows stand."""
    host: Tensor
    """The same on the host, pinned beside a GPU."""

    @classmethod
    def empty(cls, hops: int, windows: int, device: torch.device) -> "Strip":
        """A strip with nothing on it."""
        size = sum(cls._sizes(hops, windows))
        return cls(
            hops,
            windows,
            torch.zeros(hops * HOP_LENGTH + N_FFT - HOP_LENGTH, device=device),
            torch.zeros(size, dtype=torch.int32, device=device),
            torch.zeros(size, dtype=torch.int32, pin_memory=device.type == "cuda"),
        )

    def part(self, hops: int) -> "Strip":
        """A shorter one in the same memory."""
        size = sum(self._sizes(hops, self.windows))
        signal = self.signal[: hops * HOP_LENGTH + N_FFT - HOP_LENGTH]
        return Strip(hops, self.windows, signal, self.numbers[:size], self.host[:size])

    def sections(self, numbers: Tensor) -> tuple[Tensor, ...]:
        """The parts of `numbers` or `host`.

        Of each hop: the window that it is of, be it as its loudest only, `windows` for none; whether the encoder hears it; whether its
        window is as long. Of each two hops, an encoder position: its number in its window. And where windows begin and end, in positions,
        the last end again and again for those that are not there.
        """
        return torch.split(numbers, self._sizes(self.hops, self.windows))

    @staticmethod
    def _sizes(hops: int, windows: int) -> list[int]:
        return [hops, hops, hops, hops // 2, 2 * windows]


class Packed:
    """The networks of an embedder, from a strip to rows, with the weights in the form that this takes."""

    def __init__(self, encoder: WhisperEncoder, adapter: ModalityAdapter, padding: PaddingPolicy) -> None:
        self._encoder = encoder
        self.adapter = adapter
        self._padding = padding
        subsampler = [conv for conv in adapter.subsampler.conv_layers if isinstance(conv, nn.Conv1d)]
        self._layers = [
            (layer, *_joined(layer.self_attn)) for layer in encoder.layers if isinstance(layer, EncoderLayer)
        ]
        self._convs = {conv: _by_position(conv) for conv in (encoder.conv1, encoder.conv2, *subsampler)}
        self._subsampler = subsampler
        self.unit = 2 ** (1 + len(subsampler))
        """Hops for one row, which divide every window's place."""
        self._reaches = [(1, TAIL), *((2 ** (1 + i), conv.kernel_size[0] // 2) for i, conv in enumerate(subsampler))]
        if adapter.context:
            self._reaches.append((self.unit, REACH))

    @property
    def device(self) -> torch.device:
        """Where the weights are and the work is done."""
        return self._encoder.conv1.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """That of the weights and rows."""
        return self._encoder.conv1.weight.dtype

    @property
    def llm_dim(self) -> int:
        """The width of the rows."""
        return len(self.adapter.speech_ln.weight)

    def frames(self, n_samples: int) -> int:
        """How many frames of a window the encoder hears."""
        return N_FRAMES if self._padding == "30s" else n_frames(n_samples)

    def hops(self, n_samples: int) -> int:
        """How much of a strip a window takes, the silence behind it included."""
        frames = self.frames(n_samples)
        hops = max(stride * (-(-frames // stride) + reach) for stride, reach in self._reaches)
        return -(-hops // self.unit) * self.unit

    def prepare(self, window: Tensor) -> Tensor:
        """Samples (n,) on the host to the signal that goes onto a strip, a hop in each column: (160, hops), pinned beside a GPU.

        Raises ValueError where the window is empty or longer than 30 s.
        """
        check_length(window)
        signal = framed(window.float(), counted_frames(n_frames(len(window))))
        signal = F.pad(signal, (0, self.hops(len(window)) * HOP_LENGTH - len(signal)))
        return (signal.pin_memory() if self.device.type == "cuda" else signal).view(-1, HOP_LENGTH).T

    def fill(self, strip: Strip, prepared: Sequence[Tensor], n_samples: Sequence[int]) -> list[slice]:
        """Puts windows onto a strip, which `prepare` has made of so many samples each; says which rows will be theirs.

        The copies are queued on the current stream: `prepared` and the strip stay as they are until it has come to their end.
        """
        owner, encoded, kept, places, bounds = (part.numpy() for part in strip.sections(strip.host))
        owner[:], encoded[:], kept[:], places[:] = strip.windows, 0, 0, 0
        rows, begin = [], 0
        for i, (signal, n) in enumerate(zip(prepared, n_samples, strict=True)):
            real, heard = n_frames(n), self.frames(n)
            positions, place = encoder_length(heard), begin // 2
            owner[begin : begin + max(heard, counted_frames(real))] = i
            encoded[begin : begin + heard] = 1
            kept[begin : begin + real] = 1
            places[place : place + positions] = np.arange(positions)
            bounds[2 * i :] = place + positions
            bounds[2 * i] = place
            first = begin // self.unit
            rows.append(slice(first, first + self.adapter.subsampler.output_length(encoder_length(real))))
            end = begin + signal.shape[1]
            strip.signal[begin * HOP_LENGTH : end * HOP_LENGTH].copy_(signal.T.reshape(-1), non_blocking=True)
            begin = end
        strip.numbers.copy_(strip.host, non_blocking=True)
        return rows

    def features(self, strip: Strip) -> Tensor:
        """Log-mel features (hops, n_mels) in float32, zero where the encoder hears nothing."""
        owner, encoded, *_ = strip.sections(strip.numbers)
        mel = log_mels_of_strip(strip.signal, owner, strip.windows, self._encoder.config.num_mel_bins)
        return _where(encoded, mel)

    def rows(self, strip: Strip, features: Tensor) -> Tensor:
        """Features (hops, n_mels) to rows (hops / unit, llm_dim) before any speller; what is no window's is anything."""
        encoder, adapter = self._encoder, self.adapter
        _, encoded, kept, places, bounds = strip.sections(strip.numbers)
        x = _where(encoded, F.gelu(self._convolve(encoder.conv1, features.to(self.dtype))))
        x = F.gelu(self._convolve(encoder.conv2, x)) + F.embedding(places, encoder.embed_positions.weight)
        attend = self._attention(bounds, len(places))  # x: (positions, dim)
        for layer, weight, bias in self._layers:
            qkv = F.linear(layer.self_attn_layer_norm(x), weight, bias).view(len(x), 3, layer.self_attn.heads, -1)
            x = x + layer.self_attn.out_proj(attend(*qkv.unbind(1)).flatten(1))
            x = x + layer.fc2(layer.fc1(layer.final_layer_norm(x), gelu=True))
        x, kept = encoder.layer_norm(x), kept[::2]
        for conv in self._subsampler:
            x, kept = F.glu(self._convolve(conv, _where(kept, x)), dim=-1), kept[::2]
        for context in adapter.context:
            assert isinstance(context, ContextLayer)
            x = context(x[None], kept[None])[0]
        return adapter.speech_ln(adapter.adapter(x))

    def __call__(self, strip: Strip) -> Tensor:
        """All of it: a strip to rows (hops / unit, llm_dim) before any speller."""
        return self.rows(strip, self.features(strip))

    def _convolve(self, conv: nn.Conv1d, x: Tensor) -> Tensor:
        """(length, in) -> (length / stride, out), with silence at both ends."""
        width, stride, dim = conv.kernel_size[0], conv.stride[0], x.shape[1]
        padded = F.pad(x, (0, 0, width // 2, width // 2)).flatten()
        return F.linear(padded.unfold(0, width * dim, stride * dim).contiguous(), self._convs[conv], conv.bias)

    def _attention(self, bounds: Tensor, positions: int) -> Attend:
        """Attention within windows that begin and end at `bounds`, of q, k and v (positions, heads, dim / heads) each."""
        if _has_flash(bounds.device, self.dtype):
            from torch.nn.attention.varlen import varlen_attn  # takes a moment, for which CPUs have no use

            longest = min(positions, encoder_length(N_FRAMES))

            def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
                y = varlen_attn(q, k, v, bounds, bounds, longest, longest)
                assert isinstance(y, Tensor)
                return y

            return attend
        places = torch.arange(positions, dtype=bounds.dtype, device=bounds.device)
        window = torch.searchsorted(bounds, places, right=True)
        mask = window[:, None] == window

        def attend_masked(*qkv: Tensor) -> Tensor:
            q, k, v = (t.transpose(0, 1)[None] for t in qkv)  # (1, heads, positions, dim / heads)
            return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)[0].transpose(0, 1)

        return attend_masked


def _has_flash(device: torch.device, dtype: torch.dtype) -> bool:
    halves = (torch.float16, torch.bfloat16)
    return device.type == "cuda" and dtype in halves and torch.cuda.get_device_capability(device) >= FLASH


def _where(real: Tensor, x: Tensor) -> Tensor:
    """x (n, dim), zero where `real` (n,) is; what stood there may have been no number at all."""
    return x.masked_fill((real == 0)[:, None], 0)


def _by_position(conv: nn.Conv1d) -> Tensor:
    """A convolution's weights (out, width * in), for windows of which one position stands behind the other."""
    return conv.weight.detach().transpose(1, 2).flatten(1).contiguous()


@torch.no_grad()
def _joined(attention: SelfAttention) -> tuple[Tensor, Tensor]:
    """Weights (3 * dim, dim) and biases of a layer's three projections, of which the weights become views."""
    projections = (attention.q_proj, attention.k_proj, attention.v_proj)
    weight = torch.cat([projection.weight for projection in projections])
    for projection, part in zip(projections, weight.chunk(3), strict=True):
        projection.weight.data = part
    biases = [attention.q_proj.bias, torch.zeros_like(attention.q_proj.bias), attention.v_proj.bias]
    return weight, torch.cat(biases)
