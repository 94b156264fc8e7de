"""OpenTelemetry traces: a span for each request and, below it, one for each stage of its timeline.

Off unless one of OpenTelemetry's own variables names a collector (OTEL_EXPORTER_OTLP_ENDPOINT or OTEL_EXPORTER_OTLP_TRACES_ENDPOINT); the
other OTEL_ variables (service name, sampler, headers, …) work as its SDK documents them. Spans are made when the request is over, from the
times that were taken anyway, so that tracing costs requests nothing while they run.
"""

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import NoOpTracer, Span, SpanKind, StatusCode, Tracer, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

_CONTEXT = TraceContextTextMapPropagator()
_ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")

_tracer: Tracer = NoOpTracer()


def start(version: str) -> TracerProvider | None:
    """Turns tracing on where the environment names a collector; whoever calls it shuts the provider down."""
    global _tracer
    if not any(map(os.environ.get, _ENDPOINTS)):
        return None
    # vLLM's processes read the same variables, but would speak gRPC.
    os.environ.setdefault("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "http/protobuf")
    name = {} if "OTEL_SERVICE_NAME" in os.environ else {"service.name": "blsp"}
    provider = TracerProvider(resource=Resource.create(name | {"service.version": version}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    _tracer = provider.get_tracer("blsp", version)
    return provider


@dataclass(frozen=True)
class Trace:
    """The span of a request."""

    span: Span

    def end(
        self,
        facts: Mapping[str, str | int | float],
        spans: Mapping[str, tuple[float, float]],
        busy: Mapping[str, float],
    ) -> None:
        """Ends it with what is known of the request, and adds its stages: begin and end of each, and the seconds that it was busy."""
        if not self.span.is_recording():
            return
        offset = time.time_ns() - round(time.perf_counter() * 1e9)
        context = set_span_in_context(self.span)
        for stage, (first, last) in spans.items():
            stage_span = _tracer.start_span(stage, context, start_time=offset + round(first * 1e9))
            stage_span.set_attribute("blsp.busy_seconds", busy[stage])  # less than its length where it paused
            stage_span.end(offset + round(last * 1e9))
        self.span.update_name(f"{facts['method']} {facts['endpoint']}")
        self.span.set_attributes({_NAMES.get(name, f"blsp.{name}"): value for name, value in facts.items()})
        if int(facts["status"]) >= 500:
            self.span.set_status(StatusCode.ERROR)
        self.span.end()


_NAMES = {"method": "http.request.method", "endpoint": "http.route", "status": "http.response.status_code"}


def begin(headers: Mapping[str, str], onward: dict[str, str]) -> Trace:
    """Begins the span of a request, below that of its caller where it names one in W3C's `traceparent`.

    `onward` gets the headers that name this span to whoever works for the request.
    """
    span = _tracer.start_span("request", _CONTEXT.extract(headers), SpanKind.SERVER)
    if span.is_recording():
        _CONTEXT.inject(onward, set_span_in_context(span))
    return Trace(span)
