"""The projector: folds events and rejections into the tables, and moves its positions in the same transaction.

A record that does not fit stops its partition of its topic, and no other one: the position stays before it, with the
reason beside it. The partition is tried again every few seconds, and goes on where the record can be read after all,
or where an operator has skipped it. A partition whose log lacks records that the views have read, or never read, stays
stopped until an operator acts: what the log gets later does not bring them back. A partition without a leader is left
out until it has one.

Two may run at once, and either may be killed anywhere: a transaction begins by moving each position from where this
projector believes it to be. Where another was first it is `Overtaken`, nothing of it stays, and it goes on from there.
"""

import asyncio
import math
import time
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Final, NoReturn, Protocol

import msgspec
import structlog
from aiokafka.structs import ConsumerRecord, TopicPartition
from sqlalchemy import Engine, bindparam, exists, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Connection

from order_service.domain.messages import Contents, Event, Rejection
from order_service.domain.refusals import NEVER_REMEMBERED
from order_service.domain.validation import is_id
from order_service.errors import DamagedError, DatabaseError, HistoryError, LeaderAwayError, RegistryAwayError
from order_service.kafka.reader import OutcomeRecord, Reader, decode
from order_service.kafka.topics import TopicNames
from order_service.views import order_view
from order_service.views.database_watch import DatabaseWatch
from order_service.views.order_heads import OrderHead, OrderHeads, head_after
from order_service.views.rows import Put, Row
from order_service.views.stopped import TRY_AGAIN_S, BadRecord, Stopped, bad_record
from order_service.views.tables import FORM, form, form_of, milliseconds, order_events, orders, positions, refusals

log = structlog.get_logger()

_json: Final = msgspec.json.Encoder().encode

_WHERE_LEFT: Final = (
    positions.c.topic == bindparam("of_topic"),
    positions.c.partition == bindparam("of_partition"),
    positions.c.next_offset == bindparam("before"),
)
"""A position that is where this projector left it."""

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

LOOK_EVERY_S: Final = 1.0
"""How often to tell how far the log goes on."""
CURE: Final = "they belong to another log; remove them (the files views.db*, or the tables), and they are built again"


class Overtaken(Exception):
    """Another projector has moved a position that we believed to be where we left it."""


