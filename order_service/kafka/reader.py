"""Read the topics as anybody may: committed records only, by assignment, without a group."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import TracebackType
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
from order_service.kafka.record_batches import damaged_place
from order_service.kafka.registry_client import Ids, registry_of
from order_service.kafka.topics import TopicNames, topic_names
from order_service.settings import Settings
from order_service.wire import avro
from order_service.wire.commands import partition_of
from order_service.wire.headers import command_offset_of

STALLED_S: Final = 30.0
"""A reading that gets no further for so long is given up: the broker is away, or a foreign transaction is open."""

SILENT_S: Final = 10.0
"""Kafka answers a fetch within half a second, if only with nothing; longer, and it is away."""

LOOK_UP_S: Final = 2.5
"""How long `look_up` may take: a little more than one try of the registry's client."""

LOOK_UP_AGAIN_S: Final = 30.0
"""How long `look_up` does not ask a registry that has just failed."""

AT_ONCE_MAX: Final = 8_000
"""How many records are given at once: a transaction of a projector, which in thousands would take half longer."""


class OutcomeRecord(Struct, frozen=True, gc=False):
    """An event or a rejection, where it stands, and the digest of its bytes, which the next event must name.

    `command_offset` is the command that it answers; the service's own cancellations have none.
    """

    message: Event | Rejection
    partition: int
    offset: int
    digest: bytes
    command_offset: int | None

    @property
    def order_id(self) -> str:
        """The order that it is about."""
        return self.message.order_id


