"""Follows the ends of the dead-letter topic and the operations: the newest dead letters, and what was done to them."""

from datetime import datetime
from typing import Final

from aiokafka.structs import ConsumerRecord, TopicPartition
from msgspec import Struct

from order_service.kafka.reader import Reader
from order_service.operations.dead_letters.letter import LetterId, letter_of, name_of
from order_service.operations.dead_letters.past_operations import PastOperations
from order_service.operations.overview.bounded_reads import ends_of_a_read, in_slices

SHOWN: Final = 20
TAIL_OFFSETS: Final = 40
"""How many offsets at the end of a partition are read: `SHOWN` dead letters, each with the marker of a transaction."""
OPERATIONS_MAX: Final = 5_000
"""How many offsets of the operations one call reads. The next call goes on."""
TEXT_MAX: Final = 200
"""How much of a text is shown: any sender of commands may have written it."""
UNKNOWN: Final = "unknown"


class LetterRow(Struct, frozen=True):
    """A dead letter as `order-service dead-letters list` shows it, without any byte of its record.

    `id` is `PARTITION:OFFSET`, and `command` where the original record is. `state` is `open`, `discarded`, or names
    the plan; `unknown` while the operations are still read.
    """

    id: str
    at: datetime
    reason: str
    detail: str
    order_id: str
    command: str
    state: str


class _Letter(Struct, frozen=True):
    id: LetterId
    at: datetime
    reason: str
    detail: str
    order_id: str
    command: str


class NewestLetters:
    """The newest dead letters, as of the last `read`."""

    def __init__(self) -> None:
        self._letters: list[_Letter] = []
        self._past = PastOperations()
        self._read_to: dict[TopicPartition, int] = {}

    async def read(self, reader: Reader) -> list[LetterRow]:
        """Read what is new, and return the newest dead letters, the newest first."""
        await self._read_letters(reader)
        is_complete = await self._read_operations(reader)
        return [
            LetterRow(
                name_of(each.id),
                each.at,
                each.reason,
                each.detail,
                each.order_id,
                each.command,
                self._past.state(each.id) if is_complete else UNKNOWN,
            )
            for each in self._letters
        ]

    async def _read_letters(self, reader: Reader) -> None:
        """Read the tails only: whatever is before them is older than `SHOWN` dead letters of the same partition."""
        partitions = await reader.led_partitions(reader.names.dead_letters)
        starts, ends = await reader.starts(partitions), await reader.ends(partitions)
        self._forget_if_recreated(ends)
        begins = {each: max(starts[each], ends[each] - TAIL_OFFSETS, self._read_to.get(each, 0)) for each in partitions}
        async for records in reader.between(begins, ends):
            async for taken in in_slices(records):
                letters = sorted([*self._letters, *map(_row_of, taken)], key=lambda each: (each.at, each.id))
                self._letters = letters[: -SHOWN - 1 : -1]
        self._read_to |= ends

    async def _read_operations(self, reader: Reader) -> bool:
        partitions = await reader.led_partitions(reader.names.operations)
        starts, ends = await reader.starts(partitions), await reader.ends(partitions)
        begins = {each: max(starts[each], self._read_to.get(each, 0)) for each in partitions}
        stops = ends_of_a_read(begins, ends, OPERATIONS_MAX)
        async for records in reader.between(begins, stops):
            async for taken in in_slices(records):
                for record in taken:
                    self._past.add(record)
        self._read_to |= stops
        return stops == ends

    def _forget_if_recreated(self, ends: dict[TopicPartition, int]) -> None:
        if any(end < self._read_to.get(each, 0) for each, end in ends.items()):
            self._letters, self._past, self._read_to = [], PastOperations(), {}


def _row_of(record: ConsumerRecord) -> _Letter:
    letter = letter_of(record)
    topic, partition, offset = letter.origin
    texts = (letter.reason, letter.detail, letter.order_id, f"{topic} {partition}:{offset}")
    return _Letter(letter.id, letter.at, *(text[:TEXT_MAX] for text in texts))
