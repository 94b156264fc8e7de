"""Opening and loading a checkpoint in our layout, and everything that may be wrong with one."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import WhisperConfig, WhisperForConditionalGeneration

from models import checkpoint as opening
from models.checkpoint import MAX_NORM_RATIO, Checkpoint, open_checkpoint
from models.config import BlspConfig, CheckpointError
from models.embedder import Embedder
from models.prompt import Message, Speech


@pytest.fixture(autouse=True)
def _no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hugging Face can't be reached."""

    def download(name: str, **_: Any) -> str:
        raise OSError(f"no network for {name}")

    monkeypatch.setattr(opening, "snapshot_download", download)


@pytest.fixture
def folder(checkpoint: Checkpoint, tmp_path: Path) -> Path:
    """A copy of the converted checkpoint, to be broken."""
    return Path(shutil.copytree(checkpoint.folder, tmp_path / "copy"))


@pytest.fixture
def edit_config(folder: Path) -> Callable[..., None]:
    def edit(**changes: Any) -> None:
        config = json.loads((folder / "config.json").read_text()) | changes
        (folder / "config.json").write_text(json.dumps(config))

    return edit


@pytest.fixture
def scale_norm(folder: Path) -> Callable[[float], None]:
    """Multiplies the norm of the adapter's output."""

    def scale(factor: float) -> None:
        adapter = load_file(folder / "adapter.safetensors")
        for name in ("speech_ln.weight", "speech_ln.bias"):
            adapter[name] *= factor
        save_file(adapter, folder / "adapter.safetensors")

    return scale


def load(folder: Path) -> Embedder:
    return open_checkpoint(str(folder), folder.parent / "cache").load_embedder()


