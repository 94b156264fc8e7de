"""The service as queues, which SimPy runs: processors that share themselves, the encoder's batches, the engine's steps.

It knows what each part costs by itself, the rule by which service/listening/batcher.py makes batches, and that of vLLM's scheduler: every
step reads all prompts that wait (its limit is not met by prompts of seconds) and says one token of every reply.
"""

import math
import random
import statistics
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from typing import Any

import simpy

from service.listening.batcher import BEHIND_SECONDS

Work = Generator[simpy.Event, Any, None]


@dataclass(frozen=True)
class Costs:
    """What a request costs, by parts: seconds of one processor where nothing else is said."""

    cores: float
    """Processors that all parts share which have none of their own: the cores of a machine; a GPU is one."""
    receive: float
    """Of the server, for a request: HTTP, decoding, the prompt."""
    receive_second: float
    """The same, for a second of audio; its log-mel among it."""
    wait: float
    """Seconds of a request in which no processor works: processes and threads that wake each other."""
    batch: float
    batch_second: float
    """The encoder: a batch, and each second of audio in it."""
    alone: float
    """The share of that which a batch takes that is alone on all cores."""
    crowded: float
    """What a batch takes longer beside others' work: caches have lost its weights, and a core is not always found at once."""
    step: float
    prompt: float
    prompt_second: float
    reply: float
    """The engine: a step, each prompt in it and second of audio of that, and each reply that goes on."""
    deliver_step: float
    deliver: float
    """The server: what one step brings, and each token of it."""
    spread: float
    """By how much work of one size differs: standard deviation of its logarithm."""
    batch_seconds: float = 10.0
    batch_windows: int = 16
    batches: int = 2
    threads_alone: int = 2
    encoder_cores: float | None = None
    server_cores: float | None = None
    """Processors of their own."""


@dataclass(frozen=True)
class Turn:
    """What a speaker asks: so many seconds, for a reply of so many tokens."""

    seconds: float
    tokens: int


@dataclass
class Asked:
    """A request under way, in seconds of the simulation's clock."""

    turn: Turn
    begun: float
    done: simpy.Event
    first: float = math.nan
    end: float = math.nan
    left: int = 0  # tokens of its reply

    @property
    def ttft(self) -> float:
        """Seconds to its first token."""
        return self.first - self.begun


@dataclass(frozen=True)
class Outcome:
    """What became of a load."""

    requests: list[Asked]
    seconds: float
    busy: dict[str, float]
    """Seconds that each part kept a processor busy; "loop" is the server's event loop, "server" the rest of it."""

    @property
    def per_second(self) -> float:
        """Requests answered in a second."""
        return len(self.requests) / self.seconds

    def ttft(self, percent: int) -> float:
        """The percentile of the seconds to the first token."""
        return statistics.quantiles((r.ttft for r in self.requests), n=100, method="inclusive")[percent - 1]


@dataclass(eq=False)
class _Job:
    left: float
    threads: int
    done: simpy.Event


class Processors:
    """So many cores, shared evenly by the threads that run."""

    def __init__(self, env: simpy.Environment, cores: float) -> None:
        self._env = env
        self._cores = cores
        self._jobs: list[_Job] = []
        self._since = 0.0
        self._version = 0

    def work(self, seconds: float, threads: int = 1) -> simpy.Event:
        """Done when that many `threads` have run for so many seconds each, as if they were alone."""
        self._advance()
        job = _Job(seconds, threads, self._env.event())
        self._jobs.append(job)
        self._plan()
        return job.done

    @property
    def _rate(self) -> float:
        return min(1.0, self._cores / max(1, sum(job.threads for job in self._jobs)))

    def _advance(self) -> None:
        passed = (self._env.now - self._since) * self._rate
        self._since = self._env.now
        for job in self._jobs:
            job.left -= passed

    def _plan(self) -> None:
        self._version += 1
        if self._jobs:
            self._env.process(self._finish(self._version, min(job.left for job in self._jobs) / self._rate))

    def _finish(self, version: int, delay: float) -> Work:
        yield self._env.timeout(max(0.0, delay))
        if version == self._version:  # else others have come since
            self._advance()
            ready = [job for job in self._jobs if job.left < 1e-12]
            self._jobs = [job for job in self._jobs if job.left >= 1e-12]
            self._plan()
            for job in ready:
                job.done.succeed()


