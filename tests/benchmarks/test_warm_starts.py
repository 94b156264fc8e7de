"""What is compared differs in what its line says, and in nothing else."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import warm_starts
from benchmarks.warm_starts import WAYS, compare, is_list, speak
from models.config import BlspConfig
from models.manifest import Line, read_manifest
from models.smol.build import write_lines
from tests.sounds import voice, wav

N = 40
ROBOTS = [f"This is the sentence of number {i}." if i % 8 else f"some words of list {i}" for i in range(60)]


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Of a comparison whose work is done by nobody."""
    folder = tmp_path / "warm-starts"
    for name, texts in (("robots", ROBOTS), ("voices", ROBOTS[:20]), ("dev", ROBOTS[-2:])):
        spoken = [{"audio": f"0.wav:{i * 900}:800", "text": text, "voice": name} for i, text in enumerate(texts)]
        write_lines(folder / name / "0.jsonl", iter(spoken))
        (folder / name / "0.wav").write_bytes(wav(voice(5)))
    ran: list[list[str]] = []
    monkeypatch.setattr(warm_starts, "run", lambda *command: ran.append(list(map(str, command))))
    return ran


def texts(folder: Path, data: str) -> list[str]:
    return [line.text for line in read_manifest(folder / "data" / f"{data}.jsonl", Line)]


def test_data_differ_in_one_thing(tmp_path: Path, commands: list[list[str]]) -> None:
    folder = tmp_path / "warm-starts"
    speak(folder, tmp_path / "sentences.txt", N, 1)
    assert [(c[3].rpartition("/")[2], c[6], c[8]) for c in commands] == [
        ("sentences.txt", "train", "50"),
        ("sentences.txt", "natural", "10"),
        ("sentences.dev.txt", "dev", "400"),
    ]
    recipe = texts(folder, "recipe")
    assert recipe == ROBOTS[:N]
    assert any(map(is_list, recipe))
    assert sorted(texts(folder, "natural")) == sorted(recipe)
    assert texts(folder, "quarter") == recipe[:10]
    unlisted = texts(folder, "unlisted")
    assert len(unlisted) == N
    assert not any(map(is_list, unlisted))
    voices = [json.loads(line)["voice"] for line in (folder / "data" / "natural.jsonl").read_text().splitlines()]
    assert (voices.count("voices"), voices.count("robots")) == (10, 30)


def test_ways_differ_in_one_thing() -> None:
    for name, way in WAYS.items():
        sizes, recipe = way.sizes.model_dump(), WAYS["recipe"].sizes.model_dump()
        changed = sum(sizes[field] != recipe[field] for field in sizes) + (way.data != "recipe")
        assert changed == (name != "recipe")


def test_ways_are_trained_alike(tmp_path: Path, commands: list[list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    encoded: list[str] = []
    embedder: Any = torch.nn.Module()
    embedder.encoder = torch.nn.Linear(1, 1)
    opened: Any = type("Opened", (), {"load_embedder": lambda self: embedder})()
    monkeypatch.setattr(warm_starts, "open_checkpoint", lambda *_: opened)
    monkeypatch.setattr(warm_starts, "keep_states", lambda heard, *_: encoded.extend(str(h.audio) for h in heard))
    monkeypatch.setattr(warm_starts, "measure", lambda trained, *_: {"dev": len(trained.name)})
    found = compare(tmp_path, None, N, list(WAYS), 1, ["--max_steps", "7"])
    assert found == {name: {"dev": len(name)} for name in WAYS}
    trained = {Path(c[4]).name: c for c in commands if c[1] == "warm-start"}
    assert list(trained) == list(WAYS)
    assert len({tuple(command[5:]) for command in trained.values()}) == 1
    assert trained["recipe"][-2:] == ["--max_steps", "7"]
    for name, command in trained.items():
        assert BlspConfig.read(Path(command[2])).adapter == WAYS[name].sizes
        assert Path(command[3]).stem == WAYS[name].data
        data = read_manifest(Path(command[3]), Line)
        assert {str(Path(command[3]).parent / line.audio) for line in data} <= set(encoded)
    (tmp_path / "warm-starts" / "small.json").unlink()
    commands.clear()
    assert compare(tmp_path, None, N, list(WAYS), 1, ["--max_steps", "7"]) == found
    assert [Path(c[4]).name for c in commands if c[1] == "warm-start"] == ["small"]
    assert torch.tensor(1e-40) * 1 > 0  # what follows in this process still has small numbers
