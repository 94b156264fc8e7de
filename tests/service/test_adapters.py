"""Adapters beside a first one: what they share with it, and which are refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from models.checkpoint import open_checkpoint
from models.config import CheckpointError
from service.adapters import Adapter, load_adapter, read_checkpoint
from service.errors import OptionError
from service.settings import ModelSettings
from tests.checkpoints import add_adapter, init


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> ModelSettings:
    return ModelSettings(cache=tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint, and beside it others."""
    folder = tmp_path_factory.mktemp("adapters")
    init(folder / "first")
    return folder


@pytest.fixture(scope="module")
def first(folder: Path, settings: ModelSettings) -> Adapter:
    checkpoint = read_checkpoint(str(folder / "first"), settings)
    return Adapter(checkpoint, checkpoint.load_embedder())


def test_adapters_of_one_encoder_share_it(folder: Path, settings: ModelSettings, first: Adapter) -> None:
    add_adapter(folder / "second", folder / "first", seed=1)
    second = load_adapter("second", str(folder / "second"), settings, [first])
    assert second.embedder.encoder is first.embedder.encoder
    [one], [two] = (adapter.embedder.embed([torch.ones(16_000)]) for adapter in (first, second))
    assert one.shape == two.shape
    assert not torch.allclose(one, two, atol=1e-2)


def test_so_do_those_of_a_further_encoder(folder: Path, settings: ModelSettings, first: Adapter) -> None:
    init(folder / "elsewhere", seed=2, llm_of=folder / "first")
    add_adapter(folder / "third", folder / "elsewhere", seed=3)
    other = load_adapter("other", str(folder / "elsewhere"), settings, [first])
    third = load_adapter("third", str(folder / "third"), settings, [first, other])
    assert other.embedder.encoder is not first.embedder.encoder
    assert third.embedder.encoder is other.embedder.encoder


def test_a_further_encoder_is_loaded_when_it_is_needed(folder: Path, settings: ModelSettings, first: Adapter) -> None:
    """Before that there is its outline, which prepares windows and tells their lengths."""
    init(folder / "later", seed=6, llm_of=folder / "first")
    adapter = load_adapter("later", str(folder / "later"), settings, [first])
    alone = open_checkpoint(str(folder / "later"), settings.cache).load_embedder()
    assert first.load_encoder is None
    assert adapter.load_encoder is not None
    outline = adapter.embedder
    assert outline.encoder.is_outline
    assert outline.encoder.nbytes == alone.encoder.nbytes
    assert (outline.dtype, outline.device, outline.width) == (torch.float32, torch.device("cpu"), 64)
    noise = torch.randn(20_000)
    assert torch.equal(outline.prepare(noise), alone.prepare(noise))
    whole = outline.with_encoder(adapter.load_encoder())
    assert torch.equal(whole.embed([noise])[0], alone.embed([noise])[0])
    weights = folder / "later" / "encoder" / "model.safetensors"
    weights.write_bytes(weights.read_bytes())
    with pytest.raises(CheckpointError, match="later/encoder has changed since"):
        adapter.load_encoder()


def test_instructions_of_the_settings_are_an_adapters_too(folder: Path, first: Adapter, tmp_path: Path) -> None:
    add_adapter(tmp_path / "a", folder / "first", seed=1)
    settings = ModelSettings(cache=tmp_path, transcribe_instruction="Write it down.")
    config = load_adapter("a", str(tmp_path / "a"), settings, [first]).checkpoint.config
    assert (config.transcribe_instruction, config.transcribe_begun) == ("Write it down.", "")
    assert config.transcribe_expecting == ""


def no_file(folder: Path) -> None:
    (folder / "adapter.safetensors").unlink()


def damaged(folder: Path) -> None:
    (folder / "adapter.safetensors").write_bytes(b"none")


def own_encoder(change: Callable[[dict[str, torch.Tensor]], object]) -> Any:
    """An encoder that nobody else has, with other tensors."""

    def spoil(folder: Path) -> None:
        shutil.copytree(folder.parent / "first" / "encoder", folder / "encoder")
        tensors = load_file(folder / "encoder" / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "encoder" / "model.safetensors")
        edited(encoder="encoder")(folder)

    return spoil


def loud(folder: Path) -> None:
    """Beside an encoder of its own."""
    own_encoder(lambda tensors: tensors["conv1.bias"].add_(1))(folder)
    tensors = load_file(folder / "adapter.safetensors")
    tensors["speech_ln.weight"] *= 1e6
    save_file(tensors, folder / "adapter.safetensors")


def edited(**changes: Any) -> Any:
    def edit(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text()) | changes
        (folder / "config.json").write_text(json.dumps(config))

    return edit


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (no_file, "no adapter.safetensors"),
        (damaged, "can't be read as weights"),
        (edited(prompt_format="chat-template"), "the prompt format 'chat-template', and .* 'blsp'"),
        (edited(llm="../other/llm"), "is for the LLM '../other/llm', whose weights are not those of"),
        (edited(adapter={"inner_dim": 7}), "has shape"),
        (edited(model_type="llama"), "model_type"),
        (shutil.rmtree, "neither a folder here"),
        (own_encoder(lambda tensors: tensors.pop("conv1.bias")), r"encoder: missing tensors \['conv1.bias'\]"),
        (own_encoder(lambda tensors: tensors.update(b=torch.ones(1))), r"unexpected tensors \['b'\]"),
        (own_encoder(lambda tensors: tensors.update({"conv1.bias": torch.ones(3)})), "'conv1.bias' has shape"),
        (loud, "was not trained for this LLM"),
    ],
    ids=[
        *("no file", "damaged", "format", "llm", "shape", "type", "no folder"),
        *("encoder lacks", "encoder has more", "encoder shape", "norm"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(
    folder: Path, settings: ModelSettings, first: Adapter, spoil: Any, why: str, request: pytest.FixtureRequest
) -> None:
    if not (folder / "other").exists():
        init(folder / "other", seed=5)
    bad = folder / f"bad-{request.node.callspec.id.replace(' ', '-')}"
    add_adapter(bad, folder / "first", seed=1)
    spoil(bad)
    with pytest.raises(CheckpointError, match=f"(?s)^The adapter 'bad' can't be served: .*{why}"):
        load_adapter("bad", str(bad), settings, [first])


def test_settings_name_adapters() -> None:
    settings = ModelSettings(adapter=["a=/x/y=z", "b-2.0=some/id"])
    assert settings.adapters() == {"a": "/x/y=z", "b-2.0": "some/id"}


@pytest.mark.parametrize("given", [["a"], ["=x"], ["a="], ["a b=x"], ["a=x", "a=y"], ["ü=x"], ["a/b=x"]])
def test_what_names_no_adapter_is_told(given: list[str]) -> None:
    with pytest.raises(OptionError):
        ModelSettings(adapter=given).adapters()
