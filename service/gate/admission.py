"""Who gets in: limits on what is being done and on what waits, in all and for each client. This file knows nothing about HTTP.

A limit of the whole service keeps out the clients that have requests running. One that has none gets in until the limit is reached twice
over: so no client can fill the service and close the door to all others.
"""

import math
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import NamedTuple

from service.errors import Overloaded
from service.gate.keys import ANONYMOUS
from service.telemetry import metrics

BODY_BYTES = "body_bytes"  # the reason of refusals that may come while a body is being read
NEWCOMERS = 2  # times a limit of the whole service, until which it lets in who has nothing else running
MAX_BUCKETS = 10_000  # clients whose rate is remembered, before those that have been quiet are forgotten

_client: ContextVar[str] = ContextVar("client", default=ANONYMOUS)


def current_client() -> str:
    """The name of the client whose request is running."""
    return _client.get()


class Queued(NamedTuple):
    """What waits inside the service."""

    audio_seconds: float  # for the encoder
    prompt_tokens: int  # for their first token


@dataclass(frozen=True)
class Limits:
    """What the service takes on at most; 0 is no limit."""

    requests: int
    body_bytes: int
    audio_seconds: float
    prompt_tokens: int
    client_requests: int
    client_requests_per_minute: int


class Admission:
    """Lets requests in, or refuses them at once; nothing waits here. Belongs to one event loop."""

    def __init__(
        self, limits: Limits, queued: Callable[[], Queued], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._limits = limits
        self._queued = queued
        self._clock = clock
        self._running: Counter[str] = Counter()
        self.admitted = 0
        """How many requests were let in so far."""
        self._body_bytes = 0
        self._buckets: dict[str, tuple[float, float]] = {}  # requests left, and when that was so

    @property
    def running(self) -> int:
        """How many requests are being answered."""
        return self._running.total()

    @contextmanager
    def admit(self, client: str) -> Iterator[Callable[[int], None]]:
        """Counts a request as running for the duration of the block, and as many bytes of its body as it tells the function that it gets.

        Raises Overloaded, and so does the function where the bodies of all requests would then be too large.
        """
        try:
            self._check(client)
        except Overloaded as error:
            metrics.REFUSALS.labels(error.code).inc()
            raise
        self._running[client] += 1
        self.admitted += 1
        held = 0

        def hold(size: int) -> None:
            nonlocal held
            self._check_bytes(held + size, 1)  # no body alone may reach the limit twice over
            self._check_bytes(self._body_bytes + size, self._running[client] - 1)
            held += size
            self._body_bytes += size

        token = _client.set(client)
        try:
            yield hold
        finally:
            _client.reset(token)
            self._body_bytes -= held
            self._running[client] -= 1
            if not self._running[client]:
                del self._running[client]

    def _check(self, client: str) -> None:
        limits, queued, running = self._limits, self._queued(), self._running[client]
        if 0 < limits.client_requests <= running:
            raise Overloaded(
                f"You have {running} requests running, as many as one client may. Wait for one to end.",
                code="client_requests",
            )
        if is_reached(limits.requests, self.running, running):
            raise Overloaded("The service is busy with as many requests as it takes. Try again soon.", code="requests")
        self._check_bytes(self._body_bytes + 1, running)
        if is_reached(limits.audio_seconds, queued.audio_seconds, running):
            raise Overloaded(
                f"{queued.audio_seconds:.0f} s of audio wait for the encoder. Try again soon.", code="audio_seconds"
            )
        if is_reached(limits.prompt_tokens, queued.prompt_tokens, running):
            raise Overloaded(
                f"Prompts of {queued.prompt_tokens} tokens wait for the LLM. Try again soon.", code="prompt_tokens"
            )
        if limits.client_requests_per_minute:
            self._take_from_bucket(client, limits.client_requests_per_minute)

    def _check_bytes(self, size: int, others: int) -> None:
        if is_reached(self._limits.body_bytes, size - 1, others):
            raise Overloaded(
                f"The service holds {self._body_bytes} bytes of requests, and takes no more. Try again soon.",
                code=BODY_BYTES,
            )

    def _take_from_bucket(self, client: str, per_minute: int) -> None:
        now = self._clock()
        left, then = self._buckets.get(client, (per_minute, now))
        left = min(per_minute, left + (now - then) * per_minute / 60)
        if left < 1:
            raise Overloaded(
                f"A client may make {per_minute} requests in a minute, and you have. Wait.",
                code="rate",
                retry_after=math.ceil((1 - left) * 60 / per_minute),
            )
        if len(self._buckets) >= MAX_BUCKETS:
            self._buckets = {name: bucket for name, bucket in self._buckets.items() if now - bucket[1] < 60}
        self._buckets[client] = (left - 1, now)


def is_reached(limit: float, amount: float, others: int) -> bool:
    """Whether a limit of the whole service is, for a client that has so much else running; 0 is no limit."""
    return 0 < limit * (1 if others else NEWCOMERS) <= amount
