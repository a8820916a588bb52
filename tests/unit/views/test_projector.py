"""What the projector keeps, and that it keeps it once."""

import asyncio
import dataclasses
from contextlib import asynccontextmanager, suppress
from functools import reduce
from typing import Any, cast

import pytest
from aiokafka.structs import ConsumerRecord, TopicPartition
from sqlalchemy import inspect, make_url, select
from sqlalchemy.exc import OperationalError

from order_service.domain.messages import OrderCreated
from order_service.domain.refusals import Status
from order_service.errors import DatabaseError, HistoryError, LeaderAwayError, OvertakenError, RegistryAwayError
from order_service.kafka.reader import SILENT_S, OutcomeRecord, Reader
from order_service.kafka.topics import topic_names
from order_service.sdk.testing.samples import TRACEPARENT
from order_service.settings import Settings
from order_service.views import order_heads, order_view, projector, stopped
from order_service.views.process import BuildProgress
from order_service.views.projector import Completeness, Projection, follow
from order_service.views.rows import ROWS_MAX
from order_service.views.stopped import REASON_MAX, BadRecord, Stopped
from order_service.views.tables import FORM, form, open_database, positions, prepare
from order_service.wire.avro import encode_event
from order_service.wire.trace_context import TraceContext
from tests.support import samples
from tests.support.collector import spans_in_memory
from tests.support.event_log import EVENTS, REJECTIONS, START, Log, Progress, after, order_of, seens
from tests.support.samples import (
    ORDER_ID,
    but,
    digest_of,
    event_of,
    order_amended,
    order_created,
    order_paid,
    ship_refused,
)

HISTORY = list(samples.events)


def put(projection, messages, before=START, offset=0):
    found = seens(messages, offset)
    projection.positions(START)
    projection.apply(found, before, after(before, found))


def test_the_view_of_an_order_is_the_fold_of_its_events(projection, views):
    put(projection, HISTORY)
    order = order_of(views, ORDER_ID)
    assert order == reduce(order_view.after, HISTORY, None)
    assert order.status is Status.DELIVERED
    assert projection.positions(START) == {EVENTS: len(HISTORY), REJECTIONS: 0}


@pytest.mark.parametrize("cut", range(1, len(HISTORY)))
def test_wherever_a_log_is_cut_the_views_are_the_same(projection, views, cut):
    put(projection, HISTORY[:cut])
    put(projection, HISTORY[cut:], before={**START, EVENTS: cut}, offset=cut)
    assert order_of(views, ORDER_ID).version == len(HISTORY)
    assert [recorded.event for recorded in views.history(ORDER_ID)] == HISTORY


def test_what_was_applied_is_not_applied_again(projection, views):
    put(projection, HISTORY[:2])
    with pytest.raises(OvertakenError, match=f"expected {EVENTS.topic}-0 at 0"):
        put(projection, HISTORY[:2])
    assert order_of(views, ORDER_ID).version == 2


@pytest.mark.parametrize("wrong", START)
def test_where_one_place_is_elsewhere_none_is_moved(projection, views, wrong):
    projection.positions(START)
    with pytest.raises(OvertakenError):
        projection.apply(seens(HISTORY[:1]), START | {wrong: 5}, dict.fromkeys(START, 6))
    assert projection.positions() == START
    assert order_of(views, ORDER_ID) is None


OTHER = TopicPartition(EVENTS.topic, 1)
OTHERS = START | {OTHER: 0}


def test_an_event_that_does_not_fit_stops_its_partition_before_it_and_no_other_one(projection, views):
    projection.positions(OTHERS)
    there, missing = order_created, order_paid  # between them lies the amendment
    beside = but(order_created, order_id="order-2")
    behind = but(order_created, order_id="order-3")
    read = [
        *seens([there, missing, behind]),
        OutcomeRecord(beside, 1, 0, digest_of(beside), 0),
        OutcomeRecord(ship_refused, 0, 0, digest_of(ship_refused), 9),
    ]
    bad = projection.apply(read, OTHERS, {EVENTS: 3, OTHER: 1, REJECTIONS: 1})
    why = "version 3 of order-1 does not name the event before it"
    assert bad == [BadRecord(EVENTS, 1, why)]
    assert projection.positions() == {EVENTS: 1, OTHER: 1, REJECTIONS: 1}
    assert views.stopped_partitions() == [(EVENTS.topic, 0, 1, why)]
    assert order_of(views, ORDER_ID).version == 1
    assert order_of(views, "order-2").version == 1
    assert order_of(views, "order-3") is None
    assert views.command(ORDER_ID, ship_refused.command_id) == ship_refused


