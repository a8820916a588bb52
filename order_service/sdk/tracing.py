"""Tracing for programs that use the SDK and OpenTelemetry: it continues the trace of an event, and that of a command.

Importing this module needs OpenTelemetry's API (`pip install 'order-service[tracing]'`); the rest of the SDK does not.
Spans go where the program's own tracer provider sends them.

    from order_service.sdk import OrderCommands, OrderEvents
    from order_service.sdk import tracing

    async with OrderEvents.effects(group="mailer") as events, OrderCommands(actor=ME, trace=tracing.current) as orders:
        async for record in events:
            with tracing.processing(record, group="mailer"):
                ...
"""

from collections.abc import Iterator
from contextlib import contextmanager

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Span, SpanKind, Tracer
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from order_service import __version__
from order_service.kafka.topics import topic_names
from order_service.sdk.events import EventRecord
from order_service.wire.trace_context import TRACEPARENT, TRACESTATE, TraceContext

_propagator = TraceContextTextMapPropagator()


@contextmanager
def processing(
    record: EventRecord, *, group: str = "", topic: str = topic_names().events, tracer: Tracer | None = None
) -> Iterator[Span]:
    """Record that an event is processed, as a part of its trace; the span is the current one meanwhile.

    `group` is the consumer group, if there is one. Pass `topic` if the service has a topic prefix. By default, the
    `tracer` is that of the program's tracer provider.
    """
    attributes: dict[str, str | int] = {
        "messaging.system": "kafka",
        "messaging.operation.name": "process",
        "messaging.operation.type": "process",
        "messaging.destination.name": topic,
        "messaging.destination.partition.id": str(record.partition),
        "messaging.kafka.offset": record.offset,
        "messaging.kafka.message.key": record.event.order_id,
        **({"messaging.consumer.group.name": group} if group else {}),
    }
    tracer = tracer or trace.get_tracer("order_service.sdk", __version__)
    with tracer.start_as_current_span(
        f"process {topic}", _parent_of(record.trace), kind=SpanKind.CONSUMER, attributes=attributes
    ) as span:
        yield span


def current() -> TraceContext | None:
    """Return the trace context of the current span, or None outside of a trace."""
    carrier: dict[str, str] = {}
    _propagator.inject(carrier)
    if TRACEPARENT not in carrier:
        return None
    tracestate = carrier.get(TRACESTATE)
    return TraceContext(carrier[TRACEPARENT].encode(), None if tracestate is None else tracestate.encode())


def _parent_of(context: TraceContext | None) -> Context:
    carrier = {} if context is None else {name: value.decode("latin-1") for name, value in context.headers()}
    return _propagator.extract(carrier, Context())
