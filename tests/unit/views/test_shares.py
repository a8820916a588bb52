"""Several projectors share the partitions: each reads its own, none waits for another, and a gap shows."""

import asyncio
import random
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager, suppress

import pytest
from aiokafka.structs import TopicPartition
from pydantic import ValidationError
from sqlalchemy import false, select

from order_service.errors import DatabaseError, OvertakenError, SetupError
from order_service.kafka.reader import OutcomeRecord
from order_service.kafka.topics import topic_names
from order_service.settings import Settings
from order_service.views import projector, stopped
from order_service.views.process import BuildProgress, share_of
from order_service.views.projector import Projection, follow
from order_service.views.share import SEEN_WITHIN_S, Share, Unread, unread
from order_service.views.stopped import BadRecord
from order_service.views.tables import (
    FORM,
    database_of,
    form,
    open_database,
    order_events,
    orders,
    positions,
    prepare,
    projectors,
    refusals,
)
from tests.support.event_log import EVENTS, REJECTIONS, Log, Progress, order_of
from tests.support.samples import but, digest_of, order_created, ship_refused

PARTITIONS = 4
EVERYWHERE = {TopicPartition(topic, number): 0 for topic in (EVENTS[0], REJECTIONS[0]) for number in range(PARTITIONS)}
EVEN, ODD = Share(0, 2), Share(1, 2)


def place(number):
    return TopicPartition(EVENTS.topic, number)


def created(number, at=0):
    return but(order_created, order_id=f"order-{number}-{at}")


def test_every_partition_belongs_to_one_projector_for_both_topics():
    for count in (1, 2, 3, 7):
        for topic_partition in EVERYWHERE:
            holders = [index for index in range(count) if Share(index, count).holds(topic_partition)]
            assert holders == [topic_partition.partition % count]


@pytest.mark.parametrize(
    ("running", "numbers", "indexes"),
    [
        pytest.param([EVEN, ODD], [], (), id="all run"),
        pytest.param([EVEN], [1, 3], (1,), id="one of two is missing"),
        pytest.param([], [0, 1, 2, 3], (0, 1), id="none runs"),
        pytest.param([EVEN, Share(1, 4)], [3], (1,), id="the others have another count, and leave a gap"),
        pytest.param([EVEN, Share()], [], (), id="one reads everything, beside others"),
    ],
)
def test_partitions_that_no_running_projector_reads(running, numbers, indexes):
    found = unread(EVERYWHERE, EVEN, running)
    assert [partition for _, partition in found.partitions] == numbers * 2
    assert found.indexes == indexes


@pytest.mark.parametrize(
    ("settings", "share", "why"),
    [
        ({}, Share(), ""),
        ({"projector_index": 0}, Share(), ""),
        ({"projectors": 3, "projector_index": 2, "database_url": "postgresql://db/views"}, Share(2, 3), ""),
        ({"projectors": 3, "projector_index": 2}, None, "the views are in SQLite, which has one writer at a time"),
        (
            {"projectors": 3, "database_url": "postgresql://db/views"},
            None,
            "set ORDERS_PROJECTOR_INDEX to a number from 0 to 2",
        ),
    ],
)
def test_the_share_of_a_projector_comes_from_its_settings(settings, share, why):
    given = Settings(**settings)
    if share is None:
        with pytest.raises(SetupError, match=why):
            share_of(given, database_of(given))
    else:
        assert share_of(given, database_of(given)) == share


def test_an_index_that_no_projector_can_have_is_refused():
    with pytest.raises(ValidationError, match="ORDERS_PROJECTOR_INDEX is 2, expected less than ORDERS_PROJECTORS"):
        Settings(projectors=2, projector_index=2)


@asynccontextmanager
async def following(log, projection, progress, share):
    running = asyncio.create_task(follow(log, projection, progress, share))
    yield
    running.cancel()
    with suppress(asyncio.CancelledError):
        await running


async def holds(condition):
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110 - the projector works in threads
            await asyncio.sleep(0.005)