class Service:
    """One replica: its server, encoder and engine."""

    def __init__(self, env: simpy.Environment, costs: Costs, seed: int = 0) -> None:
        self._env = env
        self._costs = costs
        self._chance = random.Random(seed)
        self._engine_on = Processors(env, costs.cores)
        self._encoder_on, self._server_on = (
            self._engine_on if own is None else Processors(env, own)
            for own in (costs.encoder_cores, costs.server_cores)
        )
        self._loop = simpy.Resource(env)  # the server's event loop, which is one thread
        self._heard: list[tuple[Turn, simpy.Event]] = []  # what waits for the encoder
        self._encoding = 0
        self._prompts: list[Asked] = []
        self._replies: list[Asked] = []
        self._begun = 0  # prompts that have been sent to the engine and whose replies have not ended
        self._came = env.event()
        self._asked = env.event()
        self.busy = dict.fromkeys(("server", "loop", "encoder", "engine"), 0.0)
        for number in range(costs.batches):
            env.process(self._encode(beside=number > 0))
        env.process(self._run_engine())

    def answer(self, asked: Asked) -> Work:
        """One request, from its first byte to its last token."""
        costs, turn = self._costs, asked.turn
        yield self._work(self._server_on, "server", costs.receive + costs.receive_second * turn.seconds)
        yield self._env.timeout(self._spread(costs.wait))
        encoded = self._env.event()
        self._heard.append((turn, encoded))
        self._came = _wake(self._env, self._came)
        yield encoded
        asked.left = turn.tokens
        self._begun += 1
        self._prompts.append(asked)
        self._asked = _wake(self._env, self._asked)
        yield asked.done

    def _encode(self, beside: bool) -> Work:
        """A loop of the batcher's."""
        costs = self._costs
        while True:
            while self._heard and not (
                beside and sum(t.seconds for t, _ in self._heard) <= BEHIND_SECONDS * self._begun
            ):
                batch = self._take_batch()
                alone = not (self._encoding or self._heard or self._begun)
                self._encoding += 1
                seconds = costs.batch + costs.batch_second * sum(turn.seconds for turn, _ in batch)
                if alone:
                    yield self._work(self._encoder_on, "encoder", seconds * costs.alone, costs.threads_alone)
                else:
                    yield self._work(self._encoder_on, "encoder", seconds + costs.crowded)
                self._encoding -= 1
                for _, encoded in batch:
                    encoded.succeed()
            yield self._came

    def _take_batch(self) -> list[tuple[Turn, simpy.Event]]:
        batch = [self._heard.pop(0)]
        seconds = batch[0][0].seconds
        while self._heard and len(batch) < self._costs.batch_windows:
            seconds += self._heard[0][0].seconds
            if seconds > self._costs.batch_seconds:
                break
            batch.append(self._heard.pop(0))
        return batch

    def _run_engine(self) -> Work:
        costs = self._costs
        while True:
            while not self._prompts and not self._replies:
                yield self._asked
            seconds = costs.step + costs.reply * len(self._replies)
            seconds += sum(costs.prompt + costs.prompt_second * asked.turn.seconds for asked in self._prompts)
            self._replies += self._prompts
            self._prompts = []
            yield self._work(self._engine_on, "engine", seconds)
            for reply in self._replies:
                reply.left -= 1
            self._env.process(self._deliver(list(self._replies)))
            self._replies = [reply for reply in self._replies if reply.left > 0]

    def _deliver(self, replies: list[Asked]) -> Work:
        """Takes what a step has brought to the clients."""
        ended = [reply for reply in replies if reply.left == 0]
        with self._loop.request() as turn:
            yield turn
            cost = self._costs.deliver_step + self._costs.deliver * len(replies)
            yield self._work(self._server_on, "loop", cost)
        for reply in replies:
            if math.isnan(reply.first):
                reply.first = self._env.now
        for reply in ended:
            self._begun -= 1
            reply.end = self._env.now
            reply.done.succeed()

    def _work(self, processors: Processors, part: str, seconds: float, threads: int = 1) -> simpy.Event:
        seconds = self._spread(seconds)
        self.busy[part] += seconds * threads
        return processors.work(seconds, threads)

    def _spread(self, seconds: float) -> float:
        return seconds * self._chance.lognormvariate(-(self._costs.spread**2) / 2, self._costs.spread)


def _wake(env: simpy.Environment, event: simpy.Event) -> simpy.Event:
    """Wakes whoever waits for the event; returns the next one to wait for."""
    event.succeed()
    return env.event()


def closed(costs: Costs, turn: Turn, clients: int, number: int, *, ramp: float = 0.0, seed: int = 0) -> Outcome:
    """As Load.closed: so many clients, who send the next request when they have their reply, till `number` are sent."""

    def sources(env: simpy.Environment, ask: Callable[[], Work]) -> Iterator[Work]:
        left = iter(range(number))

        def client(begin: float) -> Work:
            yield env.timeout(begin)
            for _ in left:
                yield from ask()

        return (client(ramp * i / clients) for i in range(clients))

    return _simulate(costs, turn, sources, seed)


def opened(costs: Costs, turn: Turn, rate: float, number: int, *, seed: int = 0) -> Outcome:
    """As Load.open: requests that come by chance, `rate` a second, whether or not the service keeps up."""
    chance = random.Random(seed)

    def sources(env: simpy.Environment, ask: Callable[[], Work]) -> Iterator[Work]:
        def arrive() -> Work:
            for _ in range(number):
                yield env.timeout(chance.expovariate(rate))
                env.process(ask())

        yield arrive()

    return _simulate(costs, turn, sources, seed)


def _simulate(
    costs: Costs, turn: Turn, sources: Callable[[simpy.Environment, Callable[[], Work]], Iterator[Work]], seed: int
) -> Outcome:
    env = simpy.Environment()
    service = Service(env, costs, seed)
    requests: list[Asked] = []

    def ask() -> Work:
        asked = Asked(turn, env.now, env.event())
        requests.append(asked)
        yield from service.answer(asked)

    for source in sources(env, ask):
        env.process(source)
    env.run()  # until nothing is left to do
    return Outcome(requests, max(r.end for r in requests) - min(r.begun for r in requests), service.busy)