def test_a_partition_goes_on_by_itself_where_the_record_can_be_read_after_all(projection, views):
    put(projection, [order_created])
    before = {**START, EVENTS: 1}
    unread = BadRecord(EVENTS, 1, "the schema id 7 is unknown")
    behind = but(order_created, order_id="order-3")
    assert projection.apply([unread, *seens([behind], 2)], before, {EVENTS: 3}) == [unread]
    assert [fault[2:] for fault in views.stopped_partitions()] == [(1, unread.reason)]
    put(projection, [order_amended, behind], before=before, offset=1)
    assert views.stopped_partitions() == []
    assert order_of(views, ORDER_ID).version == 2
    assert order_of(views, "order-3").version == 1


def test_a_bad_record_is_skipped_once_and_only_where_the_partition_is_stopped(projection, views):
    put(projection, [order_created])
    before = {**START, EVENTS: 1}
    assert not projection.skip(EVENTS, 1)  # it is not stopped
    projection.apply([BadRecord(EVENTS, 1, "not Avro")], before, {EVENTS: 2})
    assert not projection.skip(EVENTS, 0)
    assert not projection.skip(REJECTIONS, 1)
    assert projection.skip(EVENTS, 1)
    assert not projection.skip(EVENTS, 1)
    assert views.stopped_partitions() == []
    put(projection, [order_amended], before={**START, EVENTS: 2}, offset=2)
    assert order_of(views, ORDER_ID).version == 2


@pytest.mark.parametrize(
    ("event", "key"),
    [
        pytest.param(but(order_created, order_id="order\0"), b"order\0", id="an order_id with NUL"),
        pytest.param(but(order_created, command_id="\0"), b"order-1", id="a command_id with NUL"),
        pytest.param(but(order_created, fact=but(samples.created, user_id="\0")), b"order-1", id="a user_id with NUL"),
        pytest.param(
            but(order_amended, fact=but(order_amended.fact, user_id="\0")), b"order-1", id="an amended user_id"
        ),
        pytest.param(order_created, b"order-2", id="the key of another order"),
        pytest.param(order_created, None, id="no key"),
        pytest.param(None, b"order-1", id="bytes that are no event"),
    ],
)
def test_what_a_database_could_not_hold_is_a_bad_record(event, key):
    value = b"\0\0" * 300 if event is None else encode_event(event)
    record = ConsumerRecord(EVENTS.topic, 0, 7, 0, 0, key, value, None, 0, 0, ())
    bad = projector._decoded_one(record, topic_names())
    assert isinstance(bad, BadRecord)
    assert (bad.topic_partition, bad.offset) == (EVENTS, 7)
    assert bad.reason.isprintable()
    assert len(bad.reason) <= REASON_MAX


NINE = {EVENTS: 9, OTHER: 9, REJECTIONS: 9}


