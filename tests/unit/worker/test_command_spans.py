"""The spans of commands and turns: what belongs to which trace, and that a trace goes on after a restart."""

import asyncio
import time
from datetime import timedelta
from typing import Any

import pytest
from aiokafka import ConsumerRecord
from opentelemetry.trace import SpanKind, format_span_id

from order_service.domain.decision import UserCheck
from order_service.errors import TurnRefused, UserServiceUnavailable
from order_service.http_client import TRACE_HEADERS
from order_service.sdk.testing.samples import TRACEPARENT, TRACESTATE
from order_service.wire.commands import encode_json_command
from order_service.wire.trace_context import TraceContext, trace_context_of
from order_service.worker import metrics
from order_service.worker.clock import Clock
from order_service.worker.command_spans import CommandSpans
from order_service.worker.inbox import Inbox, decode_record
from order_service.worker.turn import TurnLoop
from order_service.worker.user_lookups import UserLookups
from tests.support.collector import spans_in_memory
from tests.support.samples import NOW, ORDER_ID, USER_ID, amend, but, create, pay
from tests.unit.worker.lane_turns import NAMES, Written, lane_with
from tests.unit.worker.lane_world import POLICY, Log, World
from tests.unit.worker.lookup_world import AskingWorld, Users, asking_in
from tests.unit.worker.test_user_lookups import PATIENCE_S

TRACE = TraceContext(TRACEPARENT.encode(), TRACESTATE.encode())
UNSAMPLED = TraceContext(TRACEPARENT.encode()[:-1] + b"0", TRACESTATE.encode())
TRACE_ID, SENDER_ID = TRACEPARENT[3:35], TRACEPARENT[36:52]


def command_spans(root_rate=1.0):
    spans, exporter = spans_in_memory(root_rate)
    return CommandSpans(spans, "commands", "orders", "/v1/users/{id}"), exporter


class TracedWorld(World):
    """A lane whose commands are recorded, and turns that always succeed."""

    def __init__(self, root_rate=1.0, **known):
        spans, self.exporter = command_spans(root_rate)
        super().__init__(POLICY, spans=spans, **known)

    def send_in(self, trace, *commands, now=NOW):
        headers = () if trace is None else tuple(trace.headers())
        records = [self.record(encode_json_command(each), each.order_id.encode(), headers) for each in commands]
        self.lane.decide([decode_record(record) for record in records], now)
        return self.commit()

    def commit(self):
        changes = self.changes()
        assert self.spans is not None
        self.spans.committed(changes.spans, time.monotonic(), changes.decided)
        return changes

    def exported(self, name=None):
        spans = [span for span in self.exporter.get_finished_spans() if name in {None, span.name}]
        self.exporter.clear()
        return spans


def id_of(span):
    return format_span_id(span.context.span_id)


def trace_id_of(span):
    return f"{span.context.trace_id:032x}"


def test_a_command_has_a_span_in_the_trace_of_its_record_and_its_outcome_goes_on_with_it():
    world = TracedWorld(**{USER_ID: UserCheck.ACTIVE})
    changes = world.send_in(TRACE, create, but(pay, amount=1))
    accepted, rejected, turn = world.exported()
    for span, outcome, reason, record in (
        (accepted, "accepted", None, changes.events[0]),
        (rejected, "rejected", "payment_mismatch", changes.rejections[0]),
    ):
        assert (span.name, span.kind, trace_id_of(span)) == ("process commands", SpanKind.CONSUMER, TRACE_ID)
        assert format_span_id(span.parent.span_id) == SENDER_ID
        assert (span.attributes["orders.outcome"], span.attributes.get("orders.reason")) == (outcome, reason)
        trace = trace_context_of(record[2])
        assert trace == TraceContext(f"00-{TRACE_ID}-{id_of(span)}-01".encode(), TRACE.tracestate)
        assert [format_span_id(link.context.span_id) for link in span.links] == [id_of(turn)]
    assert dict(accepted.attributes) == {
        "messaging.system": "kafka",
        "messaging.operation.name": "process",
        "messaging.operation.type": "process",
        "messaging.destination.name": "commands",
        "messaging.destination.partition.id": "0",
        "messaging.kafka.offset": 0,
        "messaging.kafka.message.key": ORDER_ID,
        "messaging.consumer.group.name": "orders",
        "orders.command": "CreateOrder",
        "orders.outcome": "accepted",
    }


