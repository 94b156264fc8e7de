import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import INVALID_SPAN
from prometheus_client import REGISTRY

from service.request import RequestContext, Timeline
from service.telemetry import metrics, tracing


def test_a_stage_adds_up_and_spans_from_its_first_begin_to_its_last_end() -> None:
    times = Timeline(started=100.0)
    times.add("encode", 103.0, 104.0)
    times.add("encode", 101.0, 103.5)
    assert times.stages == {"encode": 3.5}
    assert times.spans == {"encode": (101.0, 104.0)}


def test_the_first_token_of_several_generations_counts_from_the_first_byte_and_the_last() -> None:
    times = Timeline(started=100.0, uploaded=102.0)
    times.first_token(105.0)
    times.first_token(109.0)
    assert times.stages == {"ttft": 5.0, "ttft_after_upload": 3.0}


def test_a_request_without_a_body_has_uploaded_at_once() -> None:
    times = Timeline(started=100.0)
    times.first_token(105.0)
    assert times.stages["ttft_after_upload"] == 5.0


@pytest.mark.parametrize(("audio_seconds", "more"), [(8.0, 0.25), (0.0, 0.0)])
def test_the_real_time_factor_is_of_the_last_token_and_the_audio(audio_seconds: float, more: float) -> None:
    def factors() -> float:
        return REGISTRY.get_sample_value("blsp_real_time_factor_sum") or 0.0

    before = factors()
    request = RequestContext(Timeline(started=100.0), audio_seconds=audio_seconds)
    request.timeline.last_token(101.0)
    request.timeline.last_token(102.0)
    request.publish()
    assert factors() - before == pytest.approx(more)


@pytest.fixture
def hasty_threads() -> Iterator[None]:
    """Threads that take turns as often as they can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("hasty_threads")
def test_what_several_threads_book_adds_up() -> None:
    times = Timeline(started=0.0)

    def book() -> None:
        for _ in range(20_000):
            times.add("decode", 1.0, 2.0)

    threads = [threading.Thread(target=book) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert times.stages == {"decode": 80_000.0}


def test_a_thread_may_go_on_booking_while_a_request_is_accounted_for(monkeypatch: pytest.MonkeyPatch) -> None:
    times = Timeline(started=0.0)
    times.add("decode", 1.0, 2.0)

    class Booking:
        """Stands for a histogram and a tracer that are interrupted by a decoder's thread."""

        def __getattr__(self, name: str) -> Callable[..., Any]:
            def call(*_: Any, **__: Any) -> Any:
                times.add(f"late {len(times.stages)}", 1.0, 2.0)
                return INVALID_SPAN if name == "start_span" else self

            return call

    monkeypatch.setattr(metrics, "STAGE_SECONDS", Booking())
    monkeypatch.setattr(tracing, "_tracer", Booking())
    RequestContext(times).publish()
    booked = len(times.stages)
    assert booked > 1
    span = TracerProvider().get_tracer("test").start_span("request")
    tracing.Trace(span).end({"method": "GET", "endpoint": "/", "status": 200}, times.spans.copy(), times.stages)
    assert len(times.stages) > booked
