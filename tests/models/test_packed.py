"""The packed networks: each window's rows are those of the plain way, whatever stands beside and behind it on the strip."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor
from transformers import WhisperConfig

from models.adapter import ModalityAdapter
from models.config import AdapterSizes, PaddingPolicy
from models.embedder import Embedder
from models.encoder import WhisperEncoder
from models.features import N_SAMPLES
from models.packed import Packed, Strip

BATCHES = [
    [1],
    [480_000],
    [1, 160, 161, 320, 321, 2559, 2560, 2561],
    [479_999, 5, 480_000, 399, 479_640],
    [80_000] * 3,
    [16_000 * seconds for seconds in (1, 2, 3, 4, 5, 7, 9, 11)],
]
ADAPTERS = [
    AdapterSizes(inner_dim=16),
    AdapterSizes(conv_kernel_sizes=(1,), inner_dim=16),
    AdapterSizes(conv_kernel_sizes=(3, 9), inner_dim=16),
    AdapterSizes(conv_kernel_sizes=(5, 3), inner_dim=16, context_layers=2),
]


def noise(length: int) -> Tensor:
    return 0.1 * torch.randn(length, generator=torch.Generator().manual_seed(length))


def random_embedder(sizes: AdapterSizes, padding: PaddingPolicy = "exact") -> Embedder:
    torch.manual_seed(0)
    config = WhisperConfig(d_model=48, encoder_layers=2, encoder_attention_heads=3, encoder_ffn_dim=96, num_mel_bins=80)
    embedder = Embedder(WhisperEncoder(config), ModalityAdapter(48, 64, sizes), padding)
    for layer in embedder.encoder.layers:
        torch.nn.init.normal_(layer.self_attn.q_proj.bias)  # type: ignore[union-attr, arg-type]
    return embedder.eval().requires_grad_(False)


@torch.inference_mode()
def rows_on(packed: Packed, strip: Strip, windows: Sequence[Tensor]) -> list[Tensor]:
    places = packed.fill(strip, [packed.prepare(window) for window in windows], [len(window) for window in windows])
    rows = packed(strip)
    return [rows[place].clone() for place in places]


def strip_for(packed: Packed, lengths: Sequence[int], more: int = 0) -> Strip:
    return Strip.empty(sum(map(packed.hops, lengths)) + more, len(lengths) + 2, packed.device)


@pytest.mark.parametrize("lengths", BATCHES, ids=lambda lengths: f"{len(lengths)} of {max(lengths)}")
@pytest.mark.parametrize("padding", ["exact", "30s"])
def test_rows_are_those_of_the_plain_way(embedder: Embedder, padding: PaddingPolicy, lengths: list[int]) -> None:
    plain = Embedder(embedder.encoder, embedder.adapter, padding)
    expected = [plain.embed([noise(n)])[0] for n in lengths]
    packed = Packed(embedder.encoder, embedder.adapter, padding)
    for rows, wanted in zip(
        rows_on(packed, strip_for(packed, lengths, 128), [noise(n) for n in lengths]), expected, strict=True
    ):
        torch.testing.assert_close(rows, wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("sizes", ADAPTERS, ids=str)
def test_of_adapters_of_all_kinds(sizes: AdapterSizes) -> None:
    plain, lengths = random_embedder(sizes), [3000, 1, 50_000, 20_479, 20_480, 20_481]
    windows = [10.0 ** -(i % 3) * noise(n) for i, n in enumerate(lengths)]
    expected = plain.embed(windows)
    packed = Packed(plain.encoder, plain.adapter, "exact")
    for rows, wanted in zip(rows_on(packed, strip_for(packed, lengths), windows), expected, strict=True):
        torch.testing.assert_close(rows, wanted, atol=1e-5, rtol=1e-5)


def test_the_frames_behind_a_window_set_its_loudness_and_do_not_hear_the_next() -> None:
    plain = random_embedder(ADAPTERS[1])  # whose windows stand closest together
    click = 1e-3 * noise(18 * 160)
    click[-1] = 1.0
    windows = [click, 1e-3 * noise(18 * 160), 10 * noise(18 * 160)]
    packed = Packed(plain.encoder, plain.adapter, "exact")
    for rows, wanted in zip(
        rows_on(packed, strip_for(packed, [18 * 160] * 3), windows), plain.embed(windows), strict=True
    ):
        torch.testing.assert_close(rows, wanted, atol=1e-5, rtol=1e-5)


def test_what_was_on_the_strip_before_is_not_heard(embedder: Embedder) -> None:
    packed = Packed(embedder.encoder, embedder.adapter, "exact")
    strip = Strip.empty(6400, 4, packed.device)
    [fresh] = rows_on(packed, strip, [noise(30_000)])
    rows_on(packed, strip, [noise(N_SAMPLES), noise(N_SAMPLES)])
    strip.signal[packed.hops(30_000) * 160 :] = torch.nan
    [rows] = rows_on(packed, strip, [noise(30_000)])
    torch.testing.assert_close(rows, fresh, atol=1e-6, rtol=0)


def test_a_shorter_strip_in_the_same_memory(embedder: Embedder) -> None:
    packed = Packed(embedder.encoder, embedder.adapter, "exact")
    strip = Strip.empty(6400, 4, packed.device)
    [expected] = rows_on(packed, strip, [noise(30_000)])
    [rows] = rows_on(packed, strip.part(256), [noise(30_000)])
    torch.testing.assert_close(rows, expected, atol=1e-6, rtol=0)
    assert strip.part(256).signal.data_ptr() == strip.signal.data_ptr()


def test_the_weights_stay_what_they_are() -> None:
    plain = random_embedder(AdapterSizes(inner_dim=16))
    before = {name: weight.clone() for name, weight in plain.state_dict().items()}
    Packed(plain.encoder, plain.adapter, "exact")
    after = plain.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(weight, after[name]) for name, weight in before.items())


@pytest.mark.parametrize("length", [0, N_SAMPLES + 1])
def test_windows_out_of_range(embedder: Embedder, length: int) -> None:
    with pytest.raises(ValueError, match=f"not {length}"):
        Packed(embedder.encoder, embedder.adapter, "exact").prepare(torch.zeros(length))


def test_a_window_takes_little_more_than_its_frames(embedder: Embedder) -> None:
    """A row's worth of silence to part it from the next one, and at most another to end where a row does."""
    packed = Packed(embedder.encoder, embedder.adapter, "exact")
    for n in (1, 80_000, 479_000, 480_000):
        assert 0 < packed.hops(n) - -(-n // 160) <= 2 * packed.unit
        assert packed.hops(n) % packed.unit == 0
        assert packed.prepare(noise(n)).shape == (160, packed.hops(n))
