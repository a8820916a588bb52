"""Stopped partitions: the bad record of each, the reason, and when to retry. The other partitions continue."""

import time
from collections.abc import Iterable, Mapping
from typing import Final

from aiokafka.structs import TopicPartition
from msgspec import Struct

TRY_AGAIN_S: Final = 5.0
"""The retry interval of a stopped partition: its record may become readable, or an operator may skip it."""

REASON_MAX: Final = 300


class BadRecord(Struct, frozen=True):
    """A record that the views cannot apply. Its partition stops before it."""

    topic_partition: TopicPartition
    offset: int
    reason: str

    @property
    def text(self) -> str:
        """The position of the record, and the reason."""
        topic, partition = self.topic_partition
        return f"partition {partition} of {topic} is stopped at offset {self.offset}: {self.reason}"


def bad_record(topic_partition: TopicPartition, offset: int, error: Exception) -> BadRecord:
    """Return a bad record whose reason is printable and at most REASON_MAX characters long."""
    reason = "".join(letter if letter.isprintable() else "?" for letter in str(error)[:REASON_MAX])
    return BadRecord(topic_partition, offset, reason)


class Stopped:
    """The bad record of each stopped partition, and the time of its next retry."""

    def __init__(self) -> None:
        self.records: dict[TopicPartition, BadRecord] = {}
        self._again_at: dict[TopicPartition, float] = {}

    def add(self, records: Iterable[BadRecord]) -> None:
        """Stop the partitions of these records."""
        for record in records:
            self.records[record.topic_partition] = record
            self._again_at[record.topic_partition] = time.monotonic() + TRY_AGAIN_S

    def forget_passed(self, at: Mapping[TopicPartition, int]) -> None:
        """Remove the records that the positions `at` have passed: they were read after a retry, or skipped."""
        passed = [partition for partition, record in self.records.items() if at.get(partition, 0) > record.offset]
        for partition in passed:
            del self.records[partition], self._again_at[partition]

    def to_read(self, partitions: Iterable[TopicPartition]) -> list[TopicPartition]:
        """Return the partitions to read now: those that are not stopped, and those whose retry is due.

        A retry is returned once, and is due again after TRY_AGAIN_S.
        """
        now = time.monotonic()
        due = {partition for partition, again_at in self._again_at.items() if again_at <= now}
        self._again_at |= dict.fromkeys(due, now + TRY_AGAIN_S)
        return [partition for partition in partitions if partition not in self._again_at or partition in due]

    def is_due(self) -> bool:
        """Return whether the retry of a partition is due."""
        return bool(self._again_at) and min(self._again_at.values()) <= time.monotonic()
