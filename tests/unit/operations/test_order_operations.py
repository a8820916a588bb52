"""The operations on one order: those that `why` finds, and few commands are read for them."""

import asyncio
from datetime import timedelta
from typing import Any

import pytest
from aiokafka.structs import TopicPartition

from order_service.errors import DamagedError
from order_service.operations.verify.verify import Progress
from order_service.operations.why.id_search import search_for
from order_service.operations.why.order_operations import operations_on
from order_service.operations.why.why import why
from order_service.wire.operations import (
    DeadLettersApplied,
    DeadLettersDiscarded,
    DeadLettersPlanned,
    LaneResumed,
    PartitionRebuilt,
    PlannedCommand,
    encode,
)
from tests.support.samples import NOW, but, create
from tests.unit.operations.topics_in_memory import (
    COMMANDS,
    DEAD_LETTERS,
    EVENTS,
    LATER,
    OPERATIONS,
    REJECTIONS,
    MemoryReader,
    Topics,
    honest,
    named,
    no_sleep,
)

ORDERS = [f"o-{number}" for number in range(1, 10)]
EARLIER = NOW - timedelta(hours=1)
ACT: dict[str, Any] = {"id": "", "at": LATER, "actor": "user:dana", "reason": "a free text"}
PLANNED = PlannedCommand(offset=0, order_id="o-4", command_id="c", version=1, result="repeat")
OPERATIONS_ON_A_PARTITION: list[Any] = [
    LaneResumed(previous_position=18, **ACT),
    LaneResumed(previous_position=21, **ACT),
    LaneResumed(previous_position=30, position=20, **ACT),
    LaneResumed(previous_position=3, position=5, **ACT),
    LaneResumed(position=12, **ACT),
    LaneResumed(**ACT),
    LaneResumed(previous_position=90, position=99, skipped_order_ids=("o-1", "o-9"), **ACT),
    LaneResumed(previous_position=30, position=30, lost={REJECTIONS: (1, 2)}, **ACT),
    PartitionRebuilt(position=21, orders=7, waiting=2, changed=1, removed=0, **ACT),
    DeadLettersPlanned(commands=(PLANNED,), **ACT),
    DeadLettersApplied(plan_id="p", sent={0: 21}, order_ids=("o-2",), **ACT),
    DeadLettersDiscarded(offsets=(0,), **ACT),
]


class Reader(MemoryReader):
    """A reader that returns two records at a time, and notes which commands were read."""

    def __init__(self, topics):
        super().__init__(topics)
        self.commands = []

    async def ends(self, partitions):
        return {partition: self.topics.ends[partition.topic] for partition in partitions}

    async def partitions_of(self, _order_id, *topics):
        return [TopicPartition(topic, 0) for topic in topics]

    async def between(self, starts, ends):
        async for records in super().between(starts, ends):
            for first in range(0, len(records), 2):
                some = records[first : first + 2]
                self.commands += [record.offset for record in some if record.topic == COMMANDS]
                yield some

    async def until(self, ends):
        async for records in self.between(await self.starts(list(ends)), ends):
            for record in records:
                yield record


def found(topics, order_id, reader=None):
    """Return the ids of the operations on an order, by its events and rejections."""
    of_order = [each for topic in (EVENTS, REJECTIONS) for each in topics.records[topic]]
    outcomes = [record for record in of_order if record.key == order_id.encode()]
    reader = reader or Reader(topics)
    return [each.id for each in asyncio.run(operations_on(reader, order_id, outcomes))]


def found_by_why(topics, order_id):
    search, progress = search_for(order_id), Progress(lambda _: None, lambda _: None)
    reader: Any = Reader(topics)
    assert search is not None
    answer = asyncio.run(why(reader, search, progress, now=LATER.timestamp, sleep=no_sleep))
    return [each.operation_id for order in answer.orders if order.order_id == order_id for each in order.operations]


@pytest.mark.parametrize("at", [EARLIER, NOW, LATER])
def test_they_are_those_that_why_finds(at):
    alone = []
    everything = honest()
    for number, operation in enumerate(OPERATIONS_ON_A_PARTITION):
        topics = honest()
        for each in (topics, everything):
            each.append(OPERATIONS, b"key", encode(but(operation, id=f"{number}")), at=at)
        alone += [found(topics, order_id) for order_id in ORDERS]
        assert alone[-len(ORDERS) :] == [found_by_why(topics, order_id) for order_id in ORDERS], operation
    assert [found(everything, each) for each in ORDERS] == [found_by_why(everything, each) for each in ORDERS]
    assert len([ids for ids in alone if ids]) >= len(ORDERS)


def test_few_commands_are_read():
    topics = Topics()
    topics.send(*[named(create, f"o-{number}", command_id=f"c-{number}") for number in range(30)])
    topics.send(*[named(create, f"o-{number}", command_id=f"c-{number}") for number in range(30, 40)], now=LATER)
    for operation in (
        LaneResumed(previous_position=20, position=22, **ACT),
        PartitionRebuilt(position=21, orders=7, waiting=2, changed=1, removed=0, **ACT),
        DeadLettersDiscarded(offsets=(0,), **ACT),
    ):
        topics.append(OPERATIONS, b"key", encode(operation), at=NOW)
    reader: Any = Reader(topics)
    assert len(found(topics, "o-3", reader)) == 1
    assert reader.commands == list(range(20, 32)), "from where the lane was resumed, to the first later ones"


def test_a_damaged_batch_ends_the_reading_of_its_topic():
    topics = honest()
    topics.append(OPERATIONS, b"key", encode(but(OPERATIONS_ON_A_PARTITION[-1], id="x")))
    reader: Any = Reader(topics)
    reader.error = DamagedError(TopicPartition(DEAD_LETTERS, 0), 0)
    assert found(topics, "o-1", reader) == []


def test_without_operations_nothing_else_is_read():
    topics = honest()
    topics.append(OPERATIONS, b"broken", b"{}")
    reader: Any = Reader(topics)
    assert found(topics, "o-1", reader) == []
    assert reader.commands == []
