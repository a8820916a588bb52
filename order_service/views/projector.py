"""The projector: folds events and rejections into the tables, and moves its positions in the same transaction.

A record that cannot be applied stops only its own partition: the position stays before it, with the reason. The
partition is retried every few seconds. It continues when the record can be read, or when an operator has skipped it.
A partition stays stopped until an operator acts if its log lacks records that the views have read or should read:
later records do not bring them back. A partition without a leader is left out until it has one.

Two projectors may run at once, and either may be killed at any point. A transaction begins by moving each position from
its expected value. If another projector was faster, this one raises OvertakenError, rolls back, and continues there.

Several projectors can share the partitions (`share.py`). No transaction then writes a row that a projector of other
partitions writes, so none waits for another, or for its order.
"""

import asyncio
import math
import time
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, NoReturn, Protocol

import msgspec
import structlog
from aiokafka.structs import ConsumerRecord, TopicPartition
from sqlalchemy import Engine, bindparam, exists, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Connection

from order_service.domain.messages import Contents, Event, Rejection
from order_service.domain.refusals import NEVER_REMEMBERED
from order_service.domain.validation import is_foreign_id, is_id
from order_service.errors import (
    DamagedError,
    DatabaseError,
    HistoryError,
    LeaderAwayError,
    OvertakenError,
    RegistryAwayError,
)
from order_service.kafka.reader import OutcomeRecord, Reader, decode
from order_service.kafka.topics import TopicNames
from order_service.views import order_view
from order_service.views.checkpoints import STORE_EVERY_S, STORED_FROM_BYTES, id_bytes, store
from order_service.views.database_watch import DatabaseWatch
from order_service.views.order_heads import OrderHead, OrderHeads, head_after
from order_service.views.rows import Put, Row
from order_service.views.share import BEAT_EVERY_S, SEEN_WITHIN_S, UNREAD_AFTER_S, Share, Unread, unread
from order_service.views.stopped import TRY_AGAIN_S, BadRecord, Stopped, bad_record
from order_service.views.tables import (
    FORM,
    database_time_s,
    form,
    form_of,
    milliseconds,
    order_events,
    orders,
    positions,
    projectors,
    refusals,
)

if TYPE_CHECKING:
    from order_service.runtime.spans import Spans

log = structlog.get_logger()

_json: Final = msgspec.json.Encoder().encode

_WHERE_LEFT: Final = (
    positions.c.topic == bindparam("of_topic"),
    positions.c.partition == bindparam("of_partition"),
    positions.c.next_offset == bindparam("before"),
)
"""The condition that a position is where this projector left it."""

_MOVE: Final = (
    positions.update()
    .where(*_WHERE_LEFT, positions.c.is_lost.is_(False), exists().where(form.c.form == FORM))
    .values(next_offset=bindparam("after"), fault=None)
)
_STOP: Final = (
    positions.update()
    .where(*_WHERE_LEFT)
    .values(next_offset=bindparam("after"), fault=bindparam("reason"), is_lost=bindparam("lost"))
)
_COMPLETE: Final = (
    positions.update()
    .where(*_WHERE_LEFT, positions.c.complete_offset < bindparam("complete"))
    .values(complete_offset=bindparam("complete"))
)
_BUILT: Final = (
    positions.update()
    .where(
        positions.c.topic == bindparam("of_topic"),
        positions.c.partition == bindparam("of_partition"),
        positions.c.is_built.is_(False),
    )
    .values(is_built=True)
)
_LOCK_CHECKPOINTS: Final = select(form.c.form).with_for_update(skip_locked=True)
"""One projector at a time stores a checkpoint. The others do not wait: they leave it to that one. In SQLite, every
transaction of a projector is alone from its beginning."""

LOOK_EVERY_S: Final = 1.0
"""How often to report the lag."""
REBUILD: Final = "remove them (the files views.db*, or the tables), and they are rebuilt"
CURE: Final = f"the views were built from another topic; {REBUILD}"