@pytest.mark.parametrize(
    ("at", "starts", "ends", "bad"),
    [
        pytest.param({EVENTS: 5}, {}, {}, [], id="all is there"),
        pytest.param({EVENTS: 5, OTHER: 7}, {}, {OTHER: 6}, [(OTHER, 7)], id="one partition has lost its end"),
        pytest.param({EVENTS: 5}, {OTHER: 5}, {}, [(OTHER, 4)], id="one that was never read has lost its head"),
        pytest.param({EVENTS: 5}, {EVENTS: 6}, {}, [(EVENTS, 5)], id="the only one that was read has lost its head"),
        pytest.param({}, {OTHER: 5}, {}, [(OTHER, 4)], id="fresh views, and events that were deleted"),
        pytest.param({}, {REJECTIONS: 5}, {}, [], id="fresh views, and rejections that were deleted"),
        pytest.param({REJECTIONS: 3}, {REJECTIONS: 5}, {}, [], id="rejections that were deleted"),
        pytest.param({}, {}, {EVENTS: 0, OTHER: 0, REJECTIONS: 0}, [], id="fresh views of an empty log"),
        pytest.param({EVENTS: 5}, {}, {EVENTS: 3}, None, id="all that was read has lost its end"),
        pytest.param(
            {EVENTS: 5, OTHER: 7}, {}, {EVENTS: 3, OTHER: None}, [(EVENTS, 5)], id="one lost its end, one has no leader"
        ),
        pytest.param({EVENTS: 5, OTHER: 7}, {}, dict.fromkeys(NINE, 3), None, id="a log made again"),
    ],
)
def test_a_partition_that_lost_records_is_stopped_alone_and_another_log_is_refused(at, starts, ends, bad):
    names = topic_names()
    led = {place: end for place, end in {**NINE, **ends}.items() if end is not None}
    place = {**OTHERS, **at}, {**OTHERS, **starts}, led
    if bad is None:
        with pytest.raises(
            HistoryError, match=r"the views do not match the log: .* the views were built from another topic"
        ):
            projector._unreachable(*place, names)
    else:
        assert [(record.topic_partition, record.offset) for record in projector._unreachable(*place, names)] == bad


@asynccontextmanager
async def following(log, projection, progress):
    running = asyncio.create_task(follow(log, projection, progress))
    yield
    running.cancel()
    with suppress(asyncio.CancelledError):
        await running


async def holds(condition):
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110 - the projector works in threads
            await asyncio.sleep(0.005)


async def test_events_are_recorded_in_their_trace_once_the_views_are_built(projection):
    """Views that are built again would otherwise record the traces of all that ever happened."""
    trace = TraceContext(TRACEPARENT.encode())
    spans, exporter = spans_in_memory(root_rate=0.0)
    log: Any = Log(START)
    progress = Progress()

    def write(number, headers):
        log.write(EVENTS, order(number))
        log.records[-1] = dataclasses.replace(log.records[-1], headers=headers)

    write(1, tuple(trace.headers()))
    running = asyncio.create_task(follow(log, projection, progress, spans=spans))
    await holds(lambda: 0 in progress.left)
    write(2, ())
    write(3, tuple(trace.headers()))
    await holds(exporter.get_finished_spans)
    running.cancel()
    with suppress(asyncio.CancelledError):
        await running
    [span] = exporter.get_finished_spans()
    assert (span.name, span.attributes["messaging.kafka.offset"]) == (f"process {EVENTS.topic}", 2)
    assert f"00-{span.context.trace_id:032x}-{span.parent.span_id:016x}-01" == TRACEPARENT


def order(number):
    return but(order_created, order_id=f"order-{number}")


async def test_a_partition_that_lost_its_end_waits_for_an_operator_despite_new_writes(projection, views, monkeypatch):
    monkeypatch.setattr(stopped, "TRY_AGAIN_S", 0.02)
    log, progress = Log(OTHERS), Progress()
    log.write(OTHER, order(2))
    log.write(OTHER, order(6))
    projection.positions(OTHERS)
    beside = OutcomeRecord(order(2), 1, 0, digest_of(order(2)), 0)
    projection.apply([*seens([order(0), order(1)]), beside], OTHERS, {EVENTS: 2, OTHER: 1})
    log.end_of[EVENTS] = 1
    async with following(log, projection, progress):
        await holds(lambda: len(log.begun) > 2 and order_of(views, "order-6"))
        for number in (3, 4):
            log.write(EVENTS, order(number))
        begun = len(log.begun)
        await holds(lambda: len(log.begun) > begun + 3)
        ((*where, why),) = views.stopped_partitions()
        assert where == [EVENTS.topic, 0, 2]
        assert "the views have read it up to 2, but it ends at 1" in why
        assert not any(EVENTS in places for places in log.begun)
        assert min(progress.behind) == 0
    async with following(log, projection, progress):  # as after a restart
        begun = len(log.begun)
        await holds(lambda: len(log.begun) > begun + 3)
        assert not any(EVENTS in places for places in log.begun)
        assert projection.skip(EVENTS, 2)
        log.write(EVENTS, order(5))
        await holds(lambda: order_of(views, "order-5"))
    assert views.stopped_partitions() == []


