"""What the LLM is taught of what is heard: the questions are those that serving asks, and the answers what was said."""

import json
import random
import wave
from pathlib import Path

import torch

from models.manifest import AudioSpan
from models.prompt import Speech, about
from models.smol.instructions import BEGUN, QUOTED
from models.smol.lessons import lessons, read
from models.training.instruct import read_alpaca

HEARD = {f"The cat sat on mat {i}.": f"The cats at on mat {i}." for i in range(200)}


def written(tmp_path: Path) -> list[tuple[str, str]]:
    replies = [
        {"text": "The cat sat on mat 0.", "instruction": "", "continuation": "Good for it."},
        {"text": "The cat sat on mat 0.", "instruction": "Sum it up.", "continuation": "A cat."},
        {"text": "Nothing was heard of this.", "instruction": "", "continuation": "What?"},
    ]
    (tmp_path / "replies.jsonl").write_text("".join(json.dumps(reply) + "\n" for reply in replies))
    found = list(lessons(HEARD, tmp_path, random.Random(0)))
    (tmp_path / "lessons.json").write_text(json.dumps(found))
    return [(lesson.question, lesson.answer) for lesson in read_alpaca(tmp_path / "lessons.json")]


def test_a_lesson_asks_what_a_transcription_asks(tmp_path: Path) -> None:
    question, answer = written(tmp_path)[0]
    said = next(iter(HEARD))
    assert answer == f'{BEGUN}{said}"'
    before, _, after = about(QUOTED, Speech(torch.empty(0, 8))).parts
    assert question in {f"{before} {text}{after}" for text in (said, HEARD[said])}


def test_most_questions_are_as_heard_and_all_answers_as_said(tmp_path: Path) -> None:
    transcribing = written(tmp_path)[: len(HEARD)]
    misheard = sum("cats at" in question for question, _ in transcribing)
    assert len(HEARD) / 2 < misheard < len(HEARD)
    assert [answer for _, answer in transcribing] == [f'{BEGUN}{said}"' for said in HEARD]


def test_replies_to_what_was_heard_are_those_to_what_was_said(tmp_path: Path) -> None:
    spoken, told = written(tmp_path)[len(HEARD) :]  # of the third nothing was heard
    assert spoken[0] in {"The cat sat on mat 0.", "The cats at on mat 0."}
    assert told[0].startswith("Sum it up. The cat")
    assert (spoken[1], told[1]) == ("Good for it.", "A cat.")


def test_a_piece_of_a_shard_is_read(tmp_path: Path) -> None:
    with wave.open(str(tmp_path / "shard.wav"), "wb") as file:
        file.setparams((1, 2, 16000, 0, "NONE", ""))
        file.writeframes(b"".join(i.to_bytes(2, "little") for i in range(100)))
    piece = read(AudioSpan(tmp_path / "shard.wav", 10, 5)) * 32768
    assert piece.tolist() == [10, 11, 12, 13, 14]
    assert len(read(AudioSpan(tmp_path / "shard.wav"))) == 100