class Projection:
    """The tables, as a projector writes them. Calls block: make them in a thread, one at a time."""

    def __init__(self, engine: Engine, names: TopicNames, clock: Callable[[], float] = time.monotonic) -> None:
        self.database = DatabaseWatch(clock)
        self._engine = engine
        self._names = names
        self._heads = OrderHeads()
        self._database_time_s = database_time_s(engine)
        self._insert = postgresql.insert if engine.dialect.name == "postgresql" else sqlite.insert
        self._put_events = Put(engine.dialect, order_events)
        self._put_orders = Put(engine.dialect, orders, changes=("status", "head", "document"))
        self._put_refusals = Put(engine.dialect, refusals)

    def positions(self, new: Iterable[TopicPartition] = ()) -> dict[TopicPartition, int]:
        """Return the next offset of each known partition. Unknown partitions in `new` are added at offset 0."""
        fresh = {"next_offset": 0, "complete_offset": 0, "is_lost": False, "is_built": False, "has_skipped": False}
        with self._transaction() as connection:
            rows = connection.execute(select(positions))
            offsets = {TopicPartition(row.topic, row.partition): row.next_offset for row in rows}
            _check_form(connection)
            if new and (others := {topic for topic, _ in offsets} - {topic for topic, _ in new}):
                raise DatabaseError(f"the database holds views of other topics: {', '.join(sorted(others))}")
            # Only missing ones: even with DO NOTHING, PostgreSQL waits for a transaction that updates the row.
            if missing := sorted(set(new) - offsets.keys()):
                added = [{**_key(partition), **fresh} for partition in missing]
                connection.execute(self._insert(positions).on_conflict_do_nothing(), added)
        return offsets | dict.fromkeys(missing, 0)

    def mark_built(self, partitions: Iterable[TopicPartition]) -> None:
        """Record that the views hold what the logs of these partitions held when their projector started."""
        rows = [{"of_topic": topic, "of_partition": partition} for topic, partition in sorted(partitions)]
        if rows:
            with self._transaction() as connection:
                connection.execute(_BUILT, rows)

    def is_built(self, partitions: Iterable[TopicPartition]) -> bool:
        """Return whether the views have caught up with these partitions as of the start of a projector."""
        with self._transaction() as connection:
            rows = connection.execute(select(positions.c.topic, positions.c.partition).where(positions.c.is_built))
            built = {TopicPartition(row.topic, row.partition) for row in rows}
        return built.issuperset(partitions)

    def beat(self, share: Share) -> set[Share]:
        """Record that the projector of this share runs. Return the shares of all projectors that run."""
        now = self._database_time_s
        key = {"projector_count": share.count, "projector_index": share.index}
        seen = self._insert(projectors).values(**key, seen_at_s=now)
        is_running = projectors.c.seen_at_s > now - SEEN_WITHIN_S
        with self._transaction() as connection:
            connection.execute(seen.on_conflict_do_update(index_elements=list(key), set_={"seen_at_s": now}))
            _check_form(connection)
            rows = connection.execute(select(projectors).where(is_running))
            return {Share(row.projector_index, row.projector_count) for row in rows}

    def skip(self, topic_partition: TopicPartition, offset: int) -> bool:
        """Move a stopped partition past the record at `offset`; return whether it was stopped there."""
        skipped = positions.update().where(
            positions.c.topic == topic_partition.topic,
            positions.c.partition == topic_partition.partition,
            positions.c.next_offset == offset,
            positions.c.fault.is_not(None),
        )
        moved = skipped.values(next_offset=offset + 1, fault=None, is_lost=False, has_skipped=True)
        with self._transaction() as connection:
            is_skipped = connection.execute(moved).rowcount == 1
            _check_form(connection)
        return is_skipped

    def stop_lost(self, records: Sequence[BadRecord], before: Mapping[TopicPartition, int]) -> None:
        """Stop partitions at these records until an operator acts: their logs lack the records that should follow."""
        with self._transaction() as connection:
            connection.execute(_STOP, [_stop(record, before[record.topic_partition], lost=True) for record in records])
            _check_form(connection)

    def complete(self, offsets: Mapping[TopicPartition, int], at: Mapping[TopicPartition, int]) -> None:
        """Record up to which event no earlier rejection is missing; skip positions that another projector has moved."""
        rows = [
            {
                "of_topic": topic_partition.topic,
                "of_partition": topic_partition.partition,
                "before": at[topic_partition],
                "complete": offsets[topic_partition],
            }
            for topic_partition in sorted(offsets)
        ]
        with self._transaction() as connection:
            connection.execute(_COMPLETE, rows)
            _check_form(connection)

    def store_checkpoint(self) -> bool:
        """Store the positions in all events, of all projectors. Return False if this must be tried again.

        They are stored only if an id that holds all of them is long.
        """
        of_events = select(positions.c.partition, positions.c.next_offset).where(
            positions.c.topic == self._names.events
        )
        with self._transaction() as connection:
            offsets = {row.partition: row.next_offset for row in connection.execute(of_events)}
            _check_form(connection)
            if id_bytes(offsets.items()) < STORED_FROM_BYTES:
                return True
            if connection.scalar(_LOCK_CHECKPOINTS) is None:
                return False
            now_s = connection.scalars(select(self._database_time_s)).one()
            return store(
                connection, [offsets.get(partition, 0) for partition in range(max(offsets, default=-1) + 1)], now_s
            )

    def lost(self) -> list[BadRecord]:
        """Return the partitions that are stopped until an operator acts."""
        with self._transaction() as connection:
            rows = connection.execute(select(positions).where(positions.c.is_lost))
            return [BadRecord(TopicPartition(row.topic, row.partition), row.next_offset, row.fault) for row in rows]

    def apply(
        self,
        read: Sequence[OutcomeRecord | BadRecord],
        before: Mapping[TopicPartition, int],
        after: Mapping[TopicPartition, int],
    ) -> list[BadRecord]:
        """Apply the records between these positions, some thousands at most; events of one order must be in sequence.

        Return the records at which partitions stop. Their positions stay there, regardless of `after`, and no later
        record of these partitions is applied. Raises OvertakenError if another projector has moved a position, and
        DatabaseError if another version has recreated the tables.
        """
        with self._transaction() as connection:
            _move(connection, before, after)
            changed = {
                record.order_id
                for record in read
                if isinstance(record, OutcomeRecord) and isinstance(record.message, Event)
            }
            heads = self._heads.load(changed, connection, {partition: before[partition] for partition in after})
            event_rows: list[Row] = []
            refusal_rows: list[Row] = []
            bad: dict[TopicPartition, BadRecord] = {}
            for record in read:
                partition = record.topic_partition if isinstance(record, BadRecord) else self._partition(record)
                if partition in bad:
                    continue
                if isinstance(record, BadRecord):
                    bad[partition] = record
                    continue
                match record.message:
                    case Event() as event:
                        try:
                            head = heads[event.order_id] = head_after(heads.get(event.order_id), record, event)
                        except HistoryError as error:
                            bad[partition] = bad_record(partition, record.offset, error)
                        else:
                            event_rows.append(_event_row(record, event, head.view.user_id))
                    case Rejection() as rejection:
                        refusal_rows.append(_refusal_row(record, rejection))
            if bad:
                connection.execute(_STOP, [_stop(stop, after[partition]) for partition, stop in bad.items()])
            self._put_events(connection, event_rows)
            self._put_orders(connection, [_order_row(heads[order_id]) for order_id in sorted(heads)])
            self._put_refusals(connection, refusal_rows)
        self._heads.remember(heads, {**after, **{partition: stop.offset for partition, stop in bad.items()}})
        return list(bad.values())

    @contextmanager
    def _transaction(self) -> Iterator[Connection]:
        with self.database.query(), self._engine.begin() as connection:
            yield connection

    def _partition(self, record: OutcomeRecord) -> TopicPartition:
        topic = self._names.events if isinstance(record.message, Event) else self._names.rejections
        return TopicPartition(topic, record.partition)


