"""Reading a large changelog never holds the event loop for long."""

import asyncio
import gc
import time
from typing import Any

import pytest
import structlog
from aiokafka import ConsumerRecord, TopicPartition
from aiokafka.errors import CorruptRecordException
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from order_service.domain.messages import Line
from order_service.domain.validation import MAX_LINES
from order_service.errors import LaneParked
from order_service.kafka.admin_requests import TopicIdentity
from order_service.kafka.topics import topic_names
from order_service.wire.changelog import POSITION_KEY, Position, decode_entry, encode
from order_service.worker.claims.changelog_reader import DECODED_AT_A_TIME, READ_AT_A_TIME, Changelogs, ChangelogState
from order_service.worker.claims.progress import ClaimSlots, Progress
from order_service.worker.store import MEGABYTE, Stores
from tests.support.samples import but, create, deliver, entry_after, pay, ship

NAMES = topic_names()
ORDERS = 100_000
WIDE = "\N{FOX FACE}"


class Log:
    """A reader on a table's changelog that has everything at hand, as aiokafka has after a fetch."""

    def __init__(self, records):
        self.records = records
        self.read = 0
        self.damaged_at = None

    def assign(self, _places):
        pass

    def seek(self, _place, _offset):
        pass

    def pause(self, *_places):
        pass

    def resume(self, *_places):
        pass

    def assignment(self):
        return set()

    async def end_offsets(self, places):
        return {place: len(self.records) if place.topic == NAMES.table else 0 for place in places}

    async def position(self, place):
        return self.read if place.topic == NAMES.table else 0

    async def getmany(self, *places, timeout_ms, max_records):  # noqa: ARG002, as aiokafka's
        if self.read == self.damaged_at:
            raise CorruptRecordException("Invalid CRC")
        records = self.records[self.read : self.read + max_records]
        self.read += len(records)
        return {places[0]: records} if records else {}


def record(key, value, offset):
    return ConsumerRecord(NAMES.table, 0, offset, 0, 0, key, value, None, len(key), len(value or b""), ())


async def test_a_large_table_is_restored_in_slices():
    entry = entry_after([create, pay, ship, deliver])
    value = encode(entry)
    records = [record(b"order-%d" % number, value, number) for number in range(ORDERS)]
    records.append(record(b"order-7", None, ORDERS))
    position = Position(3, "worker", 5, None)
    log: Any = Log([*records, record(POSITION_KEY, encode(position), ORDERS + 1)])
    slices: list[int] = []

    async def watch():
        """Note how much is read and decoded each time before the loop gets to others."""
        last = 0
        while True:
            done = log.read + len(logs.table)
            slices.append(done - last)
            last = done
            await asyncio.sleep(0)

    progress = Progress(ClaimSlots(1))
    await progress.at("nothing")
    logs = Changelogs(0, NAMES, log, ChangelogState(), progress)
    watching = asyncio.create_task(watch())
    await logs.read_to_end()
    watching.cancel()
    progress.leave()
    assert (logs.position, len(logs.table), logs.table.get("order-8")) == (position, ORDERS - 1, entry)
    assert logs.table.get("order-7") is None
    assert sum(slices) > 1.9 * ORDERS
    assert max(slices) <= max(READ_AT_A_TIME, DECODED_AT_A_TIME)


