"""Traces: one per story, carried through commands and events as a W3C `traceparent`.

Without an OTLP endpoint nothing is recorded, and a traceparent that came in still goes out unchanged.
"""

from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.trace import Span, SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.util.types import AttributeValue

ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"

_propagator = TraceContextTextMapPropagator()
_tracer = trace.get_tracer("tunewright")


def configure(service: str, environ: Mapping[str, str]) -> Callable[[], None]:
    """Sends spans and metrics to the OTLP endpoint if one is set; returns what flushes them at the end."""
    if not environ.get(ENDPOINT):
        return lambda: None
    from shared.observability import exporting  # noqa: PLC0415 - the exporters are paid for only when they are used

    return exporting.start(service)


@contextmanager
def span(
    name: str,
    *,
    kind: SpanKind = SpanKind.INTERNAL,
    traceparent: str | None = None,
    attributes: Mapping[str, AttributeValue] | None = None,
) -> Generator[Span]:
    """A span that is current inside the block: a child of `traceparent` if given, else of the current span.

    An exception marks the span as failed and goes on.
    """
    parent = _propagator.extract({"traceparent": traceparent}) if traceparent else otel_context.get_current()
    with _tracer.start_as_current_span(name, context=parent, kind=kind, attributes=attributes) as started:
        yield started


def mark_failed(current: Span, reason: str) -> None:
    """Marks a span as failed when its exception was turned into an answer."""
    current.set_status(Status(StatusCode.ERROR, reason))


def current_traceparent() -> str | None:
    """The W3C traceparent of the current span, or None outside any trace."""
    carrier: dict[str, str] = {}
    _propagator.inject(carrier)
    return carrier.get("traceparent")


def current_trace_id() -> str | None:
    """The current trace's id in hex, or None outside any trace."""
    context = trace.get_current_span().get_span_context()
    return format(context.trace_id, "032x") if context.is_valid else None
