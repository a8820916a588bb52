"""Queries of the views: an order now or in the past, lists of orders, histories, and the outcome of a command."""

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from datetime import datetime
from typing import Annotated, Any, Final, TypeVar

import msgspec
from msgspec import Meta, Struct
from sqlalchemy import Engine, Select, Table, func, inspect, select, text, tuple_
from sqlalchemy.engine import Connection
from sqlalchemy.exc import DBAPIError

from order_service.domain.entry import MAX_REFUSED
from order_service.domain.messages import ID_PATTERN, Event, Rejection
from order_service.domain.refusals import NEVER_REMEMBERED, Reason, Status
from order_service.kafka.topics import TopicNames
from order_service.runtime.readiness import NotReady, ReadinessFault
from order_service.views import order_view
from order_service.views.checkpoints import NEWEST, Checkpoint, checkpoint_of
from order_service.views.order_view import OrderView
from order_service.views.tables import (
    FORM,
    checkpoints,
    form,
    form_of,
    milliseconds,
    milliseconds_from,
    order_events,
    orders,
    positions,
    refusals,
)
from order_service.wire.commands import partition_of

CHANGES_MAX: Final = 500
"""The number of offsets that one call of `changes_since` covers."""
COPIES_MAX: Final = 100
"""The number of refused copies of a command in which `command` looks for its outcome."""

_T = TypeVar("_T")

_IS_BUILT: Final = select(positions.c.is_built).distinct()
_IN_SPANS_POSTGRESQL: Final = """\
SELECT found.*
FROM unnest(CAST(:partitions AS integer[]), CAST(:starts AS bigint[]), CAST(:ends AS bigint[]))
    AS span (at_partition, start_offset, end_offset)
CROSS JOIN LATERAL (
    SELECT * FROM {table}
    WHERE partition = at_partition AND "offset" >= start_offset AND "offset" < end_offset{of_user}
    ORDER BY "offset" LIMIT :limit
) AS found
ORDER BY found.partition, found."offset" LIMIT :limit"""
"""With LIMIT, PostgreSQL looks up each span by the index. Without it, it may choose to join with the whole table."""
_IN_SPANS_SQLITE: Final = """\
SELECT {table}.*
FROM json_each(:spans) AS span
CROSS JOIN {table}
    ON {table}.partition = json_extract(span.value, '$[0]')
    AND {table}."offset" >= json_extract(span.value, '$[1]')
    AND {table}."offset" < json_extract(span.value, '$[2]'){of_user}
ORDER BY {table}.partition, {table}."offset" LIMIT :limit"""
"""For conditions joined by OR, SQLite may scan all rows. With CROSS JOIN, it looks up each span by the index.
Source: SQLite, "Manual Control Of Query Plans Using CROSS JOIN"."""
_OF_USER: Final = " AND user_id = :user_id"
_LAST_OFFSET: Final = 2**63 - 1
STEP_OFFSETS: Final = 10_000
"""How many offsets a reader that is behind passes at a time, unless the next checkpoint is further away."""
_numbers: Final = msgspec.json.Decoder(list[int])
_events: Final = msgspec.json.Decoder(Event)
_rejections: Final = msgspec.json.Decoder(Rejection)


class StoredEvent(Struct, frozen=True):
    """An event, the user of its order, and its position in the log.

    `command_offset` is None for a cancellation by the service itself.
    """

    event: Event
    user_id: str
    partition: int
    offset: int
    command_offset: int | None


class StoredRejection(Struct, frozen=True):
    """A rejection, its position in the log, and the offset of the refused copy in that partition of the commands."""

    rejection: Rejection
    partition: int
    offset: int
    command_offset: int | None


class Cursor(Struct, frozen=True, array_like=True):
    """The last order of a page: the next page begins after it, regardless of new orders."""

    created_at_ms: Annotated[int, Meta(ge=0, le=2**60)]
    order_id: Annotated[str, Meta(pattern=ID_PATTERN)]


class Filter(Struct, frozen=True, kw_only=True):
    """A filter for lists of orders; None matches any. `created_from` is inclusive, `created_to` is exclusive."""

    user_id: str | None = None
    status: Status | None = None
    created_from: datetime | None = None
    created_to: datetime | None = None