async def test_each_projector_reads_its_partitions_and_together_they_build_the_views(engine, views):
    logs = [Log(EVERYWHERE), Log(EVERYWHERE)]
    for log in logs:
        for number in range(PARTITIONS):
            log.write(place(number), created(number))
    async with following(logs[0], Projection(engine, topic_names()), Progress(), EVEN):
        await holds(lambda: order_of(views, "order-0-0") and order_of(views, "order-2-0"))
        assert order_of(views, "order-1-0") is None
        assert views.faults() == ["the views are being built"]
        async with following(logs[1], Projection(engine, topic_names()), Progress(), ODD):
            await holds(lambda: not views.faults())
    assert all(order_of(views, f"order-{number}-0") for number in range(PARTITIONS))
    for log, share in zip(logs, (EVEN, ODD), strict=True):
        assert {topic_partition for begun in log.begun for topic_partition in begun} == {
            topic_partition for topic_partition in EVERYWHERE if share.holds(topic_partition)
        }


async def test_two_projectors_of_one_share_apply_everything_once(engine, views):
    async with AsyncExitStack() as stack:
        logs = [Log(EVERYWHERE) for _ in range(3)]
        for log, share in zip(logs, (EVEN, EVEN, Share()), strict=True):
            await stack.enter_async_context(following(log, Projection(engine, topic_names()), Progress(), share))
        for at in range(20):
            for log in logs:
                for number in range(PARTITIONS):
                    log.write(place(number), created(number, at))
            await asyncio.sleep(0)
        everything = {(EVENTS.topic, number): 0 for number in range(PARTITIONS)}
        await holds(lambda: len(views.events_of(everything)) >= 20 * PARTITIONS)
    assert [(each.partition, each.offset) for each in views.events_of(everything)] == [
        (number, at) for number in range(PARTITIONS) for at in range(20)
    ]


async def test_partitions_that_no_projector_reads_are_reported_until_one_does(engine, monkeypatch):
    monkeypatch.setattr(projector, "LOOK_EVERY_S", 0.01)
    monkeypatch.setattr(projector, "BEAT_EVERY_S", 0.01)
    monkeypatch.setattr(projector, "UNREAD_AFTER_S", 0.05)
    projection, progress = Projection(engine, topic_names()), Progress()
    async with following(Log(EVERYWHERE), projection, progress, EVEN):
        await holds(lambda: progress.unread.indexes == (1,))
        assert {partition for _, partition in progress.unread.partitions} == {1, 3}
        async with following(Log(EVERYWHERE), Projection(engine, topic_names()), Progress(), ODD):
            await holds(lambda: progress.unread == Unread())
        with engine.begin() as connection:  # it ended a while ago
            is_odd = projectors.c.projector_index == 1
            age = projectors.c.seen_at_s - SEEN_WITHIN_S - 1
            connection.execute(projectors.update().where(is_odd).values(seen_at_s=age))
        await holds(lambda: progress.unread.indexes == (1,))


def test_a_gap_is_a_fault_and_a_projector_that_starts_a_little_later_is_none(engine):
    progress = BuildProgress()
    progress.report_left(0)
    progress.report_unread(Unread((place(1), place(3)), (1,)))
    [fault] = progress.faults()
    assert fault == (
        "no projector reads 2 partitions, partition 1 of orders.events.v1 among them: start one for each "
        "ORDERS_PROJECTOR_INDEX of 1"
    )
    progress.report_unread(Unread())
    assert progress.faults() == []
    projection = Projection(engine, topic_names())
    assert projection.beat(EVEN) == {EVEN}
    assert projection.beat(ODD) == {EVEN, ODD}
    assert projection.beat(EVEN) == {EVEN, ODD}
    with engine.begin() as connection:
        assert len(connection.execute(select(projectors)).all()) == 2


