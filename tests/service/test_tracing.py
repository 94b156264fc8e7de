"""Spans of requests, with the application itself but no collector."""

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from service.request import running
from service.telemetry import tracing
from tests.service.test_middleware import client

CALLER = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> InMemorySpanExporter:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(tracing, "_tracer", provider.get_tracer("test"))
    return exporter


def by_name(exporter: InMemorySpanExporter) -> dict[str, ReadableSpan]:
    return {span.name: span for span in exporter.get_finished_spans()}


async def test_a_request_has_a_span_for_each_stage_below_its_callers(spans: InMemorySpanExporter) -> None:
    def work() -> None:
        times = running().timeline
        start = times.started
        times.add("decode", start, start + 1)
        times.add("decode", start + 3, start + 4)
        times.add("encode", start + 1, start + 3)
        assert running().trace_headers["traceparent"].split("-")[1] == CALLER.split("-")[1]  # what vLLM gets

    async with client(broken=work) as http:
        await http.get("/broken", headers={"traceparent": CALLER})
    found = by_name(spans)
    assert found.keys() == {"GET other", "decode", "encode"}
    request = found["GET other"]
    assert request.kind == SpanKind.SERVER
    assert request.parent is not None
    assert f"{request.parent.trace_id:032x}-{request.parent.span_id:016x}" in CALLER
    assert request.attributes is not None
    assert request.attributes["http.response.status_code"] == 200
    assert request.attributes["blsp.client"] == "anonymous"
    for name, begin, end, busy in (("decode", 0, 4, 2), ("encode", 1, 3, 2)):
        span = found[name]
        assert span.parent is not None
        assert span.parent.span_id == request.context.span_id
        assert span.start_time is not None
        assert span.end_time is not None
        assert request.start_time is not None
        assert (span.start_time - request.start_time) / 1e9 == pytest.approx(begin, abs=0.5)
        assert (span.end_time - request.start_time) / 1e9 == pytest.approx(end, abs=0.5)
        assert span.attributes is not None
        assert span.attributes["blsp.busy_seconds"] == pytest.approx(busy)


async def test_a_defect_marks_its_span(spans: InMemorySpanExporter) -> None:
    def fail() -> None:
        raise RuntimeError

    async with client(broken=fail) as http:
        await http.get("/broken")
    assert by_name(spans)["GET other"].status.status_code == StatusCode.ERROR


def test_it_is_off_unless_a_collector_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    assert tracing.start("0") is None
    assert not tracing.begin({}, {}).span.is_recording()
