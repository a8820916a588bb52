"""Finds everything that the topics know about an id, read-only: which order it belongs to, and where each command is.

An order is in one partition, so its id is searched there first. Any other id can be in every partition.
"""

import asyncio
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from itertools import groupby
from typing import Final

from aiokafka.structs import ConsumerRecord, TopicPartition
from msgspec import Struct

from order_service.errors import DamagedError, DecodeError, HistoryError
from order_service.kafka.reader import Reader
from order_service.kafka.topics import TopicNames
from order_service.operations.verify.verify import SETTLED_S, Progress
from order_service.operations.why.id_search import IdKind, Search
from order_service.operations.why.order_records import (
    OrderRecords,
    command_offset_in,
    found_record,
    key_text,
    message_in,
    order_key_in,
)
from order_service.operations.why.order_story import CommandState, FoundRecord, OrderStory, lane_of
from order_service.wire import changelog
from order_service.wire.changelog import POSITION_KEY, Position
from order_service.wire.operations import decode as decode_operation

MAX_ORDERS: Final = 20
"""How many orders are shown. An idempotency key or a tracking number can belong to more."""
SLICE: Final = 250
"""Records that are decoded before control returns to the event loop: about 5 ms."""


class IdMatch(Struct, frozen=True):
    """A kind of id that the text is, in an order; `record` is the first record that shows it."""

    kind: IdKind
    order_id: str
    record: FoundRecord


class SearchedTopic(Struct, frozen=True):
    """A topic that was searched.

    `since` is the time up to which records are deleted in at least one of its partitions, or null if all are kept.
    """

    topic: str
    partitions: int
    since: datetime | None


class DamagedBatch(Struct, frozen=True):
    """A batch that cannot be read. What follows it in its partition was not searched."""

    topic: str
    partition: int
    offset: int


class Why(Struct, frozen=True):
    """What the topics know about an id.

    `all_partitions` is whether all of them were searched. If not, the id was found in the partition that an order with
    this id has. `has_more` is whether it belongs to more orders than are shown.
    """

    id: str
    is_known: bool
    all_partitions: bool
    matches: list[IdMatch]
    orders: list[OrderStory]
    has_more: bool
    searched: list[SearchedTopic]
    damaged: list[DamagedBatch]


class OrderKey(Struct, frozen=True):
    """The records of a key in a partition; without a key those of one command."""

    partition: int
    key: bytes | None
    command_offset: int | None = None


class KeptRange(Struct, frozen=True):
    """The commands of a partition that are kept, from `start` to before `end`, and whether all rejections are kept."""

    start: int
    end: int
    has_all_rejections: bool


async def why(
    reader: Reader,
    search: Search,
    progress: Progress,
    *,
    all_partitions: bool = False,
    now: Callable[[], float] = time.time,
    sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
) -> Why:
    """Return what is known about an id. Raises Unavailable if Kafka goes away, TopicsError if a topic is missing."""
    finder = _Finder(reader, search, progress, now=now, sleep=sleep)
    partitions = await reader.partitions(reader.names.commands, *reader.names.written, reader.names.operations)
    unread = [partition for topic, partition in partitions if topic == reader.names.commands]
    first = search.partition(len(unread))
    if first is not None:
        unread.remove(first)
        await finder.search_first(first)
    if unread and (all_partitions or not finder.matches):
        await finder.search(unread)
        unread = []
    orders = await finder.orders()
    return Why(
        id=search.text,
        is_known=bool(orders),
        all_partitions=not unread,
        matches=list(finder.matches.values()),
        orders=orders,
        has_more=finder.has_more,
        searched=finder.searched(),
        damaged=sorted(finder.damaged, key=lambda batch: (batch.topic, batch.partition)),
    )