class Projection:
    """The tables as a projector uses them. Calls block: they belong into a thread of their own, one at a time."""

    def __init__(self, engine: Engine, names: TopicNames, clock: Callable[[], float] = time.monotonic) -> None:
        self.database = DatabaseWatch(clock)
        self._engine = engine
        self._names = names
        self._heads = OrderHeads()
        self._insert = postgresql.insert if engine.dialect.name == "postgresql" else sqlite.insert
        self._put_events = Put(engine.dialect, order_events)
        self._put_orders = Put(engine.dialect, orders, changes=("status", "head", "document"))
        self._put_refusals = Put(engine.dialect, refusals)

    def positions(self, new: Iterable[TopicPartition] = ()) -> dict[TopicPartition, int]:
        """Read the next offset of each place that is known; of these, those that are `new` begin at 0."""
        begun = [{**_names(place), "next_offset": 0, "complete_offset": 0, "is_lost": False} for place in new]
        with self._transaction() as connection:
            if begun:
                connection.execute(self._insert(positions).on_conflict_do_nothing(), begun)
            _check_form(connection)
            rows = connection.execute(select(positions))
            found = {TopicPartition(row.topic, row.partition): row.next_offset for row in rows}
            if new and (others := {place.topic for place in found} - {place.topic for place in new}):
                raise DatabaseError(f"the database holds views of other topics: {', '.join(sorted(others))}")
        return found

    def mark_built(self) -> None:
        """Record that the views hold everything that the log held when the projector started."""
        with self._transaction() as connection:
            connection.execute(form.update().values(is_built=True))

    def is_built(self) -> bool:
        """Return whether the views have held everything that the log held when a projector started."""
        with self._transaction() as connection:
            return bool(connection.scalar(select(form.c.is_built)))

    def skip(self, place: TopicPartition, offset: int) -> bool:
        """Move a stopped partition past the record at `offset`; return whether it was stopped there."""
        skipped = positions.update().where(
            positions.c.topic == place.topic,
            positions.c.partition == place.partition,
            positions.c.next_offset == offset,
            positions.c.fault.is_not(None),
        )
        with self._transaction() as connection:
            _check_form(connection)
            moved = skipped.values(next_offset=offset + 1, fault=None, is_lost=False)
            return connection.execute(moved).rowcount == 1

    def stop_lost(self, records: Sequence[BadRecord], before: Mapping[TopicPartition, int]) -> None:
        """Stop partitions at these records, until an operator acts: their logs do not hold what should follow."""
        with self._transaction() as connection:
            _check_form(connection)
            connection.execute(_STOP, [_stop(record, before[record.place], lost=True) for record in records])

    def complete(self, offsets: Mapping[TopicPartition, int], at: Mapping[TopicPartition, int]) -> None:
        """Record up to which event no earlier refusal is missing; not of a partition that is not where we left it."""
        rows = [
            {"of_topic": place.topic, "of_partition": place.partition, "before": at[place], "complete": offsets[place]}
            for place in sorted(offsets)
        ]
        with self._transaction() as connection:
            _check_form(connection)
            connection.execute(_COMPLETE, rows)

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
        """Fold all that stands between these positions (some thousands at most); events of an order in their order.

        Return the records at which partitions stop: their positions stay there, whatever `after` says, and nothing
        behind them is folded. Raises Overtaken if a position is elsewhere by now, DatabaseError if another version has
        made the tables anew.
        """
        with self._transaction() as connection:
            _move(connection, before, after)
            changed = {
                one.order_id for one in read if isinstance(one, OutcomeRecord) and isinstance(one.message, Event)
            }
            heads = self._heads.of(changed, connection, {place: before[place] for place in after})
            happened: list[Row] = []
            refused: list[Row] = []
            bad: dict[TopicPartition, BadRecord] = {}
            for one in read:
                place = one.place if isinstance(one, BadRecord) else self._place(one)
                if place in bad:
                    continue
                if isinstance(one, BadRecord):
                    bad[place] = one
                    continue
                match one.message:
                    case Event() as event:
                        try:
                            head = heads[event.order_id] = head_after(heads.get(event.order_id), one, event)
                        except HistoryError as error:
                            bad[place] = bad_record(place, one.offset, error)
                        else:
                            happened.append(_happened(one, event, head.view.user_id))
                    case Rejection() as rejection:
                        refused.append(_refused(one, rejection))
            if bad:
                connection.execute(_STOP, [_stop(record, after[place]) for place, record in bad.items()])
            self._put_events(connection, happened)
            self._put_orders(connection, [_order(heads[order_id]) for order_id in sorted(heads)])
            self._put_refusals(connection, refused)
        self._heads.keep(heads, {**after, **{place: record.offset for place, record in bad.items()}})
        return list(bad.values())

    @contextmanager
    def _transaction(self) -> Iterator[Connection]:
        with self.database.question(), self._engine.begin() as connection:
            yield connection

    def _place(self, seen: OutcomeRecord) -> TopicPartition:
        topic = self._names.events if isinstance(seen.message, Event) else self._names.rejections
        return TopicPartition(topic, seen.partition)


class Completeness:
    """Finds out up to which event no earlier refusal is missing in the views.

    A worker commits the refusal of a copy before, or together with, the event of a later copy. Kafka may show the event
    first. So we note which events we have, then where the log of the rejections ends, all that is not committed yet
    included: once we have read up to there, no refusal from before these events is missing.
    """

    def __init__(self, names: TopicNames) -> None:
        self._names = names
        self._noted: dict[TopicPartition, tuple[int, float]] = {}
        self._ends: dict[TopicPartition, int] = {}
        self._complete: dict[TopicPartition, int] = {}

    async def look(self, reader: Reader, at: Mapping[TopicPartition, int]) -> dict[TopicPartition, int]:
        """Return, of each partition of the rejections that we have read far enough, the end of the events noted."""
        found = {}
        for place in (place for place in at if place.topic == self._names.rejections):
            events = at.get(TopicPartition(self._names.events, place.partition), 0)
            if place not in self._noted:
                if events > self._complete.get(place, 0):
                    self._noted[place] = events, time.time()
            elif place not in self._ends:
                end = reader.log_end_since(place, self._noted[place][1])
                if end is not None:
                    self._ends[place] = end
            elif (position := await reader.position(place)) is not None and position >= self._ends[place]:
                del self._ends[place]
                found[place] = self._complete[place] = self._noted.pop(place)[0]
        return found


