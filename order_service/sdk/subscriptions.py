"""Where a subscriber's records come from: a group that keeps its place in Kafka, or a place that the caller keeps."""

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
"""How long what is done may stay uncommitted: so much comes again after a kill."""
WITHIN_S: Final = 10.0
"""How long a commit, or leaving a group, may take."""


class Log(Protocol):
    """The records of the events topic, one after the other."""

    names: TopicNames

    async def open(self) -> None:
        """Begin. Raises KafkaAwayError, TopicsError."""

    async def next(self) -> ConsumerRecord:
        """Wait for the next record; StopAsyncIteration where a log has an end. Whoever is cancelled here loses none."""

    def is_replay(self, record: ConsumerRecord) -> bool:
        """Tell whether a record was there already when this log was opened, and the caller wants to know."""

    def done(self, record: ConsumerRecord) -> None:
        """Hear that nothing is left to do with the record that was given last."""

    async def close(self) -> None:
        """End, and keep what is done."""


class PlacedLog:
    """All records from the beginning, or from the caller's positions on: without a group, and nothing is committed."""

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
        """Begin, where the log reaches that far; HistoryError where it does not."""
        self._reader = await Reader(self._settings).__aenter__()
        try:
            await self._begin()
        except BaseException:
            await self.close()
            raise

    async def next(self) -> ConsumerRecord:
        """Give the next record; HistoryError if the topic was made anew meanwhile."""
        while not self._fetched:
            self._fetched.extend(await self._fetch())
        record = self._fetched.popleft()
        if record.offset < self._at[record.partition]:
            raise HistoryError(f"{record.topic} begins anew: what was built from it belongs to another log")
        self._at[record.partition] = record.offset + 1
        return record

    def is_replay(self, record: ConsumerRecord) -> bool:
        """Tell whether a record was there when this log was opened."""
        return bool(record.offset < self._ends[record.partition])

    def done(self, record: ConsumerRecord) -> None:
        """Keep nothing: the position is the caller's."""

    async def close(self) -> None:
        """End."""
        if self._fetching is not None:
            self._fetching.cancel()
            await asyncio.gather(self._fetching, return_exceptions=True)
        await self._reader.__aexit__(None, None, None)

    async def _fetch(self) -> list[ConsumerRecord]:
        """Wait for some records, maybe none; where that fails, the next call tries again and gets the same ones."""
        self._fetching = self._fetching or asyncio.ensure_future(self._reader.poll())
        try:
            records = await asyncio.shield(self._fetching)  # who is cancelled here leaves it to whoever asks next
        except OrderServiceError:
            self._fetching = None
            raise
        self._fetching = None
        return records

    async def _begin(self) -> None:
        places = await self._reader.partitions(self.names.events)
        starts, ends = await self._reader.starts(places), await self._reader.ends(places)
        for place in places:
            at = self._start.get(place.partition, starts[place])
            _check_position(place, at, starts[place], ends[place])
            self._at[place.partition], self._ends[place.partition] = at, ends[place]
        self._versions.begin(place.partition for place in places if self._at[place.partition] == starts[place])
        self._reader.begin({place: self._at[place.partition] for place in places})


def _check_position(place: TopicPartition, at: int, start: int, end: int) -> None:
    here = f"partition {place.partition} of {place.topic}"
    if at < start:
        raise HistoryError(f"{here} begins at {start}, behind the position {at}: events are gone, or it is another log")
    if at > end:
        raise HistoryError(f"{here} ends at {end}, before the position {at}: it is another log")


