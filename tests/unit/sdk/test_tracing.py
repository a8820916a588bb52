"""Tracing in the SDK: an event's trace goes on, and so does that of the program that sends a command."""

from typing import Any

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind

from order_service.sdk import EventRecord, OrderCommands, TraceContext, tracing
from order_service.sdk.outcomes import Undecided
from order_service.sdk.sending import Sender, Sent
from order_service.sdk.testing.samples import TRACEPARENT, TRACESTATE
from tests.support.samples import order_created, pay

TRACE = TraceContext(TRACEPARENT.encode(), TRACESTATE.encode())


@pytest.fixture
def exporter():
    return InMemorySpanExporter()


@pytest.fixture
def tracer(exporter):
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return provider.get_tracer("shop")


def record_in(trace):
    return EventRecord(order_created, 2, 7, b"", trace=trace)


def test_the_processing_of_an_event_is_a_part_of_its_trace(exporter, tracer):
    with tracing.processing(record_in(TRACE), group="mailer", tracer=tracer):
        inside = tracing.current()
    [span] = exporter.get_finished_spans()
    assert (span.name, span.kind) == ("process orders.events.v1", SpanKind.CONSUMER)
    assert f"00-{span.context.trace_id:032x}-{span.parent.span_id:016x}-01" == TRACEPARENT
    assert dict(span.attributes) == {
        "messaging.system": "kafka",
        "messaging.operation.name": "process",
        "messaging.operation.type": "process",
        "messaging.destination.name": "orders.events.v1",
        "messaging.destination.partition.id": "2",
        "messaging.kafka.offset": 7,
        "messaging.kafka.message.key": order_created.order_id,
        "messaging.consumer.group.name": "mailer",
    }
    expected = f"00-{span.context.trace_id:032x}-{span.context.span_id:016x}-01"
    assert inside == TraceContext(expected.encode(), TRACE.tracestate)


def test_an_event_without_a_trace_begins_one(exporter, tracer):
    with tracing.processing(record_in(None), tracer=tracer):
        pass
    [span] = exporter.get_finished_spans()
    assert span.parent is None


def test_outside_of_a_trace_there_is_no_trace_context():
    assert tracing.current() is None


async def test_a_command_carries_the_trace_of_the_program_that_sends_it(monkeypatch, tracer):
    sent = []

    async def send(_sender: Sender, _command: Any, _wait_s: float, headers: Any) -> Sent:
        sent.append(headers)
        return Sent(0, 0, Undecided())

    monkeypatch.setattr(Sender, "send", send)
    orders = OrderCommands("127.0.0.1:1", actor="service:shop", trace=tracing.current)
    await orders.send(pay)
    with tracing.processing(record_in(TRACE), tracer=tracer):
        await orders.send(pay)
        inside = tracing.current()
    assert inside is not None
    assert sent == [[], inside.headers()]
