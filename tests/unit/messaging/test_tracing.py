"""Traces go on over any border as a traceparent, with and without an exporter."""

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from shared.observability import names, tracing

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def test_traceparent_goes_through_unchanged_when_nothing_records() -> None:
    with tracing.span("process evt.job.submitted", traceparent=PARENT):
        assert tracing.current_traceparent() == PARENT
    assert tracing.current_traceparent() is None


def test_no_exporter_is_set_up_without_an_endpoint() -> None:
    for environment in ({}, {tracing.ENDPOINT: ""}):
        tracing.configure("billing", environment)()
        assert not isinstance(trace.get_tracer_provider(), TracerProvider)


def test_recorded_spans_are_children_and_failures_are_marked(monkeypatch: pytest.MonkeyPatch) -> None:
    provider, exporter = TracerProvider(), InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(tracing, "_tracer", provider.get_tracer("tests"))

    def fail_within_two_spans() -> None:
        with tracing.span("process cmd.billing.ping", traceparent=PARENT), tracing.span("decide Ping"):
            assert tracing.current_trace_id() == PARENT.split("-")[1]
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_within_two_spans()
    inner, outer = exporter.get_finished_spans()
    assert inner.context is not None
    assert outer.context is not None
    assert inner.parent is not None
    assert inner.parent.span_id == outer.context.span_id
    assert outer.context.trace_id == inner.context.trace_id == int(PARENT.split("-")[1], 16)
    assert outer.status.status_code is inner.status.status_code is StatusCode.ERROR


def test_span_names_are_operation_and_template() -> None:
    assert names.process_event("job.submitted.v1") == "process evt.job.submitted"
    assert names.send_command("submit_job", "scheduler") == "send cmd.scheduler.submit_job"
    assert names.process_command("submit_job", "scheduler") == "process cmd.scheduler.submit_job"
    assert names.append("job") == "append job"