class Page(Struct, frozen=True):
    """A list of orders, newest first, and the cursor of the next page; None on the last page."""

    orders: tuple[OrderView, ...]
    next: Cursor | None


Values = dict[str, Any]
"""The values of a statement, by name."""

Offsets = dict[tuple[str, int], int]
"""The next offset of each topic and partition."""


class ViewChanges(Struct, frozen=True):
    """The rows that were added to the views, up to `offsets`; `is_all` is false if more are available."""

    events: tuple[StoredEvent, ...]
    refusals: tuple[StoredRejection, ...]
    offsets: Offsets
    is_all: bool = True


class Views:
    """Queries of the tables. Calls block: make them in a thread."""

    def __init__(self, engine: Engine, names: TopicNames) -> None:
        self._engine = engine
        self._names = names
        # A list for each topic, not a row for each partition: of 1,000 partitions, rows take twice as long.
        self._is_postgresql = engine.dialect.name == "postgresql"
        listed = func.array_agg if self._is_postgresql else func.json_group_array
        columns = listed(positions.c.partition).label("partitions"), listed(positions.c.next_offset).label("offsets")
        self._offsets = select(positions.c.topic, *columns).group_by(positions.c.topic)

    def faults(self) -> list[ReadinessFault]:
        """Return why the views should not be read yet."""
        return self._run(_faults)

    def offsets(self) -> Offsets:
        """Return the next offset of each partition."""
        return {
            (row.topic, partition): offset
            for row in self._rows(self._offsets)
            for partition, offset in zip(self._list(row.partitions), self._list(row.offsets), strict=True)
        }

    def _list(self, value: Any) -> list[int]:
        """Return a list as PostgreSQL returns it, or as SQLite writes it in JSON."""
        return list(value) if self._is_postgresql else _numbers.decode(value)

    def is_stopped(self, order_id: str, *, commands: bool = False) -> bool:
        """Return whether the partition of an order's events is stopped: the order may exist or be newer in the log.

        With `commands`, also consider the partition of its rejections: a command of it may have been refused.
        """
        topics = [self._names.events, self._names.rejections] if commands else [self._names.events]
        partitions = self._rows(select(positions).where(positions.c.topic.in_(topics)))
        count = Counter(row.topic for row in partitions)
        return any(
            row.fault is not None and row.partition == partition_of(order_id.encode(), count[row.topic])
            for row in partitions
        )

    def stopped_partitions(self) -> list[tuple[str, int, int, str]]:
        """Return the stopped partitions: topic, partition, offset of the bad record, reason."""
        bad = select(positions).where(positions.c.fault.is_not(None)).order_by(positions.c.topic, positions.c.partition)
        return [(row.topic, row.partition, row.next_offset, row.fault) for row in self._rows(bad)]

    def changes_since(self, since: Offsets) -> ViewChanges:
        """Return the rows that were added after `since`, CHANGES_MAX offsets at most; if not `is_all`, call it again.

        Nothing is returned of a topic that was recreated.
        """
        offsets = self.offsets()
        moved = {
            partition: since.get(partition, 0) for partition, end in offsets.items() if end > since.get(partition, 0)
        }
        if not moved:
            return ViewChanges((), (), offsets)
        most = max(1, CHANGES_MAX // len(moved))
        reached = offsets | {partition: min(offsets[partition], start + most) for partition, start in moved.items()}

        def rows(table: Table, wanted: str) -> Sequence[Any]:
            spans = [(at, start, reached[topic, at]) for (topic, at), start in moved.items() if topic == wanted]
            return self._between(table, spans, sum(end - start for _, start, end in spans))

        event_rows = rows(order_events, self._names.events)
        refusal_rows = rows(refusals, self._names.rejections)
        return ViewChanges(
            tuple(map(_stored_event, event_rows)),
            tuple(map(_stored_rejection, refusal_rows)),
            reached,
            is_all=reached == offsets,
        )

    def orders(self, order_ids: Sequence[str]) -> dict[str, OrderView]:
        """Return those of these orders that exist, as they are now."""
        query = select(orders.c.order_id, orders.c.document).where(orders.c.order_id.in_(order_ids))
        return {row.order_id: order_view.decode(row.document) for row in self._rows(query)}

    def order_at(self, order_id: str, *, version: int | None = None, at: datetime | None = None) -> OrderView | None:
        """Return an order as of a version or a time, or None if it has no such version or did not exist yet."""
        history = self._history(order_id)
        if version is not None:
            history = history.where(order_events.c.version <= version)
        if at is not None:
            history = history.where(order_events.c.occurred_at <= milliseconds(at))
        view: OrderView | None = None
        for row in self._rows(history):
            view = order_view.after(view, _events.decode(row.document))
        return view if version is None or (view is not None and view.version == version) else None

    def history(self, order_id: str, *, after_version: int = 0, limit: int = 1000) -> tuple[StoredEvent, ...]:
        """Return the events of an order after a version, oldest first."""
        query = self._history(order_id).where(order_events.c.version > after_version).limit(limit)
        return tuple(map(_stored_event, self._rows(query)))

    def events_of(
        self, offsets: Offsets, until: Offsets | None = None, *, user_id: str | None = None, limit: int = 1000
    ) -> tuple[StoredEvent, ...]:
        """Return events of all orders, or of one user's orders, from these offsets on; each order's in sequence.

        With `until`, only events before those offsets. Without a user, the spans between them should be short: up to
        `limit` events of each partition are read.
        """
        ends = until or {}
        spans = [
            (partition, start, ends.get((topic, partition), _LAST_OFFSET))
            for (topic, partition), start in sorted(offsets.items())
            if topic == self._names.events
        ]
        return tuple(map(_stored_event, self._between(order_events, spans, limit, user_id)))

    def newest_checkpoint(self) -> Checkpoint | None:
        """Return the newest checkpoint, if there is one. The offsets that are read after it have passed it."""
        return next(map(checkpoint_of, self._rows(NEWEST)), None)

    def checkpoint(self, checkpoint_id: str, anchor_id: str) -> Checkpoint | None:
        """Return a checkpoint, or its anchor if it was deleted, or None if both were."""
        either = checkpoints.c.checkpoint_id.in_([checkpoint_id, anchor_id])
        return next(map(checkpoint_of, self._rows(NEWEST.where(either))), None)

    def next_checkpoint(self, total: int) -> Checkpoint | None:
        """Return the newest checkpoint within STEP_OFFSETS of this sum of offsets, or else the next one."""
        behind = select(checkpoints).where(checkpoints.c.total > total).order_by(checkpoints.c.total).limit(1)
        near = NEWEST.where(checkpoints.c.total > total, checkpoints.c.total <= total + STEP_OFFSETS)
        return next(map(checkpoint_of, [*self._rows(near)] or self._rows(behind)), None)

    def refusals(self, order_id: str, *, limit: int = 1000) -> tuple[Rejection, ...]:
        """Return the refused commands of an order, oldest first; if there are more than `limit`, the newest ones.

        A command that was refused several times appears once, with its newest rejection.
        """
        query = (
            select(refusals.c.document)
            .where(refusals.c.order_id == order_id)
            .order_by(refusals.c.offset.desc())
            .limit(limit)
        )
        newest: dict[str, Rejection] = {}
        for row in self._rows(query):
            rejection = _rejections.decode(row.document)
            newest.setdefault(rejection.rejection_id, rejection)
        return tuple(reversed(newest.values()))

    def offsets_of(self, order_ids: Collection[str]) -> dict[tuple[str, int], list[int]]:
        """Return the offsets of all events and rejections of these orders, by topic and partition."""
        offsets: dict[tuple[str, int], list[int]] = {}
        for topic, table in ((self._names.events, order_events), (self._names.rejections, refusals)):
            query = select(table.c.partition, table.c.offset).where(table.c.order_id.in_(order_ids))
            for row in self._rows(query):
                offsets.setdefault((topic, row.partition), []).append(row.offset)
        return offsets

    def skipped_partitions(self) -> set[tuple[str, int]]:
        """Return the partitions in which an operator has skipped a record: the views lack rows of them."""
        skipped = select(positions.c.topic, positions.c.partition).where(positions.c.has_skipped)
        return {(row.topic, row.partition) for row in self._rows(skipped)}

    def command(self, order_id: str, command_id: str) -> Event | Rejection | None:
        """Return the outcome of a command: its event, or else its newest rejection; None if neither is in the views.

        A rejection because the id was used before is the outcome only if there is no other.
        """
        for row in self._rows(_event_of(order_id, command_id)):
            return _events.decode(row.document)
        under_id = refusals.c.order_id == order_id, refusals.c.command_id == command_id
        newest = select(refusals.c.document).where(*under_id).order_by(refusals.c.offset.desc()).limit(COPIES_MAX)
        rejections = [_rejections.decode(row.document) for row in self._rows(newest)]
        of_the_id = [rejection for rejection in rejections if rejection.reason != Reason.COMMAND_ID_REUSED]
        return next(iter(of_the_id or rejections), None)

    def remembered(self, order_id: str, command_id: str) -> list[Event | Rejection]:
        """Return the outcomes that the order remembers under a command id: a repeat of such a command has no other.

        An order remembers what it accepted, and the newest MAX_REFUSED refusals since it exists.
        """
        created = select(order_events.c.command_offset).where(
            order_events.c.order_id == order_id, order_events.c.version == 1
        )
        newest = (
            select(refusals.c.command_id, refusals.c.document)
            .where(
                refusals.c.order_id == order_id,
                refusals.c.is_momentary.is_(False),
                refusals.c.command_offset > created.scalar_subquery(),
            )
            .order_by(refusals.c.offset.desc())
            .limit(MAX_REFUSED)
        )
        return [
            *(_events.decode(row.document) for row in self._rows(_event_of(order_id, command_id))),
            *(_rejections.decode(row.document) for row in self._rows(newest) if row.command_id == command_id),
        ]

    def outcome(self, order_id: str, command_id: str, digest: bytes, command_offset: int) -> Event | Rejection | None:
        """Return the outcome of one copy of a command, the copy at `command_offset`, or None while it is unknown.

        An event is the outcome of its own copy and of later copies, because an order remembers what it accepted. A
        rejection is the outcome of its own copy, and of later copies as long as the order remembers it. Those copies
        write no record. A copy that a full waiting room dropped has no record either: it has the outcome of the next
        copy with a record. The event of a later copy counts only if no rejection comes before it; the result is None
        until no such rejection can be missing.
        """
        event: Event | None = None
        event_of: int | None = None
        is_complete = False  # queried before the rejections, so that new ones are found
        for row in self._rows(_event_of(order_id, command_id)):
            accepted = _events.decode(row.document)
            if accepted.command_digest == digest:
                event, event_of = accepted, row.command_offset
                is_complete = self._is_complete(row.partition, row.offset)
        if event is not None and (event_of is None or event_of <= command_offset):
            return event
        of_command = refusals.c.command_id == command_id, refusals.c.command_digest == digest
        of_copies = select(refusals).where(refusals.c.order_id == order_id, *of_command)
        newest = of_copies.where(refusals.c.command_offset <= command_offset)
        for row in self._rows(newest.order_by(refusals.c.offset.desc()).limit(1)):
            refused = _stored_rejection(row)
            if refused.command_offset == command_offset or self._remembers(refused, command_offset):
                return refused.rejection
        later = of_copies.where(refusals.c.command_offset > command_offset)
        if event_of is not None:
            later = later.where(refusals.c.command_offset < event_of)
        for row in self._rows(later.order_by(refusals.c.offset).limit(1)):
            return _stored_rejection(row).rejection
        return event if is_complete else None

    def _is_complete(self, partition: int, offset: int) -> bool:
        """Return whether all rejections that were committed before or with this event are in the views."""
        of_partition = positions.c.topic == self._names.rejections, positions.c.partition == partition
        return bool(
            self._rows(select(positions.c.complete_offset).where(*of_partition, positions.c.complete_offset > offset))
        )

    def _remembers(self, refused: StoredRejection, command_offset: int) -> bool:
        """Return whether the order still remembered a rejection when the command at `command_offset` was decided.

        It did if the order existed at the rejection, and fewer than MAX_REFUSED later rejections have replaced it.
        """
        rejection = refused.rejection
        if rejection.reason in NEVER_REMEMBERED:
            return False
        earlier = select(order_events.c.version).where(
            order_events.c.order_id == rejection.order_id,
            order_events.c.version == 1,
            order_events.c.command_offset < refused.command_offset,
        )
        later = select(refusals.c.offset).where(
            refusals.c.order_id == rejection.order_id,
            refusals.c.offset > refused.offset,
            refusals.c.command_offset < command_offset,
            refusals.c.is_momentary.is_(False),
        )
        return bool(self._rows(earlier)) and len(self._rows(later.limit(MAX_REFUSED))) < MAX_REFUSED

    def page(self, wanted: Filter, limit: int, behind: Cursor | None = None) -> Page:
        """Return a page of at most `limit` orders (1 or more), newest first."""
        query = select(orders.c.document).order_by(orders.c.created_at.desc(), orders.c.order_id.desc())
        for column, value in ((orders.c.user_id, wanted.user_id), (orders.c.status, wanted.status)):
            if value is not None:
                query = query.where(column == value)
        if wanted.created_from is not None:
            query = query.where(orders.c.created_at >= milliseconds_from(wanted.created_from))
        if wanted.created_to is not None:
            query = query.where(orders.c.created_at < milliseconds_from(wanted.created_to))
        if behind is not None:
            query = query.where(
                tuple_(orders.c.created_at, orders.c.order_id) < tuple_(behind.created_at_ms, behind.order_id)
            )
        views = tuple(order_view.decode(row.document) for row in self._rows(query.limit(limit + 1)))
        shown = views[:limit]
        has_more = len(views) > limit
        return Page(shown, Cursor(milliseconds(shown[-1].created_at), shown[-1].order_id) if has_more else None)

    def _history(self, order_id: str) -> Select[Any]:
        return select(order_events).where(order_events.c.order_id == order_id).order_by(order_events.c.version)

    def _between(
        self, table: Table, spans: Sequence[tuple[int, int, int]], limit: int, user_id: str | None = None
    ) -> Sequence[Any]:
        """Return the first rows in these spans: a partition, its first offset (inclusive), its last one (exclusive).

        The spans are one value of the statement, whatever their number: databases limit the terms and the variables of
        a statement.
        """
        if not spans:
            return []
        values: Values = {"limit": limit}
        if user_id is not None:
            values["user_id"] = user_id
        if self._is_postgresql:
            partitions, starts, ends = (list(numbers) for numbers in zip(*spans, strict=True))
            values |= {"partitions": partitions, "starts": starts, "ends": ends}
        else:
            values |= {"spans": msgspec.json.encode(spans).decode()}
        in_spans = _IN_SPANS_POSTGRESQL if self._is_postgresql else _IN_SPANS_SQLITE
        statement = text(in_spans.format(table=table.name, of_user="" if user_id is None else _OF_USER))
        return self._run(lambda connection: connection.execute(statement, values).all())

    def _rows(self, statement: Select[Any]) -> Sequence[Any]:
        return self._run(lambda connection: connection.execute(statement).all())

    def _run(self, query: Callable[[Connection], _T]) -> _T:
        try:
            return self._run_once(query)
        except DBAPIError as error:
            if not error.connection_invalidated:
                raise
            return self._run_once(query)  # the pool has dropped all earlier connections

    def _run_once(self, query: Callable[[Connection], _T]) -> _T:
        with self._engine.begin() as connection:
            try:
                return query(connection)
            except DBAPIError:
                connection.invalidate()  # nothing is rolled back here, so the connection may stay in a wrong state
                raise


def _faults(connection: Connection) -> list[ReadinessFault]:
    if not inspect(connection).has_table(form.name):
        return [NotReady.VIEWS_MISSING.fault()]
    actual = form_of(connection)
    if actual != FORM:
        return [NotReady.VIEWS_OF_ANOTHER_VERSION.fault(actual=actual, expected=FORM)]
    return [] if connection.scalars(_IS_BUILT).all() == [True] else [NotReady.VIEWS_BUILT.fault()]


def _event_of(order_id: str, command_id: str) -> Select[Any]:
    of_command = order_events.c.order_id == order_id, order_events.c.command_id == command_id
    return select(order_events).where(*of_command).limit(1)


def _stored_rejection(row: Any) -> StoredRejection:
    return StoredRejection(_rejections.decode(row.document), row.partition, row.offset, row.command_offset)


def _stored_event(row: Any) -> StoredEvent:
    return StoredEvent(_events.decode(row.document), row.user_id, row.partition, row.offset, row.command_offset)
