"""Tracing of a process: off by default, bounded in memory and in time, and without values."""

import socket
import subprocess
import sys
import threading
import time

import pytest
from aiokafka.structs import ConsumerRecord
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.trace import SpanKind
from prometheus_client import REGISTRY
from pydantic import ValidationError
from structlog.testing import capture_logs

from order_service.runtime import spans as spans_module
from order_service.runtime.spans import NOT_ACCEPTED, QUEUE_FULL, ExportQueue, Spans, exported
from order_service.runtime.tracing import recording
from order_service.sdk.testing.samples import TRACEPARENT, TRACESTATE
from order_service.settings import Settings
from order_service.wire.trace_context import TraceContext
from order_service.worker.command_spans import CommandSpans
from tests.support.collector import Collector, spans_in_memory

TRACE = TraceContext(TRACEPARENT.encode(), TRACESTATE.encode())
UNSAMPLED = TraceContext(TRACEPARENT.encode()[:-1] + b"0")


def test_nothing_of_opentelemetry_is_imported_while_tracing_is_off():
    """It would add to the start of every process, and to what the SDK needs."""
    program = """
import sys
import order_service.cli, order_service.sdk, order_service.sdk.testing.memory
import order_service.views.process, order_service.web.process, order_service.worker.faust.app
from order_service.runtime.tracing import recording
from order_service.settings import Settings
with recording(Settings(), "worker") as spans:
    assert spans is None
print(*(name for name in sys.modules if name.startswith(("opentelemetry", "google.protobuf"))))
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert ended.stdout.strip() == ""


@pytest.mark.parametrize(
    ("sampler", "argument", "rate"),
    [
        ("parentbased_always_on", "", 1.0),
        ("always_on", "0.5", 1.0),
        ("parentbased_always_off", "", 0.0),
        ("traceidratio", "", 1.0),
        ("parentbased_traceidratio", "0.01", 0.01),
    ],
)
def test_the_sampler_is_the_one_of_the_environment(monkeypatch, sampler, argument, rate):
    monkeypatch.setenv("ORDERS_TRACING", "true")
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", sampler)
    monkeypatch.setenv("OTEL_TRACES_SAMPLER_ARG", argument)
    assert Settings().traces_root_rate == rate


@pytest.mark.parametrize(
    ("sampler", "argument", "fault"),
    [
        ("jaeger_remote", "", "OTEL_TRACES_SAMPLER is 'jaeger_remote', expected one of always_on"),
        ("traceidratio", "1.1", "OTEL_TRACES_SAMPLER_ARG is '1.1', expected a number from 0 to 1"),
        ("traceidratio", "half", "OTEL_TRACES_SAMPLER_ARG is 'half', expected a number from 0 to 1"),
        ("traceidratio", "nan", "OTEL_TRACES_SAMPLER_ARG is 'nan', expected a number from 0 to 1"),
    ],
)
def test_a_sampler_that_is_not_known_is_refused_only_if_tracing_is_on(sampler, argument, fault):
    settings = {"traces_sampler": sampler, "traces_sampler_arg": argument}
    Settings(**settings)
    with pytest.raises(ValidationError, match=fault):
        Settings(tracing=True, **settings)


@pytest.mark.parametrize(
    ("caller", "rate", "is_recorded"),
    [(TRACE, 0.0, True), (UNSAMPLED, 1.0, False), (None, 1.0, True), (None, 0.0, False)],
)
def test_a_request_is_recorded_if_its_caller_is_or_by_the_rate(caller, rate, is_recorded):
    spans, exporter = spans_in_memory(rate)
    with spans.serving("POST", "/v1/orders", caller) as request:
        with spans.sending("commands", "order-1", request.trace) as sending:
            sending.arrived(3, 7)
        with spans.awaiting(request.trace) as waiting:
            waiting.ended("decided")
        request.responded(201, "create_order")
    finished = exporter.get_finished_spans()
    assert request.trace is not None
    assert sending.trace is not None
    assert sending.trace.is_sampled is request.trace.is_sampled is is_recorded
    if caller is not None:
        assert sending.trace.traceparent[3:35] == caller.traceparent[3:35]
        assert sending.trace.tracestate == caller.tracestate
    if not is_recorded:
        assert not finished
        assert caller is None or request.trace == sending.trace == caller
        return
    sent, waited, served = finished
    assert (served.name, served.kind) == ("POST /v1/orders", SpanKind.SERVER)
    assert dict(served.attributes) == {
        "http.request.method": "POST",
        "http.route": "/v1/orders",
        "http.response.status_code": 201,
        "orders.operation": "create_order",
    }
    assert (sent.name, sent.kind, sent.attributes["messaging.kafka.offset"]) == ("send commands", SpanKind.PRODUCER, 7)
    assert sent.parent.span_id == waited.parent.span_id == served.context.span_id
    assert sending.trace.traceparent[36:52].decode() == f"{sent.context.span_id:016x}"


def test_opentelemetry_can_be_disabled_by_its_own_variable(monkeypatch):
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    spans, exporter = spans_in_memory()
    for caller in (TRACE, UNSAMPLED, None):
        with (
            spans.serving("GET", "/v1/orders", caller) as request,
            spans.sending("commands", "o", request.trace) as sent,
        ):
            assert (request.trace, sent.trace) == (caller, caller)
    assert CommandSpans(spans, "commands", "orders", "/{id}").begin(0, 0, TRACE, 0.0) is None
    assert not exporter.get_finished_spans()


def test_an_error_leaves_its_type_and_not_its_message():
    spans, exporter = spans_in_memory()
    with pytest.raises(KeyError), spans.sending("commands", "order-1", None):
        raise KeyError("hunter2")
    [span] = exporter.get_finished_spans()
    assert span.attributes["error.type"] == "KeyError"
    assert "hunter2" not in span.to_json()


def test_records_that_are_recorded_are_recorded_as_processed():
    spans, exporter = spans_in_memory()
    records = [
        ConsumerRecord("events", 1, offset, 0, 0, b"order-1", b"", None, 0, 0, headers)
        for offset, headers in enumerate(((), tuple(UNSAMPLED.headers()), tuple(TRACE.headers())))
    ]
    spans.processed(records, time.time_ns() - 10**9)
    [span] = exporter.get_finished_spans()
    assert (span.name, span.attributes["messaging.kafka.offset"]) == ("process events", 2)
    assert f"{span.parent.span_id:016x}" == TRACEPARENT[36:52]
    assert span.end_time - span.start_time >= 10**9


def test_the_environment_names_the_collector_and_the_service(monkeypatch):
    with Collector() as collector:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
        for name in ("", "shop"):
            monkeypatch.setenv("OTEL_SERVICE_NAME", name)
            with recording(Settings(tracing=True), "web") as spans:
                assert spans is not None
                with spans.serving("GET", "/v1/orders", TRACE):
                    pass
        assert [span.service for span in collector.spans()] == ["order-service-web", "shop"]
        assert {span.tracestate for span in collector.spans()} == {TRACESTATE}


def test_a_collector_that_is_silent_holds_up_neither_the_spans_nor_the_end(monkeypatch):
    monkeypatch.setattr(spans_module, "CLOSE_WITHIN_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "5")
        spans = exported(Settings(tracing=True), "worker")
        with spans.serving("GET", "/v1/orders", TRACE):
            pass
        began_at = time.monotonic()
        with capture_logs() as lines:
            spans.close()
        assert time.monotonic() - began_at < 4
    assert [line["event"] for line in lines] == ["Spans were dropped: the collector did not accept them in time."]


class Blocked(SpanExporter):
    """Exports once the test lets it."""

    def __init__(self):
        self.may_export = threading.Event()
        self.count = 0

    def export(self, spans):
        self.may_export.wait(30)
        self.count += len(spans)
        return SpanExportResult.SUCCESS


def dropped(reason):
    """Return the number of spans that this process has dropped for a reason."""
    return REGISTRY.get_sample_value("orders_spans_dropped_total", {"reason": reason}) or 0.0


def record(spans, count):
    for _ in range(count):
        with spans.serving("GET", "/v1/orders", TRACE):
            pass


def test_spans_that_the_queue_cannot_hold_are_dropped_and_counted():
    exporter = Blocked()
    queue = ExportQueue(exporter, 16, 8)
    before = dropped(QUEUE_FULL)
    record(Spans(queue, 1.0), 500)
    exporter.may_export.set()
    queue.shutdown()
    assert 16 <= exporter.count <= 16 + 8  # a batch no longer waits once its export begins
    assert dropped(QUEUE_FULL) - before == 500 - exporter.count


class Refusing(SpanExporter):
    """Refuses or fails, as its collector."""

    def __init__(self, error):
        self.error = error

    def export(self, _spans):
        if self.error is not None:
            raise self.error
        return SpanExportResult.FAILURE


@pytest.mark.parametrize("error", [None, RuntimeError("no collector")], ids=["refused", "failed"])
def test_spans_that_the_collector_does_not_accept_are_counted(error):
    queue = ExportQueue(Refusing(error), 16, 8)
    before = dropped(NOT_ACCEPTED)
    record(Spans(queue, 1.0), 12)
    queue.shutdown()
    assert dropped(NOT_ACCEPTED) - before == 12


def test_both_counts_are_there_before_a_span_is_dropped():
    ExportQueue(Blocked(), 16, 8).shutdown()
    for reason in (QUEUE_FULL, NOT_ACCEPTED):
        assert REGISTRY.get_sample_value("orders_spans_dropped_total", {"reason": reason}) is not None


def test_the_environment_sets_the_size_of_the_queue(monkeypatch):
    assert Settings().traces_queue_size == 2048
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "600")
    assert Settings().traces_queue_size == 600