def test_a_turn_has_a_trace_of_its_own_with_a_link_to_each_command():
    world = TracedWorld(**{USER_ID: UserCheck.ACTIVE})
    world.send_in(TRACE, create, amend)
    [turn] = world.exported("turn commands")
    assert turn.parent is None
    assert trace_id_of(turn) != TRACE_ID
    assert turn.attributes["messaging.batch.message_count"] == 2
    links = [(format_span_id(link.context.span_id), dict(link.attributes)) for link in turn.links]
    places = [{"messaging.destination.partition.id": "0", "messaging.kafka.offset": offset} for offset in (0, 1)]
    assert links == [(SENDER_ID, place) for place in places]


@pytest.mark.parametrize(
    ("trace", "root_rate", "is_recorded"),
    [
        pytest.param(TRACE, 0.0, True, id="a trace that its sender records"),
        pytest.param(UNSAMPLED, 1.0, False, id="one that its sender does not record"),
        pytest.param(None, 1.0, True, id="none, and each trace that begins here is recorded"),
        pytest.param(None, 0.0, False, id="none, and none that begins here is"),
        pytest.param(TraceContext(b"00-1"), 1.0, False, id="what is not a trace context"),
    ],
)
def test_what_is_recorded(trace, root_rate, is_recorded):
    world = TracedWorld(root_rate, **{USER_ID: UserCheck.ACTIVE})
    [event] = world.send_in(trace, create).events
    spans = world.exported()
    assert [span.name for span in spans] == (["process commands", "turn commands"] if is_recorded else [])
    sent = trace_context_of(event[2])
    if is_recorded:
        assert sent is not None
        assert sent.is_sampled
        assert sent.traceparent[3:52].decode() == f"{trace_id_of(spans[0])}-{id_of(spans[0])}"
    else:
        assert sent == trace


def test_a_wait_ends_with_its_decision_also_after_a_restart():
    world, log = TracedWorld(), Log()
    log.write(world.send_in(TRACE, create, amend))
    assert [span.attributes["orders.outcome"] for span in world.exported("process commands")] == ["waiting"] * 2
    world.restart(log)
    assert world.lane.room.trace_of(USER_ID) == TRACE
    world.lane.room.add_answer(USER_ID, UserCheck.ACTIVE)
    later = NOW + timedelta(minutes=10)
    world.lane.settle(later)
    changes = world.commit()
    spans = world.exported()
    waits = [span for span in spans if span.name == "wait for user"]
    for wait, offset in zip(waits, (0, 1), strict=True):
        assert (trace_id_of(wait), format_span_id(wait.parent.span_id)) == (TRACE_ID, SENDER_ID)
        assert wait.end_time - wait.start_time == 600 * 10**9
        assert wait.start_time == int(NOW.timestamp()) * 10**9
        assert wait.attributes["messaging.kafka.offset"] == offset
    assert waits[0].attributes["orders.user_check"] == "active"
    decided = [span for span in spans if span.name == "process commands"]
    assert [span.attributes["orders.outcome"] for span in decided] == ["accepted"] * 2
    assert [trace_context_of(event[2]) for event in changes.events] == [
        TraceContext(f"00-{TRACE_ID}-{id_of(span)}-01".encode(), TRACE.tracestate) for span in decided
    ]


def test_a_trace_that_begins_with_a_command_goes_on_after_its_wait():
    world = TracedWorld()
    world.send_in(None, create)
    [waiting, _] = world.exported()
    world.lane.room.add_answer(USER_ID, UserCheck.ACTIVE)
    world.lane.settle(NOW)
    world.commit()
    decided, wait, _ = world.exported()
    assert {trace_id_of(span) for span in (decided, wait)} == {trace_id_of(waiting)}
    assert decided.parent.span_id == wait.parent.span_id == waiting.context.span_id


