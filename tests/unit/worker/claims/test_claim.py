"""The steps of a claim without a broker: in which order they are done, and what their deadlines count."""

from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiokafka import TopicPartition
from aiokafka.cluster import ClusterMetadata
from aiokafka.structs import RecordMetadata
from msgspec import structs

from order_service.errors import Fenced, LaneParked, StoreUnavailable, Stuck
from order_service.kafka.admin_requests import TopicIdentity
from order_service.wire.changelog import POSITION_KEY, RELEASE_KEY, encode
from order_service.worker.claims.changelog_reader import CONTINUED_FOR_S, Changelogs, ChangelogState
from order_service.worker.claims.claim import Claimed, Claimer, claim_until_done
from order_service.worker.claims.progress import ClaimSlots, Progress
from order_service.worker.metrics import STORES_DISCARDED
from order_service.worker.store import MEGABYTE, Stores, TableStore
from tests.support.samples import create
from tests.unit.worker.blocking import block_loop, shorten
from tests.unit.worker.claims.topics import BARRIER, ENTRY, EVENT, NAMES, Made, Topics, at

TABLE = TopicPartition(NAMES.table, 0)
STEPS = [
    "claim.locked",
    "read orders",
    "claim.read",
    "begin",
    "commit",
    "fence worker",
    "claim.fenced",
    "claim.checked",
    "begin",
    "commit",
    "claim.named",
]


class Partition(Topics):
    """A partition with one order, its clients and the producer of its claim; notes what they are asked for."""

    def __init__(self):
        order: Made = (create.order_id.encode(), encode(ENTRY), [])
        table = [order, (POSITION_KEY, encode(at(4)), [])]
        commands, events = [BARRIER] * 10, [EVENT]
        super().__init__({NAMES.table: table, NAMES.waiting: [BARRIER], NAMES.commands: commands, NAMES.events: events})
        self.calls = []
        self.fenced = set()
        self.open = []

    @asynccontextmanager
    async def reader(self):
        yield self

    @asynccontextmanager
    async def claiming(self, *_):
        try:
            yield self
        finally:
            for place, offset in self.open:  # aborted
                self._records[place] = [*self._records[place][:offset], BARRIER, *self._records[place][offset + 1 :]]

    async def getmany(self, *places, timeout_ms, max_records):
        fetched = await super().getmany(*places, timeout_ms=timeout_ms, max_records=max_records)
        if any(record.key == create.order_id.encode() for records in fetched.values() for record in records):
            self.calls.append("read orders")
        return fetched

    async def fence(self, owner):
        self.calls.append(f"fence {owner}")

    async def begin(self):
        self.calls.append("begin")

    async def send_all(self, topic, partition, records):
        place = TopicPartition(topic, partition)
        offset = len(self._records[place])
        self._records[place] = [*self._records[place], *records]
        self.open.append((place, offset))
        return [RecordMetadata(topic, partition, place, offset, 0, 0, 0)]

    async def wait_for_acks(self, sent):
        return sent

    async def commit(self, sent):
        self.calls.append("commit")
        self.open = []
        return sent

    def write(self, *records, topic=NAMES.table):
        place = TopicPartition(topic, 0)
        self._records[place] = [*self._records[place], *records]


def claimer_of(partition, owner, failpoint, *, others=()):
    metadata = ClusterMetadata()
    return Claimer("orders", owner, set(), frozenset(others), NAMES, {}, metadata, partition, failpoint)


@pytest.fixture
def claim(monkeypatch):
    """Claim a partition; gives the position from which its lane goes on."""

    async def claimed(partition: Any, state=None, failpoint=None, **settings):
        monkeypatch.setattr("order_service.worker.claims.claim.claiming", partition.claiming)
        progress = Progress(ClaimSlots(1))
        try:
            claimer = claimer_of(partition, "next", failpoint or partition.calls.append, **settings)
            return await claimer.claim(0, state or ChangelogState(), progress)
        finally:
            progress.leave()

    return claimed


