"""An index of the log: where the records of an order are, so that its partition need not be read."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Final, Protocol

from aiokafka.structs import TopicPartition
from msgspec import Struct

GAP: Final = 500
"""Offsets this close are read as one range: fewer records than a fetch returns anyway."""
RANGES_MAX: Final = 200
"""Above this number of ranges in a partition, the log is read from the first one on."""

Ranges = Mapping[TopicPartition, Sequence[tuple[int, int]]]
"""Ranges of offsets of each partition, in sequence: the first offset, and the one after the last."""


class IndexEntries(Struct, frozen=True):
    """The offsets of all events and rejections of orders below the positions of the index.

    A partition without a position is not in the index.
    """

    offsets: Mapping[TopicPartition, Collection[int]]
    positions: Mapping[TopicPartition, int]

    def ranges(self, ends: Mapping[TopicPartition, int]) -> Ranges | None:
        """Return the ranges before these ends that hold all events and rejections of the orders, maybe others too.

        They include everything from the positions on. Look the ends up after the entries, because the index grows: if
        a position is then behind an end, the index is of another log, and the result is None.
        """
        if any(self.positions.get(partition, 0) > end for partition, end in ends.items()):
            return None
        return {
            partition: ranges_of(self.offsets.get(partition, ()), self.positions.get(partition, 0), end)
            for partition, end in ends.items()
        }


class LogIndex(Protocol):
    """Finds the records of orders in the log. Each record is read from the log, so a wrong index cannot forge one."""

    async def find(self, order_ids: Collection[str]) -> IndexEntries | None:
        """Return where the events and rejections of these orders are.

        None if the index cannot answer: the caller then reads the partitions from their start.
        """


def ranges_of(offsets: Iterable[int], position: int, end: int) -> list[tuple[int, int]]:
    """Return ranges that cover the offsets below `position`, and all from there to `end`."""
    covered: list[tuple[int, int]] = []
    single = [(offset, offset + 1) for offset in sorted(offsets) if offset < position]
    for first, behind in [*single, (position, end)]:
        if covered and first - covered[-1][1] < GAP:
            covered[-1] = covered[-1][0], max(covered[-1][1], behind)
        elif first < behind:
            covered.append((first, behind))
    return covered if len(covered) <= RANGES_MAX else [(covered[0][0], end)]
