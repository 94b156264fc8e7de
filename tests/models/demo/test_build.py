import sys
from pathlib import Path

import numpy as np
import pytest

from models.demo import build, preflight
from models.demo.speech import Utterance
from models.demo.voices import Voice


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> list[str]:
    """The stages that a command line runs; the folder of work files must be this test's own."""
    ran: list[str] = []
    for stages in (build.STAGES, build._ALONE):
        for name in list(stages):
            monkeypatch.setitem(stages, name, lambda name=name: ran.append(name))
    monkeypatch.setattr("sys.argv", ["build", *arguments])
    build.main()
    return ran


@pytest.fixture(autouse=True)
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "WORK", tmp_path)
    monkeypatch.setattr(build, "_set_up", lambda: None)
    monkeypatch.setattr(build, "check_voices", lambda: None)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # which it would set itself, for all tests after this


def test_all_stages_run_in_order_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(monkeypatch) == [
        "speech",
        "networks",
        "continuations",
        "states",
        "adapter",
        "tests",
        "evaluation",
        "samples",
    ]


def test_stages_can_be_picked(monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(monkeypatch, "adapter", "comparison") == ["adapter", "comparison"]


@pytest.mark.parametrize(
    ("stages", "asked"), [([], True), (["tests"], True), (["llm", "adapter"], False), (["comparison"], False)]
)
def test_voices_are_tried_before_stages_that_need_them(
    monkeypatch: pytest.MonkeyPatch, stages: list[str], asked: bool
) -> None:
    def refuse() -> None:
        sys.exit("mute")

    monkeypatch.setattr(build, "check_voices", refuse)
    if asked:
        with pytest.raises(SystemExit, match="mute"):
            run(monkeypatch, *stages)
    else:
        assert run(monkeypatch, *stages) == stages


def test_mute_voices_are_named_with_their_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    def speak(text: str, voice: Voice, rng: np.random.Generator) -> Utterance:
        if voice.engine == "festival":
            raise FileNotFoundError("festival")
        return Utterance(np.zeros(0 if voice.name == "rms" else 9, np.float32), 16000, [])

    monkeypatch.setattr(preflight, "speak", speak)
    assert preflight.mute_voices() == [
        "flite rms (Debian: flite)",
        "festival ked_diphone (Debian: festvox-kdlpc16k)",
        "festival cmu_us_slt_arctic_hts (Debian: festvox-us-slt-hts)",
    ]


def test_an_unknown_stage_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run(monkeypatch, "adaptor")
    assert "no stage is called adaptor" in capsys.readouterr().err
