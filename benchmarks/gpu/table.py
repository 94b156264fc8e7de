"""The part of RESULTS.md that tells of a GPU."""

from collections.abc import Iterator
from typing import Any

from benchmarks.table import Results, figure, short, verdict

ENCODER_COLUMNS = {
    "features": "features",
    "rows": "features to rows",
    "limit": "limit",
    "share": "share of the limit",
    "rows_without_graph": "without graph",
    "whole": "samples to rows on the host",
    "plain_features": "features, one window after the other",
    "plain_rows": "features to rows, the plain way",
}
SIDES = ("peer", "ours", "engine only")
MEASURES = {
    "requests/s": ("requests_per_second",),
    "TTFT p50, s": ("ttft", "p50"),
    "TTFT p95, s": ("ttft", "p95"),
    "longest gap p95, s": ("longest_gap", "p95"),
    "errors": ("errors",),
}
# Part, batch, figure, and what it is to be at most or at least.
ENCODER_TARGETS = [
    ("encoder-small", "1 x 5 s", "rows", "≤", 1.3),
    ("encoder-small", "8 x 5 s", "rows", "≤", 2.0),
    ("encoder-small", "16 of 1 to 27 s", "rows", "≤", 7.0),
    ("encoder-large-v2", "1 x 5 s", "rows", "≤", 3.2),
    ("encoder-large-v2", "8 x 5 s", "rows", "≤", 7.5),
    ("encoder-large-v2", "32 x 30 s", "share", "≥", 0.65),
]
FEATURES_SHARE = 0.1  # of the time from features to rows, at most
# Measure of this service, under which load, whose it is compared with, and the bound of the ratio.
SERVICE_TARGETS = [
    ("requests/s", "cached, 32 x 5 s", "engine only", "≥", 0.97),
    ("requests/s", "32 x 5 s", "engine only", "≥", 0.9),
    ("longest gap p95, s", "32 x 25 s", "peer", "≤", 0.1),
    ("TTFT p50, s", "1 x 5 s", "engine only", "≤", 1.15),
]


def table(figures: Results) -> Iterator[str]:
    """Of what `make bench-gpu` has found."""
    parts = figures["parts"]
    cards = sorted({part["card"] for part in parts.values()})
    yield f"## On a GPU: {', '.join(cards)} (`make bench-gpu`)"
    yield ""
    yield f"{figures['made']}. bfloat16, random weights; milliseconds are medians of whole batches, until the GPU has done them."
    yield ""
    for name, part in parts.items():
        shown = {"parity": _parity, "ids": _ids, "service": _service}.get(name, _encoder)
        yield from shown(name, part["rows"])
        yield from (f"- {name}, {row['what']} failed: {row['failed']}" for row in part["rows"] if "failed" in row)
        yield ""
    yield from _targets({name: part["rows"] for name, part in parts.items()})


def _parity(_: str, rows: list[Results]) -> Iterator[str]:
    yield "Largest difference of a row's numbers, which have a deviation of 1, to those of the CPU in float32:"
    yield ""
    for row in rows:
        if "failed" not in row:
            ways = (f"{way.removeprefix('torch.')} {value:.2g}" for way, value in row.items() if way != "what")
            yield f"- {row['what']}: {'; '.join(ways)}"


def _ids(_: str, rows: list[Results]) -> Iterator[str]:
    found = [row for row in rows if "failed" not in row]
    same, cases = (sum(row[what] for row in found) for what in ("same", "cases"))
    yield f"Greedy ids in float32 as the official code's: {same} of {cases} replies, to {len(found)} recordings."


def _encoder(name: str, rows: list[Results]) -> Iterator[str]:
    for row in rows:
        if "tflops" in row:
            yield f"{name}: matrix rate {row['tflops']:.0f} TFLOP/s; limit: the operations over that rate."
        if "climb_s" in row:
            yield (
                f"Graphs were recorded in {row['climb_s']:.1f} s and take {row['mib']:.0f} MiB; a batch has at most {row['batch_s']:.0f} s "
                "of audio, which the GPU encodes within 10 ms."
            )
    yield ""
    yield f"| {name}, ms | {' | '.join(ENCODER_COLUMNS.values())} |"
    yield "| --- " * (1 + len(ENCODER_COLUMNS)) + "|"
    for row in rows:
        if "rows" in row:
            yield f"| {row['what']} | {' | '.join(short(row[column]) for column in ENCODER_COLUMNS)} |"


def _service(_: str, rows: list[Results]) -> Iterator[str]:
    for row in rows:
        if "ready_after" in row:
            yield f"The service at Llama-2-7B's shapes, encoder as Whisper small's: ready after {row['ready_after']:.0f} s."
    yield ""
    yield f"| clients x clips: {' / '.join(SIDES)} | {' | '.join(MEASURES)} |"
    yield "| --- " * (1 + len(MEASURES)) + "|"
    for load in dict.fromkeys(row["what"] for row in rows if "side" in row):
        columns = ([_of(rows, load, side, measure) for side in SIDES] for measure in MEASURES)
        yield f"| {load} | {' | '.join(' / '.join(map(short, column)) for column in columns)} |"


def _of(rows: list[Results], load: str, side: str, measure: str) -> float | None:
    """The mean of one side's rounds."""
    rounds: list[Any] = [row for row in rows if row["what"] == load and row.get("side") == side]
    return figure({f"gpu {load}": {"sides": {side: rounds}}}, "gpu", load, side, *MEASURES[measure])


def _targets(parts: dict[str, list[Results]]) -> Iterator[str]:
    yield "| measure | dtype | this service | other | ratio | target | reached |"
    yield "| --- " * 7 + "|"
    for name, batch, what, sign, bound in ENCODER_TARGETS:
        for row in parts.get(name, []):
            if row["what"] == batch and "rows" in row:
                title = f"{name}, {batch}, {ENCODER_COLUMNS[what]}; found / asked for"
                yield from verdict(title, "bfloat16", (row[what], bound), sign, 1.0)
                title = f"{name}, {batch}, features / from them to rows"
                yield from verdict(title, "bfloat16", (row["features"], row["rows"]), "≤", FEATURES_SHARE)
    for measure, load, other, sign, bound in SERVICE_TARGETS:
        rows = parts.get("service", [])
        pair = _of(rows, load, "ours", measure), _of(rows, load, other, measure)
        yield from verdict(f"{measure}, {load}; ours / {other}", "bfloat16", pair, sign, bound)
    yield ""
