"""What loading leaves to the engine of a GPU's memory."""

from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from models.embedder import Embedder
from service.loading import GPU_MARGIN, _accelerate
from service.settings import ModelSettings

GIB = 1 << 30


class Outline:
    """Of an encoder that two adapters have."""

    nbytes = GIB


@pytest.mark.parametrize(
    ("given", "asked", "batch_seconds"),
    [
        ({}, (16, None, 0.01), 42.0),
        ({"max_batch_seconds": 60, "max_batch_ms": 5}, (16, 60.0, 0.005), 60.0),
        ({"encoder_memory_mib": 3000}, (16, None, 0.01), 42.0),
    ],
)
def test_the_encoder_takes_its_memory_first(
    monkeypatch: pytest.MonkeyPatch, given: dict[str, Any], asked: tuple[Any, ...], batch_seconds: float
) -> None:
    free = 23 * GIB

    def accelerate(*limits: Any) -> float:
        nonlocal free
        assert limits == asked
        free -= 2 * GIB
        return 42.0

    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 24 * GIB))
    embedder = cast(Embedder, SimpleNamespace(accelerate=accelerate, device=torch.device("cuda:0")))
    outline = Outline()
    adapters = [SimpleNamespace(embedder=SimpleNamespace(encoder=outline), load_encoder=load) for load in (1, 2, None)]
    seconds, left = _accelerate(embedder, ModelSettings(**given), cast(Any, adapters))
    assert seconds == batch_seconds
    room = given.get("encoder_memory_mib", 1024) << 20
    assert left == (21 * GIB - GPU_MARGIN - room) / (24 * GIB)
