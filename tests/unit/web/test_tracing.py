"""Traces over HTTP: a request, its command and the wait for the outcome, and what is passed on without tracing."""

import asyncio
from contextlib import AsyncExitStack

import pytest
import structlog
from aiohttp import web
from aiohttp.test_utils import make_mocked_request
from multidict import CIMultiDict
from opentelemetry.trace import SpanKind
from structlog.testing import capture_logs

from order_service.sdk.testing.samples import TRACEPARENT, TRACESTATE
from order_service.web.http.requests import trace_context
from order_service.web.server import REQUEST_SECONDS
from order_service.wire.trace_context import TraceContext
from tests.support.collector import spans_in_memory
from tests.support.copies import World, empty_views
from tests.support.shop import ORDER

WAITING = {"Prefer": "wait=30"}
TRACE = {"traceparent": TRACEPARENT, "tracestate": TRACESTATE}
UNSAMPLED = {**TRACE, "traceparent": TRACEPARENT[:-1] + "0"}


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        pytest.param([], None, id="no header"),
        pytest.param([("traceparent", TRACEPARENT)], TraceContext(TRACEPARENT.encode()), id="a parent"),
        pytest.param([("traceparent", TRACEPARENT + "0")], None, id="a malformed parent"),
        pytest.param([("traceparent", "ff" + TRACEPARENT[2:])], None, id="version ff"),
        pytest.param([("traceparent", f"00-{'0' * 32}-b7ad6b7169203331-01")], None, id="a trace id of zeros"),
        pytest.param([("traceparent", TRACEPARENT[:36] + "0" * 16 + "-01")], None, id="a span id of zeros"),
        pytest.param([("traceparent", "é" * 55)], None, id="a parent that is not ASCII"),
        pytest.param([("tracestate", "a=1")], None, id="a state without a parent"),
        pytest.param(
            [("traceparent", TRACEPARENT), ("tracestate", "a=1"), ("tracestate", "b=2")],
            TraceContext(TRACEPARENT.encode(), b"a=1, b=2"),
            id="a state in two lines",
        ),
        pytest.param(
            [("traceparent", TRACEPARENT), ("tracestate", "x" * 513)],
            TraceContext(TRACEPARENT.encode()),
            id="a state that is too long",
        ),
        pytest.param(
            [("traceparent", TRACEPARENT), ("tracestate", "é=1")],
            TraceContext(TRACEPARENT.encode()),
            id="a state that is not ASCII",
        ),
    ],
)
def test_the_trace_context_of_a_request(headers, expected):
    request = make_mocked_request("POST", "/v1/orders", CIMultiDict(headers))
    assert isinstance(request, web.Request)
    assert trace_context(request) == expected


async def answered(directory, spans, path, body, headers):
    """Send a request, and decide its command. Return the world and the answer."""
    async with AsyncExitStack() as stack:
        world = World(empty_views(directory, "views", stack))
        async with world.server(spans=spans) as caller:
            waiting = caller.asking("POST", path, body, **WAITING, **headers)
            await world.sent(1)
            world.decide()
            world.project()
            async with asyncio.timeout(30):
                return world, await waiting


async def test_without_tracing_the_trace_of_the_caller_is_passed_on(tmp_path):
    world, answer = await answered(tmp_path, None, "/v1/orders", ORDER, TRACE)
    assert answer.status == 201
    assert world.headers == [[("traceparent", TRACEPARENT.encode()), ("tracestate", TRACESTATE.encode())]]


async def test_a_request_its_command_and_the_wait_for_the_outcome_are_recorded(tmp_path):
    spans, exporter = spans_in_memory(root_rate=0.0)
    world, answer = await answered(tmp_path, spans, "/v1/orders", ORDER, TRACE)
    assert answer.status == 201
    sent, waited, served = exporter.get_finished_spans()
    assert [sent.name, waited.name, served.name] == ["send orders.commands.v1", "await outcome", "POST /v1/orders"]
    assert f"{served.parent.span_id:016x}" == TRACEPARENT[36:52]
    assert sent.parent.span_id == waited.parent.span_id == served.context.span_id
    assert served.attributes["http.response.status_code"] == 201
    assert waited.attributes["orders.outcome"] == "decided"
    assert (sent.kind, sent.attributes["messaging.destination.partition.id"]) == (SpanKind.PRODUCER, "0")
    sent_in = f"{TRACEPARENT[:36]}{sent.context.span_id:016x}-01"
    assert world.headers == [[("traceparent", sent_in.encode()), ("tracestate", TRACESTATE.encode())]]
    assert not [span for span in (sent, waited, served) if "dana" in span.to_json()]
    exemplars = [sample.exemplar for sample in next(iter(REQUEST_SECONDS.collect())).samples if sample.exemplar]
    assert TRACEPARENT[3:35] in {exemplar.labels["trace_id"] for exemplar in exemplars}


async def test_a_trace_that_its_caller_does_not_record_is_passed_on(tmp_path):
    spans, exporter = spans_in_memory()
    world, answer = await answered(tmp_path, spans, "/v1/orders", ORDER, UNSAMPLED)
    assert answer.status == 201
    assert dict(world.headers[0])["traceparent"] == UNSAMPLED["traceparent"].encode()
    assert not exporter.get_finished_spans()


@pytest.mark.parametrize("headers", [TRACE, UNSAMPLED, {}], ids=["recorded", "not recorded", "begins here"])
async def test_the_log_of_a_request_has_the_trace_id_of_its_command(tmp_path, access, headers):
    spans, exporter = spans_in_memory()
    with capture_logs(processors=[structlog.contextvars.merge_contextvars]) as lines:
        world, answer = await answered(tmp_path, spans, "/v1/orders", ORDER, headers)
    assert answer.status == 201
    [line] = [line for line in lines if line["event"] == "Request served."]
    trace_id = dict(world.headers[0])["traceparent"].decode()[3:35]
    assert line["trace_id"] == trace_id
    assert {f"{span.context.trace_id:032x}" for span in exporter.get_finished_spans()} <= {trace_id}
    if headers:
        assert trace_id == TRACEPARENT[3:35]


async def test_a_path_has_the_names_of_its_parameters_and_an_unknown_one_is_left_out(tmp_path):
    spans, exporter = spans_in_memory()
    async with AsyncExitStack() as stack:
        world = World(empty_views(tmp_path, "views", stack))
        async with world.server(spans=spans) as caller:
            assert (await caller.ask("GET", "/v1/orders/hunter2")).status == 404
            assert (await caller.ask("GET", "/hunter2")).status == 404
    assert [span.name for span in exporter.get_finished_spans()] == ["GET /v1/orders/{order_id}", "GET"]
    assert not [span for span in exporter.get_finished_spans() if "hunter2" in span.to_json()]


async def test_a_method_that_http_does_not_know_is_not_recorded(tmp_path):
    spans, exporter = spans_in_memory()
    async with AsyncExitStack() as stack:
        world = World(empty_views(tmp_path, "views", stack))
        async with world.server(spans=spans) as caller:
            await caller.ask("PURGE", "/v1/orders")
    [span] = exporter.get_finished_spans()
    assert (span.name, span.attributes["http.request.method"]) == ("HTTP", "_OTHER")
    assert "PURGE" not in span.to_json()
