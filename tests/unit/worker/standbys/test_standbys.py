"""Following the changelogs of another worker's partition: what is kept, when it starts over, and what a claim gets."""

import asyncio
import time
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka import TopicPartition
from aiokafka.errors import KafkaTimeoutError, NotLeaderForPartitionError
from structlog.testing import capture_logs

from order_service.wire.changelog import POSITION_KEY, encode
from order_service.worker import metrics
from order_service.worker.standbys import standbys as module
from order_service.worker.standbys.standbys import REST, RETRY_S, Standbys
from tests.support.samples import create
from tests.unit.worker.claims.topics import BARRIER, ENTRY, NAMES, Made, Topics, at

TABLE = TopicPartition(NAMES.table, 0)
ORDER: Made = (create.order_id.encode(), encode(ENTRY), [])
STARTS_OVER = ("A standby has reached no end for an hour and starts over.", 0, 1)
POSITION: Made = (POSITION_KEY, encode(at(4)), [])


def order(number: int) -> Made:
    return (b"other-%d" % number, encode(ENTRY), [])


class Changelogs(Topics):
    """The changelogs of partition 0 as the client of the standbys sees them, and that client."""

    def __init__(self):
        super().__init__({NAMES.table: [ORDER, POSITION], NAMES.waiting: [BARRIER]})
        self.leader: int | None = 1
        self.reads: list[int] = []
        self.error: Exception | None = None
        self.is_held = asyncio.Event()
        self.release = asyncio.Event()
        self.release.set()
        cluster = SimpleNamespace(leader_for_partition=lambda _partition: self.leader)
        self._client = SimpleNamespace(cluster=cluster)

    @asynccontextmanager
    async def reader(self):
        yield self

    def pause(self, *places):
        pass

    async def getmany(self, *places, timeout_ms, max_records):
        if self.error is not None:
            raise self.error
        self.is_held.set()
        await self.release.wait()
        fetched = await super().getmany(*places, timeout_ms=timeout_ms, max_records=max_records)
        self.reads += [record.offset for record in fetched.get(TABLE, [])]
        return fetched

    def write(self, *records):
        self._records[TABLE] = [*self._records[TABLE], *records]

    def replace(self, *records):
        self._records[TABLE] = list(records)


@pytest.fixture
def logs():
    return Changelogs()


@pytest.fixture
def standbys(logs):
    made = Standbys(NAMES, logs)
    made.follow({0})
    yield made
    made.follow(())


def lag():
    return {
        sample.labels["partition"]: sample.value for each in metrics.STANDBY_LAG.collect() for sample in each.samples
    }


def orders_of(taken):
    return {partition: set(dict(state.table.items())) for partition, state in taken.items()}


async def test_a_claim_gets_what_was_read_and_each_round_reads_only_what_is_new(logs, standbys):
    await standbys._round()
    assert lag() == {"0": 0}
    logs.write(order(1), POSITION)
    logs.reads.clear()
    await standbys._round()
    assert logs.reads == [1, 2, 3], "the last record once more, then the new ones"
    await standbys._round()
    assert logs.reads == [1, 2, 3], "nothing is read where nothing is new"
    taken = standbys.take({0, 1})
    assert orders_of(taken) == {0: {create.order_id, "other-1"}}
    assert taken[0].is_followed
    assert lag() == {}


async def test_a_partition_is_followed_from_its_start_again_after_it_was_taken(logs, standbys):
    await standbys._round()
    [taken] = standbys.take({0}).values()
    standbys.follow({0})
    await standbys._round()
    [again] = standbys.take({0}).values()
    assert again is not taken
    assert logs.reads == [0, 1, 0, 1]


async def test_a_read_that_is_under_way_adds_nothing_to_a_state_that_a_claim_has_taken(logs, standbys):
    await standbys._round()
    logs.write(order(1))
    logs.is_held.clear()
    logs.release.clear()
    reading = asyncio.create_task(standbys._round())
    await asyncio.wait_for(logs.is_held.wait(), 30)
    [state] = standbys.take({0}).values()
    logs.release.set()
    await asyncio.wait_for(reading, 30)
    assert orders_of({0: state}) == {0: {create.order_id}}
    assert state.next_offsets[NAMES.table] == 2


async def test_a_large_changelog_is_read_in_steps_and_counts_as_read_at_its_end_only(logs, standbys, monkeypatch):
    monkeypatch.setattr(module, "STEP_OFFSETS", 1)
    monkeypatch.setattr(
        logs, "getmany", lambda *places, **_: Changelogs.getmany(logs, *places, timeout_ms=0, max_records=1)
    )
    logs.write(order(1), order(2))
    assert await standbys._round()
    began_at = standbys._states[0].as_of
    assert lag() == {"0": 5}, "as of the beginning of the step"
    while await standbys._round():
        assert standbys._states[0].as_of == began_at
    assert standbys._states[0].as_of > began_at
    assert lag() == {"0": 0}


