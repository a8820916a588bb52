"""The steps of a claim without a broker: in which order they are done, and what their deadlines count."""

from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiokafka import TopicPartition
from aiokafka.structs import RecordMetadata

from order_service.wire.changelog import POSITION_KEY, encode
from order_service.worker.claims.claim import Claimer
from order_service.worker.claims.progress import ClaimSlots, Progress
from tests.support.samples import create
from tests.unit.worker.blocking import block_loop, shorten
from tests.unit.worker.claims.test_checks import BARRIER, ENTRY, EVENT, NAMES, Made, Topics, at

STEPS = [
    "claim.locked",
    "read orders",
    "claim.read",
    "begin",
    "commit",
    "fence worker",
    "claim.fenced",
    "begin",
    "commit",
    "claim.barrier",
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

    @asynccontextmanager
    async def reader(self):
        yield self

    @asynccontextmanager
    async def claiming(self, *_):
        yield self

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
        return [RecordMetadata(topic, partition, place, offset, 0, 0, 0)]

    async def commit(self, sent):
        self.calls.append("commit")
        return sent


@pytest.fixture
def claim(monkeypatch):
    """Claim a partition; gives the position from which its lane goes on."""

    async def claimed(partition: Any):
        monkeypatch.setattr("order_service.worker.claims.claim.claiming", partition.claiming)
        progress = Progress(ClaimSlots(1))
        try:
            return await Claimer("orders", "next", NAMES, {}, partition, partition.calls.append).claim(
                0, None, progress
            )
        finally:
            progress.leave()

    return claimed


async def test_a_claim_opens_its_transaction_only_after_it_has_read_the_table(claim):
    """Kafka aborts a transaction that is open for 15 s, and a large table takes longer."""
    partition = Partition()
    claimed = await claim(partition)
    assert (claimed.position.owner, list(claimed.state[0])) == ("next", [create.order_id])
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