def test_a_repeat_and_a_dead_letter_have_spans_without_what_was_sent():
    world = TracedWorld(**{USER_ID: UserCheck.ACTIVE})
    world.send_in(TRACE, create, create)
    assert [span.attributes["orders.outcome"] for span in world.exported("process commands")] == [
        "accepted",
        "repeated",
    ]
    secret = b"hunter2"
    world.lane.decide([decode_record(world.record(secret, secret, tuple(TRACE.headers())))], NOW)
    [letter] = world.commit().dead_letters
    assert [value for name, value in letter[2] if name == "orig_tracestate"] == [TRACE.tracestate]
    spans = world.exported()
    assert [span.attributes.get("orders.outcome") for span in spans] == ["dead_letter", None]
    assert not [span for span in spans if "hunter2" in span.to_json()]


def traced_turns(lanes, written, spans):
    inbox = Inbox(lambda _partition: None, lambda _partition: None)
    turns = TurnLoop(
        written,
        NAMES,
        inbox,
        named=set(),
        leaving=set(),
        turn_s=0.001,
        clock=Clock(60),
        end_of=lambda _partition: 0,
        fetch_before=lambda _at: None,
        park=lambda *_: None,
        failpoint=lambda step: turns.stop() if step == "turn.committed" else None,
        spans=spans,
    )
    for lane in lanes:
        lane._spans = spans
        inbox.open(lane.partition)
        turns.lanes[lane.partition] = lane
        order = but(create, order_id=f"order-{lane.partition}")
        value, key = encode_json_command(order), order.order_id.encode()
        record = ConsumerRecord(
            NAMES.commands, lane.partition, 7, 0, 0, key, value, None, len(key), len(value), tuple(TRACE.headers())
        )
        inbox.put(lane.partition, [(record, order)])
    turns.wake()
    return turns


async def run(turns):
    async with asyncio.timeout(PATIENCE_S):
        await turns.run()


async def test_the_turn_of_several_lanes_links_to_their_commands_and_is_the_exemplar_of_its_time():
    spans, exporter = command_spans()
    await run(traced_turns([lane_with(0, {}), lane_with(1, {})], Written(), spans))
    [turn] = [span for span in exporter.get_finished_spans() if span.name == "turn commands"]
    assert [link.attributes["messaging.destination.partition.id"] for link in turn.links] == ["0", "1"]
    assert {link.attributes["messaging.kafka.offset"] for link in turn.links} == {7}
    exemplars = [sample.exemplar for sample in next(iter(metrics.TURN_SECONDS.collect())).samples if sample.exemplar]
    assert trace_id_of(turn) in {exemplar.labels["trace_id"] for exemplar in exemplars}


async def test_a_turn_that_fails_leaves_no_spans():
    class Refusing(Written):
        async def commit(self, _sent):
            raise TurnRefused("the broker is full", {})

    spans, exporter = command_spans()
    with pytest.raises(TurnRefused):
        await run(traced_turns([lane_with(0, {})], Refusing(), spans))
    assert not exporter.get_finished_spans()


class Lookups(AskingWorld):
    def __init__(self):
        super().__init__()
        spans, self.exporter = command_spans()
        users: Any = Users()
        self.headers: list[dict[str, str]] = []
        users.check = self._check
        self.answer: UserCheck | UserServiceUnavailable = UserCheck.ACTIVE
        self.waiting: TraceContext | None = None
        self.waits_meanwhile: TraceContext | None = None
        self.asking = UserLookups(
            users,
            lambda _: True,
            lambda *_: None,
            concurrency=4,
            clock=lambda: self.now,
            spans=spans,
            trace_of=lambda _: self.waiting,
        )

    async def _check(self, _user_id, *, again=False):  # noqa: ARG002 - as the client has it
        self.headers.append(dict(TRACE_HEADERS.get()))
        self.waiting = self.waits_meanwhile
        if isinstance(self.answer, UserServiceUnavailable):
            raise self.answer
        return self.answer