async def test_a_projector_of_one_partition_tells_a_lost_end_from_another_log(engine, views, monkeypatch):
    monkeypatch.setattr(stopped, "TRY_AGAIN_S", 0.02)
    projection, log = Projection(engine, topic_names()), Log(EVERYWHERE)
    projection.positions(EVERYWHERE)
    for number in (0, 1):
        read = [OutcomeRecord(created(number, at), number, at, digest_of(created(number, at)), at) for at in (0, 1)]
        projection.apply(read, {place(number): 0}, {place(number): 2})
    log.end_of |= {place(0): 1, place(1): 2}
    async with following(log, projection, Progress(), Share(0, PARTITIONS)):
        await holds(views.stopped_partitions)
    assert [fault[:3] for fault in views.stopped_partitions()] == [(EVENTS.topic, 0, 2)]


def outcomes_of(number, offset, count, *, rejected):
    if rejected:
        return [OutcomeRecord(ship_refused, number, offset + at, digest_of(ship_refused), at) for at in range(count)]
    events = [created(number, offset + at) for at in range(count)]
    return [OutcomeRecord(event, number, offset + at, digest_of(event), at) for at, event in enumerate(events)]


@pytest.mark.parametrize("seed", range(3))
def test_readers_get_every_row_once_and_in_order_while_projectors_write_at_once(url, engine, views, seed):
    """A reader asks for positions and for rows in separate statements, between the commits of two projectors."""
    length = 150
    Projection(engine, topic_names()).positions(EVERYWHERE)
    done = threading.Event()

    def project(share):
        chance, writing = random.Random(seed * 10 + share.index), open_database(url, writes=True)
        projection = Projection(writing, topic_names())
        at = {topic_partition: 0 for topic_partition in EVERYWHERE if share.holds(topic_partition)}
        while least := {topic_partition: offset for topic_partition, offset in at.items() if offset < length}:
            chosen = chance.sample(sorted(least), chance.randint(1, len(least)))
            to = {each: min(length, at[each] + chance.randint(1, 20)) for each in chosen}
            read = [
                record
                for each, end in to.items()
                for record in outcomes_of(
                    each.partition, at[each], end - at[each], rejected=each.topic == REJECTIONS.topic
                )
            ]
            assert projection.apply(read, at, to) == []
            at |= to
        writing.dispose()

    def follow_rows():
        """Read as a view poller does; return the places of all rows in the order in which they came."""
        found: dict[tuple[str, int], list[int]] = {(topic, number): [] for topic, number in EVERYWHERE}
        since = dict.fromkeys(found, 0)
        while True:
            was_done = done.is_set()
            changes = views.changes_since(since)
            for each in changes.events:
                found[EVENTS.topic, each.partition].append(each.offset)
            for each in changes.refusals:
                found[REJECTIONS.topic, each.partition].append(each.offset)
            assert all(found[each] == list(range(changes.offsets[each])) for each in found)
            since = changes.offsets
            if was_done and changes.is_all:
                return since

    with ThreadPoolExecutor() as pool:
        readers = [pool.submit(follow_rows) for _ in range(2)]
        writers = [pool.submit(project, share) for share in (EVEN, ODD)]
        try:
            for writer in writers:
                writer.result(120)
        finally:
            done.set()
        for reader in readers:
            assert set(reader.result(60).values()) == {length}


def test_a_projector_that_hangs_in_a_transaction_holds_up_no_other_and_no_reader(url, engine, views):
    if url.get_backend_name() == "sqlite":
        with pytest.raises(SetupError):  # it has one writer at a time, so several projectors are refused
            share_of(Settings(projectors=2, projector_index=0), url)
        return
    projection = Projection(engine, topic_names())
    projection.positions(EVERYWHERE)
    hanging = open_database(url, writes=True)
    with hanging.begin() as connection:
        of_odd = positions.c.partition.in_([1, 3])
        connection.execute(positions.update().where(of_odd).values(fault="it hangs here"))
        projection.apply(outcomes_of(2, 0, 3, rejected=False), EVERYWHERE, {place(2): 3})
        assert projection.beat(EVEN) == {EVEN}
        assert projection.positions(EVERYWHERE) == {**EVERYWHERE, place(2): 3}, "as at each begin of its reading"
        projection.mark_built([place(0), place(2)])
        changes = views.changes_since({})
        assert [(each.partition, each.offset) for each in changes.events] == [(2, 0), (2, 1), (2, 2)]
        assert views.stopped_partitions() == []
        connection.rollback()
    hanging.dispose()