async def test_each_round_that_reaches_the_ends_moves_the_time_up_to_which_all_is_read(standbys):
    await standbys._round()
    standbys._states[0].as_of -= 3000
    before = time.time()
    await standbys._round()
    assert standbys._states[0].as_of >= before


async def test_a_state_starts_over_if_no_end_was_reached_for_an_hour(logs, standbys):
    await standbys._round()
    standbys._states[0].as_of -= 3600
    logs.replace(BARRIER, POSITION, order(1))
    with capture_logs() as lines:
        await standbys._round()
    assert [(line["event"], line["partition"], line["orders"]) for line in lines] == [STARTS_OVER]
    assert orders_of(standbys.take({0})) == {0: {"other-1"}}


async def test_a_state_starts_over_if_the_machine_was_suspended_in_the_middle_of_a_reading(logs, standbys, monkeypatch):
    await standbys._round()
    logs.write(order(1))
    getmany = logs.getmany

    async def late(*places, **arguments):
        standbys._states[0].as_of -= 3600
        monkeypatch.setattr(logs, "getmany", getmany)
        return await getmany(*places, **arguments)

    monkeypatch.setattr(logs, "getmany", late)
    logs.reads.clear()
    with capture_logs() as lines:
        await standbys._round()
        await standbys._round()
    assert logs.reads == [1, 2, 0, 1, 2]
    assert [line["event"] for line in lines] == [STARTS_OVER[0]]


@pytest.mark.parametrize(
    "records",
    [
        pytest.param([POSITION], id="shorter"),
        pytest.param([order(1)], id="shorter, with another record"),
    ],
)
async def test_a_state_starts_over_if_the_changelog_has_lost_its_end(logs, standbys, records):
    await standbys._round()
    logs.replace(*records)
    await standbys._round()
    assert create.order_id not in orders_of(standbys.take({0}))[0]


async def test_a_partition_without_a_leader_is_left_out(logs, standbys):
    logs.leader = None
    assert not await standbys._round()
    assert standbys.take({0}) == {}


@pytest.mark.parametrize("error", [NotLeaderForPartitionError(), KafkaTimeoutError(), TimeoutError(), OSError()])
async def test_while_kafka_is_away_a_state_is_kept_and_tried_again_later(logs, standbys, error, monkeypatch):
    await standbys._round()
    logs.write(order(1))
    logs.error = error
    with capture_logs() as lines:
        for _ in range(3):
            assert not await standbys._round()
    assert [line["event"] for line in lines] == ["A standby cannot read its changelogs."], "not at once"
    logs.error = None
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + RETRY_S + 1)
    await standbys._round()
    assert orders_of(standbys.take({0})) == {0: {create.order_id, "other-1"}}


async def test_what_a_failed_read_has_not_reached_does_not_count_as_read(logs, standbys, monkeypatch):
    """The state starts over, and Kafka goes away in the middle of it."""
    await standbys._round()
    as_of = standbys._states[0].as_of - 3600
    standbys._states[0].as_of = as_of
    logs.write(order(1))
    getmany = logs.getmany

    async def first_only(*places, **_):
        logs.error = KafkaTimeoutError() if logs.reads[2:] else None
        return await getmany(*places, timeout_ms=0, max_records=1)

    monkeypatch.setattr(logs, "getmany", first_only)
    await standbys._round()
    assert standbys._states[0].next_offsets[NAMES.table] == 1
    cleared_at = standbys._states[0].as_of
    monkeypatch.setattr(logs, "getmany", getmany)
    logs.error = None
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + RETRY_S + 1)
    monkeypatch.setattr(module, "STEP_OFFSETS", 1)
    assert await standbys._round()
    assert standbys._states[0].as_of == cleared_at
    while await standbys._round():
        pass
    assert standbys._states[0].as_of > cleared_at
    assert orders_of(standbys.take({0})) == {0: {create.order_id, "other-1"}}


async def test_a_record_that_cannot_be_read_ends_only_this_standby(logs, standbys):
    logs.write((POSITION_KEY, b"\x09", []))
    with capture_logs() as lines:
        for _ in range(3):
            assert not await standbys._round()
    [line] = lines
    assert line["event"] == "A standby cannot use its changelogs."
    assert "orders.table.v1 partition 0 offset 2 cannot be read" in line["reason"]
    assert standbys.take({0}) == {}


async def test_after_each_slice_the_event_loop_is_left_to_others():
    slot: Any = module._Slot()
    loop = asyncio.get_running_loop()
    began_at = loop.time()
    async with slot.slice():
        while loop.time() < began_at + 0.01:
            pass
    assert loop.time() - began_at >= 0.01 * (1 + REST)