async def test_a_claim_opens_its_transaction_only_after_it_has_read_the_table(claim):
    """Kafka aborts a transaction that is open for 15 s, and a large table takes longer."""
    partition = Partition()
    claimed = await claim(partition)
    assert (claimed.position.owner, [order_id for order_id, _ in claimed.table.items()]) == ("next", [create.order_id])
    assert partition.calls == STEPS


class Blocking(Partition):
    """A partition whose commits arrive while the event loop is blocked."""

    async def commit(self, sent):
        await block_loop()
        return await super().commit(sent)


async def test_a_claim_does_not_count_the_time_in_which_the_loop_is_blocked(claim, monkeypatch):
    shorten(monkeypatch, "claims.claim")
    partition = Blocking()
    await claim(partition)
    assert partition.calls == STEPS


class Interrupted(Exception):
    """A rebalance comes."""


class InterruptedOnce(Partition):
    """A partition whose first claim ends at a step."""

    def __init__(self, step):
        super().__init__()
        self.step = step
        self.reads: list[tuple[str, int]] = []

    def note(self, step):
        self.calls.append(step)
        if step == self.step:
            self.step = None
            raise Interrupted

    async def getmany(self, *places, timeout_ms, max_records):
        fetched = await Topics.getmany(self, *places, timeout_ms=timeout_ms, max_records=max_records)
        self.reads += [(place.topic, record.offset) for place, records in fetched.items() for record in records]
        return fetched

    async def begin(self):
        await super().begin()
        self.note(f"begin {self.calls.count('begin')}")

    def remove_order(self):
        """Remove the order from the changelog, and the event of its creation."""
        self._records[TABLE] = [BARRIER, *self._records[TABLE][1:]]
        self._records[TopicPartition(NAMES.events, 0)] = []


STATE_OF_ORDER = {create.order_id: ENTRY}


async def interrupt(partition, monkeypatch, state=None):
    """Start a claim that is interrupted; returns what it has read."""
    monkeypatch.setattr("order_service.worker.claims.claim.claiming", partition.claiming)
    state = state or ChangelogState()
    progress = Progress(ClaimSlots(1))
    with pytest.raises(Interrupted):
        await claimer_of(partition, "first", partition.note).claim(0, state, progress)
    progress.leave()
    partition.reads.clear()
    return state


@pytest.mark.parametrize("step", ["claim.read", "claim.fenced", "claim.checked", "claim.named"])
async def test_an_interrupted_claim_is_continued_without_reading_again(claim, monkeypatch, step):
    partition = InterruptedOnce(step)
    state = await interrupt(partition, monkeypatch)
    read_to = state.next_offsets[NAMES.table]
    claimed = await claim(partition, state)
    assert (dict(claimed.table.items()), claimed.waiting) == (STATE_OF_ORDER, [])
    assert (claimed.position.owner, claimed.position.next_offset) == ("next", 4)
    assert all(offset >= read_to for topic, offset in partition.reads if topic == NAMES.table)


async def test_a_claim_that_was_interrupted_while_it_read_continues_there(claim, monkeypatch):
    partition = InterruptedOnce("claim.read")
    state = await interrupt(partition, monkeypatch)
    state.clear()
    state.next_offsets, state.ends = {NAMES.table: 1}, {NAMES.table: 2}
    state.undecoded[NAMES.table][create.order_id.encode()] = (0, encode(ENTRY))
    claimed = await claim(partition, state)
    assert (dict(claimed.table.items()), claimed.waiting) == (STATE_OF_ORDER, [])
    assert (NAMES.table, 0) not in partition.reads


AGAIN = pytest.mark.parametrize("again", [None, "claim.read", "claim.fenced", "claim.checked"])
"""The step at which the second claim is interrupted, too."""


