"""The spans of a process, by OpenTelemetry. Imported only if tracing is on: see `tracing`.

Names follow the semantic conventions of OpenTelemetry for HTTP and for messaging (1.44, whose messaging part is not
stable yet). Attributes hold ids, offsets and outcomes; never a value of a record, a query, a header or a credential.

A span is recorded if its parent is. A trace that begins here is recorded at the rate of the settings. Ended spans are
queued and exported by a thread. If the queue is full, a span is dropped and counted: nothing waits for a collector.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from threading import Lock, Thread
from typing import Any, Final

import structlog
from aiokafka.structs import ConsumerRecord
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, SynchronousMultiSpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.id_generator import IdGenerator, RandomIdGenerator
from opentelemetry.sdk.trace.sampling import ALWAYS_ON, ParentBasedTraceIdRatio, Sampler
from opentelemetry.trace import Link, NoOpTracer, Span, SpanKind, Status, StatusCode, Tracer, get_current_span
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from prometheus_client import Counter

from order_service import __version__
from order_service.http_client import TRACE_HEADERS
from order_service.runtime.tracing import OTHER_METHOD
from order_service.settings import Settings
from order_service.wire.trace_context import TRACEPARENT, TRACESTATE, TraceContext, trace_context_of

log = structlog.get_logger()

CLOSE_WITHIN_S: Final = 2.0
"""How long a process that ends exports what is queued."""
SCOPE: Final = "order_service"
SYSTEM: Final = {"messaging.system": "kafka"}
DROPPED: Final = Counter(
    "orders_spans_dropped_total",
    "Spans that were not exported, if `ORDERS_TRACING` is on, by reason: queue_full or not_accepted.",
    ["reason"],
)
QUEUE_FULL: Final = "queue_full"
NOT_ACCEPTED: Final = "not_accepted"
_propagator: Final = TraceContextTextMapPropagator()


class ExportQueue(SpanProcessor):
    """Exports ended spans in batches from a thread. Drops and counts those that come while `size` of them wait.

    The batches are OpenTelemetry's, whose own queue drops the oldest span without a count: it never fills up here.
    """

    def __init__(self, exporter: SpanExporter, size: int, batch_size: int | None = None) -> None:
        self._size = size
        self._waiting = 0
        self._lock = Lock()
        self._batches = BatchSpanProcessor(
            _CountingExporter(exporter, self._taken), max_queue_size=size, max_export_batch_size=batch_size
        )
        for reason in (QUEUE_FULL, NOT_ACCEPTED):
            DROPPED.labels(reason)

    def on_end(self, span: ReadableSpan) -> None:
        """Queue a span, or drop it."""
        with self._lock:
            is_full = self._waiting >= self._size
            self._waiting += not is_full
        if is_full:
            DROPPED.labels(QUEUE_FULL).inc()
        else:
            self._batches.on_end(span)

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Export what waits, and return whether it was."""
        return bool(self._batches.force_flush(timeout_millis))

    def shutdown(self) -> None:
        """Export what waits, and end."""
        self._batches.shutdown()  # type: ignore[no-untyped-call]

    def _taken(self, count: int) -> None:
        with self._lock:
            self._waiting -= count


class _CountingExporter(SpanExporter):
    """Exports spans. `on_batch` gets the number of those that no longer wait; those that are refused are counted."""

    def __init__(self, exporter: SpanExporter, on_batch: Callable[[int], None]) -> None:
        self._exporter = exporter
        self._on_batch = on_batch

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self._on_batch(len(spans))
        result = SpanExportResult.FAILURE
        try:
            result = self._exporter.export(spans)
        finally:
            if result is not SpanExportResult.SUCCESS:
                DROPPED.labels(NOT_ACCEPTED).inc(len(spans))
        return result

    def shutdown(self) -> None:
        self._exporter.shutdown()


class OneResource(Resource):
    """The resource of all spans of a process. The hash of its class is that of a JSON text, for each exported span."""

    def __hash__(self) -> int:
        return 0


class GivenIds(RandomIdGenerator):
    """Random ids; those that are given first, for the next span. An outcome has them before its span is made."""

    def __init__(self) -> None:
        self._trace_id: int | None = None
        self._span_id: int | None = None

    def give(self, trace_id: int, span_id: int) -> None:
        """Set the ids of the next span. If it has a parent, the trace id is not used: it is the parent's."""
        self._trace_id, self._span_id = trace_id, span_id

    def generate_trace_id(self) -> int:
        """Return the id of a trace that begins."""
        given, self._trace_id = self._trace_id, None
        return super().generate_trace_id() if given is None else given

    def generate_span_id(self) -> int:
        """Return the id of a span."""
        given, self._span_id, self._trace_id = self._span_id, None, None
        return super().generate_span_id() if given is None else given


