"""The consumer of order events: typed and committed events, without repeats, with missing versions detected."""

from collections.abc import Awaitable, Callable, Mapping
from inspect import isawaitable
from typing import Literal, NoReturn, Self, get_args

from aiokafka.structs import ConsumerRecord
from msgspec import Struct

from order_service.domain.messages import Event
from order_service.errors import HistoryError, HoleError, SetupError
from order_service.kafka.topics import TopicNames
from order_service.runtime.library_logger import library_logger
from order_service.sdk.later import decode_outcome
from order_service.sdk.subscriptions import AssignedLog, GroupLog, Log
from order_service.sdk.target import settings_for
from order_service.sdk.versions import Versions
from order_service.settings import Settings
from order_service.wire.later_versions import UnknownEvent
from order_service.wire.trace_context import TraceContext, trace_context_of

log = library_logger("order_service.sdk")


class EventRecord(Struct, frozen=True):
    """An event, its position in the topic, and the digest of its bytes, which the order's next event contains.

    The event is an UnknownEvent if only a newer SDK knows its type. `is_replay` is true if the event was already in the
    log when the projection was opened. `trace` is the W3C trace context of the event, or None: with OpenTelemetry,
    `order_service.sdk.tracing.processing` continues it.
    """

    event: Event | UnknownEvent
    partition: int
    offset: int
    digest: bytes
    is_replay: bool = False
    trace: TraceContext | None = None


class Hole(Struct, frozen=True):
    """Missing versions of an order: version `found` came instead of version `expected`."""

    order_id: str
    expected: int
    found: int
    partition: int
    offset: int


OnHole = Callable[[Hole], Awaitable[None] | None]
"""A handler of missing versions. If it raises, the event comes next again; if it returns, the event is delivered."""
OnPoison = Callable[[ConsumerRecord, HistoryError], Awaitable[None] | None]
"""A handler of undecodable records. If it raises, the record comes next again; if it returns, the record is skipped.

Any version of its order may follow. The error contains topic, partition and offset, and no contents of the record. Its
cause is a DecodeError.
"""
OnUnknown = Literal["deliver", "skip", "stop"]
"""What happens to an event of a type that only a newer SDK knows: it is delivered as an UnknownEvent, or skipped, or
raises HistoryError. Its version counts in each case, so no later event of its order seems to be missing one."""


def stop_at_hole(hole: Hole) -> NoReturn:
    """Raise HoleError. This is the default of `on_hole`: results for this order would be wrong without the version."""
    raise HoleError(
        f"version {hole.expected} of the order {hole.order_id} is missing: version {hole.found} is next, "
        f"at offset {hole.offset} of partition {hole.partition}"
    )


def stop_at_poison(_record: ConsumerRecord, error: HistoryError) -> NoReturn:
    """Raise the error, which contains topic, partition and offset. This is the default of `on_poison`."""
    raise error


def skip(record: ConsumerRecord, error: HistoryError) -> None:
    """Log the position of a record that cannot be decoded, and skip it. Pass it as `on_poison`."""
    position = {"topic": record.topic, "partition": record.partition, "offset": record.offset}
    log.error("A record that cannot be decoded was skipped.", why=str(error.__cause__), **position)


