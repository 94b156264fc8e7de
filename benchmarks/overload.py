"""`make overload`: half an hour of mixed requests, twice as many as the server can answer, to see that it refuses properly and stays quick.

Requests come by chance, whether or not the server keeps up: long and short recordings at both endpoints, some known from before, some from
clients that go away, some that are no audio at all. `make overload-world` sends recordings of many formats instead, whole, cut short and
damaged. First it finds out how many the server can take on in a second, its capacity, by sending far more; then how quick it is when just
so many come.
"""

import argparse
import asyncio
import json
import os
import random
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import date
from functools import partial
from typing import Any, Literal

from benchmarks import processes, report, world
from benchmarks.small import make_checkpoints
from benchmarks.world import Recordings
from service.load.client import Load, Question, Sample, clips, summarize

DTYPE = "bfloat16"
MAX_REQUESTS = 32  # at the same time; the limit that an operator sets for a machine of two cores
PARTS = 6  # of the overload, each measured by itself
HANGS = 120.0  # seconds after which a request counts as lost
SLOWER = 1.5  # what the 95th percentiles of accepted requests may grow by, from capacity to twice that
PROPER = {"answered", "refused", "left"}
GROWTH = 1.05  # what memory may grow by


@dataclass(frozen=True)
class Kind:
    """A sort of request: its share of all, what is uploaded, and what the server owes it."""

    share: float
    question: Question
    recordings: Recordings
    owed: Literal["reply", "refusal", "either"] = "reply"
    leaves: bool = False

    def outcome(self, sample: Sample) -> str:
        """ "answered", "refused" or "left", or what should not have been."""
        if sample.status == 429:
            return "refused"
        if sample.status in (400, 413, 415) and self.owed != "reply":
            return "answered"  # by chance, noise looks like damaged audio or like none
        if sample.error is None and self.owed != "refusal":
            return "answered"
        if self.leaves and sample.error == "The client went away.":
            return "left"
        return sample.error or "no audio, but a reply"


def fresh(seconds: float) -> Recordings:
    """Recordings that the server does not know."""
    return partial(clips, seconds=seconds)


Mix = Mapping[str, Kind]

NO_AUDIO = Kind(0.05, Question("speech"), world.noise, owed="refusal")
MIX: Mix = {
    "speech, 5 s": Kind(0.35, Question("speech"), fresh(5)),
    "chat, 5 s": Kind(0.2, Question("chat"), fresh(5)),
    "speech, 2 s, 8 tokens": Kind(0.15, Question("speech", tokens=8), fresh(2)),
    "chat, 10 s, 64 tokens": Kind(0.1, Question("chat", tokens=64), fresh(10)),
    "speech, 25 s": Kind(0.05, Question("speech"), fresh(25)),
    "speech, 5 s, heard before": Kind(0.05, Question("speech"), partial(clips, seconds=5, unique=False, seed=0)),
    "clients that go away": Kind(0.05, Question("speech", patience=0.5), fresh(5), leaves=True),
    "no audio": NO_AUDIO,
}
WORLD: Mix = {
    "whole": Kind(0.4, Question("speech"), world.whole),
    "whole, chat": Kind(0.2, Question("chat"), world.whole),
    "cut short": Kind(0.2, Question("speech"), world.cut_short, owed="either"),
    "damaged": Kind(0.15, Question("speech"), world.damaged, owed="either"),
    "no audio": NO_AUDIO,
}


async def offer(url: str, mix: Mix, rate: float, seconds: float) -> dict[str, list[Sample]]:
    """Requests of every kind, `rate` a second in all, for `seconds`."""

    async def send(kind: Kind) -> list[Sample]:
        number = max(1, round(rate * kind.share * seconds))
        question = replace(kind.question, patience=kind.question.patience or HANGS)
        return await Load(url, question).open(kind.recordings(number), rate * kind.share, random.getrandbits(32))

    return dict(zip(mix, await asyncio.gather(*map(send, mix.values())), strict=True))


