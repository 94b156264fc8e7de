"""Conversion of the official layout: the same result from every kind of file, all or nothing, once."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import GenerationConfig, LlamaForCausalLM

from models import official as conversion
from models import weights
from models.checkpoint import Checkpoint, open_checkpoint
from models.config import BlspConfig, CheckpointError
from models.official import cached_import, import_official, is_official
from models.weights import ShardWriter, read_tensors
from tests.official_checkpoint import make_official

NORM = "speech_ln.weight"


def files(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.fixture
def source(official: Path, tmp_path: Path) -> Path:
    """A copy of the official checkpoint, to be broken."""
    return Path(shutil.copytree(official, tmp_path / "source"))


@pytest.fixture
def edit_config(source: Path) -> Callable[[dict[str, Any]], None]:
    """Changes keys of the source's config.json; None takes one away."""

    def edit(changes: dict[str, Any]) -> None:
        config = json.loads((source / "config.json").read_text()) | changes
        (source / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not None}))

    return edit


@pytest.fixture
def edit_weights(source: Path) -> Callable[[dict[str, Tensor | None]], None]:
    """The same for its weights."""

    def edit(changes: dict[str, Tensor | None]) -> None:
        tensors = load_file(source / "model.safetensors") | changes
        save_file({k: t for k, t in tensors.items() if t is not None}, source / "model.safetensors")

    return edit


def assert_refused(source: Path, error: str) -> None:
    """A clear error, and nothing is left behind."""
    target = source.parent / "cache" / "target"
    with pytest.raises(CheckpointError, match=error):
        import_official(source, target)
    assert not target.parent.exists() or not list(target.parent.iterdir())