@pytest.fixture
def without_other_objects():
    """Leave the objects of other tests out of garbage collections: a worker has fewer."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


LARGE_LINES = tuple(
    Line(line_id=f"{number:03}{WIDE * 250}", sku=WIDE * 250, name=WIDE * 200, quantity=1, unit_price=1)
    for number in range(MAX_LINES)
)


@pytest.mark.usefixtures("without_other_objects")
@pytest.mark.parametrize(
    ("count", "command"),
    [
        pytest.param(ORDERS, create, id="many orders"),
        pytest.param(30, but(create, lines=LARGE_LINES, discount=0), id="orders of a megabyte"),
    ],
)
async def test_no_slice_of_a_restore_keeps_the_loop_for_a_tenth_of_a_second(count, command):
    """By the processor time of its thread: the time of other programs on the machine does not count."""
    value = encode(entry_after([command]))
    log: Any = Log([record(b"order-%d" % number, value, number) for number in range(count)])
    longest_s = 0.0

    async def watch():
        nonlocal longest_s
        began_s = time.thread_time()
        while True:
            await asyncio.sleep(0)
            now_s = time.thread_time()
            longest_s, began_s = max(longest_s, now_s - began_s), now_s

    progress = Progress(ClaimSlots(1))
    await progress.at("nothing")
    logs = Changelogs(0, NAMES, log, ChangelogState(), progress)
    watching = asyncio.create_task(watch())
    await logs.read_to_end()
    watching.cancel()
    progress.leave()
    assert len(logs.table) == count
    assert 0 < longest_s <= 0.1


async def test_a_damaged_batch_parks_its_lane_and_tells_where():
    log: Any = Log([record(b"order-1", encode(entry_after([create])), 0)] * 600)
    log.damaged_at = 500
    logs = Changelogs(0, NAMES, log, ChangelogState(), Progress(ClaimSlots(1)))
    why = r"^damaged_batch: a record cannot be read \(.*Invalid CRC\), in orders.table.v1 at 500 or"
    with pytest.raises(LaneParked, match=why):
        await logs.read_to_end()


async def test_a_restore_says_how_far_it_is_and_how_fast(monkeypatch):
    monkeypatch.setattr("order_service.worker.claims.changelog_reader.REPORT_EVERY_S", 0.0)
    value = encode(entry_after([create]))
    log: Any = Log([record(b"order-%d" % number, value, number) for number in range(1_200)])
    progress = Progress(ClaimSlots(1))
    texts: list[str] = []
    moved = progress.moved

    async def note():
        texts.append(progress.text())
        await moved()

    progress.moved = note  # type: ignore[method-assign]
    with structlog.testing.capture_logs() as logged:
        await Changelogs(0, NAMES, log, ChangelogState(), progress).read_to_end()
    progress.leave()
    said = [(line["event"], line["partition"], line["offset"], line["end"]) for line in logged]
    assert said == [("Table is being restored.", 0, offset, 1_200) for offset in (500, 1_000, 1_200)]
    assert any(text.startswith("1000 of 1200 offsets are restored, ") for text in texts)
    assert progress.text() == ""


class Held(Log):
    """A log of which a committed reader gets no more than `stable` records, until the test changes that."""

    def __init__(self, records, *, stable, end, is_away=False):
        super().__init__(records)
        self.stable = stable
        self.is_away = is_away
        self.end = end
        self.asked = 0

    def last_stable_offset(self, place):
        return self.stable if place.topic == NAMES.table else 0

    def highwater(self, place):
        return self.end if place.topic == NAMES.table else 0

    def last_poll_timestamp(self, _place):
        return round((time.time() - 10.0 * self.is_away) * 1000)

    async def getmany(self, *places, timeout_ms, max_records):
        self.asked += 1
        await asyncio.sleep(0)
        return await super().getmany(
            *places, timeout_ms=timeout_ms, max_records=min(max_records, self.stable - self.read)
        )


@pytest.mark.parametrize(
    ("end", "is_away", "open_transactions"),
    [
        pytest.param(5, False, {TopicPartition(NAMES.table, 0): 3}, id="an open transaction"),
        pytest.param(3, False, {}, id="a broker that has no more"),
        pytest.param(5, True, {}, id="a broker that is away"),
    ],
)
async def test_a_claim_that_waits_knows_which_transaction_is_open_until_it_has_ended(end, is_away, open_transactions):
    records = [record(b"order-1", encode(entry_after([create])), 0)] * 5
    log: Any = Held(records, stable=3, end=end, is_away=is_away)
    progress = Progress(ClaimSlots(1))
    await progress.at("the brokers")
    logs = Changelogs(0, NAMES, log, ChangelogState(), progress)
    reading = asyncio.create_task(logs.read({place: 5 for place in logs.partitions if place.topic == NAMES.table}))
    async with asyncio.timeout(30):
        while log.asked < 10:  # noqa: ASYNC110, what is looked at has no event
            await asyncio.sleep(0)
        assert progress.open_transactions == open_transactions
        log.stable = log.end = 5
        await reading
    assert progress.open_transactions == {}
    progress.leave()


@pytest.fixture
def small_parts(monkeypatch):
    """Have a table on disk decoded and written in parts of ten records."""
    monkeypatch.setattr("order_service.worker.claims.changelog_reader.UNDECODED_MAX", 10)
    monkeypatch.setattr("order_service.worker.claims.changelog_reader.READ_AT_A_TIME", 7)
    monkeypatch.setattr("order_service.worker.table.UNSAVED_MAX", 10)


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 4)), max_size=300), st.integers(0, 300))
@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
async def test_a_table_on_disk_is_restored_in_parts_as_one_in_memory_is(small_parts, tmp_path_factory, changes, cut):
    """Versions of orders and their deletions, in any order; the claim is interrupted after some, and tried again."""
    life: list[Any] = [create, pay, ship, deliver]
    values = [None, *(encode(entry_after(life[: count + 1])) for count in range(len(life)))]
    records = [record(b"order-%d" % number, values[kind], at) for at, (number, kind) in enumerate(changes)]
    expected: dict[str, Any] = {}
    for number, kind in changes:
        expected[f"order-{number}"] = values[kind]
    stores = Stores(
        tmp_path_factory.mktemp("tables"), MEGABYTE, TopicIdentity(NAMES.table, "cluster", "topic"), lambda _step: None
    )
    for log in (Log(records[:cut]), Log(records)):
        state = ChangelogState()
        state.load(await stores.open(0, 0, len(records)))
        progress = Progress(ClaimSlots(1))
        logs = Changelogs(0, NAMES, log, state, progress)  # type: ignore[arg-type]
        await logs.read_to_end()
        progress.leave()
        assert len(logs.table._values) < 10 + 7
    got = {order_id: logs.table.get(order_id) for order_id in expected}
    stores.close_all()
    assert got == {order_id: None if value is None else decode_entry(value) for order_id, value in expected.items()}