@AGAIN
async def test_an_interrupted_claim_starts_over_if_another_process_has_written_since(claim, monkeypatch, again):
    """The other process has deleted the order, and Kafka has removed both the order and its tombstone."""
    partition = InterruptedOnce("claim.read")
    state = await interrupt(partition, monkeypatch)
    partition.remove_order()
    partition.write(BARRIER, (POSITION_KEY, encode(at(4)), []))
    if again is not None:
        partition.step = again
        await interrupt(partition, monkeypatch, state)
    claimed = await claim(partition, state)
    assert (dict(claimed.table.items()), claimed.waiting) == ({}, [])


@AGAIN
async def test_an_interrupted_claim_starts_over_if_the_changelog_has_lost_its_end(claim, monkeypatch, again):
    partition = InterruptedOnce("claim.fenced")
    state = await interrupt(partition, monkeypatch)
    partition.remove_order()
    state.ends[NAMES.table] = 50
    if again is not None:
        partition.step = again
        await interrupt(partition, monkeypatch, state)
    claimed = await claim(partition, state)
    assert (dict(claimed.table.items()), claimed.waiting) == ({}, [])


@pytest.mark.parametrize("age_s", [CONTINUED_FOR_S, -1.0])
async def test_an_interrupted_claim_starts_over_when_tombstones_may_be_gone(claim, monkeypatch, age_s):
    partition = InterruptedOnce("claim.read")
    state = await interrupt(partition, monkeypatch)
    partition.remove_order()
    state.as_of -= age_s
    claimed = await claim(partition, state)
    assert (dict(claimed.table.items()), claimed.waiting) == ({}, [])


class Followed(InterruptedOnce):
    """A partition that this worker has stood by for; the reader does not get the offsets that are `gone`."""

    def __init__(self):
        super().__init__("never")
        self.gone: set[int] = set()

    async def followed(self):
        """Return what a standby has read so far."""
        state = ChangelogState(is_followed=True)
        progress = Progress(ClaimSlots(1))
        reader: Any = self
        await Changelogs(0, NAMES, reader, state, progress).read_to_end()
        progress.leave()
        state.ends = dict.fromkeys((NAMES.table, NAMES.waiting), 0) | state.next_offsets
        self.reads.clear()
        return state

    async def getmany(self, *places, timeout_ms, max_records):
        fetched = await super().getmany(*places, timeout_ms=timeout_ms, max_records=max_records)
        return {
            place: [each for each in records if place != TABLE or each.offset not in self.gone]
            for place, records in fetched.items()
        }


async def test_a_claim_continues_from_what_its_standby_has_read_although_another_process_has_written_since(claim):
    partition = Followed()
    state = await partition.followed()
    partition.write(BARRIER, (POSITION_KEY, encode(at(6)), []))
    claimed = await claim(partition, state)
    assert (dict(claimed.table.items()), claimed.waiting) == (STATE_OF_ORDER, [])
    assert claimed.position.next_offset == 6
    assert {offset for topic, offset in partition.reads if topic == NAMES.table} == {1, 2, 3, 4}, (
        "one more, for the lock"
    )
    assert claimed.record_count == 3


@pytest.mark.parametrize("is_gone", [True, False])
async def test_a_claim_starts_over_if_the_last_record_that_its_standby_has_read_is_not_there(claim, is_gone):
    """The log was cut before that record, and has grown again."""
    partition = Followed()
    state = await partition.followed()
    partition.remove_order()
    partition.write(BARRIER, (POSITION_KEY, encode(at(4)), []))
    if is_gone:
        partition.gone.add(1)
    else:
        state.timestamps[NAMES.table] -= 1
    claimed = await claim(partition, state)
    assert (dict(claimed.table.items()), claimed.waiting) == ({}, [])


async def test_a_claim_starts_over_if_its_standby_has_read_no_end_for_an_hour(claim):
    partition = Followed()
    state = await partition.followed()
    partition.remove_order()
    state.as_of -= CONTINUED_FOR_S
    claimed = await claim(partition, state)
    assert dict(claimed.table.items()) == {}


