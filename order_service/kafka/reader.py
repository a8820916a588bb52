"""Reads the topics without a consumer group: committed records only, from assigned partitions."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Final, Self

from aiokafka.errors import CorruptRecordException, KafkaConnectionError, KafkaError
from aiokafka.structs import ConsumerRecord, TopicPartition
from msgspec import Struct

from order_service.domain.messages import Event, Rejection
from order_service.errors import (
    DamagedError,
    DecodeError,
    HistoryError,
    KafkaAwayError,
    LeaderAwayError,
    RegistryAwayError,
)
from order_service.kafka.connection import NO_LEADER, Consumer, connection, knows_leader, leaderless, partition_counts
from order_service.kafka.record_batches import damaged_partition
from order_service.kafka.registry_client import Ids, registry_of
from order_service.kafka.topics import TopicNames, topic_names
from order_service.settings import Settings
from order_service.wire import avro
from order_service.wire.commands import partition_of
from order_service.wire.headers import command_offset_of

STALLED_S: Final = 30.0
"""How long `until` may make no progress: the broker is away, or a foreign transaction is open."""

SILENT_S: Final = 10.0
"""After how long without an answer Kafka counts as away: it answers a fetch within half a second, even an empty one."""

LOOK_UP_S: Final = 2.5
"""How long `look_up` may take: a little more than one try of the registry's client."""

LOOK_UP_AGAIN_S: Final = 30.0
"""How long `look_up` does not query a registry after a failure."""

FETCH_MAX_WAIT_MS: Final = 200
"""How long Kafka may hold a fetch until there is news."""

POLL_MAX: Final = 8_000
"""The most records that `poll` returns: one transaction of a projector, which takes half longer by thousands."""


class OutcomeRecord(Struct, frozen=True, gc=False):
    """An event or a rejection, its partition and offset, and the digest of its bytes, which the next event must name.

    `command_offset` is the offset of the command that it answers, or None for the service's own cancellations.
    """

    message: Event | Rejection
    partition: int
    offset: int
    digest: bytes
    command_offset: int | None

    @property
    def order_id(self) -> str:
        """The id of the order that the message is about."""
        return self.message.order_id