class _Finder:
    """Searches partitions for an id, then collects the records of the orders that it belongs to."""

    def __init__(
        self,
        reader: Reader,
        search: Search,
        progress: Progress,
        *,
        now: Callable[[], float],
        sleep: Callable[[float], Awaitable[object]],
    ) -> None:
        self.matches: dict[tuple[OrderKey, IdKind], IdMatch] = {}
        self.has_more = False
        self.damaged: set[DamagedBatch] = set()
        self._reader = reader
        self._names = reader.names
        self._search = search
        self._progress = progress
        self._now = now
        self._sleep = sleep
        self._orders: dict[OrderKey, OrderStory] = {}
        self._kept_since_s: dict[TopicPartition, float | None] = {}
        """For each partition that was searched, the time of its oldest record, or None if no record was deleted."""

    async def search_first(self, partition: int) -> None:
        """Search the partition that the order or the command has. If it is an order, its records are collected, too."""
        key = self._search.order_key
        if key is None:
            await self.search([partition])
        else:
            await self._collect(partition, [OrderKey(partition, key)], also=self._match)

    async def search(self, partitions: Iterable[int]) -> None:
        """Search these partitions."""
        searched = [TopicPartition(topic, partition) for partition in partitions for topic in _searched(self._names)]
        starts, ends = await self._reader.starts(searched), await self._reader.ends(searched)
        await self._read(searched, starts, ends, self._match)

    async def orders(self) -> list[OrderStory]:
        """Return the orders that the id belongs to."""
        unread = dict.fromkeys(key for key, _ in self.matches if key not in self._orders)
        keys = sorted(unread, key=lambda key: key.partition)
        for partition, of_partition in groupby(keys, key=lambda key: key.partition):
            await self._collect(partition, list(of_partition))
        return list(self._orders.values())

    def searched(self) -> list[SearchedTopic]:
        """Return the topics that were searched, and how far back they reach."""
        topics = []
        for topic in _searched(self._names):
            times = [since for (name, _), since in self._kept_since_s.items() if name == topic]
            since = max([time for time in times if time is not None], default=None)
            topics.append(
                SearchedTopic(topic, len(times), None if since is None else datetime.fromtimestamp(since, UTC))
            )
        return topics

    async def _collect(
        self, partition: int, keys: list[OrderKey], also: Callable[[ConsumerRecord], None] | None = None
    ) -> None:
        """Collect the records of these keys. `also` gets each record of the partition, too."""
        records = _PartitionRecords(self._names, keys)

        def take(record: ConsumerRecord) -> None:
            records.take(record)
            if also is not None:
                also(record)

        names = self._names
        commands, rejections = TopicPartition(names.commands, partition), TopicPartition(names.rejections, partition)
        others = [TopicPartition(topic, partition) for topic in names.written]
        starts = await self._reader.starts([*others, commands])
        ends = await self._reader.ends(others)
        ends |= await self._reader.ends([commands])  # afterwards: each outcome then has its command
        await self._read([*others, commands], starts, ends, take)
        operations = [TopicPartition(names.operations, partition)]  # last: they are compared with the other records
        operation_starts, operation_ends = await self._reader.starts(operations), await self._reader.ends(operations)
        await self._read(operations, operation_starts, operation_ends, records.take_operation)
        bounds = KeptRange(starts[commands], ends[commands], has_all_rejections=starts[rejections] == 0)
        stories = records.stories(bounds)
        if any(command.state is CommandState.NO_OUTCOME for story in stories.values() for command in story.commands):
            await self._sleep(SETTLED_S)  # a transaction can be visible in one topic first
            later = await self._reader.ends(others)
            await self._read(others, ends, later, take)
            stories = records.stories(bounds)
        self._orders |= stories

    async def _read(
        self,
        partitions: Iterable[TopicPartition],
        starts: Mapping[TopicPartition, int],
        ends: Mapping[TopicPartition, int],
        take: Callable[[ConsumerRecord], None],
    ) -> None:
        """Read these partitions together. A damaged batch ends the reading of its partition."""
        positions = {partition: starts[partition] for partition in partitions}
        if total := sum(max(0, ends[partition] - start) for partition, start in positions.items()):
            self._progress.start(total)
        for partition, start in positions.items():
            self._kept_since_s.setdefault(partition, self._now() if start > 0 else None)
        while positions:
            try:
                async for records in self._reader.between(dict(positions), ends):
                    await self._take(records, take, positions)
            except DamagedError as error:
                partition = TopicPartition(*error.topic_partition)
                del positions[partition]
                self.damaged.add(DamagedBatch(partition.topic, partition.partition, error.offset))
            else:
                for partition, position in positions.items():
                    self._progress.advance(max(0, ends[partition] - position))
                return

    async def _take(
        self,
        records: list[ConsumerRecord],
        take: Callable[[ConsumerRecord], None],
        positions: dict[TopicPartition, int],
    ) -> None:
        """Take records, in slices, and note the position after each partition's last one."""
        await self._reader.learn([record for record in records if record.topic == self._names.commands])
        for number, record in enumerate(records, 1):
            take(record)
            if number % SLICE == 0:
                await asyncio.sleep(0)
        for partition, of_partition in groupby(records, key=_partition_of):
            in_sequence = list(of_partition)
            self._note_time(partition, in_sequence[0].timestamp / 1000)
            last = in_sequence[-1]
            self._progress.advance(last.offset + 1 - positions[partition])
            positions[partition] = last.offset + 1

    def _note_time(self, partition: TopicPartition, time_s: float) -> None:
        """Note the time of a record, which is the oldest one if it was read first."""
        since_s = self._kept_since_s[partition]
        self._kept_since_s[partition] = None if since_s is None else min(since_s, time_s)

    def _match(self, record: ConsumerRecord) -> None:
        """Note as what a record contains the id, and in which order."""
        kinds = set(self._kinds_in(record))
        if not kinds:
            return
        key = order_key_in(record, self._names)
        command_offset = command_offset_in(record, self._names) if key is None else None
        order_key = OrderKey(record.partition, key, command_offset)
        if len({known for known, _ in self.matches} | {order_key}) > MAX_ORDERS:
            self.has_more = True
            return
        for kind in sorted(kinds):
            match = IdMatch(kind, key_text(key), found_record(record))
            known = self.matches.setdefault((order_key, kind), match)
            if self._rank(match) < self._rank(known):  # partitions are read together
                self.matches[order_key, kind] = match

    def _rank(self, match: IdMatch) -> tuple[int, int]:
        """Return where a match stands: commands come before what they result in."""
        topics = (*_searched(self._names), self._names.table)
        return topics.index(match.record.topic), match.record.offset

    def _kinds_in(self, record: ConsumerRecord) -> Iterator[IdKind]:
        names, search = self._names, self._search
        key = order_key_in(record, names)
        if key is not None and key == search.order_key:
            yield IdKind.ORDER_ID
        if record.topic == names.table:
            return
        if search.command == (record.partition, command_offset_in(record, names)):
            yield IdKind.COMMAND_OFFSET
        if (message := message_in(record, names)) is not None:
            yield from search.kinds_in(message)


