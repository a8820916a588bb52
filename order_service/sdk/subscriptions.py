"""The sources of a subscriber's records: a consumer group with offsets in Kafka, or offsets that the caller stores."""

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Final, Protocol

from aiokafka import ConsumerRebalanceListener
from aiokafka.errors import (
    CommitFailedError,
    CorruptRecordException,
    IllegalStateError,
    NoOffsetForPartitionError,
    OffsetOutOfRangeError,
)
from aiokafka.structs import ConsumerRecord, TopicPartition

from order_service.errors import DamagedError, HistoryError, KafkaAwayError, OrderServiceError, SetupError
from order_service.kafka.connection import Consumer, connection
from order_service.kafka.reader import Reader, kafka_answers
from order_service.kafka.record_batches import damaged_partition
from order_service.kafka.registry_client import Ids, registry_of
from order_service.kafka.topics import TopicNames, topic_names
from order_service.runtime.library_logger import library_logger
from order_service.sdk.versions import Versions
from order_service.settings import Settings

log = library_logger("order_service.sdk")

COMMIT_EVERY_S: Final = 1.0
"""The interval of commits: the events done within it are delivered again after a crash."""
WITHIN_S: Final = 10.0
"""The time limit for a commit, and for leaving a group."""


class Log(Protocol):
    """A source of records of the events topic."""

    names: TopicNames

    async def open(self) -> None:
        """Connect and start reading. Raises KafkaAwayError, TopicsError."""

    async def next(self) -> ConsumerRecord:
        """Wait for the next record. A cancelled call loses no record. Raises StopAsyncIteration at the end of a log."""

    def is_replay(self, record: ConsumerRecord) -> bool:
        """Return whether a record of a projection existed when this log was opened."""

    def mark_done(self, record: ConsumerRecord) -> None:
        """Record that the last returned record has been processed."""

    async def close(self) -> None:
        """Commit the processed records and disconnect."""


class AssignedLog:
    """All records from the beginning or from the caller's offsets, by assignment: no group, and no commits."""

    def __init__(self, settings: Settings, start: Mapping[int, int], versions: Versions) -> None:
        self.names = topic_names(settings.topic_prefix)
        self._settings = settings
        self._reader: Reader
        self._start = start
        self._versions = versions
        self._ends: dict[int, int] = {}
        self._at: dict[int, int] = {}
        self._fetching: asyncio.Future[list[ConsumerRecord]] | None = None
        self._fetched: deque[ConsumerRecord] = deque()

    async def open(self) -> None:
        """Connect and start reading. Raises HistoryError if an offset is outside of its partition."""
        self._reader = await Reader(self._settings).__aenter__()
        try:
            await self._begin()
        except BaseException:
            await self.close()
            raise

    async def next(self) -> ConsumerRecord:
        """Return the next record. Raises HistoryError if the topic was recreated meanwhile."""
        while not self._fetched:
            self._fetched.extend(await self._fetch())
        record = self._fetched.popleft()
        if record.offset < self._at[record.partition]:
            raise HistoryError(f"{record.topic} was recreated: results of its former records do not match it")
        self._at[record.partition] = record.offset + 1
        return record

    def is_replay(self, record: ConsumerRecord) -> bool:
        """Return whether a record existed when this log was opened."""
        return bool(record.offset < self._ends[record.partition])

    def mark_done(self, record: ConsumerRecord) -> None:
        """Do nothing: the caller stores the offsets."""

    async def close(self) -> None:
        """Cancel the pending fetch and disconnect."""
        if self._fetching is not None:
            self._fetching.cancel()
            await asyncio.gather(self._fetching, return_exceptions=True)
        await self._reader.__aexit__(None, None, None)

    async def _fetch(self) -> list[ConsumerRecord]:
        """Wait for records and return them, possibly none. After an error, the next call returns the same records."""
        self._fetching = self._fetching or asyncio.ensure_future(self._reader.poll())
        try:
            records = await asyncio.shield(self._fetching)  # after a cancellation, the next call awaits the same fetch
        except OrderServiceError:
            self._fetching = None
            raise
        self._fetching = None
        return records

    async def _begin(self) -> None:
        partitions = await self._reader.partitions(self.names.events)
        starts, ends = await self._reader.starts(partitions), await self._reader.ends(partitions)
        for topic_partition in partitions:
            number, start, end = topic_partition.partition, starts[topic_partition], ends[topic_partition]
            at = self._start.get(number, start)
            _check_position(topic_partition, at, start, end)
            self._at[number], self._ends[number] = at, end
        self._versions.begin(key.partition for key in partitions if self._at[key.partition] == starts[key])
        self._reader.begin({key: self._at[key.partition] for key in partitions})


