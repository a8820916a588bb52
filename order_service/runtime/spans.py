"""The spans of a process, by OpenTelemetry. Imported only if tracing is on: see `tracing`.

Names follow the semantic conventions of OpenTelemetry for HTTP and for messaging (1.44, whose messaging part is not
stable yet). Attributes hold ids, offsets and outcomes; never a value of a record, a query, a header or a credential.

A span is recorded if its parent is. A trace that begins here is recorded at the rate of the settings. Ended spans are
queued and exported by a thread. If the queue is full, the oldest are dropped: nothing waits for a collector.
"""

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from random import random
from threading import Thread
from typing import Any, Final

import structlog
from aiokafka.structs import ConsumerRecord
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import SpanProcessor, SynchronousMultiSpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ALWAYS_ON, ParentBasedTraceIdRatio, Sampler
from opentelemetry.trace import INVALID_SPAN, Link, Span, SpanKind, Status, StatusCode, Tracer, get_current_span
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from order_service import __version__
from order_service.http_client import TRACE_HEADERS
from order_service.settings import Settings
from order_service.wire.trace_context import TRACEPARENT, TRACESTATE, TraceContext, trace_context_of

log = structlog.get_logger()

CLOSE_WITHIN_S: Final = 2.0
"""How long a process that ends exports what is queued."""
SCOPE: Final = "order_service"
SYSTEM: Final = {"messaging.system": "kafka"}
_propagator: Final = TraceContextTextMapPropagator()


class Spans:
    """Starts the spans of a process. `root_rate` is the share of the traces beginning here that are recorded.

    `tracer` decides by the parent or the rate. `recorder` records every span: for those of which that is known already.
    """

    def __init__(self, processor: SpanProcessor, root_rate: float, resource: Resource | None = None) -> None:
        self.root_rate = root_rate
        self._processor = processor
        self._resource = resource or Resource.create()
        self.tracer = self._tracer(ParentBasedTraceIdRatio(root_rate))
        self.recorder = self._tracer(ALWAYS_ON)

    def _tracer(self, sampler: Sampler) -> Tracer:
        processors = SynchronousMultiSpanProcessor()  # type: ignore[no-untyped-call]
        processors.add_span_processor(self._processor)
        provider = TracerProvider(sampler, self._resource, shutdown_on_exit=False, active_span_processor=processors)
        return provider.get_tracer(SCOPE, __version__)

    def close(self) -> None:
        """Export the queued spans, for up to `CLOSE_WITHIN_S`; the rest is dropped."""
        # The processor itself would wait for 30 s.
        closing = Thread(target=self._processor.shutdown, name="close spans", daemon=True)
        closing.start()
        closing.join(CLOSE_WITHIN_S)
        if closing.is_alive():
            log.warning("Spans were dropped: the collector did not accept them in time.", within_s=CLOSE_WITHIN_S)

    def begins_trace(self) -> bool:
        """Return whether to record a trace that begins here."""
        return random() < self.root_rate  # noqa: S311, a sample is no secret

    @contextmanager
    def serving(self, method: str, route: str, caller: TraceContext | None) -> Iterator["Request"]:
        """Record a request to this HTTP server, as a part of its caller's trace."""
        attributes = {"http.request.method": method, **({"http.route": route} if route else {})}
        span = self.tracer.start_span(
            f"{method} {route}".rstrip(), parent_of(caller), kind=SpanKind.SERVER, attributes=attributes
        )
        try:
            yield Request(span, caller)
        finally:
            span.end()

    @contextmanager
    def sending(self, topic: str, key: str, parent: TraceContext | None) -> Iterator["Sending"]:
        """Record that a command is produced. Its headers are those of this span."""
        span = self.tracer.start_span(
            f"send {topic}",
            parent_of(parent),
            kind=SpanKind.PRODUCER,
            attributes=message("send", topic) | {"messaging.kafka.message.key": key},
        )
        with _ending(span):
            yield Sending(span, parent)

    @contextmanager
    def awaiting(self, parent: TraceContext | None) -> Iterator["Awaiting"]:
        """Record the wait for the outcome of a command that is in Kafka."""
        span = self.tracer.start_span("await outcome", parent_of(parent))
        with _ending(span):
            yield Awaiting(span)

    @contextmanager
    def calling(self, method: str, template: str, traces: Sequence[TraceContext]) -> Iterator["Call"]:
        """Record a call of another service for these traces: it is a part of the first, and linked to the others.

        Requests that are sent meanwhile carry its trace. Without a trace, nothing is recorded.
        """
        if not traces:
            yield Call(INVALID_SPAN)
            return
        links = [Link(get_current_span(parent_of(other)).get_span_context()) for other in traces[1:]]
        span = self.recorder.start_span(
            f"{method} {template}",
            parent_of(traces[0]),
            kind=SpanKind.CLIENT,
            attributes={"http.request.method": method, "url.template": template},
            links=links,
        )
        headers = {name: value.decode("latin-1") for name, value in context_of(span, traces[0]).headers()}
        token = TRACE_HEADERS.set(headers)
        try:
            with _ending(span):
                yield Call(span)
        finally:
            TRACE_HEADERS.reset(token)

    def processed(self, records: Iterable[ConsumerRecord], started_ns: int) -> None:
        """Record that these records were processed together, from `started_ns` since 1970 until now."""
        ended_ns = time.time_ns()
        for record in records:
            trace = trace_context_of(record.headers)
            if trace is None or not trace.is_sampled:
                continue
            key = (record.key or b"").decode(errors="replace")
            span = self.recorder.start_span(
                f"process {record.topic}",
                parent_of(trace),
                kind=SpanKind.CONSUMER,
                attributes=message("process", record.topic, record.partition, record.offset)
                | {"messaging.kafka.message.key": key},
                start_time=started_ns,
            )
            span.end(ended_ns)