class GroupLog:
    """What is new, for a group that shares the partitions among its members and keeps its place in Kafka.

    A record counts as done once, and its place is committed within a second: at least once, for who is killed before.
    """

    def __init__(self, settings: Settings, group: str, versions: Versions) -> None:
        self._settings = settings
        self._group = group
        self._versions = versions
        self._ids = Ids(registry_of(settings))
        self._fetched: ConsumerRecord | None = None
        self._given: ConsumerRecord | None = None
        self._done: dict[TopicPartition, int] = {}
        self._commit_at = 0.0
        self.names = topic_names(settings.topic_prefix)
        self._connection = connection(settings)
        self._servers: str = self._connection["bootstrap_servers"]
        self._consumer: Consumer

    async def open(self) -> None:
        """Join the group; one that is new begins at the end of the log, whatever happens to it afterwards."""
        await self._begin()
        self._consumer = await self._started()
        await self._ids.__aenter__()
        self._consumer.subscribe([self.names.events], listener=_RebalanceListener(self._revoked))

    async def next(self) -> ConsumerRecord:
        """Wait for a record of a partition that is ours; HistoryError if the group's place is not in the log."""
        while True:
            if self._done and time.monotonic() >= self._commit_at:
                await self._commit()
            record = self._fetched or await self._fetch()
            if record is not None:
                self._fetched = record
                await self._ids.learn([record.value])  # where that fails, it is the next one again
                if self._fetched is record:  # and was not revoked meanwhile
                    self._given, self._fetched = record, None
                    return record

    def is_replay(self, _record: ConsumerRecord) -> bool:
        """Tell that nothing is: a group has no history."""
        return False

    def done(self, record: ConsumerRecord) -> None:
        """Have its place committed soon, unless the partition was revoked meanwhile: then its next owner has it."""
        given, self._given = self._given, None
        if given is not None and given is record:
            self._done[TopicPartition(given.topic, given.partition)] = given.offset + 1

    async def close(self) -> None:
        """Commit what is done and leave the group."""
        try:
            await self._commit()
        finally:
            await self._ids.__aexit__()
            await _within(self._consumer.stop(), "The consumer did not leave its group in time.")

    async def _begin(self) -> None:
        """Commit the ends as the beginnings of a group that has none; of one that has some, leave all as it is."""
        consumer = await self._started()
        try:
            async with Reader(self._settings) as reader:
                places = await reader.partitions(self.names.events)
                consumer.assign(places)
                if await self._is_begun(consumer, places):
                    return  # the ends, which a partition without a leader does not tell, are not needed
                ends = await reader.ends(places)
            if not await self._is_begun(consumer, places):  # asked after the ends: these are not too late then
                await self._commit_first(consumer, ends)
        finally:
            await _within(consumer.stop(), "A consumer did not stop in time.")

    async def _is_begun(self, consumer: Consumer, places: Sequence[TopicPartition]) -> bool:
        """Tell whether the group has a place in any partition."""
        with kafka_answers(self._servers):
            async with asyncio.timeout(WITHIN_S):
                return any([await consumer.committed(place) is not None for place in places])

    async def _commit_first(self, consumer: Consumer, ends: Mapping[TopicPartition, int]) -> None:
        """Commit from outside of the group, which Kafka refuses where there are members: one of ours may be first."""
        try:
            with kafka_answers(self._servers):
                async with asyncio.timeout(WITHIN_S):
                    await consumer.commit(ends)
        except KafkaAwayError as error:
            if not isinstance(error.__cause__, CommitFailedError):
                raise
            if not await self._is_begun(consumer, list(ends)):
                said = f"the group {self._group} has members that read something else than {self.names.events}"
                raise SetupError(f"{said}: choose another name") from error
            log.info("Another member was first to begin this group.", group=self._group)
        else:
            log.info("A new group begins at the end of the log.", group=self._group)

    async def _started(self) -> Consumer:
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
        """Take one record, None if none has come for half a second."""
        try:
            with kafka_answers(self._servers):
                fetched = await self._consumer.getmany(timeout_ms=500, max_records=1)
        except KafkaAwayError as error:
            if isinstance(error.__cause__, CorruptRecordException) and (place := damaged_partition(error.__cause__)):
                raise DamagedError(place, await self._consumer.position(place)) from error
            if isinstance(error.__cause__, NoOffsetForPartitionError | OffsetOutOfRangeError):
                said = f"the place of the group {self._group} is not in {self.names.events}: it is another log"
                raise HistoryError(f"{said}, or has new partitions; give the group another name") from error
            raise
        return next((records[0] for records in fetched.values()), None)

    async def _commit(self) -> None:
        """Commit what is done. What a member that lost its partitions cannot commit comes again, to the next owner."""
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
            log.warning("Partitions were lost before what is done in them was committed.", group=self._group)
        self._done = {place: offset for place, offset in self._done.items() if done.get(place) != offset}
        self._commit_at = time.monotonic() + COMMIT_EVERY_S

    async def _revoked(self, places: Iterable[TopicPartition]) -> None:
        """Commit before others go on. What is being worked on then comes again: to them, or to us as a repeat."""
        try:
            await self._commit()
        except KafkaAwayError as error:
            log.warning("What is done could not be committed before a rebalance.", group=self._group, why=str(error))
        finally:
            self._fetched = self._given = None
            self._done.clear()
            self._versions.resume(place.partition for place in places)


class _RebalanceListener(ConsumerRebalanceListener):  # type: ignore[misc] # aiokafka has no types
    """Says when partitions are taken away; aiokafka logs what is raised here, so nothing may be."""

    def __init__(self, revoked: Callable[[Iterable[TopicPartition]], Awaitable[None]]) -> None:
        self._revoked = revoked

    async def on_partitions_revoked(self, revoked: Iterable[TopicPartition]) -> None:
        await self._revoked(revoked)

    async def on_partitions_assigned(self, assigned: Iterable[TopicPartition]) -> None:
        """Do nothing: fetching goes on at what is committed, by itself."""


async def _within(stopping: Awaitable[None], sentence: str) -> None:
    try:
        async with asyncio.timeout(WITHIN_S):
            await stopping
    except TimeoutError:
        log.warning(sentence)
