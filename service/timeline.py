"""The stages of one request, timed where they happen and read where the reply is made.

A request's timeline travels in a context variable, so that no function has to hand it on.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

from service import metrics


@dataclass
class Timeline:
    """Seconds spent in each stage so far, and the speech heard; several recordings of a request add up."""

    started: float = field(default_factory=time.perf_counter)
    stages: dict[str, float] = field(default_factory=dict)
    audio_tokens: int = 0  # positions of the prompt that are speech

    def add(self, stage: str, seconds: float) -> None:
        """Books `seconds` on a stage."""
        self.stages[stage] = self.stages.get(stage, 0.0) + seconds

    def publish(self) -> None:
        """Enters each stage once into its histogram, when the request is over."""
        for stage, seconds in self.stages.items():
            metrics.STAGE_SECONDS.labels(stage).observe(seconds)

    def since_start(self) -> float:
        """Seconds since the request's first byte."""
        return time.perf_counter() - self.started


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
        get().add(name, time.perf_counter() - start)
