from typing import Any

import pytest

from benchmarks.overload import MIX, WORLD, Mix, find_defects
from service.load.client import Sample

AWAY = "The client went away."


@pytest.mark.parametrize(
    ("kind", "sample", "outcome"),
    [
        ("speech, 5 s", Sample(status=200), "answered"),
        ("speech, 5 s", Sample(status=429, error="HTTP 429: busy"), "refused"),
        ("speech, 5 s", Sample(error=AWAY), AWAY),
        ("speech, 5 s", Sample(status=200, error="The reply held no tokens."), "The reply held no tokens."),
        ("speech, 5 s", Sample(status=400, error="HTTP 400: what?"), "HTTP 400: what?"),
        ("clients that go away", Sample(status=200, error=AWAY), "left"),
        ("clients that go away", Sample(status=500, error="HTTP 500: oh"), "HTTP 500: oh"),
        ("no audio", Sample(status=400, error="HTTP 400: no audio"), "answered"),
        ("no audio", Sample(status=429, error="HTTP 429: busy"), "refused"),
        ("no audio", Sample(status=200), "no audio, but a reply"),
        ("whole", Sample(status=400, error="HTTP 400: damaged"), "HTTP 400: damaged"),
        ("cut short", Sample(status=400, error="HTTP 400: cut short"), "answered"),
        ("cut short", Sample(status=200), "answered"),
        ("damaged", Sample(status=413, error="HTTP 413: too long, it says"), "answered"),
        ("damaged", Sample(status=500, error="HTTP 500: oh"), "HTTP 500: oh"),
    ],
)
def test_an_outcome_is_proper_or_says_what_should_not_have_been(kind: str, sample: Sample, outcome: str) -> None:
    assert {**MIX, **WORLD}[kind].outcome(sample) == outcome


@pytest.mark.parametrize("mix", [MIX, WORLD], ids=["made", "world"])
def test_the_kinds_are_all_of_the_requests(mix: Mix) -> None:
    assert sum(kind.share for kind in mix.values()) == pytest.approx(1)


def part(**changes: Any) -> dict[str, Any]:
    answered = {"ttft": {"p95": changes.get("ttft", 1.0)}, "total": {"p95": changes.get("total", 2.0)}}
    return {
        "outcomes": {"answered": 10, "refused": 10, "left": 1} | changes.get("outcomes", {}),
        "answered": answered,
        "resident_mib": changes.get("resident_mib", 1000),
    }


@pytest.mark.parametrize(
    ("overload", "defects"),
    [
        ([part(), part(ttft=2.5, total=4.0), part(resident_mib=1050)], []),
        ([part(), part(outcomes={"HTTP 500: oh": 2}), part()], ["2 requests: HTTP 500: oh"]),
        (
            [part(ttft=1.4), part(ttft=1.8), part(ttft=1.6)],
            ["ttft p95 rose from 1.00 s at capacity to 1.60 s at twice that."],
        ),
        ([part(total=3.1)] * 3, ["total p95 rose from 2.00 s at capacity to 3.10 s at twice that."]),
        ([part(), part(), part(resident_mib=1051)], ["Resident memory grew from 1000 to 1051 MiB."]),
    ],
)
def test_defects_are_what_was_lost_slow_or_grew(overload: list[dict[str, Any]], defects: list[str]) -> None:
    assert list(find_defects(part(), overload)) == defects