class Completeness:
    """Tracks up to which event no earlier rejection is missing in the views.

    A worker commits the rejection of a copy before, or together with, the event of a later copy. Kafka may return the
    event first. So the projector notes which events it has, then the end of the rejections, including those that are
    not committed yet. Once it has read up to that end, no rejection from before these events is missing.
    """

    def __init__(self, names: TopicNames) -> None:
        self._names = names
        self._noted: dict[TopicPartition, tuple[int, float]] = {}
        self._ends: dict[TopicPartition, int] = {}
        self._complete: dict[TopicPartition, int] = {}

    async def check(self, reader: Reader, at: Mapping[TopicPartition, int]) -> dict[TopicPartition, int]:
        """Return the noted end of the events, for each partition of the rejections that has been read far enough."""
        complete = {}
        for rejections in (partition for partition in at if partition.topic == self._names.rejections):
            events = at.get(TopicPartition(self._names.events, rejections.partition), 0)
            if rejections not in self._noted:
                if events > self._complete.get(rejections, 0):
                    self._noted[rejections] = events, time.time()
            elif rejections not in self._ends:
                end = reader.log_end_since(rejections, self._noted[rejections][1])
                if end is not None:
                    self._ends[rejections] = end
            elif (position := await reader.position(rejections)) is not None and position >= self._ends[rejections]:
                del self._ends[rejections]
                complete[rejections] = self._complete[rejections] = self._noted.pop(rejections)[0]
        return complete