class Spans:
    """Starts the spans of a process. `root_rate` is the share of the traces beginning here that are recorded.

    `tracer` decides by the parent or the rate. `recorder` records every span: for those of which that is known already.
    `is_off` is true if OpenTelemetry's own variable has disabled it.
    """

    def __init__(self, processor: SpanProcessor, root_rate: float, resource: Resource | None = None) -> None:
        self.root_rate = root_rate
        self._processor = processor
        resource = resource or Resource.create()
        self._resource = OneResource(resource.attributes, resource.schema_url)
        self.tracer = self._tracer(ParentBasedTraceIdRatio(root_rate))
        self.recorder = self.recorder_with(RandomIdGenerator())
        self.is_off = isinstance(self.recorder, NoOpTracer)

    def recorder_with(self, ids: IdGenerator) -> Tracer:
        """Return a tracer that records every span, with these ids."""
        return self._tracer(ALWAYS_ON, ids)

    def _tracer(self, sampler: Sampler, ids: IdGenerator | None = None) -> Tracer:
        processors = SynchronousMultiSpanProcessor()  # type: ignore[no-untyped-call]
        processors.add_span_processor(self._processor)
        provider = TracerProvider(
            sampler, self._resource, shutdown_on_exit=False, active_span_processor=processors, id_generator=ids
        )
        return provider.get_tracer(SCOPE, __version__)

    def close(self) -> None:
        """Export the queued spans, for up to `CLOSE_WITHIN_S`; the rest is dropped."""
        # The processor itself would wait for 30 s.
        closing = Thread(target=self._processor.shutdown, name="close spans", daemon=True)
        closing.start()
        closing.join(CLOSE_WITHIN_S)
        if closing.is_alive():
            log.warning("Spans were dropped: the collector did not accept them in time.", within_s=CLOSE_WITHIN_S)

    @contextmanager
    def serving(self, method: str, route: str, caller: TraceContext | None) -> Iterator["Request"]:
        """Record a request to this HTTP server, as a part of its caller's trace."""
        attributes = {"http.request.method": method, **({"http.route": route} if route else {})}
        name = "HTTP" if method == OTHER_METHOD else method  # as the semantic conventions for HTTP have it
        span = self.tracer.start_span(
            f"{name} {route}".rstrip(), parent_of(caller), kind=SpanKind.SERVER, attributes=attributes
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
    def calling(self, method: str, template: str, traces_of: Callable[[], Sequence[TraceContext]]) -> Iterator["Call"]:
        """Record a call of another service for these traces: it is a part of the first, and linked to the others.

        Requests that are sent meanwhile carry its trace. If none needs the call when it begins, the traces that need it
        when it ends get its span, and its requests carried none. Without a trace, nothing is recorded.
        """
        call, started_ns = Call(), time.time_ns()
        traces = traces_of()
        span = self._call(f"{method} {template}", traces, started_ns) if traces else None
        headers = {} if span is None else _http_headers(context_of(span, traces[0]))
        token = TRACE_HEADERS.set(headers)
        try:
            yield call
        except BaseException as error:
            call.error = type(error).__name__
            raise
        finally:
            TRACE_HEADERS.reset(token)
            if span is None and (traces := traces_of()):
                span = self._call(f"{method} {template}", traces, started_ns)
            if span is not None:
                span.set_attributes({"http.request.method": method, "url.template": template})
                call.end(span)

    def _call(self, name: str, traces: Sequence[TraceContext], started_ns: int) -> Span:
        links = [Link(get_current_span(parent_of(other)).get_span_context()) for other in traces[1:]]
        return self.recorder.start_span(
            name, parent_of(traces[0]), kind=SpanKind.CLIENT, links=links, start_time=started_ns
        )

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
            _failed(self._span, str(status))


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
    """A call of another service, whose span may begin only when it ends."""

    answer = ""
    error = ""

    def end(self, span: Span) -> None:
        """End the span of this call with its answer, or with the type of its error."""
        if self.answer:
            span.set_attribute("orders.user_check", self.answer)
        if self.error:
            _failed(span, self.error)
        span.end()


def exported(settings: Settings, process: str) -> Spans:
    """Return the spans of a process, exported by OTLP over HTTP as OpenTelemetry's environment variables say."""
    # OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES come before ours.
    ours = Resource({"service.name": f"order-service-{process}", "service.version": __version__})
    resource = Resource.create().merge(ours).merge(OTELResourceDetector().detect())
    queue = ExportQueue(OTLPSpanExporter(), settings.traces_queue_size)
    return Spans(queue, settings.traces_root_rate, resource)


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


def _http_headers(trace: TraceContext) -> dict[str, str]:
    return {name: value.decode("latin-1") for name, value in trace.headers()}


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
        _failed(span, type(error).__name__)
        raise
    finally:
        span.end()


def _failed(span: Span, error: str) -> None:
    span.set_attribute("error.type", error)
    span.set_status(Status(StatusCode.ERROR))