async def test_new_views_begin_at_the_log_start_once_the_missing_head_is_skipped(projection, views, monkeypatch):
    monkeypatch.setattr(stopped, "TRY_AGAIN_S", 0.02)
    log = Log({**OTHERS, EVENTS: 5, REJECTIONS: 5})
    log.start_of = {**OTHERS, EVENTS: 5, REJECTIONS: 5}
    log.write(EVENTS, order(1))
    async with following(log, projection, Progress()):
        await holds(views.stopped_partitions)
        assert [fault[:3] for fault in views.stopped_partitions()] == [(EVENTS.topic, 0, 4)]
        assert projection.skip(EVENTS, 4)
        await holds(lambda: order_of(views, "order-1"))
    assert views.stopped_partitions() == []


async def test_a_partition_that_the_topics_no_longer_have_is_another_log(projection):
    projection.positions([EVENTS, TopicPartition(EVENTS.topic, EVENTS.partition + 1)])
    with pytest.raises(
        HistoryError, match=r"the views have read .*-[0-9]+, which does not exist: the views were built from another"
    ):
        await follow(cast("Any", Log({EVENTS: 0})), projection, Progress())


async def test_a_leader_that_is_lost_again_and_again_is_asked_for_once_a_second(projection, monkeypatch):
    log: Any = Log({EVENTS: 0})
    paused: list[float] = []

    async def no_leader(places):
        raise LeaderAwayError(places)

    async def pause(seconds):
        paused.append(seconds)
        if len(paused) == 3:
            raise asyncio.CancelledError

    monkeypatch.setattr(log, "ends", no_leader)
    monkeypatch.setattr("order_service.views.projector.asyncio.sleep", pause)
    with pytest.raises(asyncio.CancelledError):
        await follow(log, projection, Progress())
    assert paused == [projector.LOOK_EVERY_S] * 3


async def test_a_projector_whose_partitions_are_all_stopped_has_started(projection, views):
    log, progress = Log({EVENTS: 5}), BuildProgress()
    log.start_of = {EVENTS: 5}
    assert progress.is_starting
    async with following(log, projection, progress):
        await holds(lambda: not progress.is_starting)
    assert views.faults() == []
    [fault] = progress.faults()
    assert "is stopped at offset 4" in fault
    progress.report_stopped({})  # the metric is that of all tests


async def test_while_the_schema_registry_is_away_only_the_partition_that_needs_it_waits(projection, views, monkeypatch):
    monkeypatch.setattr(stopped, "TRY_AGAIN_S", 0.02)
    log = Log(OTHERS)
    log.away = RegistryAwayError("no schema registry answers at http://registry")
    log.write(EVENTS, order(1))
    (readable,) = log.records
    unknown = b"\0" + (7).to_bytes(4, "big") + readable.value[5:]
    log.records = [dataclasses.replace(readable, value=unknown)]
    log.write(OTHER, order(2))
    async with following(log, projection, Progress()):
        await holds(lambda: order_of(views, "order-2") and views.stopped_partitions())
        ((*where, why),) = views.stopped_partitions()
        assert where == [EVENTS.topic, 0, 0]
        assert str(log.away) in why
        log.records[0], log.away = readable, None
        await holds(lambda: order_of(views, "order-1"))
    assert views.stopped_partitions() == []


