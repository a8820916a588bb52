"""Checkpoints: what is stored, for how long, and that no projector waits for another one."""

import asyncio
from contextlib import suppress
from typing import Any

import pytest
from aiokafka.structs import TopicPartition
from sqlalchemy import func, make_url, select
from sqlalchemy.exc import DBAPIError

from order_service.errors import DatabaseError
from order_service.kafka.topics import topic_names
from order_service.views import checkpoints as stored
from order_service.views import postgresql, projector
from order_service.views.checkpoints import (
    APART_S,
    DELETED_MAX,
    HOUR_S,
    HOURLY_KEPT_S,
    KEPT_S,
    Checkpoint,
    checkpoint_of,
    store,
)
from order_service.views.projector import Projection, follow
from order_service.views.queries import STEP_OFFSETS
from order_service.views.share import Share
from order_service.views.tables import FORM, checkpoints, form, open_database, positions, prepare
from tests.support.event_log import EVENTS, REJECTIONS, START, Log, Progress
from tests.support.samples import but, order_created
from tests.support.service import until

NOON = 12 * HOUR_S
MANY = {TopicPartition(topic, number): 0 for topic in (EVENTS[0], REJECTIONS[0]) for number in range(100)}


@pytest.fixture
def put(engine):
    """Store positions at a time."""

    def put(offsets, now_s):
        with engine.begin() as connection:
            return store(connection, offsets, now_s)

    return put


@pytest.fixture
def rows(engine):
    """Return what is stored, oldest first."""

    def rows():
        with engine.begin() as connection:
            return connection.execute(select(checkpoints).order_by(checkpoints.c.total)).all()

    return rows


def offsets_of(rows):
    return [checkpoint_of(row).offsets for row in rows]


@pytest.mark.parametrize(
    ("offsets", "seconds", "is_held", "is_stored"),
    [
        pytest.param([5, 6], 60, True, True, id="one partition is further"),
        pytest.param([5, 5], 60, True, False, id="nothing has come"),
        pytest.param([9, 4], 60, False, False, id="one partition is behind: the views are being built again"),
        pytest.param([9], 60, False, False, id="one partition is missing"),
        pytest.param([5, 5, 1], 60, True, True, id="a partition was added"),
        pytest.param([5, 6], APART_S - 1, False, False, id="another projector has just stored one"),
        pytest.param([5, 6], APART_S, True, True, id="another projector stored one a while ago"),
        pytest.param([5, 6], -60, True, True, id="the clock was set back"),
    ],
)
def test_which_positions_are_stored_after_others(put, rows, offsets, seconds, is_held, is_stored):
    assert put([5, 5], NOON)
    assert put(offsets, NOON + seconds) is is_held
    assert offsets_of(rows()) == [(5, 5)] + [tuple(offsets)] * is_stored


def test_a_checkpoint_is_kept_for_a_day_and_the_first_of_an_hour_for_long(put, rows):
    minutes = range(0, 25 * 60, 10)
    for minute in minutes:
        assert put([minute, 7], NOON + 60 * minute)
    now_s = NOON + 60 * minutes[-1]
    kept = {row.stored_at_s for row in rows()}
    times = {NOON + 60 * minute for minute in minutes}
    assert kept == {at_s for at_s in times if at_s >= now_s - KEPT_S or at_s % HOUR_S == 0}
    assert put([10_000, 7], NOON + HOURLY_KEPT_S + 1)
    assert NOON not in {row.stored_at_s for row in rows()}
    assert NOON + HOUR_S in {row.stored_at_s for row in rows()}
    assert put([10_001, 7], 2 * (NOON + HOURLY_KEPT_S))
    assert offsets_of(rows()) == [(10_001, 7)]


def test_the_anchor_of_a_checkpoint_is_the_one_of_the_hour_before_it(put, rows):
    times = (NOON, NOON + 60, NOON + 120, NOON + HOUR_S, NOON + HOUR_S + 60)
    for number, at_s in enumerate(times):
        put([number], at_s)
    first, second, third, fourth, fifth = [row.checkpoint_id for row in rows()]
    assert [row.anchor_id for row in rows()] == [first, first, first, first, fourth]
    assert [row.is_hourly for row in rows()] == [True, False, False, True, False]
    assert len({first, second, third, fourth, fifth}) == 5


