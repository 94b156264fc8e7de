"""What is compared differs in what its line says, and in nothing else."""

import json
from pathlib import Path
from typing import Any

import pytest

from models.config import BlspConfig
from models.prompt import CONTINUE
from models.smol import comparison
from models.smol.build import write_lines
from models.smol.instructions import REPLIES

TEXTS = [f"This is the sentence of number {i}." for i in range(60)]


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Of a comparison whose work is done by nobody."""
    spoken = [{"audio": f"0.wav:{i * 900}:800", "text": text, "voice": "slt"} for i, text in enumerate(TEXTS)]
    write_lines(tmp_path / "spare" / "0.jsonl", iter(spoken))
    (tmp_path / "compared").mkdir()
    ran: list[list[str]] = []
    monkeypatch.setattr(comparison, "run", lambda *command: ran.append(list(map(str, command))))
    monkeypatch.setattr(comparison, "asked", lambda folder, workers: {})
    monkeypatch.setattr(comparison, "measure", lambda folder, *_: {"agreement": len(folder.name)})
    return ran


def compare(folder: Path) -> dict[str, dict[str, float]]:
    options = ["--max_steps", "7"]
    return comparison.compare(folder / "compared", "START", 40, folder / "states", folder / "cache", 2, options)


def test_all_ways_hear_the_same_recordings(tmp_path: Path, commands: list[list[str]]) -> None:
    compare(tmp_path)
    told: dict[str, list[tuple[str, str]]] = {"continuations": [], "many": []}
    for command in commands:
        if command[1] == "continue":
            for line in map(json.loads, Path(command[2]).read_text().splitlines()):
                told[Path(command[3]).parent.name].append((line["text"], command[command.index("--instruction") + 1]))
    continued, many = told["continuations"], told["many"]
    assert len(continued) == 40
    assert sorted(text for text, _ in continued) == sorted(text for text, _ in many)
    assert {instruction for _, instruction in continued} == {CONTINUE}
    assert {instruction for _, instruction in many} == set(REPLIES)


def test_a_way_is_what_its_line_says(tmp_path: Path, commands: list[list[str]]) -> None:
    compare(tmp_path)
    trained = {Path(command[4]).name: command for command in commands if command[1] == "align"}
    new = str(tmp_path / "compared" / "new")
    said = {
        name: (c[2], Path(c[3]).name, c[c.index("--loss") + 1], c[c.index("--loss") + 2 :])
        for name, c in trained.items()
    }
    rest: list[Any] = [item[3] for item in said.values()]
    assert rest == [rest[0]] * 4
    assert {name: item[:3] for name, item in said.items()} == {
        "published": (new, "continuations", "ce"),
        "ce": ("START", "continuations", "ce"),
        "kl": ("START", "continuations", "kl"),
        "many": ("START", "many", "kl"),
    }
    assert BlspConfig.read(Path(new)).adapter == comparison.PUBLISHED


def test_what_was_done_is_not_done_again(tmp_path: Path, commands: list[list[str]]) -> None:
    found = compare(tmp_path)
    commands.clear()
    (tmp_path / "compared" / "kl.json").unlink()
    assert compare(tmp_path) == found
    assert [Path(command[4]).name for command in commands if command[1] == "align"] == ["kl"]