def test_of_projectors_that_prepare_an_empty_database_at_once_one_creates_the_tables(url):
    engines = [open_database(url, writes=True) for _ in range(4)]
    start = threading.Barrier(len(engines))

    def begin(engine):
        start.wait(30)
        return prepare(engine)

    with ThreadPoolExecutor() as pool:
        assert sorted(pool.map(begin, engines)) == [False, False, False, True]
    for engine in engines:
        engine.dispose()


@pytest.mark.parametrize("_again", range(3))
def test_tables_are_recreated_while_a_projector_of_the_old_form_writes(url, engine, _again):
    Projection(engine, topic_names()).positions(EVERYWHERE)
    with engine.begin() as connection:
        connection.execute(form.update().values(form=FORM - 1))
    is_writing, is_done = threading.Event(), threading.Event()
    writing = open_database(url, writes=True)

    def write():
        """Lock the tables without a pause, in the order in which a projector writes to them."""
        while not is_done.is_set():
            with writing.begin() as connection:
                connection.execute(positions.update().values(complete_offset=1))
                is_writing.set()
                for table in (orders, order_events, refusals):
                    connection.execute(table.delete().where(false()))

    with ThreadPoolExecutor() as pool:
        writer = pool.submit(write)
        assert is_writing.wait(30)
        try:
            assert prepare(engine)
        finally:
            is_done.set()
        writer.result(30)
    assert Projection(engine, topic_names()).positions() == {}
    writing.dispose()


USES = {
    "positions": lambda projection: projection.positions(),
    "complete": lambda projection: projection.complete({place(0): 1}, EVERYWHERE),
    "beat": lambda projection: projection.beat(EVEN),
    "skip": lambda projection: projection.skip(place(0), 0),
    "stop_lost": lambda projection: projection.stop_lost([BadRecord(place(0), 0, "lost")], EVERYWHERE),
    "store_checkpoint": lambda projection: projection.store_checkpoint(),
    "apply": lambda projection: projection.apply([], EVERYWHERE, {place(0): 0}),
}


@pytest.mark.parametrize("use", USES.values(), ids=USES)
def test_no_use_of_the_tables_is_in_a_deadlock_with_the_projector_that_recreates_them(url, engine, use, monkeypatch):
    monkeypatch.setattr(projector, "STORED_FROM_BYTES", 0)
    projection = Projection(engine, topic_names())
    is_writing, is_done = threading.Event(), threading.Event()
    recreating = open_database(url, writes=True)

    def write():
        """Use the tables without a pause. Other partitions, or another form, are no failure."""
        while not is_done.is_set():
            with suppress(OvertakenError, DatabaseError):
                use(projection)
            is_writing.set()

    with ThreadPoolExecutor() as pool:
        writer = pool.submit(write)
        try:
            assert is_writing.wait(30)
            for _ in range(20):
                with recreating.begin() as connection:
                    connection.execute(positions.delete())
                    connection.execute(form.update().values(form=FORM - 1))
                assert prepare(recreating)
        finally:
            is_done.set()
        writer.result(30)
    recreating.dispose()


def test_a_projector_that_has_another_form_does_not_count_itself_as_running(engine, projection):
    with engine.begin() as connection:
        connection.execute(form.update().values(form=FORM + 1))
    with pytest.raises(DatabaseError, match=f"the views now have schema version {FORM + 1}"):
        projection.beat(EVEN)
    with engine.begin() as connection:
        assert connection.execute(select(projectors)).all() == []