def test_a_checkpoint_that_is_deleted_is_replaced_by_its_anchor(put, rows, views, engine):
    for number in range(3):
        put([number, 5], NOON + 60 * number)
    first, second, third = map(checkpoint_of, rows())
    assert views.newest_checkpoint() == third
    assert views.checkpoint(third.checkpoint_id, third.anchor_id) == third
    with engine.begin() as connection:
        connection.execute(checkpoints.delete().where(checkpoints.c.total > second.total))
    put([8, 5], NOON + 300)  # another one in its place: PostgreSQL had lost its last commits in a crash
    assert views.checkpoint(third.checkpoint_id, third.anchor_id) == first
    assert views.checkpoint("0" * 16, "1" * 16) is None


def test_few_old_checkpoints_are_deleted_at_a_time(put, rows, engine):
    row = {"anchor_id": "x", "stored_at_s": 0, "is_hourly": False, "offsets": b"\x91\x01"}
    with engine.begin() as connection:
        old = [{**row, "total": total, "checkpoint_id": str(total)} for total in range(2 * DELETED_MAX + 1)]
        connection.execute(checkpoints.insert(), old)
    for number in range(3):
        put([1000 + number], KEPT_S + 60 * (number + 1))
        left = max(0, 2 * DELETED_MAX + 1 - (number + 1) * DELETED_MAX)
        assert len(rows()) == left + number + 1


def test_a_reader_that_is_behind_is_led_from_checkpoint_to_checkpoint(put, views):
    totals = (100, 200, 200 + STEP_OFFSETS, 5 * STEP_OFFSETS)
    for number, total in enumerate(totals):
        put([total], NOON + 60 * number)
    passed = [0]
    while (step := views.next_checkpoint(passed[-1])) is not None:
        passed.append(step.total)
    assert passed == [0, 200, 200 + STEP_OFFSETS, 5 * STEP_OFFSETS]
    assert views.next_checkpoint(150).total == 200


def test_without_a_checkpoint_there_is_nothing_to_name(views):
    assert views.newest_checkpoint() is None
    assert views.next_checkpoint(0) is None


def test_positions_of_few_partitions_are_not_stored(projection, views):
    projection.positions(START)
    assert projection.store_checkpoint()
    assert views.newest_checkpoint() is None


def move(engine, offsets):
    with engine.begin() as connection:
        for number, offset in offsets.items():
            of_events = positions.c.topic == EVENTS.topic, positions.c.partition == number
            connection.execute(positions.update().where(*of_events).values(next_offset=offset))


def test_a_checkpoint_has_the_positions_of_all_projectors(engine, projection, views):
    projection.positions(MANY)
    move(engine, {3: 7, 99: 10**12})
    assert projection.store_checkpoint()
    checkpoint = views.newest_checkpoint()
    assert {number: offset for number, offset in enumerate(checkpoint.offsets) if offset} == {3: 7, 99: 10**12}
    assert (len(checkpoint.offsets), checkpoint.total) == (100, 10**12 + 7)
    assert projection.store_checkpoint()
    move(engine, {3: 8})
    assert not projection.store_checkpoint(), "the last one is too new"


def test_a_projector_does_not_wait_for_one_that_hangs_while_it_stores_a_checkpoint(url, engine, projection, views):
    projection.positions(MANY)
    if url.get_backend_name() == "sqlite":
        return  # it has one projector
    hanging = open_database(url, writes=True)
    with hanging.begin() as connection:
        assert connection.scalar(projector._LOCK_CHECKPOINTS) == FORM
        store(connection, [1] * 100, NOON)
        assert not projection.store_checkpoint()
        assert projection.beat(Share()) == {Share()}
        projection.apply([], MANY, {EVENTS: 3})
        connection.rollback()
    hanging.dispose()
    assert projection.store_checkpoint()
    assert views.newest_checkpoint().total == 3


def test_the_database_ends_a_projector_that_hangs_while_it_stores_a_checkpoint(url, projection, monkeypatch):
    projection.positions(MANY)
    if url.get_backend_name() == "sqlite":
        return  # it has one projector
    monkeypatch.setattr(postgresql, "IDLE_S", 0.2)
    hanging = open_database(url, writes=True)
    connection = hanging.connect()
    assert connection.scalar(projector._LOCK_CHECKPOINTS) == FORM
    until(projection.store_checkpoint, "another projector stores one", within_s=30.0)
    with pytest.raises(DBAPIError):
        connection.scalar(projector._LOCK_CHECKPOINTS)
    connection.close()
    hanging.dispose()


