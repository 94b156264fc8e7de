"""The Whisper encoder: transformers' numbers at 30 s, and windows in a batch as if alone."""

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers.models.whisper.modeling_whisper import WhisperEncoder as ReferenceEncoder

from models.checkpoint import Checkpoint
from models.embedder import Embedder
from models.encoder import SelfAttention, WhisperEncoder, convolve, encoder_length

FRAMES = [1, 2, 3, 80, 777, 778, 1500]


@pytest.fixture(scope="module")
def encoder(embedder: Embedder) -> WhisperEncoder:
    return embedder.encoder


def features(*frames: int) -> Tensor:
    """A batch (n, 80, longest) of random features, with what must not matter behind each item's frames."""
    items = [torch.randn(n, 80, generator=torch.Generator().manual_seed(n)) for n in frames]
    return nn.utils.rnn.pad_sequence(items, batch_first=True, padding_value=9.0).transpose(1, 2)


@torch.no_grad()
def test_30_seconds_equal_transformers(encoder: WhisperEncoder, checkpoint: Checkpoint) -> None:
    reference = ReferenceEncoder(encoder.config).eval()
    reference.load_state_dict(load_file(checkpoint.encoder / "model.safetensors"))
    x = torch.cat([features(3000), 2 * features(3000)])
    expected = reference(x).last_hidden_state
    torch.testing.assert_close(encoder(x, torch.tensor([3000, 3000])), expected, atol=1e-5, rtol=0)


@torch.no_grad()
def test_a_window_in_a_batch_is_as_alone(encoder: WhisperEncoder) -> None:
    together = encoder(features(*FRAMES), torch.tensor(FRAMES))
    for states, n in zip(together, FRAMES, strict=True):
        alone = encoder(features(n), torch.tensor([n]))[0]
        assert len(alone) == encoder_length(n)
        torch.testing.assert_close(states[: len(alone)], alone, atol=1e-5, rtol=0)
        assert not states[len(alone) :].any()


def attention_and_input(lengths: list[int]) -> tuple[SelfAttention, Tensor, int]:
    """Random weights, packed windows of these lengths with filler behind them (total, 96), and how much of it."""
    filler = -sum(lengths) % 64
    torch.manual_seed(0)
    return SelfAttention(96, 3), 3 * torch.randn(sum(lengths) + filler, 96), filler


@torch.no_grad()
@pytest.mark.parametrize("lengths", [[1, 2, 40, 388], [200, 200, 200]])
def test_attention_in_bfloat16_is_that_in_float32_but_for_rounding(lengths: list[int]) -> None:
    attention, x, filler = attention_and_input(lengths)
    expected = attention(x, lengths, filler)
    rounded = attention.bfloat16()(x.bfloat16(), lengths, filler)
    assert (rounded - expected).norm() < 0.02 * expected.norm()


@pytest.mark.parametrize("lengths", [[64], [700], [1, 2, 40, 388], [200, 200, 200]])
def test_attention_without_gradients_is_that_with_them(lengths: list[int]) -> None:
    attention, x, filler = attention_and_input(lengths)
    expected = attention(x, lengths, filler)
    assert expected.requires_grad
    with torch.no_grad():
        torch.testing.assert_close(attention(x, lengths, filler), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("frames", [1, 2, 3, 4, 2999, 3000])
def test_encoder_length_is_what_the_convolution_gives(encoder: WhisperEncoder, frames: int) -> None:
    convolved = encoder.conv2(torch.zeros(1, encoder.config.d_model, frames))
    assert encoder_length(frames) == convolved.shape[-1]


@torch.no_grad()
@pytest.mark.parametrize(("kernel", "stride", "padding"), [(3, 1, 1), (3, 2, 1), (5, 2, 2), (1, 2, 0)])
def test_convolve_is_a_convolution_of_each_item(kernel: int, stride: int, padding: int) -> None:
    conv = nn.Conv1d(8, 6, kernel, stride=stride, padding=padding)
    items = [torch.randn(n, 8) for n in (1, 2, 5, 64)]
    for y, x in zip(convolve(conv, items), items, strict=True):
        torch.testing.assert_close(y, conv(x.T[None])[0].T, atol=1e-5, rtol=0)


@torch.no_grad()
def test_a_padded_batch_has_the_states_of_each_window(encoder: WhisperEncoder) -> None:
    batch, frames = features(*FRAMES), torch.tensor(FRAMES)
    for padded, packed, n in zip(encoder.padded(batch, frames), encoder(batch, frames), FRAMES, strict=True):
        torch.testing.assert_close(padded[: encoder_length(n)], packed[: encoder_length(n)], atol=1e-5, rtol=0)
