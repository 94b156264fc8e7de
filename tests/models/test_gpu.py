"""On a GPU: the same rows, packed and recorded, as the plain way's on the CPU."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from models.config import AdapterSizes
from models.embedder import Embedder
from tests.models.test_packed import noise, random_embedder

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")

SIZES = [480_000, 1, 16_000, 79_999, 80_000, 161]


def on_gpu(dtype: torch.dtype) -> Embedder:
    embedder = random_embedder(AdapterSizes(inner_dim=16)).to("cuda", dtype)
    embedder.accelerate(windows=8, seconds=40.0, launch_seconds=0.0)
    return embedder


def rows_of(embedder: Embedder, sizes: list[int]) -> list[Tensor]:
    return embedder.embed_prepared([embedder.prepare(noise(n)) for n in sizes], sizes)


@pytest.mark.parametrize("sizes", [SIZES, SIZES[:1], [480_000] * 3], ids=["mixed", "one", "without a graph"])
def test_rows_in_float32(sizes: list[int]) -> None:
    expected = random_embedder(AdapterSizes(inner_dim=16)).embed([noise(n) for n in sizes])
    for rows, wanted in zip(rows_of(on_gpu(torch.float32), sizes), expected, strict=True):
        assert rows.device.type == "cpu"
        torch.testing.assert_close(rows, wanted, atol=1e-4, rtol=1e-4)


def test_rows_in_bfloat16_alone_and_together() -> None:
    expected = random_embedder(AdapterSizes(inner_dim=16)).embed([noise(n) for n in SIZES])
    embedder = on_gpu(torch.bfloat16)
    together = rows_of(embedder, SIZES)
    for rows, wanted, n in zip(together, expected, SIZES, strict=True):
        assert F.cosine_similarity(rows.float(), wanted).min() > 0.99
        assert F.cosine_similarity(rows_of(embedder, [n])[0].float(), wanted).min() > 0.99


def test_batches_are_bounded_by_what_was_measured() -> None:
    embedder = random_embedder(AdapterSizes(inner_dim=16)).to("cuda", torch.bfloat16)
    least = embedder.accelerate(windows=8, seconds=None, launch_seconds=0.0)
    assert 30 <= least < 40
    assert embedder.accelerate(windows=8, seconds=None, launch_seconds=60.0) >= 8 * 30
