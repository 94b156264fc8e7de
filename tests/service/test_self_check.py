"""What the check does with what it finds; with a real adapter, see test_smol.py."""

import json
import subprocess
from pathlib import Path

import pytest
import torch

from models.checkpoint import Checkpoint, open_checkpoint
from models.config import CheckpointError
from models.training import InputError
from service.alignment.self_check import self_check
from tests.serving import BLSP
from tests.sounds import voice, wav

CPU = torch.device("cpu")


@pytest.fixture
def checkpoint(official: Path, tmp_path: Path) -> Checkpoint:
    return open_checkpoint(str(official), tmp_path)


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    """Recordings in which a random adapter hears nothing."""
    file = tmp_path / "check.jsonl"
    for seed in range(3):
        (tmp_path / f"{seed}.wav").write_bytes(wav(voice(1.0, seed)))
    lines = ({"audio": f"{seed}.wav", "text": f"Sentence {seed}."} for seed in range(3))
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


def test_an_adapter_that_fits_well_enough(checkpoint: Checkpoint, manifest: Path) -> None:
    said: list[str] = []
    alignment = self_check(checkpoint, manifest, 0, CPU, said.append)
    assert alignment.tokens > 0
    assert said[0].startswith("The adapter fits its LLM")


def test_an_adapter_that_hears_something_else_is_refused(checkpoint: Checkpoint, manifest: Path) -> None:
    with pytest.raises(CheckpointError, match=r"does not fit its LLM.*--self-check-agreement"):
        self_check(checkpoint, manifest, 0.9, CPU, print)


def test_nothing_to_check_with(checkpoint: Checkpoint, tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(InputError, match=r"empty\.jsonl"):
        self_check(checkpoint, tmp_path / "empty.jsonl", 0.5, CPU, print)


def test_a_server_with_a_misfit_does_not_start(official: Path, manifest: Path, tmp_path: Path) -> None:
    options = ["--cache", tmp_path, "--self-check", manifest, "--self-check-agreement", "0.9"]
    command = [BLSP, "serve", official, "--port", "0", *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 1
    assert "does not fit its LLM" in done.stderr
    assert "Traceback" not in done.stderr
