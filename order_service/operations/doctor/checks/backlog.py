"""What follows a position: how many offsets, and how old the first record is."""

from collections.abc import Mapping
from contextlib import aclosing

from aiokafka.structs import ConsumerRecord, TopicPartition
from msgspec import Struct

from order_service.kafka.reader import Reader

LATE_AFTER_S = 60.0
"""The age from which an unread record is a finding; that of `verify --older-than`."""


class Backlog(Struct, frozen=True):
    """The committed offsets after a position, and the age of the first record there."""

    offset_count: int
    oldest_s: float

    @property
    def is_late(self) -> bool:
        """Whether the first record should have been read long ago."""
        return self.oldest_s > LATE_AFTER_S


async def backlogs_of(
    reader: Reader, positions: Mapping[TopicPartition, int], now_s: float
) -> dict[TopicPartition, Backlog]:
    """Return the backlog of each partition that has records after its position. Control records alone are none."""
    ends = await reader.ends(list(positions))
    firsts = await _first_records(reader, positions, ends)
    return {
        partition: Backlog(ends[partition] - positions[partition], now_s - record.timestamp / 1000)
        for partition, record in sorted(firsts.items())
    }


async def _first_records(
    reader: Reader, starts: Mapping[TopicPartition, int], ends: Mapping[TopicPartition, int]
) -> dict[TopicPartition, ConsumerRecord]:
    firsts: dict[TopicPartition, ConsumerRecord] = {}
    unread = {partition for partition, start in starts.items() if start < ends[partition]}
    async with aclosing(reader.between(starts, ends)) as lists:  # type: ignore[type-var]
        async for records in lists:
            for record in records:
                firsts.setdefault(TopicPartition(record.topic, record.partition), record)
            if firsts.keys() >= unread:
                break
    return firsts
