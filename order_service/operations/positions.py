"""The newest position of each partition, read from the end of its changelog: a worker writes it with every turn."""

from collections.abc import Iterable
from typing import Final

from aiokafka.structs import ConsumerRecord, TopicPartition
from msgspec import Struct

from order_service.errors import DamagedError, HistoryError
from order_service.kafka.reader import Reader
from order_service.wire import changelog
from order_service.wire.changelog import POSITION_KEY, RELEASE_KEY, Position

FIRST_WINDOW: Final = 1_000
"""Offsets at the end of a changelog that are read first; ten times as many each time that they hold no position."""


class NewestPosition(Struct, frozen=True):
    """The newest position of a partition, at an offset of its changelog (-1 without one).

    `position` is None without one, or if it cannot be read: `fault` then says why.
    """

    offset: int = -1
    position: Position | None = None
    is_released: bool = False
    fault: str = ""

    @property
    def owner(self) -> str | None:
        """The transactional id that may write to the partition: None without a position, or after its release."""
        return None if self.position is None or self.is_released else self.position.owner


def newest_in(records: Iterable[ConsumerRecord]) -> NewestPosition:
    """Return the newest position among records of a changelog. A release counts only if it is of the owner."""
    newest = NewestPosition()
    for record in records:
        if record.key == POSITION_KEY:
            newest = _decoded(record)
        elif record.key == RELEASE_KEY and newest.owner is not None and record.value == newest.owner.encode():
            newest = NewestPosition(newest.offset, newest.position, is_released=True)
    return newest


def _decoded(record: ConsumerRecord) -> NewestPosition:
    if record.value is None:
        return NewestPosition(record.offset)
    try:
        return NewestPosition(record.offset, changelog.decode_position(record.value))
    except HistoryError as error:
        place = f"{record.topic} partition {record.partition} offset {record.offset}"
        return NewestPosition(record.offset, fault=f"{place} cannot be read: {error}")


async def newest_positions(
    reader: Reader, partitions: Iterable[int], first_window: int | None = None
) -> dict[int, NewestPosition]:
    """Read the newest committed position of each partition. `first_window` replaces `FIRST_WINDOW`."""
    tables = [TopicPartition(reader.names.table, partition) for partition in partitions]
    starts, ends = await reader.starts(tables), await reader.ends(tables)
    newest: dict[int, NewestPosition] = {}
    unread, window = tables, first_window or FIRST_WINDOW
    while unread:
        begins = {table: max(starts[table], ends[table] - window) for table in unread}
        try:
            tails = await _control_records(reader, begins, {table: ends[table] for table in unread})
        except DamagedError as error:  # the others are read again
            newest[error.topic_partition[1]] = NewestPosition(fault=str(error))
        else:
            newest |= {table.partition: newest_in(tails[table]) for table in unread}
            window *= 10
        unread = [
            table
            for table in unread
            if table.partition not in newest or (_is_unknown(newest[table.partition]) and begins[table] > starts[table])
        ]
    return newest


def _is_unknown(newest: NewestPosition) -> bool:
    return newest.offset < 0 and not newest.fault


async def _control_records(
    reader: Reader, begins: dict[TopicPartition, int], ends: dict[TopicPartition, int]
) -> dict[TopicPartition, list[ConsumerRecord]]:
    tails: dict[TopicPartition, list[ConsumerRecord]] = {table: [] for table in begins}
    async for records in reader.between(begins, ends):
        for record in records:
            if record.key in {POSITION_KEY, RELEASE_KEY}:
                tails[TopicPartition(record.topic, record.partition)].append(record)
    return tails
