"""Figures of several rounds as cells and verdicts of a table."""

import statistics
from collections.abc import Iterator
from typing import Any

Results = dict[str, Any]


def figure(results: Results, dtype: str, piece: str, side: str, *path: str) -> float | None:
    """The mean over the rounds of one figure; None where it was not measured."""
    rounds = results.get(f"{dtype} {piece}", {}).get("sides", {}).get(side, [])
    values = []
    for value in rounds:
        for key in path:
            value = value.get(key) if isinstance(value, dict) else None
        if value is not None:
            values.append(value)
    return statistics.mean(values) if values else None


def verdict(name: str, dtype: str, pair: tuple[float | None, float | None], sign: str, bound: float) -> Iterator[str]:
    """A row for the two figures and their ratio, which is to be at most or at least `bound`; none where one was not measured."""
    ours, other = pair
    if ours is None or other is None:
        return
    ratio = ours / other
    reached = ratio <= bound if sign == "≤" else ratio >= bound
    yield f"| {name} | {dtype} | {short(ours)} | {short(other)} | {ratio:.2f} | {sign} {bound:g} | {'yes' if reached else '**no**'} |"


def short(value: float | None) -> str:
    """Three digits of it."""
    return "-" if value is None else f"{value:.3g}"