class Request:
    """The span of a request to this HTTP server. `trace` is that of the commands that the request leads to."""

    def __init__(self, span: Span, caller: TraceContext | None) -> None:
        self._span = span
        self.trace = _passed_on(span, caller)

    @property
    def exemplar(self) -> dict[str, str] | None:
        """The labels by which a sample of a histogram leads to this span, or None if it is not recorded."""
        return None if self.trace is None else self.trace.exemplar

    def responded(self, status: int, operation: str) -> None:
        """Record the response; status 0 is that of a caller that has gone."""
        if status:
            self._span.set_attribute("http.response.status_code", status)
        if operation != "none":
            self._span.set_attribute("orders.operation", operation)
        if status >= 500:
            self._span.set_attribute("error.type", str(status))
            self._span.set_status(Status(StatusCode.ERROR))


class Sending:
    """The span of a command that is produced."""

    def __init__(self, span: Span, parent: TraceContext | None) -> None:
        self._span = span
        self.trace = _passed_on(span, parent)

    def arrived(self, partition: int, offset: int) -> None:
        """Record where the command is in its topic."""
        self._span.set_attribute("messaging.destination.partition.id", str(partition))
        self._span.set_attribute("messaging.kafka.offset", offset)


class Awaiting:
    """The span of a wait for an outcome."""

    def __init__(self, span: Span) -> None:
        self._span = span

    def ended(self, outcome: str) -> None:
        """Record what the wait has ended with: the outcome, or that it is not known yet."""
        self._span.set_attribute("orders.outcome", outcome)


class Call:
    """The span of a call of another service."""

    def __init__(self, span: Span) -> None:
        self._span = span

    def answered(self, answer: str) -> None:
        """Record the answer."""
        self._span.set_attribute("orders.user_check", answer)


def exported(settings: Settings, process: str) -> Spans:
    """Return the spans of a process, exported by OTLP over HTTP as OpenTelemetry's environment variables say."""
    # OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES come before ours.
    ours = Resource({"service.name": f"order-service-{process}", "service.version": __version__})
    resource = Resource.create().merge(ours).merge(OTELResourceDetector().detect())
    return Spans(BatchSpanProcessor(OTLPSpanExporter()), settings.traces_root_rate, resource)


def parent_of(trace: TraceContext | None) -> Context:
    """Return the context in which a span is a part of this trace; without a valid one, it begins another trace."""
    if trace is None:
        return Context()
    carrier = {TRACEPARENT: trace.traceparent.decode("latin-1")}
    if trace.tracestate is not None:
        carrier[TRACESTATE] = trace.tracestate.decode("latin-1")
    return _propagator.extract(carrier, Context())


def context_of(span: Span, parent: TraceContext | None) -> TraceContext:
    """Return the trace context of what a span leads to; the parent's `tracestate` is passed on unchanged."""
    context = span.get_span_context()
    traceparent = f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"
    return TraceContext(traceparent.encode(), None if parent is None else parent.tracestate)


def _passed_on(span: Span, parent: TraceContext | None) -> TraceContext | None:
    """Return the trace context of what a span leads to. If the parent's trace is not recorded, that is the parent's."""
    if parent is not None and not span.is_recording():
        return parent
    return context_of(span, parent) if span.get_span_context().is_valid else None


def message(operation: str, topic: str, partition: int | None = None, offset: int | None = None) -> dict[str, Any]:
    """Return the attributes of a span about a record of a topic."""
    attributes: dict[str, Any] = {
        **SYSTEM,
        "messaging.operation.name": operation,
        "messaging.operation.type": operation,
        "messaging.destination.name": topic,
    }
    if partition is not None:
        attributes["messaging.destination.partition.id"] = str(partition)
    if offset is not None:
        attributes["messaging.kafka.offset"] = offset
    return attributes


@contextmanager
def _ending(span: Span) -> Iterator[None]:
    """End a span. Of an error it gets the type alone: a message could hold a value."""
    try:
        yield
    except BaseException as error:
        span.set_attribute("error.type", type(error).__name__)
        span.set_status(Status(StatusCode.ERROR))
        raise
    finally:
        span.end()