async def test_a_partition_without_a_leader_is_left_out_and_the_others_go_on(projection, views, monkeypatch):
    for module in (stopped, projector):
        monkeypatch.setattr(module, "TRY_AGAIN_S", 0.02)
    monkeypatch.setattr(projector, "LOOK_EVERY_S", 0.01)
    log, progress = Log(OTHERS), Progress()
    log.without_leader = {EVENTS}
    log.write(EVENTS, order(1))
    log.write(OTHER, order(2))
    async with following(log, projection, progress):
        await holds(lambda: order_of(views, "order-2"))
        await holds(lambda: progress.leaderless == {EVENTS})
        begun = len(log.begun)
        await holds(lambda: len(log.begun) > begun + 2)
        assert not any(EVENTS in places for places in log.begun)
        assert progress.left == []  # what it holds is not known: the views are not built
        log.without_leader = set()
        await holds(lambda: order_of(views, "order-1") and not progress.leaderless and 0 in progress.left)
        log.without_leader = {OTHER}
        await holds(lambda: progress.leaderless == {OTHER})
        log.write(EVENTS, order(3))
        await holds(lambda: order_of(views, "order-3"))
    assert views.stopped_partitions() == []


async def test_a_projector_waits_where_no_partition_has_a_leader(projection, views, monkeypatch):
    monkeypatch.setattr(projector, "TRY_AGAIN_S", 0.02)
    log, progress = Log(OTHERS), Progress()
    log.without_leader = set(OTHERS)
    log.write(OTHER, order(2))
    async with following(log, projection, progress):
        await holds(lambda: progress.leaderless == set(OTHERS))
        log.without_leader = set()
        await holds(lambda: order_of(views, "order-2") and not progress.leaderless)


async def test_a_leader_that_is_lost_while_its_ends_are_asked_for_ends_no_projector(projection, views, monkeypatch):
    monkeypatch.setattr(projector, "TRY_AGAIN_S", 0.02)
    log, seen = Log(OTHERS), []

    async def late(places):
        found = [place for place in places if place in log.without_leader]
        log.without_leader = {EVENTS}
        seen.append(found)
        return found

    monkeypatch.setattr(log, "leaderless", late)
    log.write(OTHER, order(2))
    async with following(log, projection, Progress()):
        await holds(lambda: order_of(views, "order-2"))
    assert seen[:2] == [[], [EVENTS]]


async def test_a_damaged_batch_stops_its_partition_and_no_other_one(projection, views, monkeypatch):
    monkeypatch.setattr(stopped, "TRY_AGAIN_S", 0.02)
    log = Log(OTHERS)
    log.write(EVENTS, order(1))
    log.write(OTHER, order(2))
    log.damaged = EVENTS
    async with following(log, projection, Progress()):
        await holds(views.stopped_partitions)
        ((*where, why),) = views.stopped_partitions()
        assert where == [EVENTS.topic, 0, 1]
        assert f"a batch of {EVENTS.topic}-0 is damaged" in why
        log.write(OTHER, order(3))
        await holds(lambda: order_of(views, "order-1") and order_of(views, "order-3"))
        assert len(views.stopped_partitions()) == 1
        log.write(EVENTS, order(4))
        log.write(EVENTS, order(5))
        assert projection.skip(EVENTS, 1)
        log.damaged = None
        await holds(lambda: order_of(views, "order-5"))
    assert views.stopped_partitions() == []
    assert order_of(views, "order-4") is None


async def test_views_that_are_built_are_not_being_built_again_for_a_stopped_partition(projection, views, monkeypatch):
    monkeypatch.setattr(stopped, "TRY_AGAIN_S", 0.02)
    log, progress = Log(OTHERS), Progress()
    log.damaged = EVENTS

    async def behind(_ends):
        return 3 if EVENTS in log.begun[-1] and len(log.begun) > 1 else 0

    monkeypatch.setattr(log, "behind", behind)
    async with following(log, projection, progress):
        await holds(lambda: [EVENTS in places for places in log.begun].count(True) > 3)
        assert progress.left == [0]
        with projection._engine.begin() as connection:
            connection.execute(positions.update().values(is_built=False))  # as another version that builds them again
        await holds(lambda: len(progress.left) > 1 and projection.is_built(OTHERS))


