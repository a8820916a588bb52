"""Stopped partitions: where the views cannot go on, why, and when to try again. The other partitions go on."""

import time
from collections.abc import Iterable, Mapping
from typing import Final

from aiokafka.structs import TopicPartition
from msgspec import Struct

TRY_AGAIN_S: Final = 5.0
"""How long a stopped partition is left alone: what it cannot read may be readable by then, or skipped."""

REASON_MAX: Final = 300


class BadRecord(Struct, frozen=True):
    """A record that the views cannot take. Its partition is not read on."""

    place: TopicPartition
    offset: int
    reason: str

    @property
    def text(self) -> str:
        """The sentence for readiness: where, why, and the way on."""
        topic, partition = self.place
        return f"partition {partition} of {topic} is stopped at offset {self.offset}: {self.reason}"


def bad_record(place: TopicPartition, offset: int, error: Exception) -> BadRecord:
    """Return a bad record with a reason that any database and log can hold."""
    reason = "".join(letter if letter.isprintable() else "?" for letter in str(error)[:REASON_MAX])
    return BadRecord(place, offset, reason)


class Stopped:
    """The bad record of each stopped partition, and when to try it again."""

    def __init__(self) -> None:
        self.records: dict[TopicPartition, BadRecord] = {}
        self._again_at: dict[TopicPartition, float] = {}

    def add(self, records: Iterable[BadRecord]) -> None:
        """Stop the partitions of these records."""
        for record in records:
            self.records[record.place] = record
            self._again_at[record.place] = time.monotonic() + TRY_AGAIN_S

    def forget_passed(self, at: Mapping[TopicPartition, int]) -> None:
        """Forget the records that the positions `at` have passed: they were read after all, or skipped."""
        passed = [place for place, record in self.records.items() if at.get(place, 0) > record.offset]
        for place in passed:
            del self.records[place], self._again_at[place]

    def to_read(self, places: Iterable[TopicPartition]) -> list[TopicPartition]:
        """Return the partitions to read now: those that are not stopped, and those to try again, each once."""
        now = time.monotonic()
        due = {place for place, again_at in self._again_at.items() if again_at <= now}
        self._again_at |= dict.fromkeys(due, now + TRY_AGAIN_S)
        return [place for place in places if place not in self._again_at or place in due]

    def is_due(self) -> bool:
        """Return whether a partition is to be tried again."""
        return bool(self._again_at) and min(self._again_at.values()) <= time.monotonic()
