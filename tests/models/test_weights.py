"""Weight files: reading both formats, strict loading, and shards."""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from models import weights
from models.config import CheckpointError
from models.weights import (
    ShardWriter,
    have_same_weights,
    in_int4,
    in_int8,
    load_strict,
    read_tensors,
    weight_files,
    write_file,
)

TENSORS = {"a": torch.arange(6.0).view(2, 3), "b": torch.ones(4, dtype=torch.bfloat16)}


def linear(**changed: Tensor | None) -> list[tuple[str, Tensor]]:
    """What nn.Linear(3, 2) takes, with changes; None takes a tensor away."""
    tensors = {"weight": torch.ones(2, 3), "bias": torch.ones(2)} | changed
    return [(name, tensor) for name, tensor in tensors.items() if tensor is not None]


class TestSameWeights:
    @pytest.fixture
    def folders(self, tmp_path: Path) -> list[Path]:
        folders = [tmp_path / "a", tmp_path / "b"]
        for folder in folders:
            folder.mkdir()
            save_file(TENSORS, folder / "model.safetensors")
        return folders

    def test_the_same_bytes(self, folders: list[Path]) -> None:
        assert have_same_weights(*folders)
        assert have_same_weights(folders[0], folders[0])

    def test_a_bit_more(self, folders: list[Path]) -> None:
        save_file(TENSORS | {"b": TENSORS["b"] * 2}, folders[1] / "model.safetensors")
        assert not have_same_weights(*folders)

    def test_other_files(self, folders: list[Path]) -> None:
        (folders[1] / "more.safetensors").write_bytes((folders[1] / "model.safetensors").read_bytes())
        assert not have_same_weights(*folders)

    def test_none(self, folders: list[Path], tmp_path: Path) -> None:
        with pytest.raises(CheckpointError, match=r"no \*.safetensors"):
            have_same_weights(folders[0], tmp_path)


class TestReadTensors:
    def test_safetensors(self, tmp_path: Path) -> None:
        save_file(TENSORS, tmp_path / "model.safetensors")
        self.assert_reads_tensors(tmp_path)

    def test_torch_file(self, tmp_path: Path) -> None:
        torch.save(TENSORS, tmp_path / "pytorch_model.bin")
        torch.save({"x": TENSORS["a"]}, tmp_path / "training_args.bin")
        self.assert_reads_tensors(tmp_path)

    @pytest.mark.parametrize("suffix", ["safetensors", "bin"])
    def test_shards(self, tmp_path: Path, suffix: str) -> None:
        for i, (name, tensor) in enumerate(TENSORS.items()):
            save = save_file if suffix == "safetensors" else torch.save
            save({name: tensor}, tmp_path / f"part-{i}.{suffix}")
        self.assert_reads_tensors(tmp_path)

    def test_eight_bits(self, tmp_path: Path) -> None:
        matrices = {"a": torch.randn(5, 4) * 10.0 ** torch.arange(-2, 3)[:, None], "conv": torch.randn(2, 3, 4)}
        save_file(in_int8({**matrices, "zero": torch.zeros(2, 2), "bias": torch.ones(3)}), tmp_path / "a.safetensors")
        read = dict(read_tensors(tmp_path))
        assert sorted(read) == ["a", "bias", "conv", "zero"]
        for name, matrix in matrices.items():
            step = matrix.abs().flatten(1).amax(1) / 127  # each row has its own
            assert (((read[name] - matrix).abs().flatten(1).amax(1)) <= step * 0.501).all()
        assert not read["zero"].any()
        assert read["bias"].dtype == torch.bfloat16

    def test_four_bits(self, tmp_path: Path) -> None:
        torch.manual_seed(0)
        loud = 10.0 ** torch.arange(-2, 3)[:, None]
        matrices = {"a": torch.randn(5, 64) * loud, "conv": torch.randn(2, 32, 3)}
        save_file(
            in_int4({**matrices, "zero": torch.zeros(2, 32), "odd": torch.ones(2, 33)}), tmp_path / "a.safetensors"
        )
        read = dict(read_tensors(tmp_path))
        assert sorted(read) == ["a", "conv", "odd", "zero"]
        for name, matrix in matrices.items():
            assert (
                (read[name] - matrix).norm(dim=1) <= 0.15 * matrix.norm(dim=1)
            ).all()  # each group has its own scale
        assert not read["zero"].any()
        torch.testing.assert_close(read["odd"], torch.ones(2, 33))

    def test_four_bits_read_back_what_they_hold(self, tmp_path: Path) -> None:
        numbers = torch.arange(32).float().remainder(16) - 8  # all that there are
        save_file(in_int4({"a": torch.stack([numbers, numbers / 2])}), tmp_path / "a.safetensors")
        assert dict(read_tensors(tmp_path))["a"].tolist() == [numbers.tolist(), (numbers / 2).tolist()]
        assert (tmp_path / "a.safetensors").stat().st_size < 400

    def test_eight_bits_without_their_scale_are_refused(self, tmp_path: Path) -> None:
        save_file({"a": torch.ones(2, 2, dtype=torch.int8)}, tmp_path / "a.safetensors")
        with pytest.raises(CheckpointError, match=r"a\.int8_scale"):
            dict(read_tensors(tmp_path))

    def assert_reads_tensors(self, folder: Path) -> None:
        read = dict(read_tensors(folder))
        assert read.keys() == TENSORS.keys()
        for name, tensor in TENSORS.items():
            torch.testing.assert_close(read[name], tensor, atol=0, rtol=0)

    def test_safetensors_go_before_torch_files(self, tmp_path: Path) -> None:
        save_file(TENSORS, tmp_path / "model.safetensors")
        torch.save({}, tmp_path / "pytorch_model.bin")
        assert weight_files(tmp_path) == [tmp_path / "model.safetensors"]

    def test_no_files(self, tmp_path: Path) -> None:
        with pytest.raises(CheckpointError, match=r"no \*.safetensors and no \*.bin"):
            list(read_tensors(tmp_path))

    @pytest.mark.parametrize("suffix", ["safetensors", "bin"])
    def test_a_tensor_in_two_files(self, tmp_path: Path, suffix: str) -> None:
        for i in range(2):
            save = save_file if suffix == "safetensors" else torch.save
            save({"twice": torch.ones(1)}, tmp_path / f"part-{i}.{suffix}")
        with pytest.raises(CheckpointError, match="'twice' stands in two files"):
            list(read_tensors(tmp_path))

    @pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
    @pytest.mark.parametrize("cut", [0, 7, 100])
    def test_broken_files(self, tmp_path: Path, name: str, cut: int) -> None:
        save = save_file if name.endswith("safetensors") else torch.save
        save(TENSORS, tmp_path / name)
        (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:cut])
        with pytest.raises(CheckpointError, match=f"{name}: can't be read"):
            list(read_tensors(tmp_path))

    def test_pickled_code_is_not_run(self, tmp_path: Path) -> None:
        torch.save({"x": nn.Linear(1, 1)}, tmp_path / "pytorch_model.bin")
        with pytest.raises(CheckpointError, match="can't be read"):
            list(read_tensors(tmp_path))