async def test_a_partition_that_lost_its_end_stops_again_when_it_is_skipped(projection, views, monkeypatch):
    monkeypatch.setattr(stopped, "TRY_AGAIN_S", 0.02)
    log = Log(OTHERS)
    log.write(OTHER, order(2))
    projection.positions(OTHERS)
    beside = OutcomeRecord(order(2), 1, 0, digest_of(order(2)), 0)
    projection.apply([*seens([order(0), order(1)]), beside], OTHERS, {EVENTS: 2, OTHER: 1})
    log.end_of[EVENTS] = 1
    async with following(log, projection, Progress()):
        for offset in (2, 3):
            await holds(lambda offset=offset: [fault[2] for fault in views.stopped_partitions()] == [offset])
            assert projection.skip(EVENTS, offset)


async def looks(completeness, log, at, count=3):
    """Return what so many looks find."""
    return [await completeness.check(log, at) for _ in range(count)]


async def test_refusals_are_complete_once_the_end_that_was_told_is_read():
    log, completeness, at = Log(START), Completeness(Log.names), {EVENTS: 7, REJECTIONS: 2}
    log.at = {REJECTIONS: 2}
    assert await looks(completeness, log, at) == [{}] * 3, "nothing was told since the events were read"
    log.told[REJECTIONS] = 4
    assert await looks(completeness, log, {**at, EVENTS: 9}) == [{}] * 3, "a transaction is open"
    log.told[REJECTIONS], log.at = 9, {}
    assert await looks(completeness, log, {**at, EVENTS: 9}) == [{}] * 3, "the partition is stopped"
    log.at = {REJECTIONS: 4}
    assert await looks(completeness, log, {EVENTS: 9, REJECTIONS: 3}, 1) == [{REJECTIONS: 7}]
    log.at = {REJECTIONS: 9}
    assert await looks(completeness, log, {EVENTS: 9, REJECTIONS: 9}) == [{}, {}, {REJECTIONS: 9}]
    assert await looks(completeness, log, {EVENTS: 9, REJECTIONS: 9}, 5) == [{}] * 5, "nothing is new"


def complete_to(engine):
    with engine.begin() as connection:
        return connection.scalar(select(positions.c.complete_offset).where(positions.c.topic == REJECTIONS.topic))


async def test_a_projector_records_up_to_which_event_no_refusal_is_missing(projection, engine, monkeypatch):
    monkeypatch.setattr(projector, "LOOK_EVERY_S", 0.0)
    log = Log(START)
    log.told[REJECTIONS] = 0
    for number in (1, 2):
        log.write(EVENTS, order(number))
    async with following(log, projection, Progress()):
        await holds(lambda: complete_to(engine) == 2)


async def test_refusals_are_not_complete_at_a_record_that_the_views_do_not_take(projection, engine, views, monkeypatch):
    monkeypatch.setattr(projector, "LOOK_EVERY_S", 0.0)
    log, asked = Log(START), asyncio.Event()

    def log_end_since(*_):
        asked.set()
        return 1

    monkeypatch.setattr(log, "log_end_since", log_end_since)
    log.write(EVENTS, order(1))
    async with following(log, projection, Progress()):
        await asyncio.wait_for(asked.wait(), 30)
        log.write(REJECTIONS, order(2))
        await holds(lambda: views.stopped_partitions() and len(log.begun) > 1)
        assert complete_to(engine) == 0


def test_completeness_is_recorded_at_unmoved_refusals_and_never_decreases(projection, engine):
    put(projection, [ship_refused])
    found = []
    for offset, at in ((5, 1), (3, 1), (7, 0), (7, 2), (6, 1)):
        projection.complete({REJECTIONS: offset}, {REJECTIONS: at})
        found.append(complete_to(engine))
    assert found == [5, 5, 5, 5, 6]


async def test_an_end_is_told_by_a_fetch_that_was_sent_after_a_time(monkeypatch):
    reader = Reader(Settings())
    told: dict[TopicPartition, float] = {}
    monkeypatch.setattr(reader._consumer, "assignment", lambda: {REJECTIONS})
    monkeypatch.setattr(reader._consumer, "last_poll_timestamp", told.get)
    monkeypatch.setattr(reader._consumer, "highwater", lambda _place: 8)
    ends = [reader.log_end_since(REJECTIONS, 100.0)]
    for told_s in (99, 100 + SILENT_S, 101 + SILENT_S):
        told[REJECTIONS] = told_s * 1000
        ends.append(reader.log_end_since(REJECTIONS, 100.0))
    await reader._consumer.stop()
    assert ends == [None, None, None, 8]
    assert reader.log_end_since(EVENTS, 100.0) is None


