"""What is lacking is said before the recipe begins, with the commands that bring it."""

import sys
from pathlib import Path

import pytest

from models.smol import build, needs, speech


@pytest.fixture(autouse=True)
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that has two of Debian's packages, and no natural voices."""
    (tmp_path / "there").mkdir()
    texts = {package: tmp_path / ("there" if package == "fortunes" else "not") for package in needs.TEXTS}
    monkeypatch.setattr(needs, "TEXTS", texts)
    monkeypatch.setattr(needs, "ROBOTS", {"flite": "libc.so.6", "espeak-ng": "libnot-there.so.1"})
    monkeypatch.setattr(needs, "VOICES", {"natural": ("json", "not_there"), "natural-dev": ("json",)})


def test_what_is_there_is_not_asked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert needs.for_sentences() == ["apt-get install wordnet-base r-cran-janeaustenr wamerican wamerican-large"]
    assert needs.for_speech("train") == needs.for_speech("dev") == ["apt-get install espeak-ng"]
    monkeypatch.setattr(needs, "KOKORO", tmp_path / "not")
    assert needs.for_speech("natural-dev") == ["make build/voices"]
    monkeypatch.setattr(needs, "KOKORO", tmp_path / "there")
    assert needs.for_speech("natural-dev") == []


@pytest.mark.parametrize(("options", "voices"), [([], "; make build/voices"), (["--natural", "0"], "")])
def test_a_build_does_not_begin(
    options: list[str],
    voices: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["build", "--folder", str(tmp_path / "runs"), *options])
    with pytest.raises(SystemExit) as ended:
        build.main()
    assert ended.value.code == 2
    said = capsys.readouterr().err.strip()
    assert said.endswith(f"wamerican wamerican-large; apt-get install espeak-ng{voices}"), said
    assert not (tmp_path / "runs").exists()


def test_nothing_is_spoken_without_a_voice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (text := tmp_path / "text.txt").write_text("Good morning.\n")
    monkeypatch.setattr(sys, "argv", ["speech", str(text), str(tmp_path / "out"), "--split", "natural"])
    with pytest.raises(SystemExit):
        speech.main()
    assert "make build/voices" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