class Progress(Protocol):
    """A receiver of the progress of the views."""

    def report_left(self, left: int) -> None:
        """Record the number of offsets that are left of the log as of the start of the projector."""

    def report_lag(self, lag: int | None) -> None:
        """Record the number of offsets that the views are behind the log, or None if Kafka does not answer."""

    def report_stopped(self, records: Mapping[TopicPartition, BadRecord]) -> None:
        """Record the stopped partitions, each with its bad record."""

    def report_leaderless(self, partitions: Collection[TopicPartition]) -> None:
        """Record the partitions that have no leader now."""

    def report_unread(self, unread: Unread) -> None:
        """Record the partitions that no projector reads."""


async def follow(
    reader: Reader,
    projection: Projection,
    progress: Progress,
    share: Share = Share(),  # noqa: B008 - it is frozen
    spans: "Spans | None" = None,
) -> NoReturn:
    """Apply all existing and all future records of a share of the partitions, and report the progress.

    If tracing is on, `spans` records the records that are new, once the views have caught up.

    Raises KafkaAwayError, TopicsError and SQLAlchemyError. Raises HistoryError if the views do not match the log: one
    of the two was replaced. The views are rebuilt once their tables are removed.
    """
    partitions = await reader.partitions(reader.names.events, reader.names.rejections)
    follower = _Follower(reader, projection, progress, partitions, share, spans)
    while True:
        await follower.follow()