class TestLoading:
    def test_embedder_is_ready(self, embedder: Embedder) -> None:
        assert not embedder.training
        assert not any(p.requires_grad or p.is_meta for p in embedder.parameters())

    def test_widths_and_prompts(self, checkpoint: Checkpoint, embedder: Embedder) -> None:
        assert checkpoint.llm_dim() == 64
        [rows] = embedder.embed([torch.randn(16_000)])
        prompt = checkpoint.prompt_builder(torch.bfloat16).build([Message("user", ["Hi", Speech(rows)])])
        assert prompt.rows.dtype == torch.bfloat16
        assert prompt.speech_tokens == len(rows)

    def test_padding_policy_is_the_configs(self, folder: Path, edit_config: Callable[..., None]) -> None:
        edit_config(padding="exact")
        assert load(folder).features(torch.randn(16_000)).shape == (80, 100)

    def test_the_encoder_may_be_a_whole_whisper(self, folder: Path) -> None:
        shutil.rmtree(folder / "encoder")
        config = WhisperConfig(
            d_model=48, encoder_layers=2, encoder_attention_heads=3, encoder_ffn_dim=96, decoder_layers=1,
            decoder_attention_heads=3, decoder_ffn_dim=96, vocab_size=100, max_target_positions=20, pad_token_id=0,
            bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
        )  # fmt: skip
        whisper = WhisperForConditionalGeneration(config)
        whisper.save_pretrained(folder / "encoder")
        loaded, expected = load(folder).encoder.state_dict(), whisper.model.encoder.state_dict()
        torch.testing.assert_close(loaded, dict(expected), atol=0, rtol=0)

    def test_encoder_and_llm_may_be_other_folders_or_hub_ids(
        self, folder: Path, edit_config: Callable[..., None], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        calls: list[tuple[str, str | None]] = []

        def download(name: str, *, revision: str | None, **_: Any) -> str:
            calls.append((name, revision))
            return str(folder / "llm")

        monkeypatch.setattr(opening, "snapshot_download", download)
        (folder / "encoder").rename(folder.parent / "whisper")
        edit_config(encoder="../whisper", llm="org/llm", llm_revision="abc")
        opened = open_checkpoint(str(folder), folder.parent / "cache")
        assert (opened.encoder.resolve(), opened.llm) == (folder.parent / "whisper", folder / "llm")
        assert calls == [("org/llm", "abc")]
        opened.load_embedder()


class TestErrors:
    def test_neither_folder_nor_hub_id(self, tmp_path: Path) -> None:
        with pytest.raises(CheckpointError, match=r"'org/none' is neither .* no network for org/none"):
            open_checkpoint("org/none", tmp_path)

    def test_no_config(self, tmp_path: Path) -> None:
        with pytest.raises(CheckpointError, match=r"no config.json"):
            load(tmp_path)

    @pytest.mark.parametrize("text", ["", "[]", "{", '{"padding": "10s"}', '{"model_type": "llama"}'])
    def test_bad_config(self, folder: Path, text: str) -> None:
        (folder / "config.json").write_text(text)
        with pytest.raises(CheckpointError, match=r"copy/config.json"):
            load(folder)

    @pytest.mark.parametrize("part", ["encoder", "llm"])
    def test_a_part_is_missing(self, folder: Path, part: str) -> None:
        shutil.rmtree(folder / part)
        with pytest.raises(CheckpointError, match=f"'{part}' is neither a folder here nor"):
            load(folder)

    @pytest.mark.parametrize("part", ["encoder", "llm"])
    def test_a_part_without_config(self, folder: Path, part: str) -> None:
        (folder / part / "config.json").unlink()
        with pytest.raises(CheckpointError, match=rf"{part}.*no config\.json"):
            load(folder)

    @pytest.mark.parametrize(
        ("file", "error"),
        [
            ("adapter.safetensors", "no adapter.safetensors"),
            ("encoder/model.safetensors", r"encoder: no \*.safetensors"),
            ("llm/model.safetensors", r"llm: no \*.safetensors"),
        ],
    )
    def test_weights_are_missing(self, folder: Path, file: str, error: str) -> None:
        (folder / file).unlink()
        with pytest.raises(CheckpointError, match=error):
            load(folder)

    @pytest.mark.parametrize(
        ("adapter", "error"),
        [
            ({"conv_kernel_sizes": [5, 3, 7], "inner_dim": 25}, r"'adapter.fc1.weight' has shape \[24, 64\]"),
            ({"conv_kernel_sizes": [5, 3, 5], "inner_dim": 24}, r"conv_layers.2.weight' has shape"),
            ({"conv_kernel_sizes": [5, 3, 7, 1], "inner_dim": 24}, r"adapter.safetensors: "),
        ],
    )
    def test_adapter_and_config_differ(
        self, folder: Path, edit_config: Callable[..., None], adapter: dict[str, Any], error: str
    ) -> None:
        edit_config(adapter=adapter)
        with pytest.raises(CheckpointError, match=error):
            load(folder)

    @pytest.mark.parametrize("file", ["adapter.safetensors", "encoder/model.safetensors"])
    def test_nan(self, folder: Path, file: str) -> None:
        tensors = load_file(folder / file)
        name = next(iter(tensors))
        tensors[name].view(-1)[-1] = torch.nan
        save_file(tensors, folder / file)
        with pytest.raises(CheckpointError, match=f"'{name}' holds NaN"):
            load(folder)

    @pytest.mark.parametrize("factor", [0.0, 0.01 / MAX_NORM_RATIO, 100 * MAX_NORM_RATIO])
    def test_norms_far_from_the_llms(self, folder: Path, scale_norm: Callable[[float], None], factor: float) -> None:
        scale_norm(factor)
        with pytest.raises(CheckpointError, match="was not trained for this LLM"):
            load(folder)

    @pytest.mark.parametrize("factor", [10 / MAX_NORM_RATIO, 0.1 * MAX_NORM_RATIO])
    def test_norms_near_enough(self, folder: Path, scale_norm: Callable[[float], None], factor: float) -> None:
        scale_norm(factor)
        load(folder)

    def test_no_token_embeddings(self, folder: Path) -> None:
        save_file({"lm_head.weight": torch.ones(2, 2)}, folder / "llm" / "model.safetensors")
        with pytest.raises(CheckpointError, match="no token embeddings"):
            load(folder)


class TestBeside:
    """Checkpoints that have parts in common."""

    @pytest.fixture
    def other(self, checkpoint: Checkpoint, folder: Path) -> Checkpoint:
        return open_checkpoint(str(folder), folder.parent / "cache")

    def test_an_encoder_that_is_there_is_not_loaded_again(self, other: Checkpoint, embedder: Embedder) -> None:
        (other.encoder / "model.safetensors").unlink()
        beside = other.load_embedder(encoder=embedder.encoder)
        assert beside.encoder is embedder.encoder
        assert torch.equal(beside.embed([torch.ones(16_000)])[0], embedder.embed([torch.ones(16_000)])[0])

    def test_parts_are_the_same_by_their_bytes(self, other: Checkpoint, checkpoint: Checkpoint) -> None:
        assert other.has_encoder_of(checkpoint)
        assert other.has_llm_of(checkpoint)
        for part in (other.encoder, other.llm):
            tensors = load_file(part / "model.safetensors")
            next(iter(tensors.values())).view(-1)[-1] += 1
            save_file(tensors, part / "model.safetensors", metadata={"format": "pt"})
        assert not other.has_encoder_of(checkpoint)
        assert not other.has_llm_of(checkpoint)

    def test_an_encoder_that_was_replaced_is_no_longer_the_others(self, other: Checkpoint) -> None:
        weights = other.encoder / "model.safetensors"
        tensors = load_file(weights)
        assert open_checkpoint(str(other.folder), other.folder.parent / "cache").has_encoder_of(other)
        next(iter(tensors.values())).view(-1)[-1] += 1
        save_file(tensors, weights, metadata={"format": "pt"})
        assert not open_checkpoint(str(other.folder), other.folder.parent / "cache").has_encoder_of(other)

    def test_encoders_of_other_heads_differ(self, other: Checkpoint, checkpoint: Checkpoint) -> None:
        config = json.loads((other.encoder / "config.json").read_text())
        config["encoder_attention_heads"] *= 2
        (other.encoder / "config.json").write_text(json.dumps(config))
        assert not other.has_encoder_of(checkpoint)


def test_an_adapter_is_small(checkpoint: Checkpoint) -> None:
    """Only what was trained stands beside config.json."""
    assert (
        load_file(checkpoint.folder / "adapter.safetensors").keys()
        == dict(checkpoint.load_embedder().adapter.named_parameters()).keys()
    )
    assert checkpoint.config == BlspConfig.read(checkpoint.folder)
