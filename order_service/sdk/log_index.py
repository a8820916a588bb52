"""What an index of the log must answer: where the records of an order are, so that its partition need not be read."""

from collections.abc import Collection, Mapping, Sequence
from typing import Protocol

from aiokafka.structs import TopicPartition

Ranges = Mapping[TopicPartition, Sequence[tuple[int, int]]]
"""Ranges of offsets of each partition, in sequence: the first offset, and the one after the last."""


class LogIndex(Protocol):
    """Finds the records of orders in the log. Each record is read from the log, so a wrong index cannot forge one."""

    async def ranges(self, order_ids: Collection[str], ends: Mapping[TopicPartition, int]) -> Ranges | None:
        """Return the ranges before these ends that hold all events and rejections of the orders, maybe others too.

        They include all that the index does not cover yet. None if the index cannot answer: the caller then reads the
        partitions from their start.
        """
