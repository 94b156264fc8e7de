"""Updates: what a training of low rank has changed, in a small file beside the adapter."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from models.config import BlspConfig, CheckpointError
from models.training.align import write_adapter
from models.updates import ADAPTER, UPDATE, adapter_tensors, difference, updated, write_update

Tensors = dict[str, Tensor]


@pytest.fixture
def before() -> Tensors:
    torch.manual_seed(0)
    return {"conv": torch.randn(64, 32, 3), "narrow": torch.randn(64, 2), "bias": torch.randn(64)}


@pytest.fixture
def after(before: Tensors) -> Tensors:
    """Of rank 4 in what is large."""
    return {
        "conv": before["conv"] + (torch.randn(64, 4) @ torch.randn(4, 96)).view(64, 32, 3) / 10,
        "narrow": before["narrow"] + 1,
        "bias": before["bias"] * 2,
    }


def test_an_update_is_small_and_makes_what_was_trained(before: Tensors, after: Tensors) -> None:
    update = difference(before, after, 4)
    assert sum(tensor.numel() for tensor in update.values()) == 4 * (64 + 96) + 64 * 2 + 64
    torch.testing.assert_close(dict(updated(before.items(), update, "")), after)


def test_a_lower_rank_keeps_the_greatest_change(before: Tensors, after: Tensors) -> None:
    nearest = dict(updated(before.items(), difference(before, after, 3), ""))["conv"] - after["conv"]
    least = torch.linalg.svdvals((after["conv"] - before["conv"]).flatten(1))[3]
    torch.testing.assert_close(nearest.norm(), least, rtol=1e-4, atol=1e-5)


def test_it_lies_beside_the_adapter(before: Tensors, after: Tensors, tmp_path: Path) -> None:
    ours, trained = tmp_path / "ours", tmp_path / "trained"
    for folder, tensors in ((ours, before), (trained, after)):
        folder.mkdir()
        save_file(tensors, folder / ADAPTER)
    write_update(ours, trained, ours / UPDATE, rank=4)
    found = dict(adapter_tensors(ours))
    for name, tensor in after.items():  # in 4 bits, so a tenth of what was changed is lost
        assert (found[name] - tensor).norm() < 0.15 * (tensor - before[name]).norm(), name


def test_a_second_update_holds_the_first(before: Tensors, after: Tensors, tmp_path: Path) -> None:
    save_file(before, tmp_path / ADAPTER)
    save_file(difference(before, after, 4), tmp_path / UPDATE)
    write_update(tmp_path, tmp_path, tmp_path / "again", rank=4)
    (tmp_path / "again").replace(tmp_path / UPDATE)
    assert (dict(adapter_tensors(tmp_path))["bias"] - after["bias"]).norm() < 0.01 * after["bias"].norm()


def test_what_a_training_writes_takes_its_place(before: Tensors, after: Tensors, tmp_path: Path) -> None:
    """A training into the folder that it goes on from has the update in its weights already."""
    save_file(before, tmp_path / ADAPTER)
    save_file(difference(before, after, 4), tmp_path / UPDATE)
    write_adapter(dict(adapter_tensors(tmp_path)), BlspConfig(encoder="e", llm="l"), tmp_path)
    torch.testing.assert_close(dict(adapter_tensors(tmp_path)), after)


def test_there_is_none_between_adapters_of_other_shapes(before: Tensors, tmp_path: Path) -> None:
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    for folder, tensors in ((ours, before), (theirs, before | {"bias": torch.ones(3)})):
        folder.mkdir()
        save_file(tensors, folder / ADAPTER)
    with pytest.raises(CheckpointError, match="has other tensors than that of"):
        write_update(ours, theirs, tmp_path / UPDATE, rank=4)


@pytest.mark.parametrize(
    ("update", "message"),
    [
        ({"bias.plus": torch.ones(3)}, r"x: its change of 'bias' does not fit"),
        ({"bias.plus": torch.ones(1)}, r"x: its change of 'bias' does not fit"),
        ({"conv.up": torch.ones(64, 4), "conv.down": torch.ones(5, 96)}, r"x: its change of 'conv' does not fit"),
        ({"conv.up": torch.ones(64, 4), "conv.down": torch.ones(4, 95)}, r"x: its change of 'conv' does not fit"),
        ({"conv.up": torch.ones(64, 4)}, r"x: half a change of 'conv'"),
        ({"other.plus": torch.ones(3)}, r"x: changes of what the adapter does not have: \['other.plus'\]"),
    ],
)
def test_one_for_another_adapter_is_refused(before: Tensors, update: Tensors, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        dict(updated(before.items(), update, "x"))
