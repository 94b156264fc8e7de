"""Log-mel features: Whisper's own, for any length."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import WhisperFeatureExtractor

from models.features import (
    HOP_LENGTH,
    N_FRAMES,
    N_SAMPLES,
    counted_frames,
    framed,
    log_mel,
    log_mels,
    log_mels_of_strip,
    n_frames,
    split_windows,
)

LENGTHS = [1, 2, 159, 160, 161, 201, 399, 400, 16_007, 479_639, 479_640, 479_801, 479_840, 479_999, 480_000]


def noise(length: int) -> Tensor:
    return 0.1 * torch.randn(length, generator=torch.Generator().manual_seed(length))


def whisper_features(samples: Tensor, n_mels: int = 80) -> Tensor:
    """transformers' features (n_mels, 3000)."""
    extractor = WhisperFeatureExtractor(feature_size=n_mels)
    return extractor(samples.numpy(), sampling_rate=16_000, return_tensors="pt").input_features[0]


def assert_whispers(samples: Tensor, n_mels: int = 80) -> None:
    """Padded features are Whisper's; exact ones are the real frames of Whisper's."""
    expected = whisper_features(samples, n_mels)
    torch.testing.assert_close(log_mel(samples, n_mels, pad_to_window=True), expected, atol=1e-4, rtol=0)
    real = -(-len(samples) // 160)
    torch.testing.assert_close(log_mel(samples, n_mels), expected[:, :real], atol=1e-4, rtol=0)


@pytest.mark.parametrize("length", LENGTHS)
def test_noise_of_any_length(length: int) -> None:
    assert_whispers(noise(length))


@pytest.mark.parametrize("length", [1, 16_007, 480_000])
def test_128_mels(length: int) -> None:
    assert_whispers(noise(length), n_mels=128)


@pytest.mark.parametrize("scale", [0.0, 1e-6, 1e-3, 10.0])
def test_any_level(scale: float) -> None:
    assert_whispers(scale * noise(20_000))


@pytest.mark.parametrize("length", [16_000, 16_001, 16_100, 479_990])
def test_a_click_at_the_very_end(length: int) -> None:
    """The loudest frame, which sets the floor of all others, may lie behind the last real one."""
    samples = 1e-3 * noise(length)
    samples[-1] = 1.0
    assert_whispers(samples)


@pytest.mark.parametrize("length", [0, N_SAMPLES + 1])
@pytest.mark.parametrize("pad", [True, False])
def test_windows_out_of_range(length: int, pad: bool) -> None:
    with pytest.raises(ValueError, match=rf"1 to 480000 samples, not {length}"):
        log_mel(torch.zeros(length), pad_to_window=pad)


def test_n_frames_is_the_official_masks_sum() -> None:
    for length in LENGTHS:
        assert n_frames(length) == len(range(0, length, 160))
    assert n_frames(N_SAMPLES) == N_FRAMES


@pytest.mark.parametrize(
    ("length", "lengths"),
    [(1, [1]), (480_000, [480_000]), (480_001, [480_000, 1]), (1_200_000, [480_000, 480_000, 240_000])],
)
def test_split_windows_loses_nothing(length: int, lengths: list[int]) -> None:
    samples = torch.arange(length, dtype=torch.float32)
    windows = split_windows(samples)
    assert [len(window) for window in windows] == lengths
    assert torch.equal(torch.cat(windows), samples)


@pytest.mark.parametrize("lengths", [[480_000], [16_000, 480_000, 399, 1, 77_777, 479_999, 480_000 - 160]])
def test_windows_together_have_the_features_of_each(lengths: list[int]) -> None:
    generator = torch.Generator().manual_seed(0)
    windows = [torch.randn(n, generator=generator) * 10.0 ** -(i % 4) for i, n in enumerate(lengths)]
    for together, window in zip(log_mels(windows), windows, strict=True):
        torch.testing.assert_close(together, log_mel(window), rtol=0, atol=1e-6)


@pytest.mark.parametrize("n_mels", [80, 128])
def test_windows_on_a_strip_have_the_features_of_each(n_mels: int) -> None:
    """Loud ones beside quiet ones, a tone, a click behind the last real frame, and silence."""
    tone = 0.9 * torch.sin(torch.arange(40_000) * 0.04)
    click = 1e-3 * noise(16_001)
    click[-1] = 1.0
    windows = [
        1e-3 * noise(480_000),
        noise(1),
        tone,
        click,
        torch.zeros(500),
        10 * noise(479_999),
        1e-6 * noise(20_000),
    ]
    signals, owners = [], []
    for i, window in enumerate(windows):
        counted = counted_frames(n_frames(len(window)))
        hops = counted + 5 + i
        signal = framed(window, counted)
        signals.append(F.pad(signal, (0, hops * HOP_LENGTH - len(signal))))
        owners.append(torch.tensor([i] * counted + [len(windows)] * (hops - counted), dtype=torch.int32))
    signal, owner = F.pad(torch.cat(signals), (0, 240)), torch.cat(owners)
    features = log_mels_of_strip(signal, owner, len(windows), n_mels)
    assert features.shape == (len(owner), n_mels)
    for i, window in enumerate(windows):
        expected = log_mel(window, n_mels)
        found = features[owner == i][: expected.shape[1]].T
        # Within 1e-4 but for single numbers, which are up to 1.2e-4 off on processors that add in another order.
        torch.testing.assert_close(found, expected, atol=2e-4, rtol=0)
