"""From the figures in results.json to RESULTS.md and the plot."""

import json
import statistics
from collections.abc import Iterator
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt

from benchmarks.gpu import table as gpu
from benchmarks.table import Results, figure, short, verdict

HERE = Path(__file__).parent
FIGURES = HERE / "results.json"
TABLE = HERE / "RESULTS.md"
PLOT = HERE / "results.png"
SOAK = HERE / "soak.json"
OVERLOAD = HERE / "overload.json"
WORLD = HERE / "overload-world.json"
ATTACK = HERE / "attack.json"
GPU = HERE / "gpu.json"

DTYPES = ("float32", "bfloat16")
CLIENTS = {"peer-1x5": 1, "peer-8x5": 8, "peer-32x5": 32}
LOADS = {
    "peer-1x5": "1 client, 5 s clips",
    "peer-8x5": "8 clients, 5 s",
    "peer-32x5": "32 clients, 5 s",
    "peer-8x25": "8 clients, 25 s",
    "in-step-32x5": "32 clients in step, 5 s",
    "in-step-8x25": "8 clients in step, 25 s",
}


def read() -> Results:
    """What was measured before."""
    results: Results = json.loads(FIGURES.read_text()) if FIGURES.exists() else {}
    return results


def write(results: Results) -> None:
    """Keeps the figures and writes the report of them."""
    FIGURES.write_text(json.dumps(results, indent=1))
    TABLE.write_text(
        "\n".join(
            [
                *_head(results),
                *_peer(results),
                *_talk(results),
                *_targets(results),
                *_encoder(results),
                *_held(results),
                *_soak(),
                *_overload(OVERLOAD, "overload", ""),
                *_overload(WORLD, "overload-world", ", of recordings of many formats, whole, cut short and damaged"),
                *_attack(),
                *(gpu.table(json.loads(GPU.read_text())) if GPU.exists() else []),
                *_made(results),
            ]
        )
        + "\n"
    )
    _plot(results)


def _head(results: Results) -> list[str]:
    trial = any(entry["scale"] != 1 for entry in results.values())
    return [
        "# Speed",
        "",
        *(["**A trial with few requests.**", ""] if trial else []),
        "Made by `make bench`. Whisper encoder 384 wide, 4 layers; Llama 512 wide, 8 layers; random weights; 32 tokens",
        "out, streamed; every recording different unless said otherwise. All processes, the load client too, share the",
        "machine named below. Sides run in turns, A B A B; figures are means of the rounds. Peer: vLLM's own server with",
        "its native Ultravox model of the same shapes. Clients are closed loops and begin one after the other, as people do;",
        '"in step": all begin at once, and with replies of one length they stay together: nobody is being answered while',
        "the recordings of all are encoded.",
        "",
        "![Requests per second and longest gaps over clients](results.png)",
        "",
    ]


def _peer(results: Results) -> Iterator[str]:
    for dtype in DTYPES:
        yield f"## {dtype}: peer / this service at `/v1/speech` / this service at `/v1/chat/completions`"
        yield ""
        yield "Longest gap: of each request, between two tokens. CPU time: of all the server's processes."
        yield ""
        yield "| load | requests/s | TTFT p50, s | TTFT p95, s | longest gap p95, s | CPU s per request | errors |"
        yield "| --- " * 7 + "|"
        for piece, load in LOADS.items():
            sides = ("peer", "ours", "ours, chat")
            columns = [
                [figure(results, dtype, piece, side, *path) for side in sides]
                for path in (
                    ("requests_per_second",),
                    ("ttft", "p50"),
                    ("ttft", "p95"),
                    ("longest_gap", "p95"),
                )
            ]
            columns += [[_cpu(results, dtype, piece, side) for side in sides]]
            columns += [[figure(results, dtype, piece, side, "errors") for side in sides]]
            yield f"| {load} | " + " | ".join(" / ".join(map(short, column)) for column in columns) + " |"
        yield ""


def _cpu(results: Results, dtype: str, piece: str, side: str) -> float | None:
    rounds = results.get(f"{dtype} {piece}", {}).get("sides", {}).get(side, [])
    sums = [sum(s for name, s in r["cpu_seconds_per_request"].items() if name != "load client") for r in rounds]
    return statistics.mean(sums) if sums else None


TALKS = (
    "socket, turns by the client",
    "socket, cut off in a word",
    "socket, turns by the server",
    "posted",
    "peer, posted",
)


def _talk(results: Results) -> Iterator[str]:
    yield "## From the end of a turn to the first text of its answer, seconds"
    yield ""
    yield (
        "People's speech at its own pace, quiet for its last 0.3 s but where it is cut off in the middle of a word. On the socket "
        "the client tells the end of a turn, or the server does after 500 ms of silence; posted: the recording, when it has been "
        "said, to chat completions. Sessions begin within 3 s."
    )
    yield ""
    yield f"| dtype | sessions | utterance | {' | '.join(TALKS)} |"
    yield "| --- " * (3 + len(TALKS)) + "|"
    for dtype in DTYPES:
        for number in (1, 8):
            for seconds in ("3", "10", "30"):
                row = [figure(results, dtype, f"talk-{number}", side, seconds) for side in TALKS]
                if any(value is not None for value in row):
                    yield f"| {dtype} | {number} | {seconds} s | {' | '.join(map(short, row))} |"
    yield ""