class Reader:
    """A consumer of our topics. Use it with `async with`, which raises KafkaAwayError if no broker answers.

    With a schema registry, unknown ids of events and rejections are looked up there. If a lookup fails, every method
    that returns records raises RegistryAwayError, and the next `poll` returns the same records.
    """

    def __init__(self, settings: Settings, *, fetch_max_wait_ms: int = FETCH_MAX_WAIT_MS) -> None:
        self.names: TopicNames = topic_names(settings.topic_prefix)
        self._connection = connection(settings)
        self._servers: str = self._connection["bootstrap_servers"]
        self._ids = Ids(registry_of(settings))
        self._away: RegistryAwayError | None = None
        self._away_at = 0.0
        self._fetched: list[ConsumerRecord] = []
        self._reached: dict[TopicPartition, int] = {}
        self._paused: set[TopicPartition] = set()
        self._answered: dict[TopicPartition, tuple[int | None, float]] = {}
        """When Kafka last answered for a partition, by the wall clock, and when we saw that, by the monotonic one."""
        self._consumer = Consumer(
            **self._connection,
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            isolation_level="read_committed",
            fetch_max_wait_ms=fetch_max_wait_ms,
            request_timeout_ms=round(SILENT_S * 1000),
        )

    async def __aenter__(self) -> Self:
        try:
            with kafka_answers(self._servers):
                await self._consumer.start()
        except BaseException:  # also if the caller is cancelled, or its deadline passes
            await self._consumer.stop()
            raise
        await self._ids.__aenter__()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._ids.__aexit__()
        await self._consumer.stop()

    async def partitions(self, *topics: str) -> list[TopicPartition]:
        """Return all partitions of these topics. Raises TopicsError if a topic is missing."""
        counts = await self._counts(topics)
        return [TopicPartition(topic, partition) for topic in topics for partition in range(counts[topic])]

    async def partitions_of(self, order_id: str, *topics: str) -> list[TopicPartition]:
        """Return the partition of an order in each of these topics. Raises TopicsError if a topic is missing."""
        counts = await self._counts(topics)
        return [TopicPartition(topic, partition_of(order_id.encode(), counts[topic])) for topic in topics]

    async def leaderless(self, partitions: Sequence[TopicPartition]) -> list[TopicPartition]:
        """Return the partitions that have no leader. Kafka is asked only if the client does not know all leaders."""
        if all(knows_leader(self._consumer, partition) for partition in partitions):
            return []
        with kafka_answers(self._servers):
            return await leaderless(self._consumer, partitions)

    async def led_partitions(self, *topics: str) -> list[TopicPartition]:
        """Return the partitions of these topics that have a leader. Raises TopicsError if a topic is missing."""
        partitions = await self.partitions(*topics)
        leaderless = await self.leaderless(partitions)
        return [partition for partition in partitions if partition not in leaderless]

    def without_leader_now(self) -> list[TopicPartition]:
        """Return the assigned partitions that have no leader according to the client. Kafka is not asked."""
        leader_of = self._consumer._client.cluster.leader_for_partition  # noqa: SLF001
        return sorted(partition for partition in self._consumer.assignment() if leader_of(partition) == NO_LEADER)

    async def ends(self, partitions: Sequence[TopicPartition]) -> dict[TopicPartition, int]:
        """Return the last stable offsets; records of open transactions follow them.

        Raises LeaderAwayError if a partition has no leader: aiokafka would wait for it for 10 s, and return nothing
        about the others.
        """
        return await self._ask(self._consumer.end_offsets, partitions)

    async def starts(self, partitions: Sequence[TopicPartition]) -> dict[TopicPartition, int]:
        """Return the offsets at which the retained records begin. Raises LeaderAwayError as `ends` does."""
        return await self._ask(self._consumer.beginning_offsets, partitions)

    async def _ask(
        self,
        ask: Callable[[Sequence[TopicPartition]], Awaitable[Mapping[TopicPartition, int]]],
        partitions: Sequence[TopicPartition],
    ) -> dict[TopicPartition, int]:
        await self._check_leaders(partitions)
        for topic, _ in partitions:  # else aiokafka learns of one new topic per retry, every 100 ms
            self._consumer._client.add_topic(topic)  # noqa: SLF001
        try:
            with kafka_answers(self._servers):
                return dict(await ask(partitions))
        except KafkaAwayError:
            await self._check_leaders(partitions)  # one may have lost its leader since
            raise

    async def _check_leaders(self, partitions: Sequence[TopicPartition]) -> None:
        if missing := await self.leaderless(partitions):
            raise LeaderAwayError(missing)

    def begin(self, starts: Mapping[TopicPartition, int]) -> None:
        """Assign these partitions, and seek to these offsets."""
        self._fetched, self._paused = [], set()
        self._assign(starts)

    def _assign(self, starts: Mapping[TopicPartition, int]) -> None:
        self._reached, self._answered = dict(starts), {}
        self._consumer.assign(list(starts))
        for partition, offset in starts.items():
            self._consumer.seek(partition, offset)
        if self._paused:
            self._consumer.pause(*self._paused)

    def read_also(self, starts: Mapping[TopicPartition, int], *, without: Collection[TopicPartition] = ()) -> None:
        """Read these partitions too, from these offsets, paused ones again. The others continue, `without` some.

        A change of the assignment ends the fetches under way, and repeats them.
        """
        kept = self._reached.keys() - without
        self._paused &= kept
        if without or not starts.keys() <= kept:
            self._assign({**{partition: self._reached[partition] for partition in kept}, **starts})
        else:
            self._reached |= starts
            for partition, offset in starts.items():
                self._consumer.seek(partition, offset)
        self.resume(starts)

    def pause(self, partitions: Collection[TopicPartition]) -> None:
        """Stop reading these assigned partitions. aiokafka drops what it has buffered of them, and fetches it again."""
        self._consumer.pause(*partitions)
        self._paused |= set(partitions)

    def resume(self, partitions: Iterable[TopicPartition]) -> None:
        """Read paused partitions on from where they stopped."""
        resumed = self._paused.intersection(partitions)
        self._consumer.resume(*resumed)
        self._paused -= resumed

    def discard(self) -> None:
        """Drop the records that were fetched and not returned, because looking up their schemas has failed."""
        self._fetched = []

    async def poll(self, *, learn: bool = True) -> list[ConsumerRecord]:
        """Return up to `POLL_MAX` buffered records, or an empty list after 0.5 s without any.

        Without `learn`, schema ids are not looked up: see `look_up`. Raises DamagedError if the next batch of a
        partition is damaged. The next call then continues after the records that were returned.
        """
        if not self._fetched:
            with kafka_answers(self._servers):
                self._fetched = await self._fetch()
        if learn:
            await self._ids.learn(self._decoded(self._fetched))
        records, self._fetched = self._fetched, []
        return records

    async def _fetch(self) -> list[ConsumerRecord]:
        try:
            fetched = await self._consumer.getmany(timeout_ms=500, max_records=POLL_MAX)
        except CorruptRecordException as error:
            # aiokafka drops what it has drained of the other partitions, and its positions are past them
            self._assign(self._reached)
            partition = damaged_partition(error)
            if partition is None:
                raise
            return await self._before_damage(partition)
        self._reached |= {partition: records[-1].offset + 1 for partition, records in fetched.items()}
        return [record for records in fetched.values() for record in records]

    async def _before_damage(self, partition: TopicPartition) -> list[ConsumerRecord]:
        """Return the records of a partition before its damaged batch. Raises DamagedError if there are none.

        They are fetched one by one, because aiokafka drops those that it drains together with the damage. Its position
        is at the damage when two fetches in a row fail at the same position.
        """
        intact: list[ConsumerRecord] = []
        failed_at, give_up_at = -1, time.monotonic() + SILENT_S
        while len(intact) < POLL_MAX:
            try:
                fetched = await self._consumer.getmany(partition, timeout_ms=500, max_records=1)
            except CorruptRecordException as error:
                offset = await self._consumer.position(partition)
                if offset != failed_at:
                    failed_at = offset
                elif intact:
                    break
                else:
                    raise DamagedError(partition, offset) from error
            else:
                if fetched:
                    intact += fetched[partition]
                    self._reached[partition] = intact[-1].offset + 1
                elif intact or time.monotonic() > give_up_at:  # a slow answer, or the batch can be read now
                    break
        return intact

    async def follow(self, starts: Mapping[TopicPartition, int]) -> AsyncIterator[ConsumerRecord]:
        """Yield the records from these offsets as they arrive, without end."""
        async for records in self.follow_many(starts):
            for record in records:
                yield record

    async def look_up(self, records: Iterable[ConsumerRecord]) -> RegistryAwayError | None:
        """Look up the schema ids of records. Return why the lookup failed, or None if it succeeded.

        After a failure the registry is not queried for LOOK_UP_AGAIN_S: each try delays the caller's other partitions.
        """
        values = list(self._decoded(records))
        if self._ids.are_known(values):
            return None
        if self._away is not None and time.monotonic() < self._away_at + LOOK_UP_AGAIN_S:
            return self._away
        try:
            async with asyncio.timeout(LOOK_UP_S):
                await self._ids.learn(values)
        except RegistryAwayError as error:
            self._away = error
        except TimeoutError:
            self._away = RegistryAwayError(f"the schema registry does not answer within {LOOK_UP_S} s")
        else:
            self._away = None
        self._away_at = time.monotonic()
        return self._away

    async def learn(self, records: Iterable[ConsumerRecord]) -> None:
        """Look up the schema ids of these records, whatever their topic. Raises RegistryAwayError."""
        await self._ids.learn(record.value for record in records)

    def _decoded(self, records: Iterable[ConsumerRecord]) -> Iterator[bytes | None]:
        decoded = (self.names.events, self.names.rejections)  # other topics may hold anything
        return (record.value for record in records if record.topic in decoded)

    async def follow_many(
        self, starts: Mapping[TopicPartition, int], *, learn: bool = True
    ) -> AsyncIterator[list[ConsumerRecord]]:
        """Yield what `poll` returns, without end, from these offsets."""
        self.begin(starts)
        while True:
            yield await self.poll(learn=learn)

    async def until(self, ends: Mapping[TopicPartition, int]) -> AsyncIterator[ConsumerRecord]:
        """Yield all records before these ends. Raises KafkaAwayError after 30 s without progress."""
        async for records in self.between(await self.starts(list(ends)), ends):
            for record in records:
                yield record

    async def between(
        self, starts: Mapping[TopicPartition, int], ends: Mapping[TopicPartition, int]
    ) -> AsyncIterator[list[ConsumerRecord]]:
        """Yield the records from these starts to before these ends, in lists as `poll` returns them.

        Raises KafkaAwayError after 30 s without progress.
        """
        unread = {partition: start for partition, start in starts.items() if start < ends[partition]}
        if not unread:  # aiokafka's `stop` can hang once an assignment was replaced by an empty one
            return
        self.begin(unread)
        ends = {partition: ends[partition] for partition in unread}
        limits = {(topic, partition): end for (topic, partition), end in ends.items()}  # fast to look up
        give_up_at, last = time.monotonic() + STALLED_S, -1
        behind = await self._pause_at(ends)
        while behind > 0:
            if behind != last:
                give_up_at, last = time.monotonic() + STALLED_S, behind
            elif time.monotonic() > give_up_at:
                idle = f"has returned no records for {STALLED_S:.0f} s"
                raise KafkaAwayError(f"Kafka at {self._servers} {idle}; {behind} offsets remain")
            records = await self.poll()
            behind = await self._pause_at(ends)
            yield [record for record in records if record.offset < limits[record.topic, record.partition]]

    async def within(self, ranges: Mapping[TopicPartition, Sequence[tuple[int, int]]]) -> AsyncIterator[ConsumerRecord]:
        """Yield the records in these ranges of offsets, each partition's in sequence. Raises as `between` does."""
        begins = await self.starts(list(ranges))  # older records are deleted: Kafka would return all from the start
        for round_number in range(max(map(len, ranges.values()), default=0)):
            spans = {partition: each[round_number] for partition, each in ranges.items() if len(each) > round_number}
            starts = {partition: max(first, begins[partition]) for partition, (first, _) in spans.items()}
            async for records in self.between(starts, {partition: end for partition, (_, end) in spans.items()}):
                for record in records:
                    yield record

    async def _pause_at(self, ends: Mapping[TopicPartition, int]) -> int:
        """Pause what was read to these ends, and return the number of offsets that remain.

        Kafka would hold a fetch at an end, and every request behind that.
        """
        behind = 0
        for partition, end in ends.items():
            remaining = end - await self._consumer.position(partition)
            if remaining > 0:
                behind += remaining
            else:
                self._consumer.pause(partition)
        return behind

    async def behind(self, ends: Mapping[TopicPartition, int]) -> int:
        """Return the number of offsets between the positions and these ends."""
        partitions = self._consumer.assignment() & ends.keys()
        return sum([max(0, ends[partition] - await self._consumer.position(partition)) for partition in partitions])

    async def lag(self) -> int | None:
        """Return the number of committed offsets not read yet, or None if Kafka last answered over 10 s ago.

        The ends come from the last fetches: a request would wait behind a fetch, which Kafka holds until there is news.
        For a partition without a leader, the last known end counts.
        """
        partitions = self._consumer.assignment()
        silent_s = [self._silent_s(partition) for partition in partitions.difference(self.without_leader_now())]
        if any(silence_s > SILENT_S for silence_s in silent_s):
            return None
        ends = {partition: self._consumer.last_stable_offset(partition) for partition in partitions}
        return await self.behind({partition: end for partition, end in ends.items() if end is not None})

    def _silent_s(self, partition: TopicPartition) -> float:
        """Return the seconds since Kafka last answered for a partition; monotonic, unlike aiokafka's timestamp."""
        now, answered_ms = time.monotonic(), self._consumer.last_poll_timestamp(partition)
        if partition not in self._answered or self._answered[partition][0] != answered_ms:
            self._answered[partition] = (answered_ms, now)
        return now - self._answered[partition][1]

    async def position(self, partition: TopicPartition) -> int | None:
        """Return the offset of the next record of a partition, or None if it is not assigned."""
        return await self._consumer.position(partition) if partition in self._consumer.assignment() else None

    def log_end_since(self, partition: TopicPartition, since_s: float) -> int | None:
        """Return the log end of a partition at some time after `since_s`, uncommitted records included.

        It comes from the last fetch; None if that may have been sent before. A fetch is answered within SILENT_S.
        """
        if partition not in self._consumer.assignment():
            return None
        answered_ms = self._consumer.last_poll_timestamp(partition)
        is_since = answered_ms is not None and answered_ms > (since_s + SILENT_S) * 1000
        return self._consumer.highwater(partition) if is_since else None

    async def _counts(self, topics: Sequence[str]) -> dict[str, int]:
        """Return the partition count of each topic. A consumer knows only the topics that are assigned to it."""
        with kafka_answers(self._servers):
            return await partition_counts(self._consumer, topics)


