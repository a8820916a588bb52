"""Reads what the tools for dead letters need: the dead letters, the operations, and the entries of orders."""

from collections import defaultdict
from collections.abc import AsyncIterator, Collection

from aiokafka.structs import ConsumerRecord, TopicPartition
from msgspec import structs

from order_service.domain.entry import Entry
from order_service.errors import OperationRefused, RegistryAwayError
from order_service.kafka.reader import Reader
from order_service.operations.dead_letters.letter import (
    DeadLetter,
    LetterId,
    Selection,
    letter_of,
    name_of,
    sent_ms_of,
)
from order_service.operations.dead_letters.past_operations import PastOperations
from order_service.wire import changelog
from order_service.wire.commands import partition_of


class LetterScan:
    """Reads the selected dead letters, in the sequence of each partition.

    It reads a partition from its start: `sent_ms` never falls in it, and is the same for `plan` and for `apply`.
    Unknown schema ids are looked up. If that fails, the rest is decoded without: `registry_error` says why.
    """

    def __init__(self, reader: Reader, selection: Selection) -> None:
        self.registry_error: RegistryAwayError | None = None
        self._reader = reader
        self._selection = selection

    async def letters(self) -> AsyncIterator[DeadLetter]:
        """Yield the selected dead letters. Raises OperationRefused if one with a given id does not exist."""
        ids = self._selection.ids
        missing = set(ids)
        latest: dict[int, int] = {}
        async for records in self._reader.between(*await self._bounds()):
            await self._learn([record for record in records if _is_one_of(record, ids)])
            for record in records:
                sent_ms = latest[record.partition] = max(latest.get(record.partition, 0), sent_ms_of(record))
                if not _is_one_of(record, ids):
                    continue
                letter = structs.replace(letter_of(record), sent_ms=sent_ms)
                missing.discard(letter.id)
                if self._selection.has(letter):
                    yield letter
        if missing:
            names = ", ".join(map(name_of, sorted(missing)))
            raise OperationRefused(f"there are no dead letters {names}; they are kept for 30 days")

    async def _learn(self, records: list[ConsumerRecord]) -> None:
        if self.registry_error is None:
            try:
                await self._reader.learn(records)
            except RegistryAwayError as error:
                self.registry_error = error

    async def _bounds(self) -> tuple[dict[TopicPartition, int], dict[TopicPartition, int]]:
        """Return from where to where to read: all partitions, or only up to the given ids."""
        partitions = await self._reader.partitions(self._reader.names.dead_letters)
        offsets = defaultdict(list)
        for number, offset in self._selection.ids:
            offsets[number].append(offset)
        if offsets:
            partitions = [each for each in partitions if each.partition in offsets]
        starts, ends = await self._reader.starts(partitions), await self._reader.ends(partitions)
        if offsets:
            ends = {each: min(end, max(offsets[each.partition]) + 1) for each, end in ends.items()}
        return starts, ends


def _is_one_of(record: ConsumerRecord, ids: Collection[LetterId]) -> bool:
    return not ids or (record.partition, record.offset) in ids


async def read_operations(reader: Reader) -> PastOperations:
    """Read what operators did before."""
    past = PastOperations()
    partitions = await reader.partitions(reader.names.operations)
    async for records in reader.between(await reader.starts(partitions), await reader.ends(partitions)):
        for record in records:
            past.add(record)
    return past


async def read_entries(reader: Reader, order_ids: Collection[str]) -> dict[str, Entry]:
    """Read the entries of these orders from the table; an order without one does not exist.

    Raises HistoryError for an entry that cannot be decoded.
    """
    all_partitions = await reader.partitions(reader.names.table)
    keys = {order_id.encode() for order_id in order_ids}
    numbers = {partition_of(key, len(all_partitions)) for key in keys}
    partitions = [partition for partition in all_partitions if partition.partition in numbers]
    newest: dict[bytes, bytes | None] = {}
    async for records in reader.between(await reader.starts(partitions), await reader.ends(partitions)):
        newest |= {record.key: record.value for record in records if record.key in keys}
    return {key.decode(): changelog.decode_entry(value) for key, value in newest.items() if value is not None}