# Two figures of talks, each of (sessions, utterance, side), and the bound of the first / the second.
BY_CLIENT, CUT_OFF, BY_SERVER, POSTED, BY_PEER = TALKS
TALK_TARGETS = [
    ("10 s utterance, socket / posted", ("1", "10", BY_CLIENT), ("1", "10", POSTED), 0.5),
    ("10 s utterance cut off in a word, socket / posted", ("1", "10", CUT_OFF), ("1", "10", POSTED), 0.5),
    ("10 s utterance, turns by the server, socket / posted", ("1", "10", BY_SERVER), ("1", "10", POSTED), 0.5),
    ("10 s utterance, socket / peer", ("1", "10", BY_CLIENT), ("1", "10", BY_PEER), 0.4),
    ("10 s utterance cut off in a word, socket / peer", ("1", "10", CUT_OFF), ("1", "10", BY_PEER), 0.4),
    ("socket, 30 s utterance / 3 s", ("1", "30", BY_CLIENT), ("1", "3", BY_CLIENT), 1.3),
    ("socket, 10 s utterance, 8 sessions / 1", ("8", "10", BY_CLIENT), ("1", "10", BY_CLIENT), 2.0),
]

NAMES = LOADS | {
    "cached-32x5": "32 clients, 5 s, recordings heard before",
    "plain-32x5": "32 clients, 5 s",
}
# Measure, our side, whose it is compared with, path of the figure, the bound of ours / other, and the pieces that it holds for.
TARGETS = [
    ("longest gap p95", "ours", "peer", ("longest_gap", "p95"), "≤", 0.15, ("in-step-8x25", "peer-8x25")),
    ("TTFT p50", "ours", "peer", ("ttft", "p50"), "≤", 0.8, ("in-step-8x25", "peer-8x25")),
    ("requests/s", "ours", "peer", ("requests_per_second",), "≥", 1.2, ("in-step-32x5", "peer-32x5")),
    ("TTFT p50", "ours", "peer", ("ttft", "p50"), "≤", 1.0, ("peer-1x5",)),
    ("requests/s", "ours", "engine only", ("requests_per_second",), "≥", 0.9, ("cached-32x5",)),
    ("requests/s", "ours", "plain loop", ("requests_per_second",), "≥", 10.0, ("plain-32x5",)),
    ("requests/s", "ours, LLM compiled", "plain loop", ("requests_per_second",), "≥", 10.0, ("plain-32x5",)),
]
# Medians of the same side: what, piece, side, the two figures, and the bound of the first / the second.
WITHIN = [
    *(
        (
            f"TTFT of a second question on 25 s, of the first's; {how}",
            "second-question",
            side,
            ("second", "first"),
            "ttft",
            0.25,
        )
        for how, side in (
            ("the next turn in chat", "ours, next turn"),
            ("asked anew in chat, the recording first", "ours, recording first"),
            ("asked anew at `/v1/speech`", "ours"),
        )
    ),
    (
        "last byte to first token, 5 minutes at speaking pace, of 30 s",
        "upload-300",
        "ours",
        ("long", "short"),
        "ttft_after_upload",
        1.2,
    ),
]


def _targets(results: Results) -> Iterator[str]:
    yield "## Against the targets"
    yield ""
    yield "| measure | dtype | this service | other | ratio | target | reached |"
    yield "| --- " * 7 + "|"
    for dtype in DTYPES:
        for measure, side, other, path, sign, bound, pieces in TARGETS:
            for piece in pieces:
                pair = figure(results, dtype, piece, side, *path), figure(results, dtype, piece, other, *path)
                yield from verdict(f"{measure}, {NAMES[piece]}; {side} / {other}", dtype, pair, sign, bound)
        for name, this_talk, that_talk, bound in TALK_TARGETS:
            first, second = (
                figure(results, dtype, f"talk-{number}", side, seconds)
                for number, seconds, side in (this_talk, that_talk)
            )
            yield from verdict(f"end of a turn to first text, {name}", dtype, (first, second), "≤", bound)
        for name, piece, side, (this, that), measure, bound in WITHIN:
            pair = (
                figure(results, dtype, piece, side, this, measure, "p50"),
                figure(results, dtype, piece, side, that, measure, "p50"),
            )
            yield from verdict(name, dtype, pair, "≤", bound)
    yield ""


