import json
from pathlib import Path

import pytest
import torch

from models.features import N_SAMPLES
from models.manifest import AudioSpan, Example, InputError, Line, read_examples, read_manifest, read_transcripts


@pytest.mark.parametrize(
    ("text", "span"),
    [
        ("a.wav", AudioSpan(Path("/data/a.wav"))),
        ("/other/a.wav", AudioSpan(Path("/other/a.wav"))),
        ("a.wav:16000:8000", AudioSpan(Path("/data/a.wav"), 16000, 8000)),
        ("a:b.wav", AudioSpan(Path("/data/a:b.wav"))),
        ("12:30:one.wav", AudioSpan(Path("/data/12:30:one.wav"))),
    ],
)
def test_spans(text: str, span: AudioSpan) -> None:
    assert AudioSpan.parse(text, Path("/data")) == span
    assert AudioSpan.parse(str(span), Path()) == span


@pytest.mark.parametrize("line", ["{", "[]", "{}", '{"audio": "a.wav"}', '{"audio": 3, "text": ""}'])
def test_a_wrong_line_is_named(tmp_path: Path, line: str) -> None:
    file = tmp_path / "manifest.jsonl"
    file.write_text('{"audio": "a.wav", "text": "a", "speaker": 7}\n' + line + "\n")
    with pytest.raises(InputError, match=r"manifest\.jsonl:2"):
        read_manifest(file, Line)


def test_examples_of_a_folder(tmp_path: Path) -> None:
    good = {"index": 0, "audio": "a.wav", "text": "a", "samples": 5, "continuation": "b"}
    shards = {
        "0.jsonl": [good, {"index": 2, "audio": "x.wav", "text": "x", "dropped": "empty text"}],
        "1.jsonl": [good | {"audio": "/b.wav:1:5"}, good | {"samples": N_SAMPLES + 1}],
    }
    for name, lines in shards.items():
        (tmp_path / name).write_text("".join(json.dumps(line) + "\n" for line in lines))
    (first, second), passed_over = read_examples(tmp_path)
    assert first == Example(AudioSpan(tmp_path / "a.wav"), 5, "a", "b")
    assert second.audio == AudioSpan(Path("/b.wav"), 1, 5)
    assert passed_over == {"empty text": 1, "longer than a window of 30 s": 1}
    assert read_examples(tmp_path / "0.jsonl") == ([first], {"empty text": 1})


def test_examples_come_in_the_order_of_their_manifest(tmp_path: Path) -> None:
    lines = [{"index": i, "audio": "a.wav", "text": f"{i}", "samples": 5, "continuation": "b"} for i in range(12)]
    for name, order in (("1.jsonl", [*range(3, 12), 0, 2, 1]), ("0.jsonl", [10, 4])):
        (tmp_path / name).write_text("".join(json.dumps(lines[i]) + "\n" for i in order))
    assert [example.text for example in read_examples(tmp_path)[0]] == ["4", "10", *map(str, range(12))]


def test_nothing_to_learn_from(tmp_path: Path) -> None:
    (tmp_path / "out.jsonl").write_text('{"dropped": "empty text"}\n')
    with pytest.raises(InputError, match="no line with a continuation"):
        read_examples(tmp_path)


def test_transcripts_of_a_folder(tmp_path: Path) -> None:
    lengths = {"whole.wav": 700, "long.wav": N_SAMPLES + 1}
    lines = [
        {"audio": "whole.wav", "text": "a"},
        {"audio": "long.wav", "text": "b"},
        {"audio": "talk.wav:5:900", "text": "c", "voice": "slt"},
        {"audio": "talk.wav:5:900", "text": " "},
    ]
    (tmp_path / "0.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = read_transcripts(tmp_path, lambda span: torch.zeros(lengths[span.path.name]))
    assert found == [
        Example(AudioSpan(tmp_path / "whole.wav"), 700, "a", ""),
        Example(AudioSpan(tmp_path / "talk.wav", 5, 900), 900, "c", ""),
    ]
    (tmp_path / "0.jsonl").write_text(json.dumps(lines[3]))
    with pytest.raises(InputError, match="no recording"):
        read_transcripts(tmp_path, lambda span: torch.zeros(1))
