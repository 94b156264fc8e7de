"""The simulation does what queues are known to do."""

import math
import statistics
from dataclasses import replace

import pytest
import simpy

from benchmarks.capacity import paper
from benchmarks.capacity.costs import Line
from benchmarks.capacity.simulation import Costs, Processors, Turn, closed, opened

FREE = Costs(
    cores=math.inf,
    receive=0.0,
    receive_second=0.0,
    wait=0.0,
    batch=0.0,
    batch_second=0.0,
    alone=1.0,
    threads_alone=1,
    crowded=0.0,
    step=0.0,
    prompt=0.0,
    prompt_second=0.0,
    reply=0.0,
    deliver_step=0.0,
    deliver=0.0,
    spread=0.0,
)
"""All takes no time, until a test says what does."""
TURN = Turn(seconds=5.0, tokens=4)


@pytest.mark.parametrize(("cores", "threads", "ends"), [(2, 1, [1.0, 1.0]), (1, 1, [2.0, 2.0]), (2, 2, [2.0, 2.0])])
def test_processors_are_shared_evenly(cores: int, threads: int, ends: list[float]) -> None:
    env = simpy.Environment()
    processors = Processors(env, cores)
    jobs = [processors.work(1.0, threads) for _ in range(2)]
    found = []
    for job in jobs:
        env.run(job)
        found.append(env.now)
    assert found == pytest.approx(ends)


def test_who_comes_later_slows_who_is_there() -> None:
    env = simpy.Environment()
    processors = Processors(env, 1)
    first = processors.work(1.0)
    env.run(until=0.5)
    second = processors.work(1.0)
    env.run(first)
    assert env.now == pytest.approx(1.5)
    env.run(second)
    assert env.now == pytest.approx(2.0)


def test_one_client_waits_for_every_part_once() -> None:
    costs = replace(FREE, receive=0.1, receive_second=0.01, wait=0.02, batch=0.3, batch_second=0.04, alone=0.5)
    costs = replace(costs, step=0.005, prompt=0.02, prompt_second=0.001, reply=0.001, deliver_step=0.002, deliver=0.003)
    outcome = closed(costs, TURN, clients=1, number=3)
    ttft = 0.1 + 5 * 0.01 + 0.02 + 0.5 * (0.3 + 5 * 0.04) + 0.005 + 0.02 + 5 * 0.001 + 0.002 + 0.003
    assert [request.ttft for request in outcome.requests] == pytest.approx([ttft] * 3)
    later = 3 * (0.005 + 0.001) + 0.002 + 0.003 - 0.005  # telling of a step goes on beside the next
    assert outcome.requests[0].end - outcome.requests[0].first == pytest.approx(later, abs=1e-9)
    assert outcome.per_second == pytest.approx(1 / (ttft + later), rel=1e-6)


def test_a_step_says_a_token_of_every_reply() -> None:
    """So clients cost the engine little beyond the first, and as much as they are where each token costs."""
    by_step, by_reply = replace(FREE, step=0.01), replace(FREE, cores=1, reply=0.01)
    one, eight = (closed(by_step, TURN, clients, 80) for clients in (1, 8))
    assert eight.per_second > 6 * one.per_second
    assert eight.busy["engine"] < one.busy["engine"] / 6
    assert closed(by_reply, TURN, 8, 80).busy["engine"] == pytest.approx(closed(by_reply, TURN, 1, 80).busy["engine"])


def test_a_batch_has_as_much_audio_as_it_may() -> None:
    """Ten windows of 5 s at once."""
    costs = replace(FREE, batch=1.0, batches=1)
    for seconds, batches in ((5.0, 10), (10.0, 5), (15.0, 4), (50.0, 1)):
        outcome = closed(replace(costs, batch_seconds=seconds), TURN, 10, 10)
        assert outcome.busy["encoder"] == pytest.approx(batches)


def test_a_second_batch_begins_only_where_much_waits() -> None:
    outcome = closed(replace(FREE, batch=1.0), TURN, 2, 2)
    assert [request.ttft for request in outcome.requests] == pytest.approx([1.0, 1.0]), "nobody is being answered"
    said = closed(replace(FREE, batch=1.0, batch_seconds=5.0, batches=1), TURN, 2, 2)
    assert [request.ttft for request in said.requests] == pytest.approx([1.0, 2.0])


def test_a_batch_takes_longer_beside_others() -> None:
    """The second client's recording is encoded while the first one is answered."""
    costs = replace(FREE, batch=1.0, alone=0.5, crowded=3.0, step=10.0)
    assert closed(costs, TURN, 2, 2, ramp=2.0).busy["encoder"] == pytest.approx(0.5 + 1.0 + 3.0)


def test_an_open_queue_is_as_long_as_theory_has_it() -> None:
    """M/D/1: work of one size that comes by chance waits rho / (2 (1 - rho)) times its size, on average."""
    costs = replace(FREE, cores=1, batch=0.1, batches=1, batch_seconds=0.0)
    outcome = opened(costs, Turn(5.0, 1), rate=5.0, number=20_000)
    waited = statistics.mean(request.ttft for request in outcome.requests) - 0.1
    assert waited == pytest.approx(0.5 / (2 * 0.5) * 0.1, rel=0.05)


def test_work_differs_by_its_spread_and_is_the_same_on_average() -> None:
    costs = replace(FREE, batch=0.1, spread=0.3)
    outcome = closed(costs, TURN, 1, 4000)
    assert outcome.busy["encoder"] / 4000 == pytest.approx(0.1, rel=0.02)
    logs = [math.log(request.ttft) for request in outcome.requests]
    assert statistics.stdev(logs) == pytest.approx(0.3, rel=0.05)
    again = closed(costs, TURN, 1, 4000)
    assert [r.ttft for r in again.requests] == [r.ttft for r in outcome.requests]


def test_what_gives_out_first_is_named() -> None:
    engine = paper.most(replace(FREE, cores=1, step=0.001, reply=0.0005))
    assert engine.busiest == "the cores"
    assert engine.share > 0.9
    loop = paper.most(replace(FREE, cores=1, step=0.001, deliver=0.001, server_cores=4))
    assert loop.busiest == "the server's event loop"
    assert loop.per_second == pytest.approx(1 / (paper.TURN.tokens * 0.001), rel=0.15)
    assert loop.speakers == math.floor(loop.per_second * paper.EVERY)


def test_an_encoder_with_a_card_of_its_own_takes_nothing_from_the_engine() -> None:
    costs = replace(FREE, cores=1, batch=0.005, step=0.001, reply=0.0002, server_cores=4)
    assert paper.most(replace(costs, encoder_cores=1)).per_second > 1.1 * paper.most(costs).per_second


def test_a_line_goes_through_both_points() -> None:
    line = Line.through((5.0, 2.0), (25.0, 6.0))
    assert (line.at_none, line.each) == pytest.approx((1.0, 0.2))
