import json
from pathlib import Path

import pytest

from models.demo import continuations

TEXTS = [f"sentence {i}" for i in range(6)]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The texts that were continued, each by itself backwards."""
    asked: list[str] = []

    def generate(model: object, tokenizer: object, prompt: object, slots: list[str], top_p: float) -> list[str]:
        asked.extend(slots)
        return [text[::-1] for text in slots]

    monkeypatch.setattr(continuations, "_CHUNK", 2)
    monkeypatch.setattr(continuations, "prompt", lambda *_: None)
    monkeypatch.setattr(continuations, "transcript_rows", lambda model, tokenizer, text: text)
    monkeypatch.setattr(continuations, "generate", generate)
    return asked


@pytest.mark.parametrize("whole", range(7))
@pytest.mark.parametrize("torn", ["", '{"text": "sente', '{"text": "sentence", "continuation": "c"}'])
def test_a_torn_file_is_completed(asked: list[str], tmp_path: Path, whole: int, torn: str) -> None:
    file = tmp_path / "continuations.jsonl"
    lines = [json.dumps({"text": text, "continuation": text[::-1]}) + "\n" for text in TEXTS]
    file.write_text("".join(lines[:whole]) + torn)
    continuations.write(None, None, TEXTS, file, seed=0)  # type: ignore[arg-type]
    assert continuations.read(file) == {text: text[::-1] for text in TEXTS}
    assert asked == TEXTS[whole // 2 * 2 :]
