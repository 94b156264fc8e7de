import json
import subprocess
from pathlib import Path

import pytest
import torch

from models.checkpoint import open_checkpoint
from models.config import CheckpointError
from models.manifest import InputError
from service.self_check import self_check
from service.settings import DEFAULT_MODEL, ServeSettings
from tests.serving import BLSP

SAMPLES = DEFAULT_MODEL.parent / "samples"
THRESHOLD = ServeSettings.model_fields["self_check_agreement"].default


def manifest(folder: Path, shift: int) -> Path:
    """The samples of the model that ships, each with the transcript of the one `shift` places on."""
    rows = json.loads((SAMPLES / "samples.json").read_text())
    file = folder / "check.jsonl"
    lines = (
        {"audio": str(SAMPLES / row["file"]), "text": rows[(i + shift) % len(rows)]["text"]}
        for i, row in enumerate(rows)
    )
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


def test_an_adapter_that_fits(smol_cache: Path, tmp_path: Path) -> None:
    said: list[str] = []
    checkpoint = open_checkpoint(str(DEFAULT_MODEL), smol_cache)
    alignment = self_check(checkpoint, manifest(tmp_path, 0), THRESHOLD, torch.device("cpu"), said.append)
    assert alignment.top1_agreement > THRESHOLD
    assert "fits its LLM" in said[0]


def test_an_adapter_that_hears_something_else_is_refused(smol_cache: Path, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(str(DEFAULT_MODEL), smol_cache)
    with pytest.raises(CheckpointError, match=r"does not fit its LLM.*--self-check-agreement"):
        self_check(checkpoint, manifest(tmp_path, 5), THRESHOLD, torch.device("cpu"), print)


def test_nothing_to_check_with(official: Path, tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").touch()
    checkpoint = open_checkpoint(str(official), tmp_path)
    with pytest.raises(InputError, match=r"empty\.jsonl"):
        self_check(checkpoint, tmp_path / "empty.jsonl", 0.5, torch.device("cpu"), print)


def test_a_server_with_a_misfit_does_not_start(smol_cache: Path, tmp_path: Path) -> None:
    command: list[str | Path] = [BLSP, "serve", "--port", "0", "--cache", smol_cache]
    command += ["--self-check", manifest(tmp_path, 5)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 1
    assert "does not fit its LLM" in done.stderr
    assert "Traceback" not in done.stderr