def test_checkpoints_outlive_views_of_an_older_form_and_grow_on_when_these_are_built(
    engine, projection, views, monkeypatch
):
    monkeypatch.setattr(stored, "APART_S", 0)
    projection.positions(MANY)
    move(engine, {5: 10})
    assert projection.store_checkpoint()
    before = views.newest_checkpoint()
    with engine.begin() as connection:
        connection.execute(form.update().values(form=FORM - 1))
    assert prepare(engine)
    assert views.newest_checkpoint() == before
    projection.positions(MANY)
    move(engine, {5: 9, 6: 100})
    assert not projection.store_checkpoint(), "the views have not reached the newest one"
    assert views.newest_checkpoint() == before
    move(engine, {5: 10})
    assert projection.store_checkpoint()
    assert views.newest_checkpoint().total == 110


def test_checkpoints_beside_views_that_were_removed_are_refused(engine, projection):
    """The log may be another one: an operator who removes the views removes them, too."""
    with engine.begin() as connection:
        for name in ("view_form", "view_positions", "view_projectors", "orders", "order_events", "refusals"):
            connection.exec_driver_sql(f"DROP TABLE {name}")
    with pytest.raises(DatabaseError, match="view_checkpoints"):
        prepare(engine)


async def test_a_projector_stores_what_it_has_moved_and_nothing_while_it_rests(engine, views, monkeypatch):
    monkeypatch.setattr(projector, "LOOK_EVERY_S", 0.005)
    monkeypatch.setattr(projector, "STORE_EVERY_S", 0.01)
    monkeypatch.setattr(stored, "APART_S", 0)
    log: Any = Log(MANY)
    progress, tried = Progress(), []

    class Watched(Projection):
        def store_checkpoint(self):
            tried.append(1)
            return super().store_checkpoint()

    running = asyncio.create_task(follow(log, Watched(engine, topic_names()), progress))

    async def until(condition):
        async with asyncio.timeout(30):
            while not condition():  # noqa: ASYNC110 - the projector works in threads
                await asyncio.sleep(0.01)

    await until(lambda: views.newest_checkpoint() is not None)
    assert views.newest_checkpoint().offsets == (0,) * 100
    log.write(EVENTS, but(order_created, order_id="order-0"))
    await until(lambda: views.newest_checkpoint().total == 1)
    assert views.newest_checkpoint().offsets == (1, *(0,) * 99)
    tries, looks = len(tried), len(progress.behind)
    await until(lambda: len(progress.behind) > looks + 10)
    assert len(tried) == tries
    running.cancel()
    with suppress(asyncio.CancelledError):
        await running
    with engine.begin() as connection:
        assert connection.scalar(select(func.count()).select_from(checkpoints)) == 2


def test_checkpoints_are_found_by_an_index(tmp_path):
    engine = open_database(make_url(f"sqlite:///{tmp_path}/views.db"), writes=True)
    prepare(engine)
    of_ids = checkpoints.c.checkpoint_id.in_(["a", "b"])
    old = [(checkpoints.c.is_hourly == kind) & (checkpoints.c.stored_at_s < 5) for kind in (False, True)]
    with engine.begin() as connection:
        for condition in (of_ids, *old):
            asked = select(checkpoints.c.total).where(condition).compile(engine, compile_kwargs={"literal_binds": True})
            [step] = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {asked}").all()
            assert "USING INDEX view_checkpoints_by" in step[3]
    engine.dispose()


def test_a_checkpoint_is_passed_only_in_every_partition():
    checkpoint = Checkpoint(3, "a", "b", (1, 2, 0))
    topic = EVENTS.topic
    assert checkpoint.is_passed_by({(topic, 0): 1, (topic, 1): 5}, topic)
    assert not checkpoint.is_passed_by({(topic, 0): 9}, topic)
    assert checkpoint.by_partition(topic) == {(topic, 0): 1, (topic, 1): 2, (topic, 2): 0}