async def test_a_lookup_is_a_part_of_the_first_trace_that_needs_it_and_linked_to_the_others():
    world = Lookups()
    other = TraceContext(b"00-" + b"1" * 32 + b"-" + b"2" * 16 + b"-01")
    world.asking.ask("dana", TRACE)
    world.asking.ask("dana", other)
    world.asking.ask("dana", UNSAMPLED)
    async with asking_in(world):
        await world.settled()
    [span] = world.exporter.get_finished_spans()
    assert (span.name, span.kind, trace_id_of(span)) == ("GET /v1/users/{id}", SpanKind.CLIENT, TRACE_ID)
    assert [f"{link.context.trace_id:032x}" for link in span.links] == ["1" * 32]
    assert span.attributes["orders.user_check"] == "active"
    assert "dana" not in span.to_json()
    expected = {"traceparent": f"00-{TRACE_ID}-{id_of(span)}-01", "tracestate": TRACESTATE}
    assert world.headers == [expected]


async def test_each_try_of_a_lookup_has_a_span_and_an_untraced_lookup_has_none():
    world = Lookups()
    world.answer = UserServiceUnavailable("status 500")
    world.asking.ask("dana", TRACE)
    world.asking.ask("kim")
    async with asking_in(world):
        await world.settled()
        world.answer = UserCheck.ACTIVE
        await world.at(100.0)
    spans = world.exporter.get_finished_spans()
    assert [span.attributes.get("error.type") for span in spans] == ["UserServiceUnavailable", None]
    assert {trace_id_of(span) for span in spans} == {TRACE_ID}
    assert not world.asking._traces


@pytest.mark.parametrize(
    ("answer", "user_check", "error"),
    [(UserCheck.ACTIVE, "active", None), (UserServiceUnavailable("status 500"), None, "UserServiceUnavailable")],
    ids=["an answer", "none"],
)
async def test_a_lookup_of_a_trace_that_begins_meanwhile_is_recorded_when_it_ends(answer, user_check, error):
    """The lookup begins before its command is decided, and the trace of a command without one begins there."""
    world = Lookups()
    world.answer, world.waits_meanwhile = answer, TRACE
    before_ns = time.time_ns()
    world.asking.ask("dana")
    async with asking_in(world):
        await world.settled()
    [span] = world.exporter.get_finished_spans()
    assert (span.name, span.kind, trace_id_of(span)) == ("GET /v1/users/{id}", SpanKind.CLIENT, TRACE_ID)
    assert (span.attributes.get("orders.user_check"), span.attributes.get("error.type")) == (user_check, error)
    assert before_ns <= span.start_time <= span.end_time
    assert world.headers == [{}]


async def test_the_next_try_of_a_lookup_belongs_to_the_trace_of_the_order_that_waits():
    world = Lookups()
    world.answer, world.waits_meanwhile = UserServiceUnavailable("status 500"), TRACE
    world.asking.ask("dana")
    async with asking_in(world):
        await world.settled()
        await world.at(100.0)
    first, second = world.exporter.get_finished_spans()
    assert world.headers == [{}, {"traceparent": f"00-{TRACE_ID}-{id_of(second)}-01", "tracestate": TRACESTATE}]
    assert trace_id_of(first) == TRACE_ID


async def test_a_lookup_of_a_trace_that_is_not_recorded_has_no_span():
    world = Lookups()
    world.waits_meanwhile = UNSAMPLED
    world.asking.ask("dana", UNSAMPLED)
    async with asking_in(world):
        await world.settled()
    assert not world.exporter.get_finished_spans()


async def test_the_age_of_a_recorded_command_has_its_span_as_exemplar():
    spans, exporter = command_spans()
    await run(traced_turns([lane_with(0, {})], Written(), spans))
    [span] = [span for span in exporter.get_finished_spans() if span.name == "process commands"]
    [age] = metrics.COMMAND_AGE_SECONDS.collect()
    exemplars = [sample.exemplar for sample in age.samples if sample.exemplar]
    assert {"trace_id": TRACE_ID, "span_id": id_of(span)} in [exemplar.labels for exemplar in exemplars]


def test_a_command_that_waits_has_no_age_yet():
    world = TracedWorld()
    [span] = world.send_in(TRACE, create).spans
    assert span.since_ms is None
    world.lane.room.add_answer(USER_ID, UserCheck.ACTIVE)
    world.lane.settle(NOW + timedelta(seconds=1))
    [span] = world.commit().spans
    assert span.since_ms == 7, "the time of its record"