class Progress(Protocol):
    """Who wants to know how far the views are."""

    def tell(self, left: int) -> None:
        """Take the number of offsets that are left of what the log held when the projector started."""

    def tell_behind(self, behind: int | None) -> None:
        """Take the number of offsets that the views are behind the log, or None if Kafka does not answer."""

    def tell_bad(self, records: Mapping[TopicPartition, BadRecord]) -> None:
        """Take the partitions that are stopped, each with its bad record."""

    def tell_leaderless(self, places: Collection[TopicPartition]) -> None:
        """Take the partitions that have no leader now."""


async def follow(reader: Reader, projection: Projection, progress: Progress) -> NoReturn:
    """Fold all that was and all that comes, and tell how far the views are.

    Raises KafkaAwayError, TopicsError, SQLAlchemyError; HistoryError where the views and the whole log do not fit
    together: then one of both was replaced, and without its tables the views are built again.
    """
    places = await reader.partitions(reader.names.events, reader.names.rejections)
    goal: dict[TopicPartition, int] = {}
    left: int | None = None
    stopped, completeness = Stopped(), Completeness(reader.names)
    while True:
        if left == 0 and not await asyncio.to_thread(projection.is_built):
            left, completeness = None, Completeness(reader.names)  # the tables were made anew
        try:
            left = await _follow(reader, projection, places, goal, left, stopped, completeness, progress)
        except Overtaken as error:
            log.debug("Another projector was first.", where=str(error))
            completeness = Completeness(reader.names)
        except LeaderAwayError as error:  # it lost its leader while it was asked; the next time it is left out
            log.debug("A leader is away.", why=str(error))
            await asyncio.sleep(LOOK_EVERY_S)


async def _follow(
    reader: Reader,
    projection: Projection,
    places: Sequence[TopicPartition],
    goal: dict[TopicPartition, int],
    left: int | None,
    stopped: Stopped,
    completeness: Completeness,
    progress: Progress,
) -> int | None:
    """Follow the partitions that are not stopped; return when one stops, or is to be tried again.

    `goal` maps each partition to the end that it had when it first had a leader. `left` is the number of offsets that
    are left up to there, None if it is not known; what it is by now is returned. Once it is 0 it stays so.
    """
    at = await asyncio.to_thread(projection.positions, places)
    _check_places(at, places)
    leaderless = await reader.leaderless(places)
    progress.tell_leaderless(leaderless)
    # it moves `at` where records are gone
    reading, resting = await _begin(reader, projection, at, leaderless, goal, stopped, progress)
    if not reading:
        if not leaderless:  # all partitions are stopped, and nothing else is left
            left = 0
            await _tell(left, projection, progress)
        await asyncio.sleep(TRY_AGAIN_S)
        return left
    begin_again_at = time.monotonic() + TRY_AGAIN_S if leaderless else math.inf
    look_at = time.monotonic() + LOOK_EVERY_S
    async for records, damaged in _read(reader, reading):
        moved = _moved(records, at) | {record.place: record.offset for record in damaged}
        bad: list[BadRecord] = []
        if moved:
            away = await reader.look_up(records)
            decoded = await asyncio.to_thread(_decoded, records, reader.names, away)
            read = [*decoded, *damaged]
            bad = await asyncio.to_thread(projection.apply, read, at, moved)
            at |= moved | {record.place: record.offset for record in bad}
            stopped.forget_passed(at)
            stopped.add(bad)
            progress.tell_bad(stopped.records)
        elif at != await asyncio.to_thread(projection.positions):
            raise Overtaken("the tables were made anew, or another projector has read what we are given later")
        if left != 0:
            left = await _left(reader, goal, at, leaderless)
            await _tell(left, projection, progress)
        if time.monotonic() >= look_at:
            await _tell_behind(reader, resting, leaderless, progress)
            look_at = time.monotonic() + LOOK_EVERY_S
            if not bad and (complete := await completeness.look(reader, at)):
                await asyncio.to_thread(projection.complete, complete, at)
        if bad or stopped.is_due() or time.monotonic() >= begin_again_at:
            break
    return left


