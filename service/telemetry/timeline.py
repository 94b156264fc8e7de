"""The stages of one request, timed where they happen and read where the reply is made.

A request's timeline travels in a context variable, so that no function has to hand it on.
"""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

from service.telemetry import metrics


@dataclass(eq=False)
class Timeline:
    """Seconds spent in each stage so far, and the speech heard; several recordings of a request add up.

    Threads that decode book on it, too, and may go on to do so when their request is over.
    """

    started: float = field(default_factory=time.perf_counter)
    stages: dict[str, float] = field(default_factory=dict)
    spans: dict[str, tuple[float, float]] = field(default_factory=dict)  # first begin and last end of what `add` booked
    uploaded: float | None = None  # when the last byte of the body came
    audio_seconds: float = 0.0
    audio_tokens: int = 0  # positions of the prompt that are speech
    prompt_tokens: int = 0
    completion_tokens: int = 0
    trace_headers: dict[str, str] = field(default_factory=dict)  # W3C trace context, for vLLM's own spans
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

    def publish(self) -> None:
        """Enters each stage once into its histogram, when the request is over."""
        for stage, seconds in self.stages.copy().items():
            metrics.STAGE_SECONDS.labels(stage).observe(seconds)
        if self.audio_seconds and "total" in self.stages:
            metrics.REAL_TIME_FACTOR.observe(self.stages["total"] / self.audio_seconds)


current: ContextVar[Timeline] = ContextVar("timeline")


def begin() -> Timeline:
    """Starts the timeline of a new request."""
    timeline = Timeline()
    current.set(timeline)
    return timeline


def get() -> Timeline:
    """The timeline of the request that is running; a fresh one outside of any."""
    return current.get(None) or begin()


@contextmanager
def stage(name: str) -> Iterator[None]:
    """Books the time that the block takes on a stage of the running request."""
    start = time.perf_counter()
    try:
        yield
    finally:
        get().add(name, start, time.perf_counter())
