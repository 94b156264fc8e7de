"""The request that is running: what it has cost so far, and its stages, timed where they happen and read where the reply is made.

It travels in a context variable, so that no function has to hand it on. Usage, bills and turns at the encoder go by it.
"""

import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

from service.telemetry import metrics


@dataclass(eq=False)
class Timeline:
    """Seconds spent in each stage so far; several recordings of a request add up.

    Threads that decode book on it, too, and may go on to do so when their request is over.
    """

    started: float = field(default_factory=time.perf_counter)
    stages: dict[str, float] = field(default_factory=dict)
    spans: dict[str, tuple[float, float]] = field(default_factory=dict)  # first begin and last end of what `add` booked
    uploaded: float | None = None  # when the last byte of the body came
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, stage: str, start: float, end: float) -> None:
        """Books the time from `start` to `end` (of time.perf_counter) on a stage."""
        with self._lock:
            self.stages[stage] = self.stages.get(stage, 0.0) + end - start
            first, last = self.spans.get(stage, (start, end))
            self.spans[stage] = min(first, start), max(last, end)

    def body_received(self) -> None:
        """Books the upload, which began with the request and ends now."""
        self.uploaded = time.perf_counter()
        self.add("upload", self.started, self.uploaded)

    def first_token(self, now: float) -> None:
        """Books the time to the first token of the whole request, from its first byte and from its last."""
        if "ttft" not in self.stages:
            self.stages["ttft"] = now - self.started
            self.stages["ttft_after_upload"] = now - (self.started if self.uploaded is None else self.uploaded)

    def last_token(self, now: float) -> None:
        """Books the whole of the request; the last of several generations counts."""
        self.stages["total"] = now - self.started


@dataclass(eq=False)
class RequestContext:
    """What is known of one request, whose identity it is."""

    timeline: Timeline = field(default_factory=Timeline)
    model: str = ""  # that it has asked for, where there is one of that name
    audio_seconds: float = 0.0
    audio_tokens: int = 0  # positions of the prompt that are speech
    prompt_tokens: int = 0
    completion_tokens: int = 0
    truncated: bool = False  # a recording of it was cut short, and is answered as far as it goes
    trace_headers: dict[str, str] = field(default_factory=dict)  # W3C trace context, for vLLM's own spans
    held: ExitStack = field(default_factory=ExitStack)  # what it lets go of when it is over

    def publish(self) -> None:
        """Enters each stage once into its histogram, when the request is over."""
        stages = self.timeline.stages.copy()
        for name, seconds in stages.items():
            metrics.STAGE_SECONDS.labels(name).observe(seconds)
        if self.audio_seconds and "total" in stages:
            metrics.REAL_TIME_FACTOR.observe(stages["total"] / self.audio_seconds)


_running: ContextVar[RequestContext] = ContextVar("request")


def begin() -> RequestContext:
    """Starts the context of a new request."""
    request = RequestContext()
    _running.set(request)
    return request


def running() -> RequestContext:
    """The request that is running; a fresh one outside of any."""
    return _running.get(None) or begin()


@contextmanager
def stage(name: str) -> Iterator[None]:
    """Books the time that the block takes on a stage of the running request."""
    start = time.perf_counter()
    try:
        yield
    finally:
        running().timeline.add(name, start, time.perf_counter())
