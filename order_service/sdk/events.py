"""Order events, one after the other, typed: committed ones only, repeats dropped, holes noticed."""

from collections.abc import Awaitable, Callable, Mapping
from inspect import isawaitable
from types import TracebackType
from typing import NoReturn, Self

from aiokafka.structs import ConsumerRecord
from msgspec import Struct

from order_service.domain.messages import Event
from order_service.errors import HistoryError, SetupError
from order_service.kafka.reader import decode
from order_service.runtime.library_logger import library_logger
from order_service.sdk.errors import HoleError
from order_service.sdk.subscriptions import GroupLog, Log, PlacedLog
from order_service.sdk.target import settings_for
from order_service.sdk.versions import Versions
from order_service.settings import Settings

log = library_logger("order_service.sdk")


class EventRecord(Struct, frozen=True):
    """An event, where it stands in the log, and the digest of its bytes, which the order's next event names.

    `is_replay` says that it was in the log already when a projection was opened: history, not news.
    """

    event: Event
    partition: int
    offset: int
    digest: bytes
    is_replay: bool = False


class Hole(Struct, frozen=True):
    """Versions of an order that are missing: `found` came where `expected` should have."""

    order_id: str
    expected: int
    found: int
    partition: int
    offset: int


OnHole = Callable[[Hole], Awaitable[None] | None]
"""What to do about a hole: raise, and what was found will be the next one again; return, and it goes on with it."""
OnPoison = Callable[[ConsumerRecord, HistoryError], Awaitable[None] | None]
"""What to do about a record that is no event: raise, and it will be the next one again; return, and it is passed over.

It may be an event that only a newer SDK can read, so any version of its order may follow. The error names topic,
partition and offset, and never what is in the record; its cause is a DecodeError.
"""


def stop_at_hole(hole: Hole) -> NoReturn:
    """Raise HoleError: what is built on the events of this order would be wrong."""
    raise HoleError(
        f"version {hole.expected} of the order {hole.order_id} is missing: version {hole.found} is next, "
        f"at offset {hole.offset} of partition {hole.partition}"
    )


def stop_at_poison(_record: ConsumerRecord, error: HistoryError) -> NoReturn:
    """Raise the error, which names topic, partition and offset."""
    raise error


def skip(record: ConsumerRecord, error: HistoryError) -> None:
    """Log where a record lies that is no event, and pass it over."""
    place = {"topic": record.topic, "partition": record.partition, "offset": record.offset}
    log.error("A record that is no event was passed over.", why=str(error.__cause__), **place)