class Reader:
    """A consumer of any of our topics. `Reader(settings)` is used with `async with`; KafkaAwayError if none answers.

    With a schema registry, ids that events and rejections carry and nobody knows are looked up there. Where that fails,
    all that gives records raises RegistryAwayError, and `some` gives the same ones when it is called again.
    """

    def __init__(self, settings: Settings) -> None:
        self.names: TopicNames = topic_names(settings.topic_prefix)
        self._connection = connection(settings)
        self._servers: str = self._connection["bootstrap_servers"]
        self._ids = Ids(registry_of(settings))
        self._away: RegistryAwayError | None = None
        self._away_at = 0.0
        self._fetched: list[ConsumerRecord] = []
        self._reached: dict[TopicPartition, int] = {}
        self._told: dict[TopicPartition, tuple[int | None, float]] = {}
        """When Kafka last told of a partition, by the wall clock, and when we saw that, by the monotonic one."""
        self._consumer = Consumer(
            **self._connection,
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            isolation_level="read_committed",
            fetch_max_wait_ms=200,
            request_timeout_ms=round(SILENT_S * 1000),
        )

    async def __aenter__(self) -> Self:
        try:
            with kafka_answers(self._servers):
                await self._consumer.start()
        except KafkaAwayError:
            await self._consumer.stop()
            raise
        await self._ids.__aenter__()
        return self

    async def __aexit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        await self._ids.__aexit__()
        await self._consumer.stop()

    async def places(self, *topics: str) -> list[TopicPartition]:
        """Name all partitions of these topics; TopicsError if one is missing."""
        counts = await self._counts(topics)
        return [TopicPartition(topic, partition) for topic in topics for partition in range(counts[topic])]

    async def places_of(self, order_id: str, *topics: str) -> list[TopicPartition]:
        """Name the partition of an order in each of these topics; TopicsError if one is missing."""
        counts = await self._counts(topics)
        return [TopicPartition(topic, partition_of(order_id.encode(), counts[topic])) for topic in topics]

    async def leaderless(self, places: Sequence[TopicPartition]) -> list[TopicPartition]:
        """Return the partitions that have no leader. Kafka is asked only if the client does not know all leaders."""
        if all(knows_leader(self._consumer, place) for place in places):
            return []
        with kafka_answers(self._servers):
            return await leaderless(self._consumer, places)

    def without_leader_now(self) -> list[TopicPartition]:
        """Return the partitions being read that have no leader, as far as the client knows. Kafka is not asked."""
        leader_of = self._consumer._client.cluster.leader_for_partition  # noqa: SLF001
        return sorted(place for place in self._consumer.assignment() if leader_of(place) == NO_LEADER)

    async def ends(self, places: Sequence[TopicPartition]) -> dict[TopicPartition, int]:
        """Ask where what is committed ends now; what is not yet committed lies behind it.

        Raises LeaderAwayError if one of the partitions has no leader: aiokafka would wait for it for 10 s, and answer
        nothing about the others.
        """
        return await self._ask(self._consumer.end_offsets, places)

    async def starts(self, places: Sequence[TopicPartition]) -> dict[TopicPartition, int]:
        """Ask where what is kept begins. Raises LeaderAwayError as `ends` does."""
        return await self._ask(self._consumer.beginning_offsets, places)

    async def _ask(
        self,
        ask: Callable[[Sequence[TopicPartition]], Awaitable[Mapping[TopicPartition, int]]],
        places: Sequence[TopicPartition],
    ) -> dict[TopicPartition, int]:
        await self._check_leaders(places)
        try:
            with kafka_answers(self._servers):
                return dict(await ask(places))
        except KafkaAwayError:
            await self._check_leaders(places)  # one may have lost its leader since
            raise

    async def _check_leaders(self, places: Sequence[TopicPartition]) -> None:
        if missing := await self.leaderless(places):
            raise LeaderAwayError(missing)

    def begin(self, starts: Mapping[TopicPartition, int]) -> None:
        """Read from these offsets on."""
        self._fetched, self._reached, self._told = [], dict(starts), {}
        self._consumer.assign(list(starts))
        for place, offset in starts.items():
            self._consumer.seek(place, offset)

    async def add(self, starts: Mapping[TopicPartition, int]) -> None:
        """Read these partitions too, from these offsets on, and go on with the others after what was given of them."""
        given = {place: await self._consumer.position(place) for place in self._consumer.assignment()}
        self.begin({**given, **starts})

    async def some(self, *, learn: bool = True) -> list[ConsumerRecord]:
        """Return the records that are there, AT_ONCE_MAX at most, or none if none has come for half a second.

        Without `learn`, schema ids are not looked up: see `look_up`. Raises DamagedError if the next batch of a
        partition is damaged; then the next call goes on after the records that were returned.
        """
        if not self._fetched:
            with kafka_answers(self._servers):
                self._fetched = await self._fetch()
        if learn:
            await self._ids.learn(self._decoded(self._fetched))
        found, self._fetched = self._fetched, []
        return found

    async def _fetch(self) -> list[ConsumerRecord]:
        try:
            fetched = await self._consumer.getmany(timeout_ms=500, max_records=AT_ONCE_MAX)
        except CorruptRecordException as error:
            # aiokafka drops what it has drained of the other partitions, and its positions are behind that
            self.begin(self._reached)
            place = damaged_place(error)
            if place is None:
                raise
            return await self._before_damage(place)
        self._reached |= {place: records[-1].offset + 1 for place, records in fetched.items()}
        return [record for records in fetched.values() for record in records]

    async def _before_damage(self, place: TopicPartition) -> list[ConsumerRecord]:
        """Return the records of a partition that lie before its damaged batch; DamagedError if there are none.

        They are fetched one by one, because aiokafka drops those that it drains together with the damage. Its position
        is at the damage when two fetches in a row fail at the same one.
        """
        found: list[ConsumerRecord] = []
        failed_at, give_up_at = -1, time.monotonic() + SILENT_S
        while len(found) < AT_ONCE_MAX:
            try:
                fetched = await self._consumer.getmany(place, timeout_ms=500, max_records=1)
            except CorruptRecordException as error:
                offset = await self._consumer.position(place)
                if offset != failed_at:
                    failed_at = offset
                elif found:
                    break
                else:
                    raise DamagedError(place, offset) from error
            else:
                if fetched:
                    found += fetched[place]
                    self._reached[place] = found[-1].offset + 1
                elif found or time.monotonic() > give_up_at:  # a slow answer, or the batch can be read by now
                    break
        return found

    async def follow(self, starts: Mapping[TopicPartition, int]) -> AsyncIterator[ConsumerRecord]:
        """Give the records from these offsets on, as they come, without an end."""
        async for records in self.follow_many(starts):
            for record in records:
                yield record

    async def look_up(self, records: Iterable[ConsumerRecord]) -> RegistryAwayError | None:
        """Look up the schema ids of records; return why the registry could not be asked, or None if it could.

        After a failure it is not asked for LOOK_UP_AGAIN_S: the other partitions of the caller would wait each time.
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

    def _decoded(self, records: Iterable[ConsumerRecord]) -> Iterator[bytes | None]:
        decoded = (self.names.events, self.names.rejections)  # other topics may hold anything
        return (record.value for record in records if record.topic in decoded)

    async def follow_many(
        self, starts: Mapping[TopicPartition, int], *, learn: bool = True
    ) -> AsyncIterator[list[ConsumerRecord]]:
        """Return what `some` returns, without an end."""
        self.begin(starts)
        while True:
            yield await self.some(learn=learn)

    async def until(self, ends: Mapping[TopicPartition, int]) -> AsyncIterator[ConsumerRecord]:
        """Give all records that lie before these ends; KafkaAwayError if it gets no further for 30 s."""
        starts = await self.starts(list(ends))
        self.begin({place: start for place, start in starts.items() if start < ends[place]})
        give_up_at, last = time.monotonic() + STALLED_S, -1
        while (behind := await self.behind(ends)) > 0:
            if behind != last:
                give_up_at, last = time.monotonic() + STALLED_S, behind
            elif time.monotonic() > give_up_at:
                raise KafkaAwayError(f"Kafka at {self._servers} gives no records any more, {behind} are to come")
            for record in await self.some():
                if record.offset < ends[TopicPartition(record.topic, record.partition)]:
                    yield record

    async def behind(self, ends: Mapping[TopicPartition, int]) -> int:
        """Count the offsets between what was given and these ends."""
        places = self._consumer.assignment() & ends.keys()
        return sum([max(0, ends[place] - await self._consumer.position(place)) for place in places])

    async def lag(self) -> int | None:
        """Count the committed offsets that are not given yet, as Kafka last told; None if that was 10 s ago or more.

        Nothing is asked: an answer would come behind the one of a fetch, which Kafka holds back while nothing is new.
        Of a partition without a leader nothing is told, so the last known end counts.
        """
        places = self._consumer.assignment()
        silent_s = [self._silent_s(place) for place in places.difference(self.without_leader_now())]
        if any(silence_s > SILENT_S for silence_s in silent_s):
            return None
        ends = {place: self._consumer.last_stable_offset(place) for place in places}
        return await self.behind({place: end for place, end in ends.items() if end is not None})

    def _silent_s(self, place: TopicPartition) -> float:
        """Return for how long Kafka has told nothing of a partition, by the monotonic clock; aiokafka has the other."""
        now, told_ms = time.monotonic(), self._consumer.last_poll_timestamp(place)
        if place not in self._told or self._told[place][0] != told_ms:
            self._told[place] = (told_ms, now)
        return now - self._told[place][1]

    async def position(self, place: TopicPartition) -> int | None:
        """Return the offset behind what was given of a partition, or None if it is not read."""
        return await self._consumer.position(place) if place in self._consumer.assignment() else None

    def end_told(self, place: TopicPartition, since_s: float) -> int | None:
        """Return where the log of a partition ended after a time, all that is not committed yet included.

        The last fetch says so; None if it may have been sent before that time. A fetch is answered within SILENT_S.
        """
        if place not in self._consumer.assignment():
            return None
        told_ms = self._consumer.last_poll_timestamp(place)
        is_since = told_ms is not None and told_ms > (since_s + SILENT_S) * 1000
        return self._consumer.highwater(place) if is_since else None

    async def _counts(self, topics: Sequence[str]) -> dict[str, int]:
        """Count the partitions of topics. A consumer knows only those of topics that it has been assigned."""
        with kafka_answers(self._servers):
            return await partition_counts(self._consumer, topics)


def decode(record: ConsumerRecord, names: TopicNames) -> OutcomeRecord:
    """Decode a record of the events or the rejections; HistoryError, with its place, if it is neither."""
    decode_value = avro.decode_event if record.topic == names.events else avro.decode_rejection
    try:
        message = decode_value(record.value or b"")
    except DecodeError as error:
        place = f"offset {record.offset} of partition {record.partition} of {record.topic}"
        raise HistoryError(f"{place} cannot be read: {error}") from error
    return OutcomeRecord(
        message, record.partition, record.offset, avro.digest(record.value), command_offset_of(record.headers)
    )


@contextmanager
def kafka_answers(servers: str) -> Iterator[None]:
    """Turn what a client raises for a Kafka that is away, or does not let us in, into one line."""
    try:
        yield
    except KafkaConnectionError as error:
        line = f"no Kafka answers at {servers}: start one (`order-service up`), or set KAFKA_BOOTSTRAP_SERVERS"
        raise KafkaAwayError(line) from error
    except KafkaError as error:
        said = str(error).strip() or type(error).__name__
        raise KafkaAwayError(f"Kafka at {servers} does not serve us: {said}") from error
    except TimeoutError as error:
        raise KafkaAwayError(f"Kafka at {servers} does not answer in time") from error