def _check_places(at: Iterable[TopicPartition], places: Iterable[TopicPartition]) -> None:
    """Raise HistoryError if the views have read a partition that the topics do not have."""
    if unknown := sorted(set(at).difference(places)):
        raise HistoryError(f"the views have read {unknown[0].topic}-{unknown[0].partition}, which is not there: {CURE}")


async def _left(
    reader: Reader,
    goal: Mapping[TopicPartition, int],
    at: Mapping[TopicPartition, int],
    leaderless: Iterable[TopicPartition],
) -> int | None:
    """Count the offsets that are left up to the goal; None if they all lie where there was no leader yet."""
    left = await reader.behind(goal) + sum(max(0, goal.get(place, 0) - at[place]) for place in leaderless)
    return left if left or goal.keys() == at.keys() else None


async def _tell(left: int | None, projection: Projection, progress: Progress) -> None:
    if left == 0:
        await asyncio.to_thread(projection.mark_built)
    if left is not None:
        progress.tell(left)


async def _tell_behind(
    reader: Reader, resting: int, leaderless: Collection[TopicPartition], progress: Progress
) -> None:
    lag = await reader.lag()
    progress.tell_behind(None if lag is None else lag + resting)
    progress.tell_leaderless({*leaderless, *reader.without_leader_now()})


async def _read(
    reader: Reader, starts: Mapping[TopicPartition, int]
) -> AsyncIterator[tuple[list[ConsumerRecord], list[BadRecord]]]:
    """Return records as they come, and, where the next batch of a partition is damaged, a bad record at its start."""
    try:
        async for records in reader.follow_many(starts, learn=False):
            yield records, []
    except DamagedError as error:
        place = TopicPartition(*error.topic_partition)
        yield [], [bad_record(place, error.offset, error)]


async def _begin(
    reader: Reader,
    projection: Projection,
    at: dict[TopicPartition, int],
    leaderless: Collection[TopicPartition],
    goal: dict[TopicPartition, int],
    stopped: Stopped,
    progress: Progress,
) -> tuple[dict[TopicPartition, int], int]:
    """Return where to begin each partition that is to be read, and how many offsets lie in those that are not.

    Partitions without a leader are not read, and what lies in them is not known.
    """
    led = [place for place in at if place not in leaderless]
    starts, ends = await reader.starts(led), await reader.ends(led)
    goal |= {place: end for place, end in ends.items() if place not in goal}
    lost = await asyncio.to_thread(projection.lost)
    known = {record.place for record in lost}
    unreachable = [record for record in _unreachable(at, starts, ends, reader.names) if record.place not in known]
    if unreachable:
        await asyncio.to_thread(projection.stop_lost, unreachable, at)
        at |= {record.place: record.offset for record in unreachable}
    stopped.forget_passed(at)
    stopped.add([*lost, *unreachable])
    progress.tell_bad(stopped.records)
    begin = {place: max(at[place], starts[place]) for place in led}
    reading = {place: begin[place] for place in stopped.to_read(led)}
    left = {place: max(0, ends[place] - begin[place]) for place in led}  # a log that lost its end is behind the views
    progress.tell_behind(sum(left.values()))
    return reading, sum(left[place] for place in left.keys() - reading.keys())


def _moved(records: Sequence[ConsumerRecord], at: Mapping[TopicPartition, int]) -> dict[TopicPartition, int]:
    """Return the positions behind these records. Raises HistoryError if one lies before where we are."""
    moved = {}
    for record in records:
        place = TopicPartition(record.topic, record.partition)
        if record.offset < at[place]:
            raise HistoryError(f"a topic begins anew: the views would mix two logs; {CURE}")
        moved[place] = record.offset + 1
    return moved


def _decoded(
    records: Sequence[ConsumerRecord], names: TopicNames, away: RegistryAwayError | None
) -> list[OutcomeRecord | BadRecord]:
    return [_decoded_one(record, names, away) for record in records]


def _decoded_one(
    record: ConsumerRecord, names: TopicNames, away: RegistryAwayError | None = None
) -> OutcomeRecord | BadRecord:
    """Decode a record. While the registry is `away`, a record that cannot be read may be readable later."""
    try:
        seen = decode(record, names)
        _check_ids(record, seen)
    except HistoryError as error:
        place = TopicPartition(record.topic, record.partition)
        return bad_record(place, record.offset, error if away is None else HistoryError(f"{error} ({away})"))
    return seen