class _PartitionRecords:
    """Collects the records of some keys of a partition, and its newest position."""

    def __init__(self, names: TopicNames, keys: list[OrderKey]) -> None:
        self._names = names
        self._orders = {key: OrderRecords(names, key.key, key.command_offset) for key in keys}
        self._by_key: dict[bytes | None, list[OrderRecords]] = defaultdict(list)
        for key, records in self._orders.items():
            self._by_key[key.key].append(records)
        self._position: tuple[int, Position] | None = None

    def take(self, record: ConsumerRecord) -> None:
        """Take a record of the partition."""
        if record.topic == self._names.table and record.key == POSITION_KEY:
            self._position = _position(record)
        for records in self._by_key.get(order_key_in(record, self._names), ()):
            records.take(record)

    def take_operation(self, record: ConsumerRecord) -> None:
        """Take a record of the operations topic."""
        try:
            operation = decode_operation(record.value)
        except DecodeError:  # `verify` reports it
            return
        for records in self._orders.values():
            records.take_operation(record, operation)

    def stories(self, bounds: KeptRange) -> dict[OrderKey, OrderStory]:
        """Return what is known under each key."""
        return {
            key: records.story(
                lane_of(key.partition, self._position, bounds.start, bounds.end),
                has_all_rejections=bounds.has_all_rejections,
            )
            for key, records in self._orders.items()
            if not records.is_empty
        }


def _searched(names: TopicNames) -> tuple[str, ...]:
    return names.commands, names.waiting, names.events, names.rejections, names.dead_letters


def _partition_of(record: ConsumerRecord) -> TopicPartition:
    return TopicPartition(record.topic, record.partition)


def _position(record: ConsumerRecord) -> tuple[int, Position] | None:
    """Return the offset of a position's record, and the position; None if it is deleted or cannot be decoded."""
    try:
        return None if record.value is None else (record.offset, changelog.decode_position(record.value))
    except HistoryError:
        return None