class TestLoadStrict:
    def test_loads_and_casts(self) -> None:
        module = nn.Linear(3, 2)
        load_strict(module, linear(weight=torch.full((2, 3), 0.5, dtype=torch.float16)), "here")
        assert module.weight.dtype == torch.float32
        assert module.weight.eq(0.5).all()
        assert module.bias.eq(1).all()

    def test_missing_and_unexpected_are_all_named(self) -> None:
        with pytest.raises(CheckpointError, match=r"here: missing .*bias.*weight.* unexpected .*other.*some"):
            load_strict(nn.Linear(3, 2), [("other", torch.ones(1)), ("some", torch.ones(1))], "here")

    @pytest.mark.parametrize(
        ("changed", "error"),
        [
            ({"bias": None}, r"here: missing tensors \['bias'\]"),
            ({"extra": torch.ones(1)}, r"here: .* unexpected tensors \['extra'\]"),
            ({"weight": torch.ones(3, 2)}, r"here: 'weight' has shape \[3, 2\]; by config.json it is \[2, 3\]"),
            ({"bias": torch.ones(2, dtype=torch.int64)}, "here: 'bias' has dtype torch.int64"),
            ({"bias": torch.tensor([1.0, torch.nan])}, "here: 'bias' holds NaN or infinite"),
            ({"bias": torch.tensor([1.0, -torch.inf])}, "here: 'bias' holds NaN or infinite"),
        ],
    )
    def test_errors(self, changed: dict[str, Tensor | None], error: str) -> None:
        with pytest.raises(CheckpointError, match=error):
            load_strict(nn.Linear(3, 2), linear(**changed), "here")


class TestShardWriter:
    def write(self, folder: Path, *tensors: Tensor) -> dict[str, Tensor]:
        named = {f"t{i}": tensor for i, tensor in enumerate(tensors)}
        writer = ShardWriter(folder)
        for name, tensor in named.items():
            writer.add(name, tensor)
        writer.close()
        return named

    def test_one_shard(self, tmp_path: Path) -> None:
        named = self.write(tmp_path / "deep" / "folder", torch.ones(3), torch.zeros(2, dtype=torch.float16))
        [file] = (tmp_path / "deep" / "folder").iterdir()
        assert file.name == "model.safetensors"
        torch.testing.assert_close(load_file(file), named, atol=0, rtol=0)

    def test_several_shards_and_their_index(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(weights, "SHARD_BYTES", 40)  # ten floats
        named = self.write(tmp_path, *(torch.full((n,), float(n)) for n in (11, 4, 6, 1, 30, 2, 2)))
        index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
        assert index["metadata"] == {"total_size": 4 * 56}
        shards = {file.name: load_file(file) for file in tmp_path.glob("*.safetensors")}
        assert {shard: list(tensors) for shard, tensors in sorted(shards.items())} == {
            "model-00001-of-00005.safetensors": ["t0"],
            "model-00002-of-00005.safetensors": ["t1", "t2"],
            "model-00003-of-00005.safetensors": ["t3"],
            "model-00004-of-00005.safetensors": ["t4"],
            "model-00005-of-00005.safetensors": ["t5", "t6"],
        }
        assert index["weight_map"] == {name: shard for shard, tensors in shards.items() for name in tensors}
        torch.testing.assert_close(dict(read_tensors(tmp_path)), named, atol=0, rtol=0)

    def test_views_and_shared_memory(self, tmp_path: Path) -> None:
        """What safetensors itself refuses to write."""
        base = torch.arange(6.0).view(2, 3)
        self.write(tmp_path, base, base, base.T)
        expected = {"t0": base, "t1": base, "t2": base.T.contiguous()}
        torch.testing.assert_close(load_file(tmp_path / "model.safetensors"), expected, atol=0, rtol=0)


def test_what_is_written_is_for_whoever_may_read_other_new_files(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_file({"a": torch.ones(2)}, tmp_path / "a.safetensors")
    finally:
        os.umask(before)
    assert (tmp_path / "a.safetensors").stat().st_mode & 0o777 == 0o640
