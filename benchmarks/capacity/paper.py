"""From costs to machines: how many turns a second one replica takes, and what N speakers need."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from benchmarks.capacity.simulation import Costs, Outcome, Turn, opened

TTFT = 0.5  # seconds: what the 95th percentile may be
PER_TOKEN = 0.1  # seconds between tokens, on average; who reads or listens is slower
TURN = Turn(seconds=5, tokens=64)
EVERY = 20.0  # seconds from one turn of a speaker to the next
SPEAKERS = (10, 100, 1_000, 10_000, 100_000)
SAMPLE = 600  # requests of a simulated load, at least
LASTS = 30.0  # seconds of it, at least

TOGETHER = 16  # replies that a step goes on with, when many speak
SERVER_CORES = 15  # of a machine with a GPU, for the server; one is the engine's
SOCKET_BYTES = 24_000 * 2 * 4 / 3  # a second: PCM at 24 kHz, in base64
NETWORK = 10.0  # Gbit/s of one machine that takes the connections


def _h200(batch: float, batch_second: float, server: Costs) -> Costs:
    """One H200 for encoder and engine, which is a Llama-2-7B in bfloat16, on paper.

    A step reads 13.5 GB of weights at 0.7 of 4.8 TB/s, and vLLM's own work for it is taken for 2 ms. A token that is read costs 14 GFLOP at
    half of 778 TFLOP/s, and one that is said the same and 0.1 GB of keys and values. The server's costs are those measured on CPUs.
    """
    token = 14e9 / (0.5 * 778e12)
    return replace(
        server,
        cores=1,
        batch=batch,
        batch_second=batch_second,
        alone=1.0,
        crowded=0.0,
        threads_alone=1,
        batches=1,
        batch_seconds=math.inf,
        step=13.5e9 / (0.7 * 4.8e12) + 0.002,
        prompt=40 * token,
        prompt_second=6.25 * token,
        reply=token + 0.1e9 / (0.7 * 4.8e12),
        server_cores=SERVER_CORES,
    )


def cards(server: Costs) -> dict[str, Costs]:
    """Whisper small and large-v2 before the LLM; their times are those of the layers in one CUDA graph over packed rows (LOG.md), doubled
    for features, convolutions and adapter."""
    return {
        "Whisper small, Llama-2-7B": _h200(2 * 0.00065, 2 * 0.00003, server),
        "Whisper large-v2, Llama-2-7B": _h200(2 * 0.0018, 2 * 0.00017, server),
    }


@dataclass(frozen=True)
class Most:
    """The most that a replica takes: turns a second, and what is busiest then."""

    per_second: float
    busiest: str
    share: float

    @property
    def speakers(self) -> int:
        """How many speak by turns."""
        return math.floor(self.per_second * EVERY)


def most(costs: Costs) -> Most:
    """The highest rate at which first tokens and replies come in time."""
    low, high = 0.0, 1.0
    while _keeps_up(costs, high):
        low, high = high, 2 * high
    while high - low > 0.02 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if _keeps_up(costs, middle) else (low, middle)
    shares = dict(_shares(costs, _load(costs, low)))
    busiest = max(shares, key=lambda name: shares[name])
    return Most(low, busiest, shares[busiest])


def server_seconds(costs: Costs) -> float:
    """What a turn costs the server."""
    saying = TURN.tokens * (costs.deliver + costs.deliver_step / TOGETHER)
    return costs.receive + costs.receive_second * TURN.seconds + saying


def first(cards: int, cores: float, gigabits: float) -> str:
    """What gives out first where so many speakers hold sockets open."""
    if gigabits > NETWORK:
        return "one machine's network"
    if cores > cards * SERVER_CORES:
        return "the server's cores"
    return "one GPU" if cards > 1 else "nothing"


def _load(costs: Costs, rate: float) -> Outcome:
    return opened(costs, TURN, rate, max(SAMPLE, round(LASTS * rate)))


def _keeps_up(costs: Costs, rate: float) -> bool:
    outcome = _load(costs, rate)
    per_token = sum(r.end - r.first for r in outcome.requests) / len(outcome.requests) / (TURN.tokens - 1)
    return outcome.ttft(95) <= TTFT and per_token <= PER_TOKEN


def _shares(costs: Costs, outcome: Outcome) -> Iterator[tuple[str, float]]:
    """How busy is what the parts work on."""
    device = "the cores" if costs.server_cores is None else "the GPU"
    parts = {"engine": device}
    parts["encoder"] = device if costs.encoder_cores is None else "the encoder's GPU"
    parts["server"] = parts["loop"] = device if costs.server_cores is None else "the server's cores"
    cores = {device: costs.cores, "the encoder's GPU": costs.encoder_cores, "the server's cores": costs.server_cores}
    for name in dict.fromkeys(parts.values()):
        yield name, sum(outcome.busy[p] for p, on in parts.items() if on == name) / outcome.seconds / (cores[name] or 1)
    yield "the server's event loop", outcome.busy["loop"] / outcome.seconds
