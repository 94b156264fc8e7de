"""The recipe's own part: who is told what, which commands run, and what is left to ship."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from models.config import BlspConfig
from models.manifest import Line, read_examples, read_manifest
from models.smol import build
from models.smol.instructions import REPEAT, REPEAT_TOO, REPLIES
from models.smol.speech import Speaker
from models.updates import ADAPTER
from models.weights import read_tensors

TEXTS = [f"This is the sentence of number {i}." for i in range(60)] + ["and lists of words", "Too short."]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for split in ("train", "natural", "spare", "dev"):
        spoken = [{"audio": f"0.wav:{i * 900}:800", "text": text, "voice": "slt"} for i, text in enumerate(TEXTS)]
        build.write_lines(tmp_path / split / "0.jsonl", iter(spoken))
    (tmp_path / "sentences.txt").write_text("One sentence.\n" * 1100)
    return tmp_path


def test_each_reply_has_one_instruction(folder: Path) -> None:
    told = build.assigned(folder, 40)
    assert [instruction for _, instruction, _ in told] == list(REPLIES)
    texts = [line.text for _, _, manifest in told for line in read_manifest(manifest, Line)]
    assert len(texts) == len(set(texts)) == 40
    assert set(texts) <= set(TEXTS[:-2])  # neither word lists nor what is too short to be replied to
    assert told == build.assigned(folder, 40)


def test_what_repeats_is_learnt_by_cross_entropy(folder: Path) -> None:
    build.assigned(folder, 20)
    examples, passed_over = read_examples(folder / "replies" / "repeat.jsonl")
    assert len(examples) == len(TEXTS)
    assert not passed_over
    for example in examples:
        assert (example.loss, example.continuation, example.samples) == ("ce", example.text, 800)
        assert example.instruction in (REPEAT, *REPEAT_TOO)
        assert example.audio.path == folder / "spare" / "0.wav"


def test_the_stages_follow_each_other(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands: list[tuple[str, ...]] = []
    monkeypatch.setattr(build, "run", lambda *command: commands.append(tuple(map(str, command))))
    shipped: list[Path] = []
    monkeypatch.setattr(build, "export", lambda *folders: shipped.extend(folders))
    build.build(folder, 500, 100, 20, 30, (7, 8), 2, ["--bf16", "true"])
    names = [command[2] if "-m" in command[:2] else command[1] for command in commands]
    assert names == [
        *["models.smol.speech"] * 4,
        "warm-start",
        *["continue"] * len(REPLIES),
        "align",
        "evaluate",
    ]
    warm, align = (next(c for c in commands if c[1] == name) for name in ("warm-start", "align"))
    spoken = {command[4]: command[command.index("--split") + 1 :][:5:2] for command in commands[:4]}
    assert spoken == {
        str(folder / "train"): ("train", "0", "500"),
        str(folder / "spare"): ("train", "500", "40"),
        str(folder / "natural"): ("natural", "1000", "100"),
        str(folder / "dev"): ("dev", "0", "30"),
    }
    assert warm[3] == str(folder / "heard.jsonl")
    heard = {Path(line.audio).parent.name for line in read_manifest(folder / "heard.jsonl", Line)}
    assert heard == {"train", "natural"}
    for command, steps, source, out in ((warm, "7", "start", "warm"), (align, "8", "warm", "aligned")):
        assert command[2] == str(folder / source)
        assert command[4] == str(folder / out)
        assert command[command.index("--max_steps") + 1] == steps
        assert command[-2:] == ("--bf16", "true")
        assert command[command.index("--states") + 1] == str(folder / "states")
    questions = list(map(json.loads, (folder / "questions.jsonl").read_text().splitlines()))
    assert [q["reference"] for q in questions] == TEXTS[:30]
    assert shipped == [folder / "aligned", folder / "checkpoint"]


def test_parts_share_no_shard(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spoken: list[tuple[str, ...]] = []
    monkeypatch.setattr(build, "run", lambda *command: spoken.append(tuple(map(str, command))))
    monkeypatch.setattr(build, "export", lambda *_: None)
    build.build(folder, 7, 1, 20, 3, (7, 8), 2, [])
    shards: list[int] = []
    for command in spoken[:3]:
        first, count = (int(command[command.index(option) + 1]) for option in ("--first", "--count"))
        shards += Speaker(["One sentence."] * 1100, folder).shards(first, count)
    assert shards == [0, 1, 2]


def test_more_than_there_is_to_say_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "run", lambda *_: pytest.fail("nothing is spoken"))
    with pytest.raises(SystemExit, match="1101 utterances want as many sentences, of which there are 1100"):
        build.build(folder, 500, 101, 20, 30, (7, 8), 2, [])


def test_what_ships_names_its_parts(tmp_path: Path) -> None:
    weights: dict[str, Any] = {"speech_ln.weight": torch.randn(64), "fc.weight": torch.randn(3, 64)}
    (tmp_path / "aligned").mkdir()
    save_file(weights, tmp_path / "aligned" / ADAPTER)
    build.export(tmp_path / "aligned", tmp_path / "checkpoint")
    assert dict(read_tensors(tmp_path / "checkpoint")).keys() == weights.keys()
    assert load_file(tmp_path / "checkpoint" / ADAPTER)["fc.weight"].dtype == torch.uint8
    assert BlspConfig.read(tmp_path / "checkpoint") == build.CONFIG