def decode(record: ConsumerRecord, names: TopicNames) -> OutcomeRecord:
    """Decode a record of the events or the rejections. Raises HistoryError, with its offset, if that fails."""
    decode_value = avro.decode_event if record.topic == names.events else avro.decode_rejection
    try:
        message = decode_value(record.value or b"")
    except DecodeError as error:
        position = f"offset {record.offset} of partition {record.partition} of {record.topic}"
        raise HistoryError(f"{position} cannot be read: {error}") from error
    return OutcomeRecord(
        message, record.partition, record.offset, avro.digest(record.value), command_offset_of(record.headers)
    )


@contextmanager
def kafka_answers(servers: str) -> Iterator[None]:
    """Convert the errors of a Kafka client in this block into KafkaAwayError with a one-line message."""
    try:
        yield
    except KafkaConnectionError as error:
        if isinstance(error.__cause__, KafkaAwayError):  # a server refuses us
            raise KafkaAwayError(str(error.__cause__)) from error
        line = f"no Kafka answers at {servers}: start one (`order-service up`), or set KAFKA_BOOTSTRAP_SERVERS"
        raise KafkaAwayError(line) from error
    except KafkaError as error:
        reason = str(error).strip() or type(error).__name__
        raise KafkaAwayError(f"a request to Kafka at {servers} failed: {reason}") from error
    except TimeoutError as error:
        raise KafkaAwayError(f"Kafka at {servers} does not answer in time") from error