def _check_position(topic_partition: TopicPartition, at: int, start: int, end: int) -> None:
    name = f"partition {topic_partition.partition} of {topic_partition.topic}"
    if at < start:
        why = "events were deleted, or the topic was recreated"
        raise HistoryError(f"{name} begins at {start}, after the position {at}: {why}")
    if at > end:
        raise HistoryError(f"{name} ends at {end}, before the position {at}: the topic was recreated")


class GroupLog:
    """New records for a consumer group, whose members share the partitions and whose offsets are stored in Kafka.

    The offset of a processed record is committed within a second. Delivery is at least once: a crash before that commit
    repeats the record.
    """

    def __init__(self, settings: Settings, group: str, versions: Versions) -> None:
        self._settings = settings
        self._group = group
        self._versions = versions
        self._ids = Ids(registry_of(settings))
        self._fetched: ConsumerRecord | None = None
        self._delivered: ConsumerRecord | None = None
        self._done: dict[TopicPartition, int] = {}
        self._commit_at = 0.0
        self.names = topic_names(settings.topic_prefix)
        self._connection = connection(settings)
        self._servers: str = self._connection["bootstrap_servers"]
        self._consumer: Consumer

    async def open(self) -> None:
        """Join the group. A new group first commits the ends of the log as its start offsets."""
        await self._initialize()
        self._consumer = await self._start_consumer()
        await self._ids.__aenter__()
        self._consumer.subscribe([self.names.events], listener=_RebalanceListener(self._revoked))

    async def next(self) -> ConsumerRecord:
        """Wait for a record of an assigned partition. Raises HistoryError if a committed offset is not in the log."""
        while True:
            if self._done and time.monotonic() >= self._commit_at:
                await self._commit()
            record = self._fetched or await self._fetch()
            if record is not None:
                self._fetched = record
                await self._ids.learn([record.value])  # if that fails, the record is the next one again
                if self._fetched is record:  # its partition was not revoked meanwhile
                    self._delivered, self._fetched = record, None
                    return record

    def is_replay(self, _record: ConsumerRecord) -> bool:
        """Return False: a group does not read history."""
        return False

    def mark_done(self, record: ConsumerRecord) -> None:
        """Schedule a commit of the record, unless its partition was revoked: the next owner then receives it again."""
        delivered, self._delivered = self._delivered, None
        if delivered is not None and delivered is record:
            self._done[TopicPartition(delivered.topic, delivered.partition)] = delivered.offset + 1

    async def close(self) -> None:
        """Commit the processed records and leave the group."""
        try:
            await self._commit()
        finally:
            await self._ids.__aexit__()
            await _within(self._consumer.stop(), "The consumer did not leave its group in time.")

    async def _initialize(self) -> None:
        """Commit the ends of the log as the start offsets of a group without offsets. Other groups are unchanged."""
        consumer = await self._start_consumer()
        try:
            async with Reader(self._settings) as reader:
                partitions = await reader.partitions(self.names.events)
                consumer.assign(partitions)
                if await self._has_offsets(consumer, partitions):
                    return  # the ends are not needed, and a partition without a leader would not return one
                ends = await reader.ends(partitions)
            if not await self._has_offsets(consumer, partitions):  # checked after the ends, so these are not too late
                await self._commit_first(consumer, ends)
        finally:
            await _within(consumer.stop(), "A consumer did not stop in time.")

    async def _has_offsets(self, consumer: Consumer, partitions: Sequence[TopicPartition]) -> bool:
        """Return whether the group has a committed offset in any partition."""
        with kafka_answers(self._servers):
            async with asyncio.timeout(WITHIN_S):
                return any([await consumer.committed(partition) is not None for partition in partitions])

    async def _commit_first(self, consumer: Consumer, ends: Mapping[TopicPartition, int]) -> None:
        """Commit from outside of the group. Kafka refuses it if the group has members, such as a second subscriber."""
        try:
            with kafka_answers(self._servers):
                async with asyncio.timeout(WITHIN_S):
                    await consumer.commit(ends)
        except KafkaAwayError as error:
            if not isinstance(error.__cause__, CommitFailedError):
                raise
            if not await self._has_offsets(consumer, list(ends)):
                problem = f"the group {self._group} has members that do not read {self.names.events}"
                raise SetupError(f"{problem}: choose another name") from error
            log.info("Another member has initialized this group.", group=self._group)
        else:
            log.info("A new group starts at the end of the log.", group=self._group)

    async def _start_consumer(self) -> Consumer:
        session_ms = int(self._settings.session_timeout_s * 1000)
        consumer = Consumer(
            **self._connection,
            group_id=self._group,
            enable_auto_commit=False,
            auto_offset_reset="none",
            isolation_level="read_committed",
            fetch_max_wait_ms=200,
            session_timeout_ms=session_ms,
            heartbeat_interval_ms=session_ms // 5,
            request_timeout_ms=max(10_000, session_ms + 5_000),
        )
        try:
            with kafka_answers(self._servers):
                await consumer.start()
        except BaseException:
            await consumer.stop()
            raise
        return consumer

    async def _fetch(self) -> ConsumerRecord | None:
        """Return one record, or None after 0.5 s without any."""
        try:
            with kafka_answers(self._servers):
                fetched = await self._consumer.getmany(timeout_ms=500, max_records=1)
        except KafkaAwayError as error:
            if isinstance(error.__cause__, CorruptRecordException) and (damaged := damaged_partition(error.__cause__)):
                raise DamagedError(damaged, await self._consumer.position(damaged)) from error
            if isinstance(error.__cause__, NoOffsetForPartitionError | OffsetOutOfRangeError):
                problem = f"the committed offset of the group {self._group} is not in {self.names.events}"
                cure = "the topic was recreated, or has new partitions; give the group another name"
                raise HistoryError(f"{problem}: {cure}") from error
            raise
        return next((records[0] for records in fetched.values()), None)

    async def _commit(self) -> None:
        """Commit the processed records. For lost partitions, the next owner receives the records again."""
        done = dict(self._done)
        if not done:
            return
        try:
            with kafka_answers(self._servers):
                async with asyncio.timeout(WITHIN_S):
                    await self._consumer.commit(done)
        except KafkaAwayError as error:
            if not isinstance(error.__cause__, CommitFailedError | IllegalStateError):
                raise
            log.warning("Partitions were lost before their offsets were committed.", group=self._group)
        self._done = {key: offset for key, offset in self._done.items() if done.get(key) != offset}
        self._commit_at = time.monotonic() + COMMIT_EVERY_S

    async def _revoked(self, partitions: Iterable[TopicPartition]) -> None:
        """Commit before the next owners continue. The record in progress is delivered again, or dropped as a repeat."""
        try:
            await self._commit()
        except KafkaAwayError as error:
            log.warning("Offsets could not be committed before a rebalance.", group=self._group, why=str(error))
        finally:
            self._fetched = self._delivered = None
            self._done.clear()
            self._versions.resume(key.partition for key in partitions)


class _RebalanceListener(ConsumerRebalanceListener):  # type: ignore[misc] # aiokafka has no types
    """A callback for revoked partitions. It must not raise: aiokafka only logs the exception."""

    def __init__(self, revoked: Callable[[Iterable[TopicPartition]], Awaitable[None]]) -> None:
        self._revoked = revoked

    async def on_partitions_revoked(self, revoked: Iterable[TopicPartition]) -> None:
        await self._revoked(revoked)

    async def on_partitions_assigned(self, assigned: Iterable[TopicPartition]) -> None:
        """Do nothing: aiokafka continues to fetch at the committed offsets."""


async def _within(stopping: Awaitable[None], message: str) -> None:
    try:
        async with asyncio.timeout(WITHIN_S):
            await stopping
    except TimeoutError:
        log.warning(message)