def test_another_projector_cannot_move_a_partition_that_waits_for_an_operator(projection, views):
    projection.positions(START)
    projection.stop_lost([BadRecord(EVENTS, 0, "it lost records")], START)
    with pytest.raises(OvertakenError):
        projection.apply(seens([order_created]), START, {EVENTS: 1})
    assert [fault[2:] for fault in views.stopped_partitions()] == [(0, "it lost records")]


def test_a_stopped_partition_is_tried_again_once_each_time(monkeypatch):
    partitions = Stopped()
    monkeypatch.setattr(stopped, "TRY_AGAIN_S", 0)
    partitions.add([BadRecord(EVENTS, 1, "not Avro")])
    monkeypatch.setattr(stopped, "TRY_AGAIN_S", 1000)
    assert partitions.is_due()
    assert partitions.to_read(START) == list(START)
    assert not partitions.is_due()
    assert partitions.to_read(START) == [REJECTIONS]


def test_a_refused_command_accepted_later_has_its_event_and_keeps_the_refusal(projection, views):
    command_id = samples.ship.command_id
    before = but(ship_refused, command_digest=samples.order_shipped.command_digest)
    put(projection, [order_created, before])
    assert views.command(ORDER_ID, command_id) == before
    put(projection, HISTORY[1:], before={EVENTS: 1, REJECTIONS: 2}, offset=1)
    assert views.command(ORDER_ID, command_id) == samples.order_shipped
    assert views.refusals(ORDER_ID) == (before,)


def test_a_refusal_after_an_acceptance_does_not_take_its_place(projection, views):
    put(projection, HISTORY)
    late = but(ship_refused, command_digest=samples.order_shipped.command_digest)
    put(projection, [late], before={**START, EVENTS: len(HISTORY)}, offset=0)
    assert views.command(ORDER_ID, samples.ship.command_id) == samples.order_shipped


def test_the_same_command_refused_again_has_its_newest_reason(projection, views):
    put(projection, [ship_refused])
    newer = but(ship_refused, reason="deadline_passed", detail="too late")
    put(projection, [newer], before={**START, REJECTIONS: 1}, offset=1)
    assert views.command(ORDER_ID, ship_refused.command_id) == newer
    assert views.refusals(ORDER_ID) == (newer,)


def test_text_with_nul_is_kept(projection, views):
    odd = event_of(but(samples.create, metadata={"a\0b": "\0"}), but(samples.created, metadata={"a\0b": "\0"}))
    put(projection, [odd])
    assert order_of(views, ORDER_ID).metadata == {"a\0b": "\0"}
    assert isinstance(views.history(ORDER_ID)[0].event.fact, OrderCreated)


def test_two_projectors_apply_everything_once(url, engine, views):
    first, second = Projection(engine, topic_names()), Projection(open_database(url, writes=True), topic_names())
    found = seens(HISTORY)
    first.positions(START)
    second.positions(START)
    for number in range(len(HISTORY)):
        before = {EVENTS: number}
        one = [found[number]]
        first.apply(one, before, {EVENTS: number + 1})
        with pytest.raises(OvertakenError):
            second.apply(one, before, {EVENTS: number + 1})
        first, second = second, first
    assert [recorded.event for recorded in views.history(ORDER_ID)] == HISTORY
    for projection in (first, second):
        projection._engine.dispose()


def test_views_of_other_topics_are_left_alone(projection):
    projection.positions(START)
    others = [TopicPartition(f"other.{place.topic}", place.partition) for place in START]
    with pytest.raises(DatabaseError, match=f"the database holds views of other topics: {EVENTS.topic}"):
        projection.positions(others)
    assert projection.positions() == START


