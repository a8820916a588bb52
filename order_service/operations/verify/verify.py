"""Verifies all topics of the service from their records alone: read-only, and one partition after the other.

The topics are read up to their ends at the start. On a live cluster a transaction can be visible in one topic and not
yet in another one. So if topics differ, what was written meanwhile is read, too, and only lasting differences count.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from functools import partial
from typing import Final

from aiokafka.structs import ConsumerRecord, TopicPartition
from msgspec import Struct

from order_service.errors import DamagedError, TopicsError
from order_service.kafka.reader import Reader
from order_service.kafka.topics import TopicNames
from order_service.operations.verify.findings import Finding, Kind, Report
from order_service.operations.verify.partition_check import PartitionCheck, Terms
from order_service.operations.verify.position_check import Bounds

SETTLED_S: Final = 3.0
"""The time after which a transaction that is visible in one topic is visible in all of them."""
MIRROR: Final = (
    "Not compared in a mirror: whether each command has an outcome, how old undecided commands are, and the ends of the"
    " topics. A missing command, rejection or dead letter is not noticed: outcomes and positions contain the offsets of"
    " the original cluster."
)


class Wanted(Struct, frozen=True):
    """What to verify: how old undecided commands may be, whether the cluster is a mirror, how many findings to keep."""

    older_than_s: float = 60.0
    is_mirror: bool = False
    limit: int = 100


class Progress(Struct, frozen=True):
    """Called with the number of offsets to read, and with each number of offsets that were read."""

    start: Callable[[int], object]
    advance: Callable[[int], object]


async def verify(
    reader: Reader,
    wanted: Wanted,
    progress: Progress,
    *,
    now: Callable[[], float] = time.time,
    sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
) -> Report:
    """Verify all partitions. Raises KafkaAwayError if Kafka goes away meanwhile, TopicsError if a topic is missing."""
    report = Report(wanted.limit, not_checked=[MIRROR] if wanted.is_mirror else [])
    terms = Terms(round((now() - wanted.older_than_s) * 1000), wanted.is_mirror)
    partitions = await reader.partitions(*_sequence(reader.names))
    count = _partition_count(partitions)
    starts, ends = await reader.starts(partitions), await reader.ends(partitions)
    settled_at = now() + SETTLED_S
    progress.start(sum(max(0, ends[partition] - starts[partition]) for partition in partitions))
    for partition in range(count):
        check = PartitionCheck(partition, reader.names, report, terms)
        of_partition = Bounds(_of(partition, starts), _of(partition, ends))
        try:
            await _PartitionReader(reader, partition, progress).verify(
                check, of_partition, lambda: sleep(max(0.0, settled_at - now()))
            )
        except DamagedError as error:
            topic, _ = error.topic_partition
            text = "A batch of records is damaged on the disk of the broker."
            report.add(Finding(Kind.UNREADABLE, topic, partition, error.offset, text))
            report.not_checked.append(
                f"The topics of partition {partition} are not compared: {topic} cannot be read from offset"
                f" {error.offset} on."
            )
    report.partitions = count
    return report


class _PartitionReader:
    """Reads the topics of one partition one after the other."""

    def __init__(self, reader: Reader, partition: int, progress: Progress) -> None:
        self._reader = reader
        self._names = reader.names
        self._partition = partition
        self._progress = progress

    async def verify(
        self, check: PartitionCheck, bounds: Bounds, until_settled: Callable[[], Awaitable[object]]
    ) -> None:
        """Read everything within the bounds, and report what differs."""
        names = self._names
        for topic in _sequence(names)[:-1]:
            await self._read(topic, bounds.starts[topic], bounds.ends[topic], check.take)
        await self._read_commands(check, bounds)
        await self._settle_repeats(check, bounds)
        differences, settled = check.differences(bounds), {}
        if differences or check.has_different_orders() or check.has_unanswered():
            await until_settled()
            settled = dict(bounds.ends)
            bounds = await self._read_on(check, bounds)
            lasting = {(topic, text) for _, topic, _, text in differences}
            differences = [
                difference for difference in check.differences(bounds) if (difference[1], difference[3]) in lasting
            ]
            await self._settle_repeats(check, bounds)
        check.report(differences, bounds.starts, settled)

    async def _settle_repeats(self, check: PartitionCheck, bounds: Bounds) -> None:
        """Read again what shows which commands without an outcome are repeats, if there are such commands."""
        if check.has_unanswered():
            take = partial(check.take_again, are_old_deleted=bounds.starts[self._names.rejections] > 0)
            for topic in (self._names.rejections, self._names.table):
                await self._read(topic, bounds.starts[topic], bounds.ends[topic], take)
            if check.has_short_entries and check.has_unanswered():
                events = self._names.events
                await self._read(events, bounds.starts[events], bounds.ends[events], take)

    async def _read_on(self, check: PartitionCheck, bounds: Bounds) -> Bounds:
        """Read what was written since, except commands. Return the new bounds."""
        topics = _sequence(self._names)[:-1]
        partitions = [TopicPartition(topic, self._partition) for topic in topics]
        ends = {**bounds.ends, **_of(self._partition, await self._reader.ends(partitions))}
        for topic in topics:
            await self._read(topic, bounds.ends[topic], ends[topic], check.take)
        return Bounds(bounds.starts, ends)

    async def _read(self, topic: str, start: int, end: int, take: Callable[[str, list[ConsumerRecord]], None]) -> None:
        async for records in self._records(topic, start, end):
            take(topic, records)

    async def _read_commands(self, check: PartitionCheck, bounds: Bounds) -> None:
        """Read the commands. Those without an outcome may be repeats, so their schemas must be known."""
        topic = self._names.commands
        async for records in self._records(topic, bounds.starts[topic], bounds.ends[topic]):
            await self._reader.learn(check.without_outcome(records))
            check.take(topic, records)

    async def _records(self, topic: str, start: int, end: int) -> AsyncIterator[list[ConsumerRecord]]:
        partition = TopicPartition(topic, self._partition)
        position = start
        async for records in self._reader.between({partition: start}, {partition: end}):
            yield records
            if records:
                self._progress.advance(records[-1].offset + 1 - position)
                position = records[-1].offset + 1
        self._progress.advance(max(0, end - position))


def _sequence(names: TopicNames) -> tuple[str, ...]:
    """Return the topics in the sequence in which they are read, the commands last."""
    outcomes = (names.events, names.rejections, names.dead_letters)
    return names.operations, *outcomes, names.waiting, names.table, names.commands


def _partition_count(partitions: Iterable[TopicPartition]) -> int:
    """Return the number of partitions of each topic. Raises TopicsError if they differ."""
    counts: dict[str, int] = {}
    for topic, partition in partitions:
        counts[topic] = max(counts.get(topic, 0), partition + 1)
    if len(set(counts.values())) > 1:
        differing = ", ".join(f"{topic} has {count}" for topic, count in counts.items())
        raise TopicsError(f"the topics must have the same number of partitions: {differing}")
    return max(counts.values())


def _of(partition: int, offsets: dict[TopicPartition, int]) -> dict[str, int]:
    return {topic: offset for (topic, number), offset in offsets.items() if number == partition}