class _Follower:
    """Follows the partitions of its share that are not stopped, and that have a leader."""

    def __init__(
        self,
        reader: Reader,
        projection: Projection,
        progress: Progress,
        partitions: Sequence[TopicPartition],
        share: Share,
        spans: "Spans | None",
    ) -> None:
        self._spans = spans
        self._reader = reader
        self._projection = projection
        self._progress = progress
        self._partitions = partitions
        self._share = share
        self._own = [partition for partition in partitions if share.holds(partition)]
        self._beat_at = 0.0
        self._unread_since: float | None = None
        self._goal: dict[TopicPartition, int] = {}
        """The end of each partition at the time when it first had a leader."""
        self._left: int | None = None
        """The number of offsets up to the goal, or None if unknown; once it is 0 it stays 0."""
        self._stopped = Stopped()
        self._completeness = Completeness(reader.names)
        self._checkpoint_at = 0.0
        self._has_moved = True
        """Whether positions have moved since the last checkpoint, or may have before the start."""

    async def follow(self) -> None:
        """Follow the partitions until one stops, a retry is due, or another projector is faster."""
        if self._left == 0 and not await asyncio.to_thread(self._projection.is_built, self._own):
            self._left, self._completeness = None, Completeness(self._reader.names)  # the tables were recreated
        try:
            await self._follow()
        except OvertakenError as error:
            log.debug("Another projector was faster.", where=str(error))
            self._completeness = Completeness(self._reader.names)
        except LeaderAwayError as error:  # a partition lost its leader meanwhile; the next round leaves it out
            log.debug("A partition lost its leader.", why=str(error))
            await asyncio.sleep(LOOK_EVERY_S)

    async def _follow(self) -> None:
        reader, projection, stopped = self._reader, self._projection, self._stopped
        everywhere = await asyncio.to_thread(projection.positions, self._partitions)
        _check_partitions(everywhere, self._partitions)
        at = self._of_share(everywhere)
        await self._beat()
        without_leader = await reader.leaderless(self._partitions)
        leaderless = [partition for partition in without_leader if partition in at]
        self._progress.report_leaderless(leaderless)
        reading, resting = await self._begin(at, everywhere, without_leader)  # moves `at` where records are missing
        if not reading:
            if not leaderless:  # all partitions are stopped, and nothing else is left
                await self._report_left(0)
            await asyncio.sleep(TRY_AGAIN_S)
            return
        begin_again_at = time.monotonic() + TRY_AGAIN_S if leaderless else math.inf
        look_at = time.monotonic() + LOOK_EVERY_S
        async for records, damaged in _read(reader, reading):
            moved = _moved(records, at) | {record.topic_partition: record.offset for record in damaged}
            bad: list[BadRecord] = []
            if moved:
                began_ns = time.time_ns()
                away = await reader.look_up(records)
                decoded = await asyncio.to_thread(_decoded, records, reader.names, away)
                bad = await asyncio.to_thread(projection.apply, [*decoded, *damaged], at, moved)
                self._has_moved = True
                at |= moved | {record.topic_partition: record.offset for record in bad}
                self._record(records, at, began_ns)
                stopped.forget_passed(at)
                stopped.add(bad)
                self._progress.report_stopped(stopped.records)
            elif at != self._of_share(await asyncio.to_thread(projection.positions)):
                raise OvertakenError(
                    "the tables were recreated, or another projector has read records that this one has not read yet"
                )
            if self._left != 0:
                await self._report_left(await self._count_left(at, leaderless))
            if time.monotonic() >= look_at:
                await self._report_lag(resting, leaderless)
                look_at = time.monotonic() + LOOK_EVERY_S
                await self._beat()
                await self._store_checkpoint()
                if not bad and (complete := await self._completeness.check(reader, at)):
                    await asyncio.to_thread(projection.complete, complete, at)
            if bad or stopped.is_due() or time.monotonic() >= begin_again_at:
                return

    def _record(self, records: Sequence[ConsumerRecord], at: Mapping[TopicPartition, int], began_ns: int) -> None:
        """Record the spans of records that were applied, unless the views are still being built."""
        if self._spans is not None and self._left == 0:
            self._spans.processed((record for record in records if _is_applied(record, at)), began_ns)

    async def _beat(self) -> None:
        """Record that this projector runs, and report which partitions no projector has read for some time."""
        if time.monotonic() < self._beat_at:
            return
        self._beat_at = time.monotonic() + BEAT_EVERY_S
        found = unread(self._partitions, self._share, await asyncio.to_thread(self._projection.beat, self._share))
        if not found.partitions:
            self._unread_since = None
        elif self._unread_since is None:
            self._unread_since = time.monotonic()
        is_late = self._unread_since is not None and time.monotonic() - self._unread_since >= UNREAD_AFTER_S
        self._progress.report_unread(found if is_late else Unread())

    async def _store_checkpoint(self) -> None:
        if self._has_moved and time.monotonic() >= self._checkpoint_at:
            self._checkpoint_at = time.monotonic() + STORE_EVERY_S
            self._has_moved = not await asyncio.to_thread(self._projection.store_checkpoint)

    def _of_share(self, offsets: Mapping[TopicPartition, int]) -> dict[TopicPartition, int]:
        return {partition: offset for partition, offset in offsets.items() if self._share.holds(partition)}

    async def _begin(
        self,
        at: dict[TopicPartition, int],
        everywhere: Mapping[TopicPartition, int],
        leaderless: Collection[TopicPartition],
    ) -> tuple[dict[TopicPartition, int], int]:
        """Return the start offset of each partition to read, and the number of unread offsets in the stopped ones.

        Partitions without a leader are not read, and the number of offsets in them is unknown. The positions
        `everywhere`, of all shares, tell a log that lost records from another log.
        """
        reader, projection, stopped = self._reader, self._projection, self._stopped
        all_led = [partition for partition in everywhere if partition not in leaderless]
        all_starts, all_ends = await reader.starts(all_led), await reader.ends(all_led)
        led = [partition for partition in all_led if partition in at]
        starts, ends = self._of_share(all_starts), self._of_share(all_ends)
        self._goal |= {partition: end for partition, end in ends.items() if partition not in self._goal}
        lost = [record for record in await asyncio.to_thread(projection.lost) if record.topic_partition in at]
        known = {record.topic_partition for record in lost}
        unreachable = [
            record
            for record in _unreachable(everywhere, all_starts, all_ends, reader.names)
            if record.topic_partition in at and record.topic_partition not in known
        ]
        if unreachable:
            await asyncio.to_thread(projection.stop_lost, unreachable, at)
            at |= {record.topic_partition: record.offset for record in unreachable}
        stopped.forget_passed(at)
        stopped.add([*lost, *unreachable])
        self._progress.report_stopped(stopped.records)
        begin = {partition: max(at[partition], starts[partition]) for partition in led}
        reading = {partition: begin[partition] for partition in stopped.to_read(led)}
        left = {  # at least 0: a log that lost its end is behind the views
            partition: max(0, ends[partition] - begin[partition]) for partition in led
        }
        self._progress.report_lag(sum(left.values()))
        return reading, sum(left[partition] for partition in left.keys() - reading.keys())

    async def _count_left(self, at: Mapping[TopicPartition, int], leaderless: Iterable[TopicPartition]) -> int | None:
        """Return the offsets up to the goal, or None if only partitions that never had a leader are left."""
        goal = self._goal
        read = await self._reader.behind(goal)
        left = read + sum(max(0, goal.get(partition, 0) - at[partition]) for partition in leaderless)
        return left if left or goal.keys() == at.keys() else None

    async def _report_left(self, left: int | None) -> None:
        self._left = left
        if left == 0:
            await asyncio.to_thread(self._projection.mark_built, self._own)
        if left is not None:
            self._progress.report_left(left)

    async def _report_lag(self, resting: int, leaderless: Collection[TopicPartition]) -> None:
        lag = await self._reader.lag()
        self._progress.report_lag(None if lag is None else lag + resting)
        self._progress.report_leaderless({*leaderless, *self._reader.without_leader_now()})