def measure(server: processes.Server, mix: Mix, rate: float, seconds: float) -> dict[str, Any]:
    """What became of the requests, how long the answered ones took, and what the server holds afterwards."""
    start, own = time.perf_counter(), time.process_time()
    samples = asyncio.run(offer(server.url, mix, rate, seconds))
    took, own = time.perf_counter() - start, time.process_time() - own
    outcomes = {name: Counter(map(mix[name].outcome, of_kind)) for name, of_kind in samples.items()}
    answered = {name: [s for s in of_kind if s.error is None] for name, of_kind in samples.items()}
    total = sum(outcomes.values(), Counter[str]())
    figures = {
        "offered_per_second": rate,
        "requests": total.total(),
        "outcomes": total,
        "answered_per_second": total["answered"] / took,
        "taken_on_per_second": (total.total() - total["refused"]) / took,
        "answered": summarize([s for of_kind in answered.values() for s in of_kind]),
        "refused_p95": percentile(
            [s.end - s.first_sent for of_kind in samples.values() for s in of_kind if s.status == 429]
        ),
        "kinds": {name: {"outcomes": outcomes[name]} | summarize(answered[name]) for name in samples},
        "resident_mib": sum(server.resident_mib().values()),
        "load_client_cores": own / took,
    }
    print(json.dumps({name: value for name, value in figures.items() if name != "kinds"}), flush=True)
    return figures


def percentile(seconds: list[float]) -> float | None:
    """What 95 % stay below."""
    return statistics.quantiles(seconds, n=20, method="inclusive")[-1] if len(seconds) > 1 else None


def main() -> None:
    """Prints and keeps the figures; ends with 1 where something was lost, slow or grew."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0, help="of twice what the server can carry")
    parser.add_argument("--world", action="store_true", help="recordings of many formats, whole, cut short and damaged")
    arguments = parser.parse_args()
    part, mix = 60 * arguments.minutes / PARTS, WORLD if arguments.world else MIX
    options = ["--max-requests", str(MAX_REQUESTS)]
    if arguments.world:
        options += ["--embedding-cache-mib", "1"]  # they repeat, and are not to be known
    make_checkpoints()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TMPDIR"] = folder  # of the server
        with processes.ours(DTYPE, *options) as server:
            measure(server, mix, rate=10, seconds=part / 10)  # makes it warm
            capacity = measure(server, mix, rate=50, seconds=part / 5)["taken_on_per_second"]
            before = set(os.listdir(folder))
            carried = measure(server, mix, capacity, part)
            overload = [measure(server, mix, 2 * capacity, part) for _ in range(PARTS)]
            left = sorted(set(os.listdir(folder)) - before)
    made = f"{date.today()}, {processes.machine()}, {DTYPE}, {' '.join(options)}"
    figures = {"made": made, "seconds": part, "at capacity": carried, "overload": overload}
    (report.WORLD if arguments.world else report.OVERLOAD).write_text(json.dumps(figures, indent=1))
    report.write(report.read())
    defects = [*find_defects(carried, overload), *(f"{name} is left in the temporary folder." for name in left)]
    print("\n".join(defects) or "Every request was answered or refused, quickly, and nothing grew.")
    raise SystemExit(bool(defects))


def find_defects(carried: dict[str, Any], overload: list[dict[str, Any]]) -> Iterator[str]:
    """Sentences about what should not be."""
    for part in [carried, *overload]:
        for outcome, number in part["outcomes"].items():
            if outcome not in PROPER:
                yield f"{number} requests: {outcome}"
    for measure in ("ttft", "total"):
        bound = carried["answered"][measure]["p95"]
        grown = statistics.mean(part["answered"][measure]["p95"] for part in overload)
        if grown > SLOWER * bound:
            yield f"{measure} p95 rose from {bound:.2f} s at capacity to {grown:.2f} s at twice that."
    first, last = overload[0]["resident_mib"], overload[-1]["resident_mib"]
    if last > GROWTH * first:
        yield f"Resident memory grew from {first} to {last} MiB."


if __name__ == "__main__":
    main()