class TestConversion:
    @pytest.mark.parametrize(("safetensors", "shards"), [(False, 1), (True, 3), (False, 2)])
    def test_every_kind_of_file_gives_the_same(
        self, checkpoint: Checkpoint, tmp_path: Path, safetensors: bool, shards: int
    ) -> None:
        source = make_official(tmp_path / "source", safetensors=safetensors, shards=shards)
        import_official(source, tmp_path / "target")
        assert files(tmp_path / "target") == files(checkpoint.folder)

    def test_every_weight_stands_where_it_belongs(self, official: Path, checkpoint: Checkpoint) -> None:
        prefixes = {checkpoint.encoder: "whisper_model.", checkpoint.llm: "llama_model.", checkpoint.folder: ""}
        converted = {prefix + name: t for folder, prefix in prefixes.items() for name, t in read_tensors(folder)}
        expected = {k: t for k, t in load_file(official / "model.safetensors").items() if "inv_freq" not in k}
        torch.testing.assert_close(converted, expected, atol=0, rtol=0)

    def test_config(self, checkpoint: Checkpoint) -> None:
        config = BlspConfig.read(checkpoint.folder)
        assert (config.adapter.conv_kernel_sizes, config.adapter.inner_dim) == ((5, 3, 7), 24)
        assert (config.prompt_format, config.padding) == ("blsp", "30s")
        assert (config.encoder, config.llm) == ("encoder", "llm")

    def test_generation_config_holds_ids_only(self, checkpoint: Checkpoint) -> None:
        expected = GenerationConfig(bos_token_id=1, eos_token_id=2, pad_token_id=0)
        assert GenerationConfig.from_pretrained(checkpoint.llm).to_diff_dict() == expected.to_diff_dict()

    def test_half_precision_is_kept(self, tmp_path: Path) -> None:
        source = make_official(tmp_path / "source", dtype=torch.float16)
        import_official(source, tmp_path / "target")
        assert {t.dtype for _, t in read_tensors(tmp_path / "target" / "llm")} == {torch.float16}
        assert LlamaForCausalLM.from_pretrained(tmp_path / "target" / "llm", dtype="auto").dtype == torch.float16

    def test_progress_gets_every_weight(self, official: Path, tmp_path: Path) -> None:
        names: list[str] = []
        import_official(official, tmp_path / "target", names.append)
        assert sorted(names) == sorted(k for k in load_file(official / "model.safetensors") if "inv_freq" not in k)

    def test_shards_load_into_transformers(
        self, official: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(weights, "SHARD_BYTES", 50_000)
        import_official(official, tmp_path / "target")
        assert len(list((tmp_path / "target" / "llm").glob("*.safetensors"))) > 3
        llm = LlamaForCausalLM.from_pretrained(tmp_path / "target" / "llm")
        expected = load_file(official / "model.safetensors")
        for name, weight in llm.named_parameters():
            assert torch.equal(weight, expected[f"llama_model.{name}"])

    def test_memory_is_bounded(self, official: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Each of the two writers holds a shard at most, or one tensor that is larger than a shard."""
        monkeypatch.setattr(weights, "SHARD_BYTES", 50_000)
        held: list[int] = []
        add = ShardWriter.add

        def spy(writer: ShardWriter, name: str, tensor: Tensor) -> None:
            add(writer, name, tensor)
            held.append(sum(t.untyped_storage().nbytes() for t in writer.pending.values()))

        monkeypatch.setattr(ShardWriter, "add", spy)
        import_official(official, tmp_path / "target")
        largest = max(t.nbytes for t in load_file(official / "model.safetensors").values())
        assert 25_000 < max(held) <= max(50_000, largest)


class TestBrokenSources:
    @pytest.mark.parametrize(
        ("changes", "error"),
        [
            ({NORM: None}, rf"missing tensors \['{NORM}'\]"),
            ({"whisper_model.layers.1.fc1.bias": None}, r"missing tensors \['whisper_model.layers.1.fc1.bias'\]"),
            ({"surprise": torch.ones(1)}, r"unexpected tensors \['surprise'\]"),
            ({NORM: torch.ones(3)}, rf"'{NORM}' has shape \[3\], not \[64\]"),
            ({NORM: torch.full((64,), torch.nan)}, f"'{NORM}' holds NaN"),
            ({"llama_model.model.norm.weight": torch.full((64,), torch.inf)}, "'llama_model.model.norm.weight' holds"),
            ({NORM: torch.ones(64, dtype=torch.int32)}, f"'{NORM}' has dtype torch.int32"),
        ],
    )
    def test_weights(
        self,
        source: Path,
        edit_weights: Callable[[dict[str, Tensor | None]], None],
        changes: dict[str, Tensor | None],
        error: str,
    ) -> None:
        edit_weights(changes)
        assert_refused(source, error)

    def test_a_tensor_in_two_shards(self, source: Path) -> None:
        save_file({NORM: torch.ones(64)}, source / "model-00002-of-00002.safetensors")
        assert_refused(source, f"'{NORM}' stands in two files")

    def test_a_truncated_shard(self, source: Path) -> None:
        data = (source / "model.safetensors").read_bytes()
        (source / "model.safetensors").write_bytes(data[:-1])
        assert_refused(source, r"model.safetensors: can't be read")

    def test_no_weights(self, source: Path) -> None:
        (source / "model.safetensors").unlink()
        assert_refused(source, "no .*safetensors")

    @pytest.mark.parametrize("content", [None, b"not a model"], ids=["missing", "broken"])
    def test_tokenizer_model(self, source: Path, content: bytes | None) -> None:
        (source / "tokenizer.model").unlink()
        if content:
            (source / "tokenizer.model").write_bytes(content)
        assert_refused(source, "tokenizer.model")

    @pytest.mark.parametrize(
        ("changes", "error"),
        [
            ({"conv_kernel_sizes": None}, "conv_kernel_sizes"),
            ({"conv_kernel_sizes": "5,4,5"}, "odd"),
            ({"conv_kernel_sizes": "5,x"}, "conv_kernel_sizes"),
            ({"conv_kernel_sizes": ""}, "conv_kernel_sizes"),
            ({"adapter_inner_dim": None}, "adapter_inner_dim"),
            ({"adapter_inner_dim": 0}, "inner_dim"),
            ({"whisper_config": "openai/whisper-small"}, "[wW]hisper_?[cC]onfig"),
            ({"llama_config": {"hidden_size": "wide"}}, "hidden_size"),
        ],
    )
    def test_config(
        self, source: Path, edit_config: Callable[[dict[str, Any]], None], changes: dict[str, Any], error: str
    ) -> None:
        edit_config(changes)
        assert_refused(source, rf"(?s)source/config\.json.*{error}")


class TestIsOfficial:
    def test_both_layouts(self, official: Path, checkpoint: Checkpoint) -> None:
        assert is_official(official)
        assert not is_official(checkpoint.folder)

    @pytest.mark.parametrize(
        "text", [None, "", "[]", '"whisper_config llama_config"', '{"whisper_config": {}}', "\xff"]
    )
    def test_anything_else(self, tmp_path: Path, text: str | None) -> None:
        if text is not None:
            (tmp_path / "config.json").write_bytes(text.encode("latin-1"))
        assert not is_official(tmp_path)


class TestCache:
    def test_a_second_opening_converts_nothing(
        self, official: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        first = open_checkpoint(str(official), tmp_path)
        before = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*")}
        monkeypatch.delattr(conversion, "import_official")
        assert open_checkpoint(str(official), tmp_path) == first
        assert {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*")} == before

    @pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.model"])
    def test_a_changed_file_gives_another_entry(self, source: Path, tmp_path: Path, name: str) -> None:
        before = cached_import(source, tmp_path / "cache")
        data = (source / name).read_bytes()
        (source / name).unlink()
        (source / name).write_bytes(data + b"\n" if name == "config.json" else data)
        assert cached_import(source, tmp_path / "cache") != before

    def test_sources_of_the_same_name_have_entries_of_their_own(self, source: Path, tmp_path: Path) -> None:
        other = Path(shutil.copytree(source, tmp_path / "other" / "source"))  # the same times and sizes
        assert cached_import(source, tmp_path / "cache") != cached_import(other, tmp_path / "cache")

    def test_a_failure_leaves_no_entry_and_can_be_mended(
        self, source: Path, edit_weights: Callable[[dict[str, Tensor | None]], None]
    ) -> None:
        edit_weights({NORM: torch.full((64,), torch.nan)})
        cache = source.parent / "cache"
        with pytest.raises(CheckpointError, match="NaN"):
            cached_import(source, cache)
        assert not cache.exists() or not list(cache.iterdir())
        edit_weights({NORM: torch.ones(64)})
        assert is_complete(cached_import(source, cache))

    def test_the_entry_appears_when_everything_is_written(self, official: Path, tmp_path: Path) -> None:
        target = tmp_path / "cache" / "target"
        seen: list[bool] = []
        import_official(official, target, lambda _: seen.append(target.exists()))
        assert seen
        assert not any(seen)
        assert [entry.name for entry in target.parent.iterdir()] == ["target"]

    def test_what_a_killed_conversion_left_does_not_matter(self, official: Path, tmp_path: Path) -> None:
        """In a container the process id is the same after each restart, and so may be the name of the partial folder."""
        target = tmp_path / "cache" / "target"
        partial: list[Path] = []
        import_official(official, target, lambda _: partial.extend(target.parent.iterdir()))
        shutil.rmtree(target)
        left = partial[0] / "llm" / "shard-00007.safetensors"
        left.parent.mkdir(parents=True)
        left.write_bytes(b"half a file")
        import_official(official, target)
        assert [file.name for file in (target / "llm").glob("*.safetensors")] == ["model.safetensors"]

    def test_two_processes_may_convert_at_once(
        self, official: Path, checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The other one is done first; its entry is as good."""

        def import_beside_another(source: Path, target: Path) -> None:
            def finish(_: str) -> None:
                shutil.copytree(checkpoint.folder, target, dirs_exist_ok=True)

            import_official(source, target, finish)

        monkeypatch.setattr(conversion, "import_official", import_beside_another)
        assert is_complete(cached_import(official, tmp_path))


def is_complete(folder: Path) -> bool:
    return {"config.json", "adapter.safetensors", "encoder", "llm"} == {entry.name for entry in folder.iterdir()}