def _check_partitions(at: Iterable[TopicPartition], partitions: Iterable[TopicPartition]) -> None:
    """Raise HistoryError if the views have read a partition that the topics do not have."""
    if unknown := sorted(set(at).difference(partitions)):
        name = f"{unknown[0].topic}-{unknown[0].partition}"
        raise HistoryError(f"the views have read {name}, which does not exist: {CURE}")


async def _read(
    reader: Reader, starts: Mapping[TopicPartition, int]
) -> AsyncIterator[tuple[list[ConsumerRecord], list[BadRecord]]]:
    """Yield records as they arrive, and a bad record at the start of a damaged batch."""
    try:
        async for records in reader.follow_many(starts, learn=False):
            yield records, []
    except DamagedError as error:
        partition = TopicPartition(*error.topic_partition)
        yield [], [bad_record(partition, error.offset, error)]


def _moved(records: Sequence[ConsumerRecord], at: Mapping[TopicPartition, int]) -> dict[TopicPartition, int]:
    """Return the positions after these records. Raises HistoryError if a record is before its position in `at`."""
    moved = {}
    for record in records:
        partition = TopicPartition(record.topic, record.partition)
        if record.offset < at[partition]:
            raise HistoryError(f"a topic was recreated: the views would mix events of two topics; {REBUILD}")
        moved[partition] = record.offset + 1
    return moved


def _is_applied(record: ConsumerRecord, at: Mapping[TopicPartition, int]) -> bool:
    return bool(record.offset < at[TopicPartition(record.topic, record.partition)])


def _decoded(
    records: Sequence[ConsumerRecord], names: TopicNames, away: RegistryAwayError | None
) -> list[OutcomeRecord | BadRecord]:
    return [_decoded_one(record, names, away) for record in records]


def _decoded_one(
    record: ConsumerRecord, names: TopicNames, away: RegistryAwayError | None = None
) -> OutcomeRecord | BadRecord:
    """Return the decoded record, or a bad record. While the registry is `away`, it may become readable later."""
    try:
        outcome = decode(record, names)
        _check_ids(record, outcome)
    except HistoryError as error:
        partition = TopicPartition(record.topic, record.partition)
        return bad_record(partition, record.offset, error if away is None else HistoryError(f"{error} ({away})"))
    return outcome