class OrderEvents:
    """A consumer of order events. `async with` opens it; `async for` yields an `EventRecord` per event, without an end.

    Create it with `effects` or `projection`. `effects` is for actions that history must not trigger again: mails,
    calls, payouts. `projection` is for data that is built from history: tables, sums, searches.

    Events of one order arrive in the sequence of their versions; events of different orders arrive in any sequence.
    Repeated events are dropped (`repeat_count` counts them). A missing version is passed to `on_hole`, a record that
    cannot be decoded to `on_poison`. Both raise by default, and may be async.

    A later version of the service may add fields and types of events. Unknown fields are left out. An event of an
    unknown type is delivered as an UnknownEvent, whose `fact` is None. `on_unknown="skip"` skips such events, and
    `on_unknown="stop"` raises HistoryError until a newer SDK is installed: for results that need every type.

    Missing versions are detected from the events that this object has read. So none is detected across a restart or
    rebalance of a group, before the first event of an order after `start=`, or after a skipped record of the order.
    The last versions of 100,000 orders are remembered. Beyond that, neither missing versions of a forgotten order are
    detected, nor a first version other than 1.

    The environment configures the connection, security and topic prefix (KAFKA_BOOTSTRAP_SERVERS, ORDERS_KAFKA_…,
    ORDERS_TOPIC_PREFIX). `servers` ("host:9092") or `settings` override it.

    While Kafka is unavailable, the iteration waits. Opening and iterating raise:

    * `KafkaAwayError` if Kafka does not answer when the consumer is opened or offsets are committed. Also if a
      partition of the events has no leader when a projection or a new group is opened; the message names it.
    * `TopicsError` if the topics do not exist, `HistoryError` if a position is not in this log, `DamagedError` if a
      batch cannot be read.
    * `RegistryAwayError` if a schema registry is needed and does not answer. Request the next event to retry.
    """

    def __init__(
        self, source: Log, versions: Versions, on_hole: OnHole, on_poison: OnPoison, on_unknown: OnUnknown
    ) -> None:
        if on_unknown not in get_args(OnUnknown):
            raise SetupError(f"on_unknown must be one of {', '.join(get_args(OnUnknown))}")
        self.repeat_count = 0
        self._is_open = False
        self._log = source
        self._versions = versions
        self._on_hole = on_hole
        self._on_poison = on_poison
        self._on_unknown = on_unknown
        self._next: ConsumerRecord | None = None
        self._in_progress: ConsumerRecord | None = None

    @classmethod
    def effects(
        cls,
        servers: str = "",
        *,
        group: str,
        on_hole: OnHole = stop_at_hole,
        on_poison: OnPoison = stop_at_poison,
        on_unknown: OnUnknown = "deliver",
        settings: Settings | None = None,
    ) -> Self:
        """Return a consumer of new events. The members of the consumer group `group` share the partitions.

        A new group starts at the end of the log, and commits those offsets before it reads. So it never acts on
        history, and misses no event after it was opened for the first time. Kafka deletes the offsets of a group that
        was inactive for a week (`offsets.retention.minutes`); the group then starts as a new one.

        Delivery is at least once. An event is done when the next one is requested, or when `async with` exits without
        an error. Offsets of done events are committed when an event is requested, at most once a second, and when
        `async with` exits. After a crash, the event in progress is delivered again. Events finished in the second
        before its delivery may come again, too, however long its processing takes. Give each effect an id by which its
        receiver detects repeats, for instance `event.event_id`. An event whose error you catch inside `async with`
        counts as done. Let the error propagate to receive the event again.

        The loop body may wait up to five minutes, and may block the event loop up to ORDERS_SESSION_TIMEOUT_S (15 s).
        After that, the group removes the member and reassigns its partitions. Raises SetupError for the group of the
        workers, and, when opened, for a group whose members read other topics.
        """
        target, versions = settings_for(servers, settings), Versions()
        if group == target.group_id:
            raise SetupError(f"{group} is the group of the order service's workers: choose another name")
        return cls(GroupLog(target, group, versions), versions, on_hole, on_poison, on_unknown)

    @classmethod
    def projection(
        cls,
        servers: str = "",
        *,
        start: Mapping[int, int] | None = None,
        on_hole: OnHole = stop_at_hole,
        on_poison: OnPoison = stop_at_poison,
        on_unknown: OnUnknown = "deliver",
        settings: Settings | None = None,
    ) -> Self:
        """Return a consumer of all events from the beginning, or from `start`: the next offset of each partition.

        Partitions without an entry in `start` are read from their beginning. Opening raises HistoryError if an offset
        is before the beginning of its partition or after its end. There is no consumer group: each consumer reads all
        events and stores its own offsets, best in the transaction that stores its results (see `once`). `is_replay` is
        true for events that existed when the consumer was opened.
        """
        target, versions = settings_for(servers, settings), Versions()
        return cls(AssignedLog(target, start or {}, versions), versions, on_hole, on_poison, on_unknown)

    async def __aenter__(self) -> Self:
        await self._log.open()
        self._is_open = True
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._mark_done()
        await self._log.close()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> EventRecord:
        if not self._is_open:
            raise SetupError("open it first: `async with OrderEvents.effects(…) as events:`")
        self._mark_done()
        while True:
            record = self._next = self._next or await self._log.next()
            event_record = await self._read(record)  # if that raises, this record is the next one again
            self._next = None
            if event_record is not None:
                self._in_progress = record
                return event_record
            self._log.mark_done(record)

    def _mark_done(self) -> None:
        if self._in_progress is not None:
            self._log.mark_done(self._in_progress)
            self._in_progress = None

    async def _read(self, record: ConsumerRecord) -> EventRecord | None:
        """Return the event in a record, or None for a repeat or a skipped record."""
        try:
            event, digest = _decode(record, self._log.names)
        except HistoryError as error:
            await _finish(self._on_poison(record, error))
            self._versions.lost_track((record.key or b"").decode(errors="replace"))
            return None
        if self._versions.is_repeat(event.order_id, event.version):
            self.repeat_count += 1
            return None
        if isinstance(event, UnknownEvent) and self._on_unknown == "stop":
            raise HistoryError(_unknown(record, event))
        expected = self._versions.expected(record.partition, event.order_id, event.version)
        if event.version != expected:
            hole = Hole(event.order_id, expected, event.version, record.partition, record.offset)
            await _finish(self._on_hole(hole))
        self._versions.record(record.partition, event.order_id, event.version)
        if isinstance(event, UnknownEvent) and self._on_unknown == "skip":
            return None
        is_replay, trace = self._log.is_replay(record), trace_context_of(record.headers)
        return EventRecord(event, record.partition, record.offset, digest, is_replay, trace)


def _decode(record: ConsumerRecord, names: TopicNames) -> tuple[Event | UnknownEvent, bytes]:
    """Return the event in a record, and its digest. Raises HistoryError."""
    outcome = decode_outcome(record, names)
    if isinstance(outcome, UnknownEvent):
        return outcome, outcome.digest
    assert isinstance(outcome.message, Event)  # the topic has no other messages
    return outcome.message, outcome.digest


def _unknown(record: ConsumerRecord, event: UnknownEvent) -> str:
    position = f"offset {record.offset} of partition {record.partition} of {record.topic}"
    return f"{position} is an event of the unknown type {event.type}: install a newer SDK, or set on_unknown"


async def _finish(result: Awaitable[None] | None) -> None:
    if isawaitable(result):
        await result
