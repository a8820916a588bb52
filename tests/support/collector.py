"""A collector of spans: an OTLP receiver over HTTP, and spans in memory for tests without one."""

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple, Self

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from order_service.runtime.spans import Spans


class Link(NamedTuple):
    """A link of a span."""

    trace_id: str
    span_id: str
    attributes: dict[str, Any]


class Received(NamedTuple):
    """A span as it was received; ids are in hexadecimal digits, times are nanoseconds since 1970."""

    service: str
    name: str
    kind: int
    trace_id: str
    span_id: str
    parent_id: str
    tracestate: str
    attributes: dict[str, Any]
    links: list[Link]
    start_ns: int
    end_ns: int


class Collector:
    """Receives spans on a free port of loopback until the block ends."""

    def __init__(self) -> None:
        self._spans: list[Received] = []
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                collector._take(self.path, body)
                self.send_response(200)
                self.send_header("Content-Type", "application/x-protobuf")
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                """Log nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(10)

    def _take(self, path: str, body: bytes) -> None:
        assert path == "/v1/traces", path
        for of_process in ExportTraceServiceRequest.FromString(body).resource_spans:
            service = _values(of_process.resource.attributes)["service.name"]
            for of_scope in of_process.scope_spans:
                self._spans += [_received(service, span) for span in of_scope.spans]

    def spans(self, trace_id: str = "", **named: str) -> list[Received]:
        """Return the spans of a trace, or of all, whose fields have these values, in the order of their starts."""
        spans = [span for span in [*self._spans] if trace_id in {"", span.trace_id}]
        return sorted(
            (span for span in spans if all(getattr(span, name) == value for name, value in named.items())),
            key=lambda span: span.start_ns,
        )


def spans_in_memory(root_rate: float = 1.0) -> tuple[Spans, Any]:
    """Return spans that are exported into memory as soon as they end, and their exporter."""
    exporter = InMemorySpanExporter()
    return Spans(SimpleSpanProcessor(exporter), root_rate), exporter


def _received(service: str, span: Any) -> Received:
    links = [Link(each.trace_id.hex(), each.span_id.hex(), _values(each.attributes)) for each in span.links]
    ids = span.trace_id.hex(), span.span_id.hex(), span.parent_span_id.hex()
    times = span.start_time_unix_nano, span.end_time_unix_nano
    return Received(service, span.name, span.kind, *ids, span.trace_state, _values(span.attributes), links, *times)


def _values(attributes: Any) -> dict[str, Any]:
    return {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in attributes}
