"""Fixtures that several folders share."""

import gc
from collections.abc import Iterator
from pathlib import Path

import pytest

from models.config import BlspConfig
from models.pretrained import find_part, how_to_get
from service.settings import DEFAULT_MODEL
from tests.killed_batch import KilledBatch, run_killed_batch
from tests.official_checkpoint import make_official
from tests.serving import Server, serve


@pytest.fixture(scope="session")
def official(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny checkpoint in the official layout, of other sizes than any default."""
    folder = tmp_path_factory.mktemp("official") / "tiny"
    make_official(folder)
    return folder


@pytest.fixture(scope="session")
def server(official: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The one server, with the one engine, that all end-to-end tests use."""
    with serve(
        official,
        tmp_path_factory.mktemp("cache"),
        "--max-audio-seconds",
        "120",
        "--max-upload-bytes",
        "8000000",
        "--max-num-seqs",
        "64",
    ) as server:
        yield server


@pytest.fixture(scope="session")
def killed_batch(official: Path, tmp_path_factory: pytest.TempPathFactory) -> KilledBatch:
    """A batch that was killed and run again."""
    return run_killed_batch(official, tmp_path_factory.mktemp("batch"), tmp_path_factory.mktemp("cache"))


@pytest.fixture
def no_garbage_collection() -> Iterator[None]:
    """What is not held by anything goes at once, or stays."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.fixture(scope="session")
def smol_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache that has encoder and LLM of the model that ships; without them its tests are skipped."""
    cache = tmp_path_factory.mktemp("smol")
    config = BlspConfig.read(DEFAULT_MODEL)
    for name in (config.encoder, config.llm):
        if find_part(name, cache) is None:
            pytest.skip(f"{name} is not installed{how_to_get(name)}")
    return cache
