"""A trace of one order, from the request of its caller to the view, as a collector receives it from real processes."""

import json
import signal
import time
from functools import partial
from typing import Any

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from order_service.sdk import OrderEvents, tracing
from order_service.users.stub import Mode
from order_service.wire.trace_context import TraceContext, trace_context_of
from tests.support.collector import Collector
from tests.support.samples import but, create
from tests.support.service import until
from tests.support.shop import ORDER, running_shop

TRACE_ID, CALLER_ID, STATE = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331", "shop=1,other=2"
SERVER, PRODUCER, CONSUMER, CLIENT, INTERNAL = 2, 4, 5, 3, 1


@pytest.fixture(scope="module")
def collector():
    with Collector() as running:
        yield running


@pytest.fixture(scope="module")
def traced(bootstrap_servers, tmp_path_factory, users, collector):
    """Provide a shop that records the traces that its callers record, and no other ones."""
    tracing_on = {
        "ORDERS_TRACING": "true",
        "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url,
        "OTEL_TRACES_SAMPLER": "parentbased_always_off",
        "OTEL_BSP_SCHEDULE_DELAY": "50",
    }
    with running_shop(bootstrap_servers, tmp_path_factory.mktemp("traced"), users, **tracing_on) as shop:
        yield shop


@pytest.fixture
def mode(users):
    yield lambda wanted: setattr(users.stub, "mode", wanted)
    users.stub.mode = Mode.OK


def parent(trace_id=TRACE_ID, flags="01"):
    return f"00-{trace_id}-{CALLER_ID}-{flags}"


def test_the_trace_of_an_order_that_waits_across_a_restart(traced, collector, mode):
    service, names = traced.service, traced.service.names
    http, _ = traced.serve()
    mode(Mode.ERROR)
    body = {**ORDER, "user_id": "tess"}
    asked = http.ask("POST", "/v1/orders", body, traceparent=parent(), tracestate=STATE, Prefer="respond-async")
    assert asked.status == 202
    until(lambda: len(service.waiting()) == 1, "the command waits")
    process, wait_name = f"process {names.commands}", "wait for user"
    until(lambda: collector.spans(TRACE_ID, name=process), "the first worker's span is exported")
    traced.worker.send(signal.SIGKILL)
    traced.worker.wait_ended()
    killed_ns = time.time_ns()
    mode(Mode.OK)
    traced.worker = service.start_worker().wait_lanes(service.partitions)
    order = f"/v1/orders/{asked.body['order_id']}"
    until(lambda: http.get(order).status == 200, "the order is placed")
    paid = {"payment_id": "p-1", "amount": 2500, "currency": "EUR"}
    answer = http.ask("POST", f"{order}/pay", paid, traceparent=parent("1" * 32), Prefer="wait=30")
    assert answer.status == 200

    projected = f"process {names.events}"
    until(lambda: collector.spans(TRACE_ID, name=projected), "the projector's span is exported")
    until(lambda: len(collector.spans(TRACE_ID, name=process)) == 2, "the second worker's span is exported")
    until(lambda: collector.spans("1" * 32, name=f"POST {'/v1/orders/{order_id}/pay'}"), "the answer is exported")
    [served] = collector.spans(TRACE_ID, name="POST /v1/orders")
    [sent] = collector.spans(TRACE_ID, name=f"send {names.commands}")
    waits, decides = collector.spans(TRACE_ID, name=process)
    [wait] = collector.spans(TRACE_ID, name=wait_name)
    [view] = collector.spans(TRACE_ID, name=projected)
    lookups = collector.spans(TRACE_ID, name="GET /v1/users/{id}")
    tree = {
        (span.service.removeprefix("order-service-"), span.name, span.kind, span.parent_id)
        for span in (served, sent, waits, decides, wait, view, *lookups)
    }
    assert tree == {
        ("web", "POST /v1/orders", SERVER, CALLER_ID),
        ("web", f"send {names.commands}", PRODUCER, served.span_id),
        ("worker", process, CONSUMER, sent.span_id),
        ("worker", "GET /v1/users/{id}", CLIENT, sent.span_id),
        ("worker", wait_name, INTERNAL, sent.span_id),
        ("projector", projected, CONSUMER, decides.span_id),
    }
    assert [span.attributes["orders.outcome"] for span in (waits, decides)] == ["waiting", "accepted"]
    assert lookups[-1].attributes["orders.user_check"] == wait.attributes["orders.user_check"] == "active"
    assert wait.start_ns < killed_ns < wait.end_ns
    assert {span.tracestate for span in collector.spans(TRACE_ID)} == {STATE}
    place = {
        "messaging.destination.partition.id": str(service.partition_of(asked.body["order_id"])),
        "messaging.kafka.offset": waits.attributes["messaging.kafka.offset"],
    }
    for span in (waits, decides):
        [turn] = until(partial(collector.spans, span_id=span.links[0].span_id), "its turn is exported")
        assert (turn.service, turn.parent_id) == ("order-service-worker", "")
        assert turn.trace_id not in {TRACE_ID, "1" * 32}
        assert (TRACE_ID, sent.span_id, place) in [tuple(link) for link in turn.links]
    [waited] = collector.spans("1" * 32, name="await outcome")
    assert waited.attributes["orders.outcome"] == "decided"
    assert not [span for span in collector.spans() if "tess" in json.dumps(span)]

    expected = TraceContext(f"00-{TRACE_ID}-{decides.span_id}-01".encode(), STATE.encode())
    assert expected in [trace_context_of(event.headers()) for event in service.read(names.events)]