def _encoder(results: Results) -> Iterator[str]:
    yield "## Encoder and adapter on one core, against their operations over its matrix rate"
    yield ""
    yield "| dtype | matrix rate, GFLOP/s | clip | batch | ms per clip | limit, ms | share of the limit | features, ms |"
    yield "| --- " * 8 + "|"
    for dtype in DTYPES:
        for entry in results.get(f"{dtype} encoder", {}).get("sides", {}).get("ours", []):
            for row in entry["rows"]:
                took, limit, features = (1000 * row[name] for name in ("took", "limit", "features"))
                yield (
                    f"| {dtype} | {entry['matrix_rate'] / 1e9:.0f} | {row['seconds']} s | {row['batch']} | {took:.1f} | {limit:.1f} | "
                    f"{limit / took:.2f} | {features:.1f} |"
                )
    yield ""


def _held(results: Results) -> Iterator[str]:
    yield "## Start and memory"
    yield ""
    for dtype in DTYPES:
        starts, after = (
            results.get(f"{dtype} {piece}", {}).get("sides", {}).get("ours", []) for piece in ("start", "memory")
        )
        for start in starts:
            yield f"- {dtype}: ready after {start['ready_after']:.0f} s; resident MiB then: {start['resident_mib']}"
        for held in after:
            yield f"- {dtype}: resident MiB after all pieces: {held}"
    yield ""


def _soak() -> Iterator[str]:
    if not SOAK.exists():
        return
    steps = {int(sent): step for sent, step in json.loads(SOAK.read_text()).items()}
    yield "## Thousands of requests to one server (`make soak`)"
    yield ""
    yield "| requests sent | resident MiB | CPU s per request | errors in these 100 |"
    yield "| --- " * 4 + "|"
    for sent in sorted({*(n for n in (100, 500) if n in steps), *(n for n in steps if n % 1000 == 0), max(steps)}):
        step = steps[sent]
        yield f"| {sent} | {sum(step['resident_mib'].values())} | {step['cpu_seconds_per_request']:.4f} | {step['errors']} |"
    yield ""


def _overload(path: Path, target: str, what: str) -> Iterator[str]:
    if not path.exists():
        return
    figures = json.loads(path.read_text())
    yield f"## Twice as many requests as it can answer{what} (`make {target}`)"
    yield ""
    yield f"{figures['made']}; each row {figures['seconds'] / 60:.0f} minutes of mixed requests that come by chance."
    yield ""
    yield "| offered/s | requests | outcomes | answered/s | TTFT p50, s | TTFT p95, s | total p95, s | refusal p95, s | resident MiB |"
    yield "| --- " * 9 + "|"
    for row in (figures["at capacity"], *figures["overload"]):
        outcomes = ", ".join(f"{number} {outcome}" for outcome, number in sorted(row["outcomes"].items()))
        ttft, total = row["answered"]["ttft"], row["answered"]["total"]
        values = (row["answered_per_second"], ttft["p50"], ttft["p95"], total["p95"], row["refused_p95"])
        yield (
            f"| {row['offered_per_second']:.1f} | {row['requests']} | {outcomes} | "
            f"{' | '.join(map(short, values))} | {row['resident_mib']} |"
        )
    yield ""


def _attack() -> Iterator[str]:
    if not ATTACK.exists():
        return
    figures = json.loads(ATTACK.read_text())
    yield "## Requests that are made to stop it (`make attack`)"
    yield ""
    yield (
        f"{figures['made']}. Beside each attack one client streams an answer and one asks /version: the longest that they waited, and "
        "how long the server was still at work when the attackers had left."
    )
    yield ""
    yield "| attack | longest gap, s | /version, s | idle after, s | answers |"
    yield "| --- " * 5 + "|"
    for row in figures["attacks"]:
        answers = ", ".join(f"{number} x {outcome}" for outcome, number in row["outcomes"].items())
        yield f"| {row['attack']} | {row['gap']:.2f} | {row['version']:.2f} | {row['idle']:.0f} | {answers} |"
    yield ""


def _made(results: Results) -> Iterator[str]:
    yield "## Made"
    yield ""
    for piece, entry in results.items():
        yield f"- {piece}: {entry['made']}, took {entry['took']:.0f} s"


def _plot(results: Results) -> None:
    mpl.use("agg")
    panes = {
        "requests/s": ("requests_per_second",),
        "p95 of each request's longest token gap, s": ("longest_gap", "p95"),
    }
    drawing, axes = plt.subplots(1, len(panes), figsize=(11, 4), layout="constrained")
    for axis, (title, path) in zip(axes, panes.items(), strict=True):
        for dtype, style in zip(DTYPES, ("--", "-"), strict=True):
            for side, colour in (("peer", "tab:gray"), ("ours", "tab:blue"), ("ours, chat", "tab:cyan")):
                points = {n: figure(results, dtype, piece, side, *path) for piece, n in CLIENTS.items()}
                known = {n: value for n, value in points.items() if value is not None}
                axis.plot(list(known), list(known.values()), style, color=colour, marker="o", label=f"{side}, {dtype}")
        axis.set(title=title, xlabel="clients, 5 s clips", xscale="log", ylim=(0, None))
        axis.set_xticks(list(CLIENTS.values()), [str(n) for n in CLIENTS.values()])
    axes[0].legend()
    drawing.savefig(PLOT, dpi=110)
    plt.close(drawing)