async def test_a_claim_that_continued_from_a_standby_and_was_interrupted_after_its_position_continues(
    claim, monkeypatch
):
    partition = Followed()
    state = await partition.followed()
    partition.step = "claim.named"
    await interrupt(partition, monkeypatch, state)
    claimed = await claim(partition, state)
    assert (dict(claimed.table.items()), claimed.position.owner) == (STATE_OF_ORDER, "next")
    assert (NAMES.table, 0) not in partition.reads


RELEASED: Made = (RELEASE_KEY, b"worker", [])
UNFENCED = [step for step in STEPS if "fence" not in step]
del UNFENCED[3:5]  # the transaction that comes before a fence


async def test_a_partition_that_its_owner_has_released_needs_no_fence(claim):
    partition = Partition()
    partition.write(RELEASED)
    claimed = await claim(partition, others={"worker"})
    assert (claimed.position.owner, [order_id for order_id, _ in claimed.table.items()]) == ("next", [create.order_id])
    assert partition.calls == UNFENCED


@pytest.mark.parametrize(
    "records",
    [
        pytest.param([(RELEASE_KEY, b"earlier", [])], id="of another owner"),
        pytest.param([RELEASED, (POSITION_KEY, encode(at(4)), [])], id="that the owner has claimed since"),
    ],
)
async def test_a_release_that_is_not_of_the_last_position_does_not_count(claim, records):
    partition = Partition()
    partition.write(*records)
    await claim(partition)
    assert "fence worker" in partition.calls


async def test_a_release_of_another_owner_does_not_hide_that_of_the_owner(claim):
    partition = Partition()
    partition.write(RELEASED, (RELEASE_KEY, b"earlier", []))
    await claim(partition)
    assert partition.calls == UNFENCED


class ReleasedLate(Partition):
    """A partition whose owner releases it when a claim looks for the third time."""

    looks = 0

    async def end_offsets(self, places):
        if TABLE in places:
            self.looks += 1
            if self.looks == 3:
                self.write(RELEASED)
        return await super().end_offsets(places)


async def test_a_claim_waits_for_a_member_of_the_group_to_release_the_partition(claim):
    partition = ReleasedLate()
    await claim(partition, others={"worker"})
    assert partition.calls == UNFENCED


async def test_an_owner_that_is_no_member_is_fenced_at_once(claim):
    partition = ReleasedLate()
    await claim(partition, others={"other"})
    assert partition.calls == STEPS


async def test_a_member_that_takes_too_long_to_release_a_partition_is_fenced(claim, monkeypatch):
    monkeypatch.setattr("order_service.worker.claims.claim.RELEASE_WITHIN_S", 0.0)
    partition = ReleasedLate()
    await claim(partition, others={"worker"})
    assert partition.calls == STEPS


async def test_a_claim_does_not_wait_for_an_owner_that_another_claim_has_fenced(claim):
    partition = ReleasedLate()
    partition.fenced.add("worker")
    await claim(partition, others={"worker"})
    assert partition.calls == STEPS


async def test_the_owner_is_noted_before_its_name_is_written(claim, monkeypatch):
    """A claim that is interrupted there may have written the name."""
    partition = InterruptedOnce("begin 2")
    monkeypatch.setattr("order_service.worker.claims.claim.claiming", partition.claiming)
    named: set[int] = set()
    claimer = structs.replace(claimer_of(partition, "first", partition.note), named=named)
    progress = Progress(ClaimSlots(1))
    with pytest.raises(Interrupted):
        await claimer.claim(0, ChangelogState(), progress)
    progress.leave()
    assert named == {0}


