"""From figures to the tables of docs/capacity.md, which stand below its last heading."""

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.capacity import paper
from benchmarks.capacity.simulation import Costs
from benchmarks.table import short

HERE = Path(__file__).parent
FIGURES = HERE.parent / "capacity.json"
PAGE = HERE.parents[1] / "docs" / "capacity.md"
HEADING = "## Figures\n"
SHARING = (1, 2, 3, 4)  # engines that one encoder's card serves


def write(figures: dict[str, Any]) -> None:
    """Keeps the figures, and writes the tables anew."""
    FIGURES.write_text(json.dumps(figures, indent=1) + "\n")
    tables = "\n".join(_tables(figures))
    prose, heading, _ = PAGE.read_text().partition(HEADING)
    PAGE.write_text(f"{prose}{heading}\n{tables}\n")


def _tables(figures: dict[str, Any]) -> Iterator[str]:
    measured = Costs(**figures["costs"])
    yield f"Measured {figures['made']}.\n"
    yield from _table(("load", "requests/s", "simulated", "TTFT, p95", "simulated"), _loads(figures["loads"]))
    yield "\nSeconds that each part costs (`Costs` in simulation.py says what each is):\n"
    parts = {name: value for name, value in figures["costs"].items() if isinstance(value, float)}
    yield from _table(("part", "seconds"), ((f"`{name}`", short(value)) for name, value in parts.items()))
    replicas = {"this machine, the small shapes": measured} | paper.cards(measured)
    most = {name: paper.most(costs) for name, costs in replicas.items()}
    yield "\nOne replica:\n"
    rows = (
        (name, short(m.per_second), str(m.speakers), f"{m.busiest}, {m.share:.2f} of it") for name, m in most.items()
    )
    yield from _table(("replica", "turns/s", "speakers", "busiest then"), rows)
    for name, one in most.items():
        if name in paper.cards(measured):
            yield f"\nN speakers, {name}:\n"
            head = (
                "speakers",
                "turns/s",
                "GPUs",
                "cores for posted turns",
                "cores for open sockets",
                "audio, Gbit/s",
                "first to give out",
            )
            yield from _table(head, (_needs(n, one, measured, figures["socket_second"]) for n in paper.SPEAKERS))
    yield "\nTurns a second for each GPU, where so many engines share a card for their encoders:\n"
    yield from _table(
        ("", "none", *map(str, SHARING)),
        (_apart(name, costs, most[name]) for name, costs in paper.cards(measured).items()),
    )


def _loads(loads: Sequence[dict[str, Any]]) -> Iterator[Sequence[str]]:
    for load in loads:
        (kind, number), *_ = load["load"].items()
        cells = [f"{number} clients at a time" if kind == "clients" else f"{number}/s by chance"]
        for name, value in load["measured"].items():
            told = load["simulated"][name]
            cells += [short(value), f"{short(told)} ({told / value:.2f})"]
        yield cells


def _needs(speakers: int, one: paper.Most, costs: Costs, socket_second: float) -> Sequence[str]:
    turns = speakers / paper.EVERY
    cards = math.ceil(turns / one.per_second)
    posted = turns * paper.server_seconds(costs)
    sockets = posted + speakers * socket_second
    gigabits = speakers * paper.SOCKET_BYTES * 8 / 1e9
    figures = (_plain(figure) for figure in (speakers, turns, cards, posted, sockets, gigabits))
    return (*figures, paper.first(cards, sockets, gigabits))


def _plain(figure: float) -> str:
    """Three digits, or all of those in front of the point."""
    return f"{figure:,.0f}" if figure >= 100 else short(figure)


def _apart(name: str, costs: Costs, shared: paper.Most) -> Sequence[str]:
    each = (paper.most(replace(costs, encoder_cores=1 / n)).per_second * n / (n + 1) for n in SHARING)
    return (name, *map(short, (shared.per_second, *each)))


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    for row in (head, ["---"] * len(head), *rows):
        yield f"| {' | '.join(row)} |"