def _check_ids(record: ConsumerRecord, seen: OutcomeRecord) -> None:
    """Check what goes into columns: PostgreSQL takes no NUL there, and a database error would stop all partitions.

    Our workers write no such record, but whoever may write to the topic can. Raises HistoryError.
    """
    message = seen.message
    ids = [message.order_id, message.command_id]
    if isinstance(message, Event) and isinstance(message.fact, Contents):
        ids.append(message.fact.user_id)
    if not all(map(is_id, ids)):
        raise HistoryError("its order_id, command_id or user_id is not an id")
    if record.key != message.order_id.encode():
        raise HistoryError("its key is not its order_id")


def _unreachable(
    at: Mapping[TopicPartition, int],
    starts: Mapping[TopicPartition, int],
    ends: Mapping[TopicPartition, int],
    names: TopicNames,
) -> list[BadRecord]:
    """Return the partitions that do not hold what follows on what the views have read of them, each at a record.

    Raises HistoryError if the log ends before every position above 0: only then is it another log. A partition without
    a leader has no end here, and may hold what was read.
    """
    bad = []
    for place, end in sorted(ends.items()):
        offset = at[place]
        if offset > end:
            why, stop_at = f"the views have read it up to {offset}, but it ends at {end}", offset
        elif place.topic == names.events and offset < starts[place]:  # rejections are not kept for ever
            why = f"the views have read it up to {offset}, but it begins at {starts[place]}"
            stop_at = starts[place] - 1  # so that `skip` goes on where the log begins
        else:
            continue
        bad.append(bad_record(place, stop_at, HistoryError(f"{why}: {CURE}")))
    read = {place for place, offset in at.items() if offset > 0}
    if read and all(place in ends and at[place] > ends[place] for place in read):
        first = next(record for record in bad if record.place in read)
        raise HistoryError(f"the views do not fit the log: {first.text}")
    return bad


def _move(connection: Connection, before: Mapping[TopicPartition, int], after: Mapping[TopicPartition, int]) -> None:
    moves = [  # sorted: two projectors then lock rows in the same order
        {"of_topic": place.topic, "of_partition": place.partition, "before": before[place], "after": after[place]}
        for place in sorted(after)
    ]
    if connection.execute(_MOVE, moves).rowcount != len(moves):
        _check_form(connection)
        places = ", ".join(f"{place.topic}-{place.partition} at {before[place]}" for place in sorted(after))
        raise Overtaken(f"no more all of these are where we left them: {places}")


def _stop(record: BadRecord, before: int, *, lost: bool = False) -> Row:
    topic, partition = record.place
    where = {"of_topic": topic, "of_partition": partition, "before": before}
    return {**where, "after": record.offset, "reason": record.reason, "lost": lost}


def _check_form(connection: Connection) -> None:
    found = form_of(connection)
    if found != FORM:
        raise DatabaseError(f"the views have form {found} by now, this version keeps form {FORM}")


def _names(place: TopicPartition) -> Row:
    return {"topic": place.topic, "partition": place.partition}


def _order(head: OrderHead) -> Row:
    view = head.view
    return {
        "order_id": view.order_id,
        "user_id": view.user_id,
        "status": view.status,
        "created_at": milliseconds(view.created_at),
        "head": head.digest,
        "document": order_view.encode(view),
    }


def _happened(seen: OutcomeRecord, event: Event, user_id: str) -> Row:
    return {
        "order_id": event.order_id,
        "version": event.version,
        "user_id": user_id,
        "command_id": event.command_id,
        "occurred_at": milliseconds(event.occurred_at),
        "partition": seen.partition,
        "offset": seen.offset,
        "command_offset": seen.command_offset,
        "document": _json(event).decode(),
    }


def _refused(seen: OutcomeRecord, rejection: Rejection) -> Row:
    return {
        "partition": seen.partition,
        "offset": seen.offset,
        "order_id": rejection.order_id,
        "command_id": rejection.command_id,
        "command_digest": rejection.command_digest,
        "command_offset": seen.command_offset,
        "is_momentary": rejection.reason in NEVER_REMEMBERED,
        "document": _json(rejection).decode(),
    }