def test_a_turn_links_to_each_of_its_commands_that_is_recorded(traced, collector):
    service = traced.service
    traces = [f"{number:032x}" for number in range(1, 6)]
    for number, trace_id in enumerate(traces):
        command = but(create, order_id=f"linked-{number}", command_id=f"linked-{number}", actor="service:shop")
        service.send([command], headers=[("traceparent", parent(trace_id).encode())])
    unrecorded = but(create, order_id="unrecorded", command_id="unrecorded", actor="service:shop")
    service.send([unrecorded], headers=[("traceparent", parent("f" * 32, "00").encode())])

    def events():
        return {each.key().decode(): trace_context_of(each.headers()) for each in service.read(service.names.events)}

    until(lambda: {"unrecorded", *(f"linked-{number}" for number in range(5))} <= events().keys(), "all are decided")
    assert events()["unrecorded"] == TraceContext(parent("f" * 32, "00").encode())

    def linked():
        turns = collector.spans(name=f"turn {service.names.commands}")
        return {link.trace_id for turn in turns for link in turn.links}

    until(lambda: linked() >= set(traces), "each has a link")
    assert not collector.spans("f" * 32)


async def test_a_consumer_of_the_sdk_continues_the_trace(traced, collector):
    exporter: Any = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    command = but(create, order_id="followed", command_id="followed", actor="service:shop")
    traced.service.send([command], headers=[("traceparent", parent("e" * 32).encode()), ("tracestate", STATE.encode())])
    async with OrderEvents.projection(settings=traced.service.settings()) as events:
        async for record in events:
            if record.event.order_id == "followed":
                with tracing.processing(record, tracer=provider.get_tracer("mailer")):
                    break
    [span] = exporter.get_finished_spans()
    decided = until(
        lambda: collector.spans("e" * 32, name=f"process {traced.service.names.commands}"), "it is exported"
    )
    assert f"{span.parent.span_id:016x}" == decided[0].span_id
    assert span.context.trace_state.to_header() == STATE


def test_the_exemplar_of_a_turn_names_its_trace_where_openmetrics_is_accepted(traced, collector):
    command = but(create, order_id="measured", command_id="measured", actor="service:shop")
    traced.service.send([command], headers=[("traceparent", parent("d" * 32).encode())])
    turns = f"turn {traced.service.names.commands}"
    is_linked = lambda turn: "d" * 32 in [link.trace_id for link in turn.links]  # noqa: E731
    until(lambda: any(map(is_linked, collector.spans(name=turns))), "it is decided")
    turn_ids = {turn.trace_id for turn in collector.spans(name=turns)}
    metrics = traced.worker.metrics("application/openmetrics-text; version=1.0.0")
    exemplars = [
        line for line in metrics.splitlines() if line.startswith("orders_turn_seconds_bucket") and " # {" in line
    ]
    assert any(trace_id in line for line in exemplars for trace_id in turn_ids)
    assert " # {" not in traced.worker.admin("/metrics")[1]
