"""Cheap changes to log-mel features, drawn anew each time an utterance is trained on: another vocal tract and channel, and masks."""

import math
from functools import cache
from itertools import product

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

N_MELS = 80
_WARPS = tuple(float(w) for w in np.linspace(0.84, 1.2, 19))
_BENDS = (-0.06, -0.03, 0.0, 0.03, 0.06)
_BEND_HZ = 1500.0  # what a bend leaves as it is
_TOP_HZ = 8000.0
_EQUALISER = 0.12 / torch.arange(1, 7).sqrt()  # spread of the cosines that an equaliser is made of
_MASK_FRAMES, _MASK_MELS = 14, 12
_MASK_SHARE = 0.75  # of utterances


def augment(features: Tensor, frames: Tensor, generator: torch.Generator, masks: bool = True) -> Tensor:
    """Changes a batch (batch, 80, T) with `frames` (batch,) real frames each; what lies behind them is zero in the result.

    Without `masks` every word can still be heard.
    """
    batch, _, width = features.shape
    real = torch.arange(width) < frames[:, None]  # (batch, T)
    lowest = features.masked_fill(~real[:, None], torch.inf).amin((1, 2))
    matrices = _warp_matrices()
    features = matrices[torch.randint(len(matrices), (batch,), generator=generator)] @ features
    features = _sharpen(features, generator)
    mean = (features * real[:, None]).sum((1, 2), keepdim=True) / (frames[:, None, None] * N_MELS)
    contrast = _uniform((batch, 1, 1), 0.8, 1.2, generator)
    gain = _uniform((batch, 1, 1), -0.3, 0.2, generator)
    features = mean + (features - mean) * contrast + _equaliser(batch, generator) + gain
    if masks:
        features = torch.where(_mask(frames, width, generator), lowest[:, None, None], features)
    return features * real[:, None]


def _uniform(shape: tuple[int, ...], low: float, high: float, generator: torch.Generator) -> Tensor:
    return low + (high - low) * torch.rand(shape, generator=generator)


def _sharpen(features: Tensor, generator: torch.Generator) -> Tensor:
    """Half of the utterances with formants up to half again as sharp, or blurred by up to the mean of three bands."""
    neighbours = F.pad(features.transpose(1, 2), (1, 1), mode="replicate").transpose(1, 2)  # (batch, 82, T)
    blurred = (neighbours[:, :-2] + neighbours[:, 1:-1] + neighbours[:, 2:]) / 3
    shape = (len(features), 1, 1)
    share = _uniform(shape, -0.5, 1.0, generator) * (torch.rand(shape, generator=generator) < 0.5)
    return features + share * (blurred - features)


def _equaliser(batch: int, generator: torch.Generator) -> Tensor:
    """A random smooth frequency response for each utterance (batch, 80, 1)."""
    order = torch.arange(1, len(_EQUALISER) + 1)
    cosines = torch.cos(order[:, None] * torch.linspace(0, math.pi, N_MELS))  # (order, 80)
    return (torch.randn((batch, len(order)), generator=generator) * _EQUALISER @ cosines)[:, :, None]


def _mask(frames: Tensor, width: int, generator: torch.Generator) -> Tensor:
    """SpecAugment: two bands of time and one of frequency, in most utterances; bool (batch, 80, T)."""
    batch = len(frames)
    bands = [_band(width, frames, _MASK_FRAMES, generator)[:, None] for _ in range(2)]  # (batch, 1, T)
    bands.append(_band(N_MELS, torch.full((batch,), N_MELS), _MASK_MELS, generator)[:, :, None])  # (batch, 80, 1)
    masked = bands[0] | bands[1] | bands[2]
    return masked & (torch.rand((batch, 1, 1), generator=generator) < _MASK_SHARE)


def _band(width: int, lengths: Tensor, longest: int, generator: torch.Generator) -> Tensor:
    """One random band per item, of up to `longest` positions that begin within its length; bool (batch, width)."""
    begin = torch.rand(lengths.shape, generator=generator) * lengths
    size = torch.rand(lengths.shape, generator=generator) * longest
    positions = torch.arange(width)
    return (positions >= begin[:, None]) & (positions < (begin + size)[:, None])


@cache
def _warp_matrices() -> Tensor:
    """(warps, 80, 80): each reads the features at frequencies stretched by its factor (vocal tract length perturbation).

    With a bend, high frequencies are stretched by more than low ones, or by less: no two speakers differ by one factor.
    """
    return torch.stack([_warp_matrix(warp, bend) for warp, bend in product(_WARPS, _BENDS)])


def _warp_matrix(warp: float, bend: float) -> Tensor:
    mels = torch.linspace(0, _mel(torch.tensor(_TOP_HZ)).item(), N_MELS)
    hertz = _hertz(mels)
    stretched = hertz * warp * (hertz.clamp(min=1) / _BEND_HZ) ** bend
    source = _mel(stretched.clamp(max=_TOP_HZ)) / mels[1]  # in bins
    low = source.floor().clamp(max=N_MELS - 2).long()
    share = (source - low).clamp(max=1.0)
    matrix = torch.zeros(N_MELS, N_MELS)
    rows = torch.arange(N_MELS)
    matrix[rows, low] += 1 - share
    matrix[rows, low + 1] += share
    return matrix


def _mel(hertz: Tensor) -> Tensor:
    """Slaney's mel scale: linear up to 1 kHz, logarithmic above."""
    return torch.where(hertz < 1000, hertz * 3 / 200, 15 + (hertz.clamp(min=1000) / 1000).log() * 27 / np.log(6.4))


def _hertz(mels: Tensor) -> Tensor:
    return torch.where(mels < 15, mels * 200 / 3, 1000 * ((mels.clamp(min=15) - 15) * np.log(6.4) / 27).exp())