class OrderEvents:
    """What happened to orders: `async with` opens it, `async for` gives a `EventRecord` for each event, without an end.

    It is opened for one of two uses. `effects` is for what must not be done again because of history: mails, calls,
    payouts. `projection` is for what is built from history: tables, sums, searches.

    Events of one order come in the order of their versions; those of different orders come in any. What was seen is
    dropped when it comes again (`repeat_count` counts it). A missing version is handed to `on_hole`, a record that is
    no event to `on_poison`; both raise unless you give another function, and may be async.

    A hole is told by what this very object has seen of an order. So none is noticed where a group was restarted or
    rebalanced in between, before the first event of an order behind `start=`, and where poison of the order was passed
    over. The last versions of 100,000 orders are remembered; once there were more, neither a hole in an order that was
    forgotten is noticed nor a first version that is not 1.

    Connection, security and topic prefix are those of the service's settings (the environment: KAFKA_BOOTSTRAP_SERVERS,
    ORDERS_KAFKA_…, ORDERS_TOPIC_PREFIX); `servers` ("host:9092") or `settings` go over them.

    While Kafka is away, nothing comes. Raises KafkaAwayError if it is away when something is opened or committed, or if
    a partition of the events has no leader when a projection or a new group is opened: it names the partition. Raises
    TopicsError if there are no events under these names, HistoryError if a position is in another log, DamagedError if
    a batch cannot be read, and with a schema registry RegistryAwayError if it must be asked and does not answer: ask
    for the next event again, and it is asked again.
    """

    def __init__(self, source: Log, versions: Versions, on_hole: OnHole, on_poison: OnPoison) -> None:
        self.repeat_count = 0
        self._is_open = False
        self._log = source
        self._versions = versions
        self._on_hole = on_hole
        self._on_poison = on_poison
        self._next: ConsumerRecord | None = None
        self._working_on: ConsumerRecord | None = None

    @classmethod
    def effects(
        cls,
        servers: str = "",
        *,
        group: str,
        on_hole: OnHole = stop_at_hole,
        on_poison: OnPoison = stop_at_poison,
        settings: Settings | None = None,
    ) -> Self:
        """Open what is new for `group`, whose members share the partitions; Kafka keeps how far it is.

        A new group begins at the end of the log, and that is written down before anything else: it never does anything
        about history, and misses nothing that happens after it was opened for the first time. Kafka forgets a group
        that was away for a week (`offsets.retention.minutes`), which then is a new one.

        An event counts as done when the next one is asked for, or when `async with` is left without an error. What is
        done is committed when an event is asked for, once a second at most, and when `async with` is left. So each
        event is given at least once: after a kill the one that was being worked on comes again, and so may those that
        were done in the second before it was given, however long the work on it takes. Give each effect a name that
        its receiver knows repeats by, `event.event_id` for instance. An event whose error you catch inside of
        `async with` counts as done: let the error out, and the event comes again.

        A loop body may wait for five minutes, and may block the event loop for ORDERS_SESSION_TIMEOUT_S (15 s); longer,
        and the member is taken for dead, and its partitions go to others. Raises SetupError for the worker's own group,
        and for one whose members read something else.
        """
        chosen, versions = settings_for(servers, settings), Versions()
        if group == chosen.group_id:
            raise SetupError(f"{group} is the group of the order service's workers: choose another name")
        return cls(GroupLog(chosen, group, versions), versions, on_hole, on_poison)

    @classmethod
    def projection(
        cls,
        servers: str = "",
        *,
        start: Mapping[int, int] | None = None,
        on_hole: OnHole = stop_at_hole,
        on_poison: OnPoison = stop_at_poison,
        settings: Settings | None = None,
    ) -> Self:
        """Open all events from the beginning, or from `start` on, which says the next offset of each partition.

        Partitions that it does not name are read from their beginning; a position in it that lies before the beginning
        of its partition, or behind the end, is a HistoryError when this is opened. There is no group: each reader gets
        everything and keeps its own position, best in the transaction that keeps what it builds (see `once`).
        `is_replay` is true for what was there when it was opened.
        """
        chosen, versions = settings_for(servers, settings), Versions()
        return cls(PlacedLog(chosen, start or {}, versions), versions, on_hole, on_poison)

    async def __aenter__(self) -> Self:
        await self._log.open()
        self._is_open = True
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._is_done()
        await self._log.close()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> EventRecord:
        if not self._is_open:
            raise SetupError("open it first: `async with OrderEvents.effects(…) as events:`")
        self._is_done()
        while True:
            record = self._next = self._next or await self._log.next()
            happened = await self._read(record)  # where that raises, this record is the next one again
            self._next = None
            if happened is not None:
                self._working_on = record
                return happened
            self._log.done(record)

    def _is_done(self) -> None:
        if self._working_on is not None:
            self._log.done(self._working_on)
            self._working_on = None

    async def _read(self, record: ConsumerRecord) -> EventRecord | None:
        """Give the event in a record, None for a repeat, and for poison that is passed over."""
        try:
            seen = decode(record, self._log.names)
        except HistoryError as error:
            await _handed(self._on_poison(record, error))
            self._versions.lost_track((record.key or b"").decode(errors="replace"))
            return None
        assert isinstance(seen.message, Event)  # the topic holds nothing else
        event = seen.message
        if self._versions.is_repeat(event.order_id, event.version):
            self.repeat_count += 1
            return None
        expected = self._versions.expected(record.partition, event.order_id, event.version)
        if event.version != expected:
            hole = Hole(event.order_id, expected, event.version, record.partition, record.offset)
            await _handed(self._on_hole(hole))
        self._versions.saw(record.partition, event.order_id, event.version)
        return EventRecord(event, record.partition, record.offset, seen.digest, self._log.is_replay(record))


async def _handed(answer: Awaitable[None] | None) -> None:
    if isawaitable(answer):
        await answer