class Hiding(Partition):
    """A partition whose last record is hidden until the claim has asked for the ends. Then one more record comes."""

    looks = 0

    async def end_offsets(self, places):
        return {place: end - (place == TABLE) for place, end in (await super().end_offsets(places)).items()}

    async def getmany(self, *places, timeout_ms, max_records):
        if self.looks or TABLE not in places:
            return await super().getmany(*places, timeout_ms=timeout_ms, max_records=max_records)
        records = self._records[TABLE]
        self._records[TABLE] = records[:-1]
        fetched = await super().getmany(*places, timeout_ms=timeout_ms, max_records=max_records)
        self._records[TABLE] = records
        return fetched

    async def ends(self, places):
        self.looks += 1
        if self.looks == 2:
            self.write(BARRIER)
        return await Topics.end_offsets(self, places)


async def test_a_claim_reads_what_an_open_transaction_hides_and_what_comes_after_it(claim):
    partition = Hiding()
    partition.write((POSITION_KEY, encode(at(5)), []), RELEASED, (POSITION_KEY, encode(at(6)), []))
    claimed = await claim(partition)
    assert claimed.position.next_offset == 6
    assert partition.looks == 3, "for the hidden record, after the fence, and because one more came"
    assert "fence worker" in partition.calls


@pytest.mark.parametrize("topic", [NAMES.table, NAMES.waiting])
async def test_a_position_is_not_committed_after_a_record_that_was_not_read(claim, topic):
    partition = Partition()
    partition.write(RELEASED)

    def add(step):
        if step == "claim.checked":
            partition.write(BARRIER, topic=topic)

    with pytest.raises(Stuck, match="a new record is at"):
        await claim(partition, failpoint=add)
    assert "commit" not in partition.calls


class Unmatched(Partition):
    """A partition with an outcome that its table lacks, and (`is_newest` False) another claim with a newer lock."""

    def __init__(self, *, is_newest):
        super().__init__()
        self.write(RELEASED)
        self._records[TABLE] = self._records[TABLE][1:]
        self.is_newest = is_newest

    async def commit(self, sent):
        if not self.is_newest:
            raise Fenced("another claim")
        return await super().commit(sent)


@pytest.mark.parametrize(("is_newest", "error"), [(True, LaneParked), (False, Fenced)])
async def test_only_the_newest_claim_parks_its_lane(claim, is_newest, error):
    with pytest.raises(error):
        await claim(Unmatched(is_newest=is_newest))


async def test_a_claim_that_did_not_read_all_is_tried_again(monkeypatch):
    partition = Partition()
    monkeypatch.setattr("order_service.worker.claims.claim.claiming", partition.claiming)

    def add_once(step):
        if step == "claim.checked" and "claim.checked" not in partition.calls:
            partition.write((POSITION_KEY, encode(at(6)), []))
        partition.calls.append(step)

    claimer = claimer_of(partition, "next", add_once)
    claimed = await claim_until_done(claimer, 0, ChangelogState(), Progress(ClaimSlots(1)), pause_s=0)
    assert (claimed.position.owner, claimed.position.next_offset) == ("next", 6)


class Stale(Partition):
    """A partition whose table is read from a broker that was cut off: it does not know the last records."""

    def __init__(self):
        super().__init__()
        self.write(RELEASED)
        self._records[TABLE] = self._records[TABLE][1:]

    async def send_all(self, topic, partition, records):
        sent = await super().send_all(topic, partition, records)
        return [metadata._replace(offset=50) for metadata in sent]


async def test_a_lane_does_not_park_because_of_records_that_were_not_read(claim):
    partition = Stale()
    with pytest.raises(Stuck, match="a new record is at 50"):
        await claim(partition)
    assert "commit" not in partition.calls


@pytest.fixture
def stores(tmp_path):
    opened = Stores(tmp_path / "tables", 16 * MEGABYTE, TopicIdentity(NAMES.table, "cluster", "topic"))
    yield opened
    opened.close_all()


def discarded():
    return STORES_DISCARDED.labels(0)._value.get()


