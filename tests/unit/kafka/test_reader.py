"""Reading to given ends: what is read to its end is paused, and no other assignment is taken for it."""

from typing import Any

import pytest
from aiokafka.errors import IllegalStateError
from aiokafka.structs import ConsumerRecord, TopicPartition

from order_service.kafka.reader import Reader
from order_service.settings import Settings

SHORT, LONG = TopicPartition("topic", 0), TopicPartition("topic", 1)


class Fetched:
    """A consumer that gets one record of each assigned partition at a time."""

    def __init__(self):
        self.positions: dict[TopicPartition, int] = {}
        self.paused: set[TopicPartition] = set()
        self.asked = 0

    def assign(self, partitions):
        self.positions = dict.fromkeys(partitions, 0)

    def assignment(self):
        return set(self.positions)

    def seek(self, partition, offset):
        self.positions[partition] = offset

    def pause(self, partition):
        self.paused.add(partition)

    async def position(self, partition):
        self.asked += 1
        if partition not in self.positions:
            raise IllegalStateError(f"Partition {partition} is not assigned")
        return self.positions[partition]

    async def getmany(self, **_):
        fetched = {}
        for partition in self.positions.keys() - self.paused:
            offset = self.positions[partition]
            self.positions[partition] += 1
            fetched[partition] = [ConsumerRecord(*partition, offset, 0, 0, b"", b"", None, 0, 0, ())]
        return fetched


@pytest.fixture
async def reader():
    made: Any = Reader(Settings())
    await made._consumer.stop()
    made._consumer = Fetched()
    return made


async def test_what_was_read_to_its_end_is_paused_before_its_records_are_handled(reader):
    handled = [
        (sorted(record.partition for record in records), set(reader._consumer.paused))
        async for records in reader.between({SHORT: 0, LONG: 0}, {SHORT: 1, LONG: 3})
    ]
    assert handled == [([0, 1], {SHORT}), ([1], {SHORT}), ([1], {SHORT, LONG})]
    assert reader._consumer.asked == 2 * (1 + len(handled)), "once before the first fetch, and once after each"


async def test_an_assignment_that_is_replaced_meanwhile_does_not_end_the_reading_early(reader):
    lists = reader.between({LONG: 0}, {LONG: 3})
    await anext(lists)
    reader.begin({SHORT: 0})
    with pytest.raises(IllegalStateError, match="is not assigned"):
        await anext(lists)
