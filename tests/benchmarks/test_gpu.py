import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu import __main__ as command
from benchmarks.gpu.figures import Figures
from benchmarks.gpu.table import ENCODER_COLUMNS, table


def test_a_failure_costs_its_own_row_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> dict[str, Any]:
        raise RuntimeError("out of memory")

    figures = Figures(tmp_path / "part.json")
    figures.attempt("first", fail)
    assert len(json.loads((tmp_path / "part.json").read_text())["rows"]) == 1  # while the next one is measured
    figures.attempt("second", lambda: {"rows": 1.0})
    found = json.loads((tmp_path / "part.json").read_text())
    assert found["rows"] == [
        {"what": "first", "failed": "RuntimeError: out of memory"},
        {"what": "second", "rows": 1.0},
    ]
    assert found["card"]
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("part", "ended"),
    [
        (("benchmarks.nothing", [], 60), "ended with 1"),
        (("http.server", ["0"], 0), "was stopped at its limit"),
    ],
)
def test_a_part_that_fails_or_hangs_does_not_end_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: tuple[str, list[str], int], ended: str
) -> None:
    monkeypatch.setattr(command, "PARTS", {"part": part})
    assert command.run("part", tmp_path, tiny=False).startswith(f"part {ended}")
    assert (tmp_path / "part.log").exists()


SAMPLE: dict[str, Any] = {"requests_per_second": 10.0, "errors": 0, "ttft": {"p50": 0.1, "p95": 0.2}}
ENCODED = dict.fromkeys(ENCODER_COLUMNS, 2.5)
FIGURES: dict[str, Any] = {
    "made": "2026-11-29",
    "parts": {
        "parity": {"card": "A card", "torch": "2", "rows": [{"what": "small", "torch.float32 graph": 2e-5}]},
        "ids": {
            "card": "A card",
            "torch": "2",
            "rows": [
                {"what": "en", "cases": 3, "same": 3, "other": []},
                {"what": "de", "cases": 2, "same": 1, "other": ["de"]},
            ],
        },
        "encoder-small": {
            "card": "A card",
            "torch": "2.11",
            "rows": [
                {"what": "matrix rate", "tflops": 778.0},
                {"what": "start", "climb_s": 3.0, "batch_s": 240.0, "mib": 512.0},
                {"what": "1 x 5 s", **ENCODED},
                {"what": "64 x 30 s", "failed": "OutOfMemoryError: too much"},
            ],
        },
        "service": {
            "card": "A card",
            "torch": "2.13",
            "rows": [
                {"what": "start", "ready_after": 61.0, "others": ["ready"]},
                {"what": "32 x 5 s", "side": "ours", **SAMPLE},
                {"what": "32 x 5 s", "side": "ours", **SAMPLE | {"requests_per_second": 20.0}},
                {"what": "32 x 5 s", "side": "engine only", **SAMPLE},
            ],
        },
    },
}


def test_the_table_has_every_figure_and_failure_with_the_cards_name() -> None:
    lines = list(table(FIGURES))
    assert lines[0] == "## On a GPU: A card (`make bench-gpu`)"
    for line in (
        "- small: float32 graph 2e-05",
        "Greedy ids in float32 as the official code's: 4 of 5 replies, to 2 recordings.",
        f"| 1 x 5 s | {' | '.join(['2.5'] * len(ENCODED))} |",
        "- encoder-small, 64 x 30 s failed: OutOfMemoryError: too much",
        "The service at Llama-2-7B's shapes, encoder as Whisper small's: ready after 61 s.",
        "| encoder-small, 1 x 5 s, features to rows; found / asked for | bfloat16 | 2.5 | 1.3 | 1.92 | ≤ 1 | **no** |",
        "| encoder-small, 1 x 5 s, features / from them to rows | bfloat16 | 2.5 | 2.5 | 1.00 | ≤ 0.1 | **no** |",
        "| requests/s, 32 x 5 s; ours / engine only | bfloat16 | 15 | 10 | 1.50 | ≥ 0.9 | yes |",
        "| 32 x 5 s | - / 15 / 10 | - / 0.1 / 0.1 | - / 0.2 / 0.2 | - / - / - | - / 0 / 0 |",
    ):
        assert line in lines


def test_parts_without_figures_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "parity.json").write_text(json.dumps(FIGURES["parts"]["parity"]))
    assert command.collected(tmp_path)["parts"] == {"parity": FIGURES["parts"]["parity"]}