async def claim_from_disk(partition, stores, monkeypatch, state=None) -> Claimed:
    """Claim a partition with its table on disk, as a worker does."""
    monkeypatch.setattr("order_service.worker.claims.claim.claiming", partition.claiming)
    claimer = structs.replace(claimer_of(partition, "next", partition.calls.append), stores=stores)
    progress = Progress(ClaimSlots(1))
    claimed = await claim_until_done(claimer, 0, state or ChangelogState(), progress, pause_s=0)
    progress.leave()
    return claimed


async def test_the_next_claim_reads_a_table_on_disk_from_its_last_position_on(stores, monkeypatch):
    partition = InterruptedOnce(None)
    first = await claim_from_disk(partition, stores, monkeypatch)
    assert first.table.get(create.order_id) == ENTRY
    partition.reads.clear()
    claimed = await claim_from_disk(partition, stores, monkeypatch)
    assert claimed.table.get(create.order_id) == ENTRY
    position_at = max(offset for topic, offset in partition.reads if topic == NAMES.table)
    assert [offset for topic, offset in partition.reads if topic == NAMES.table] == [position_at]


async def test_a_table_on_disk_gets_what_other_workers_have_written_since(stores, monkeypatch):
    partition = Partition()
    await claim_from_disk(partition, stores, monkeypatch)
    partition.write((b"other", encode(ENTRY), []), (POSITION_KEY, encode(at(5)), []))
    claimed = await claim_from_disk(partition, stores, monkeypatch)
    assert (claimed.table.get("other"), claimed.position.next_offset) == (ENTRY, 5)


@pytest.mark.parametrize("other", [(POSITION_KEY, encode(at(3)), []), (b"other", encode(ENTRY), [])])
async def test_a_table_on_disk_of_a_changelog_with_another_record_there_is_thrown_away(stores, monkeypatch, other):
    partition = Partition()
    await claim_from_disk(partition, stores, monkeypatch)
    records = partition._records[TABLE]
    partition._records[TABLE] = [*records[:-1], other, (POSITION_KEY, encode(at(4)), [])]
    before = discarded()
    claimed = await claim_from_disk(partition, stores, monkeypatch)
    assert (claimed.table.get(create.order_id), discarded() - before) == (ENTRY, 1)


async def test_a_table_on_disk_whose_position_is_missing_in_the_changelog_is_thrown_away(stores, monkeypatch):
    partition = Partition()
    await claim_from_disk(partition, stores, monkeypatch)
    partition._records[TABLE] = [*partition._records[TABLE][:-1], BARRIER]
    before = discarded()
    claimed = await claim_from_disk(partition, stores, monkeypatch)
    assert (claimed.position.next_offset, discarded() - before) == (4, 1)


async def test_an_interrupted_claim_of_a_table_on_disk_is_continued(stores, monkeypatch):
    partition = InterruptedOnce("claim.read")
    monkeypatch.setattr("order_service.worker.claims.claim.claiming", partition.claiming)
    state, progress = ChangelogState(), Progress(ClaimSlots(1))
    with pytest.raises(Interrupted):
        await structs.replace(claimer_of(partition, "first", partition.note), stores=stores).claim(0, state, progress)
    progress.leave()
    partition.reads.clear()
    claimed = await claim_from_disk(partition, stores, monkeypatch, state)
    assert claimed.table.get(create.order_id) == ENTRY
    assert (NAMES.table, 0) not in partition.reads


async def test_a_disk_that_fills_up_during_a_claim_delays_it_until_it_has_space(stores, monkeypatch):
    partition = Partition()
    failures = ["No space left on device"] * 2
    write = TableStore.write

    async def full(store, values, meta):
        if values and failures:
            raise StoreUnavailable(failures.pop())
        await write(store, values, meta)

    monkeypatch.setattr(TableStore, "write", full)
    claimed = await claim_from_disk(partition, stores, monkeypatch)
    assert (claimed.table.get(create.order_id), failures) == (ENTRY, [])
