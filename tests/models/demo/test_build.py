from pathlib import Path

import pytest

from models.demo import build


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


def test_an_unknown_stage_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run(monkeypatch, "adaptor")
    assert "no stage is called adaptor" in capsys.readouterr().err