def test_a_batch_may_be_of_more_orders_than_a_statement_takes(projection, views):
    many = [but(order_created, order_id=f"order-{number}") for number in range(2 * ROWS_MAX + 1)]
    put(projection, many)
    projection._heads.remember({}, {EVENTS: 0})  # it left them elsewhere, so it asks the tables for all
    paid = [but(HISTORY[1], order_id=event.order_id, previous_digest=digest_of(event)) for event in many]
    put(projection, paid, before={**START, EVENTS: len(many)}, offset=len(many))
    assert {order_of(views, event.order_id).version for event in (many[0], many[ROWS_MAX], many[-1])} == {2}
    assert len(views.events_of({(EVENTS.topic, 0): 0}, limit=10_000)) == 2 * len(many)


def test_of_large_orders_fewer_are_remembered(projection, views, monkeypatch):
    put(projection, HISTORY)
    monkeypatch.setattr(order_heads, "KEPT_MAX", 0)
    more = [but(event, order_id="order-2") for event in HISTORY]
    chained = [but(more[0], previous_digest=None)]
    for one in more[1:]:
        chained.append(but(one, previous_digest=digest_of(chained[-1])))
    put(projection, chained, before={**START, EVENTS: len(HISTORY)}, offset=len(HISTORY))
    assert not projection._heads._remembered
    assert projection._heads._kept == 0
    assert order_of(views, "order-2").version == len(HISTORY)


def test_views_of_an_older_form_are_built_again(engine, projection, views):
    put(projection, HISTORY)
    assert not prepare(engine)
    with engine.begin() as connection:
        connection.execute(form.update().values(form=FORM - 1))
    assert prepare(engine)
    assert order_of(views, ORDER_ID) is None
    assert projection.positions(START) == START
    with engine.begin() as connection:
        assert connection.scalar(select(form.c.form)) == FORM
    put(projection, HISTORY)
    assert order_of(views, ORDER_ID).version == len(HISTORY)


def test_what_an_older_form_had_and_this_one_has_not_is_removed(engine, projection, views):
    with engine.begin() as connection:
        for index in ("refusals_by_command", "refusals_by_order"):
            connection.exec_driver_sql(f"DROP INDEX {index}")
        connection.exec_driver_sql("CREATE TABLE commands (order_id TEXT)")
        connection.exec_driver_sql("CREATE INDEX refusals_by_command ON commands (order_id)")
        connection.exec_driver_sql("CREATE INDEX refusals_by_order ON commands (order_id)")
        connection.execute(form.update().values(form=3))
    assert prepare(engine)
    assert "commands" not in inspect(engine).get_table_names()
    put(projection, [ship_refused])
    assert views.refusals(ORDER_ID) == (ship_refused,)


def test_a_projector_leaves_views_of_a_newer_form_alone(engine, projection, views):
    put(projection, HISTORY[:1])
    with engine.begin() as connection:
        connection.execute(form.update().values(form=FORM + 1))
    with pytest.raises(DatabaseError, match="install a newer release"):
        prepare(engine)
    with pytest.raises(DatabaseError, match=f"the views now have schema version {FORM + 1}"):
        projection.positions(START)
    with pytest.raises(DatabaseError, match=f"the views now have schema version {FORM + 1}"):
        projection.apply(seens(HISTORY[1:2], 1), {EVENTS: 1}, {EVENTS: 2})
    assert order_of(views, ORDER_ID).version == 1


def test_tables_that_are_not_ours_are_left_alone(url):
    engine = open_database(url, writes=True)
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE orders (theirs INTEGER)")
    with pytest.raises(DatabaseError, match="did not create: orders"):
        prepare(engine)
    with engine.begin() as connection:
        assert connection.exec_driver_sql("SELECT * FROM orders").all() == []
    engine.dispose()


def test_a_file_that_was_removed_is_not_written_on(tmp_path):
    file = tmp_path / "views.db"
    engine = open_database(make_url(f"sqlite:///{file}"), writes=True)
    prepare(engine)
    file.unlink()
    with pytest.raises(OperationalError, match="no such table"):
        Projection(engine, topic_names()).positions(START)
    assert prepare(engine)
    assert Projection(engine, topic_names()).positions(START) == START
    engine.dispose()
