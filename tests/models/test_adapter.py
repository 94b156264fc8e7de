"""The adapter: lengths, and items in a batch as if alone."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from models.adapter import ModalityAdapter, real_positions
from models.config import AdapterSizes
from models.embedder import Embedder

LENGTHS = [1, 2, 7, 8, 9, 375, 400]


@pytest.fixture(scope="module")
def adapter(embedder: Embedder) -> ModalityAdapter:
    return embedder.adapter


def states(length: int) -> Tensor:
    return torch.randn(1, length, 48, generator=torch.Generator().manual_seed(length))


@pytest.mark.parametrize("kernels", [(1,), (3,), (5, 5, 5), (5, 3, 7), (1, 9)])
def test_output_length_is_what_the_convolutions_give(kernels: tuple[int, ...]) -> None:
    adapter = ModalityAdapter(4, 6, AdapterSizes(conv_kernel_sizes=kernels))
    for length in [*range(1, 40), 1500]:
        [rows] = adapter(torch.zeros(1, length, 4), torch.tensor([length]))
        assert rows.shape == (adapter.subsampler.output_length(length), 6)
        layers = torch.zeros(1, 4, length)
        for conv in adapter.subsampler.conv_layers:
            layers = F.glu(conv(layers), dim=1)
        assert layers.shape[-1] == len(rows)


def test_30_seconds_are_188_rows(adapter: ModalityAdapter) -> None:
    assert adapter.subsampler.output_length(1500) == 188


@torch.no_grad()
def test_an_item_in_a_batch_is_as_alone_whatever_stands_behind_it(adapter: ModalityAdapter) -> None:
    batch = 100 * torch.randn(len(LENGTHS), max(LENGTHS), 48)
    for item, length in zip(batch, LENGTHS, strict=True):
        item[:length] = states(length)[0]
    together = adapter(batch, torch.tensor(LENGTHS))
    for rows, length in zip(together, LENGTHS, strict=True):
        alone = adapter(states(length), torch.tensor([length]))[0]
        torch.testing.assert_close(rows, alone, atol=1e-5, rtol=0)


@pytest.mark.parametrize("sizes", [AdapterSizes(), AdapterSizes(conv_kernel_sizes=(3, 5), context_layers=2)])
def test_a_padded_batch_has_the_rows_and_gradients_of_its_items(sizes: AdapterSizes) -> None:
    torch.manual_seed(0)
    adapter, lengths = ModalityAdapter(32, 128, sizes), torch.tensor([50, 7, 33, 200, 1])
    direction = torch.randn(128)
    states = torch.randn(5, 200, 32)  # what stands behind an item's length must not be heard
    wanted = adapter(states, lengths)
    (torch.cat(wanted) @ direction).square().sum().backward()
    grads = {name: p.grad.clone() for name, p in adapter.named_parameters() if p.grad is not None}
    adapter.zero_grad()
    rows, counts = adapter.padded(states, lengths)
    assert counts.tolist() == [len(item) for item in wanted]
    for item, row, n in zip(wanted, rows, counts.tolist(), strict=True):
        torch.testing.assert_close(row[:n], item, rtol=1e-4, atol=1e-5)
    (rows[real_positions(rows, counts)] @ direction).square().sum().backward()
    for name, p in adapter.named_parameters():
        assert p.grad is not None
        assert (p.grad - grads[name]).norm() <= 1e-3 * grads[name].norm() + 1e-4, name


def test_context_layers_keep_items_apart() -> None:
    torch.manual_seed(0)
    adapter = ModalityAdapter(32, 128, AdapterSizes(context_layers=1)).eval()
    a, b = torch.randn(40, 32), torch.randn(61, 32)
    batch = torch.nn.utils.rnn.pad_sequence([a, b], batch_first=True)
    with torch.no_grad():
        together = adapter(batch, torch.tensor([40, 61]))
        torch.testing.assert_close(together[0], adapter(a[None], torch.tensor([40]))[0], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(together[1], adapter(b[None], torch.tensor([61]))[0], rtol=1e-5, atol=1e-5)
