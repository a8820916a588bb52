"""How far one read of a topic goes: the work for a page must not depend on how much was written."""

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping
from typing import Final

from aiokafka.structs import ConsumerRecord, TopicPartition

SLICE: Final = 500
SLICE_BYTES: Final = 1024 * 1024
"""How many records, and bytes of them, are decoded before other tasks of the server run: some milliseconds of work."""


def ends_of_a_read(
    begins: Mapping[TopicPartition, int], ends: Mapping[TopicPartition, int], offsets_max: int
) -> dict[TopicPartition, int]:
    """Return where to stop, so that all partitions together have `offsets_max` offsets at most, each its share."""
    behind = [each for each, end in ends.items() if end > begins[each]]
    share = max(1, offsets_max // max(1, len(behind)))
    return {each: min(end, begins[each] + share) if each in behind else end for each, end in ends.items()}


async def in_slices(records: Iterable[ConsumerRecord]) -> AsyncIterator[list[ConsumerRecord]]:
    """Yield the records of a fetch in slices, and let other tasks run after each of them."""
    taken: list[ConsumerRecord] = []
    size_bytes = 0
    for record in records:
        taken.append(record)
        size_bytes += len(record.value or b"")
        if len(taken) >= SLICE or size_bytes >= SLICE_BYTES:
            yield taken
            taken, size_bytes = [], 0
            await asyncio.sleep(0)
    if taken:
        yield taken