def _check_ids(record: ConsumerRecord, outcome: OutcomeRecord) -> None:
    """Raise HistoryError if an id or the key is invalid.

    PostgreSQL does not accept NUL in a column, and a database error would stop all partitions. Our workers write no
    such record, but every program with write access to the topic can.
    """
    message = outcome.message
    if not (is_id(message.order_id) and is_id(message.command_id)):
        raise HistoryError("its order_id or command_id is not an id")
    if isinstance(message, Event) and isinstance(message.fact, Contents) and not is_foreign_id(message.fact.user_id):
        raise HistoryError("its user_id is not an id")
    if record.key != message.order_id.encode():
        raise HistoryError("its key is not its order_id")


def _unreachable(
    at: Mapping[TopicPartition, int],
    starts: Mapping[TopicPartition, int],
    ends: Mapping[TopicPartition, int],
    names: TopicNames,
) -> list[BadRecord]:
    """Return a bad record for each partition that lacks the records after the position of the views.

    Raises HistoryError if the log ends before every position above 0: only then is it another log. A partition without
    a leader has no end here, and may still hold the records.
    """
    bad = []
    for partition, end in sorted(ends.items()):
        offset = at[partition]
        if offset > end:
            why, stop_at = f"the views have read it up to {offset}, but it ends at {end}", offset
        elif partition.topic == names.events and offset < starts[partition]:  # rejections have a retention
            why = f"the views have read it up to {offset}, but it begins at {starts[partition]}"
            stop_at = starts[partition] - 1  # so that `skip` continues where the log begins
        else:
            continue
        bad.append(bad_record(partition, stop_at, HistoryError(f"{why}: {CURE}")))
    read = {partition for partition, offset in at.items() if offset > 0}
    if read and all(partition in ends and at[partition] > ends[partition] for partition in read):
        first = next(record for record in bad if record.topic_partition in read)
        raise HistoryError(f"the views do not match the log: {first.text}")
    return bad


def _move(connection: Connection, before: Mapping[TopicPartition, int], after: Mapping[TopicPartition, int]) -> None:
    moves = [  # sorted: two projectors then lock rows in the same order
        {
            "of_topic": topic_partition.topic,
            "of_partition": topic_partition.partition,
            "before": before[topic_partition],
            "after": after[topic_partition],
        }
        for topic_partition in sorted(after)
    ]
    if connection.execute(_MOVE, moves).rowcount != len(moves):
        _check_form(connection)
        expected = ", ".join(f"{key.topic}-{key.partition} at {before[key]}" for key in sorted(after))
        raise OvertakenError(f"another projector has moved a position, expected {expected}")


def _stop(record: BadRecord, before: int, *, lost: bool = False) -> Row:
    topic, partition = record.topic_partition
    where = {"of_topic": topic, "of_partition": partition, "before": before}
    return {**where, "after": record.offset, "reason": record.reason, "lost": lost}


def _check_form(connection: Connection) -> None:
    """Raise DatabaseError if another version has recreated the tables. Use another table first: see `LOCK_ORDER`."""
    actual = form_of(connection)
    if actual != FORM:
        raise DatabaseError(f"the views now have schema version {actual}, this program supports {FORM}")


def _key(topic_partition: TopicPartition) -> Row:
    return {"topic": topic_partition.topic, "partition": topic_partition.partition}


def _order_row(head: OrderHead) -> Row:
    view = head.view
    return {
        "order_id": view.order_id,
        "user_id": view.user_id,
        "status": view.status,
        "created_at": milliseconds(view.created_at),
        "head": head.digest,
        "document": order_view.encode(view),
    }


def _event_row(record: OutcomeRecord, event: Event, user_id: str) -> Row:
    return {
        "order_id": event.order_id,
        "version": event.version,
        "user_id": user_id,
        "command_id": event.command_id,
        "occurred_at": milliseconds(event.occurred_at),
        "partition": record.partition,
        "offset": record.offset,
        "command_offset": record.command_offset,
        "document": _json(event).decode(),
    }


def _refusal_row(record: OutcomeRecord, rejection: Rejection) -> Row:
    return {
        "partition": record.partition,
        "offset": record.offset,
        "order_id": rejection.order_id,
        "command_id": rejection.command_id,
        "command_digest": rejection.command_digest,
        "command_offset": record.command_offset,
        "is_momentary": rejection.reason in NEVER_REMEMBERED,
        "document": _json(rejection).decode(),
    }
