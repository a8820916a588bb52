"""What can be asked of the views: an order now and then, lists of orders, histories, what became of a command."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from typing import Annotated, Any, Final, TypeVar

import msgspec
from msgspec import Meta, Struct
from sqlalchemy import CompoundSelect, Engine, Select, Table, inspect, select, tuple_, union_all
from sqlalchemy.engine import Connection
from sqlalchemy.exc import DBAPIError

from order_service.domain.decision import MAX_REFUSED
from order_service.domain.messages import ID_PATTERN, Event, Rejection
from order_service.domain.refusals import NEVER_REMEMBERED, Status
from order_service.kafka.topics import TopicNames
from order_service.views import order_view
from order_service.views.order_view import OrderView
from order_service.views.tables import (
    FORM,
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

NEWS_MAX: Final = 500
"""How many offsets one look at the news passes over."""

_T = TypeVar("_T")

_PLACES: Final = select(positions)
_IS_BUILT: Final = select(form.c.is_built)
_events: Final = msgspec.json.Decoder(Event)
_rejections: Final = msgspec.json.Decoder(Rejection)


class StoredEvent(Struct, frozen=True):
    """An event, whose order it is about, and where it stands.

    `command_offset` is None for a cancellation by the service itself.
    """

    event: Event
    user_id: str
    partition: int
    offset: int
    command_offset: int | None


class StoredRejection(Struct, frozen=True):
    """A refusal, where it stands, and where in the same partition of the commands the refused copy lies."""

    rejection: Rejection
    partition: int
    offset: int
    command_offset: int | None


class Cursor(Struct, frozen=True, array_like=True):
    """The last order of a page: the next page begins behind it, whatever has come meanwhile."""

    created_at_ms: Annotated[int, Meta(ge=0, le=2**60)]
    order_id: Annotated[str, Meta(pattern=ID_PATTERN)]


class Filter(Struct, frozen=True, kw_only=True):
    """Which orders to list; None is any. `created_from` is included, `created_to` is not."""

    user_id: str | None = None
    status: Status | None = None
    created_from: datetime | None = None
    created_to: datetime | None = None


class Page(Struct, frozen=True):
    """Some orders, the newest first, and where the next page begins; None after the last one."""

    orders: tuple[OrderView, ...]
    next: Cursor | None


Offsets = dict[tuple[str, int], int]
"""The next offset of each topic and partition."""


class ViewChanges(Struct, frozen=True):
    """What has come into the views between two looks at them, and how far that is; `is_all` if it is all of it."""

    events: tuple[StoredEvent, ...]
    refusals: tuple[StoredRejection, ...]
    places: Offsets
    is_all: bool = True


class Views:
    """Questions to the tables. Calls block: they belong into a thread of their own."""

    def __init__(self, engine: Engine, names: TopicNames) -> None:
        self._engine = engine
        self._names = names

    def faults(self) -> list[str]:
        """Return why the views should not be read yet."""
        return self._ask(_faults)

    def places(self) -> Offsets:
        """Say how far the views are."""
        return {(row.topic, row.partition): row.next_offset for row in self._rows(_PLACES)}

    def stopped(self, order_id: str, *, commands: bool = False) -> bool:
        """Return whether the views of an order's events are stopped: it may be further, or may exist.

        With `commands`, also whether those of its rejections are: a command of it may have been refused.
        """
        topics = [self._names.events, self._names.rejections] if commands else [self._names.events]
        partitions = self._rows(select(positions).where(positions.c.topic.in_(topics)))
        count = Counter(row.topic for row in partitions)
        return any(
            row.fault is not None and row.partition == partition_of(order_id.encode(), count[row.topic])
            for row in partitions
        )

    def faulty(self) -> list[tuple[str, int, int, str]]:
        """Return the stopped partitions: topic, partition, offset of the bad record, reason."""
        bad = select(positions).where(positions.c.fault.is_not(None)).order_by(positions.c.topic, positions.c.partition)
        return [(row.topic, row.partition, row.next_offset, row.fault) for row in self._rows(bad)]

    def news(self, since: Offsets) -> ViewChanges:
        """Give what has come in since the views were there; of very much, the first part: ask again for the rest.

        Nothing of a topic that begins anew.
        """
        places = self.places()
        moved = {place: since.get(place, 0) for place, end in places.items() if end > since.get(place, 0)}
        if not moved:
            return ViewChanges((), (), places)
        most = max(1, NEWS_MAX // len(moved))
        reached = places | {place: min(places[place], start + most) for place, start in moved.items()}

        def rows(some: Select[Any], table: Table, wanted: str) -> Sequence[Any]:
            spans = [(at, start, reached[topic, at]) for (topic, at), start in moved.items() if topic == wanted]
            return self._between(some, table, spans)

        happened = rows(select(order_events), order_events, self._names.events)
        refused = rows(select(refusals), refusals, self._names.rejections)
        return ViewChanges(
            tuple(map(_recorded, happened)),
            tuple(map(_refused, refused)),
            reached,
            is_all=reached == places,
        )

    def orders(self, order_ids: Sequence[str]) -> dict[str, OrderView]:
        """Give orders as they are now, those that there are."""
        some = select(orders.c.order_id, orders.c.document).where(orders.c.order_id.in_(order_ids))
        return {row.order_id: order_view.decode(row.document) for row in self._rows(some)}

    def order_then(self, order_id: str, *, version: int | None = None, at: datetime | None = None) -> OrderView | None:
        """Give an order as it was at a version, or at a time; None if it has no such version, or was not there yet."""
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
        """Give the events of an order behind a version, oldest first."""
        some = self._history(order_id).where(order_events.c.version > after_version).limit(limit)
        return tuple(map(_recorded, self._rows(some)))

    def events_of(self, places: Offsets, *, user_id: str | None = None, limit: int = 1000) -> tuple[StoredEvent, ...]:
        """Give events of all orders, or of one user's, from these places on; those of an order in their order."""
        found: list[StoredEvent] = []
        for (topic, partition), start in sorted(places.items()):
            if topic == self._names.events and len(found) < limit:
                some = select(order_events).where(order_events.c.partition == partition, order_events.c.offset >= start)
                if user_id is not None:
                    some = some.where(order_events.c.user_id == user_id)
                some = some.order_by(order_events.c.offset).limit(limit - len(found))
                found += map(_recorded, self._rows(some))
        return tuple(found)

    def refusals(self, order_id: str, *, limit: int = 1000) -> tuple[Rejection, ...]:
        """Return the refused commands of an order, oldest first; of more than `limit`, the newest.

        Of a command that was refused several times, the newest refusal.
        """
        some = (
            select(refusals.c.document)
            .where(refusals.c.order_id == order_id)
            .order_by(refusals.c.offset.desc())
            .limit(limit)
        )
        newest: dict[str, Rejection] = {}
        for row in self._rows(some):
            rejection = _rejections.decode(row.document)
            newest.setdefault(rejection.rejection_id, rejection)
        return tuple(reversed(newest.values()))

    def command(self, order_id: str, command_id: str) -> Event | Rejection | None:
        """Return the outcome of a command: its event, else its newest refusal; None if the views know neither.

        Of several commands under one id, all refused, the one that was refused first.
        """
        for row in self._rows(_event_of(order_id, command_id)):
            return _events.decode(row.document)
        under_id = refusals.c.order_id == order_id, refusals.c.command_id == command_id
        first = select(refusals.c.command_digest).where(*under_id).order_by(refusals.c.offset).limit(1)
        newest = select(refusals.c.document).where(*under_id, refusals.c.command_digest == first.scalar_subquery())
        for row in self._rows(newest.order_by(refusals.c.offset.desc()).limit(1)):
            return _rejections.decode(row.document)
        return None

    def outcome(self, order_id: str, command_id: str, digest: bytes, command_offset: int) -> Event | Rejection | None:
        """Return the outcome of one copy of a command: the one at `command_offset`; None while the views know none.

        An event is the outcome of its own copy and of later ones, for an order remembers what it accepted. A refusal is
        the outcome of the copy that it answers, and of later copies only as long as the order remembers it: they make
        no record. A copy without a record, which a full waiting room dropped, has the outcome of the next one that has.
        The event of a later copy is that one only if no refusal comes before it: None until none can be missing.
        """
        event: Event | None = None
        event_of: int | None = None
        is_complete = False  # asked before the refusals are: what comes meanwhile is found
        for row in self._rows(_event_of(order_id, command_id)):
            found = _events.decode(row.document)
            if found.command_digest == digest:
                event, event_of = found, row.command_offset
                is_complete = self._is_complete(row.partition, row.offset)
        if event is not None and (event_of is None or event_of <= command_offset):
            return event
        of_command = refusals.c.command_id == command_id, refusals.c.command_digest == digest
        of_copies = select(refusals).where(refusals.c.order_id == order_id, *of_command)
        newest = of_copies.where(refusals.c.command_offset <= command_offset)
        for row in self._rows(newest.order_by(refusals.c.offset.desc()).limit(1)):
            refused = _refused(row)
            if refused.command_offset == command_offset or self._remembers(refused, command_offset):
                return refused.rejection
        later = of_copies.where(refusals.c.command_offset > command_offset)
        if event_of is not None:
            later = later.where(refusals.c.command_offset < event_of)
        for row in self._rows(later.order_by(refusals.c.offset).limit(1)):
            return _refused(row).rejection
        return event if is_complete else None

    def _is_complete(self, partition: int, offset: int) -> bool:
        """Return whether all refusals are in the views that were committed before or with this event."""
        place = positions.c.topic == self._names.rejections, positions.c.partition == partition
        return bool(self._rows(select(positions.c.complete_offset).where(*place, positions.c.complete_offset > offset)))

    def _remembers(self, refused: StoredRejection, command_offset: int) -> bool:
        """Return whether the order remembered a refusal when it came to the command at `command_offset`.

        It did if it existed when it refused, and has not remembered so many others since that it forgot this one.
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
        """List `limit` orders (1 or more), the newest first."""
        some = select(orders.c.document).order_by(orders.c.created_at.desc(), orders.c.order_id.desc())
        for column, value in ((orders.c.user_id, wanted.user_id), (orders.c.status, wanted.status)):
            if value is not None:
                some = some.where(column == value)
        if wanted.created_from is not None:
            some = some.where(orders.c.created_at >= milliseconds_from(wanted.created_from))
        if wanted.created_to is not None:
            some = some.where(orders.c.created_at < milliseconds_from(wanted.created_to))
        if behind is not None:
            some = some.where(
                tuple_(orders.c.created_at, orders.c.order_id) < tuple_(behind.created_at_ms, behind.order_id)
            )
        found = tuple(order_view.decode(row.document) for row in self._rows(some.limit(limit + 1)))
        shown = found[:limit]
        more = len(found) > limit
        return Page(shown, Cursor(milliseconds(shown[-1].created_at), shown[-1].order_id) if more else None)

    def _history(self, order_id: str) -> Select[Any]:
        return select(order_events).where(order_events.c.order_id == order_id).order_by(order_events.c.version)

    def _between(self, some: Select[Any], table: Table, spans: Iterable[tuple[int, int, int]]) -> Sequence[Any]:
        """Give the rows whose place lies in one of these: a partition, its first offset, and the first one behind.

        One part for each: of conditions with OR between them, SQLite may look at all rows.
        """
        place = table.c.partition, table.c.offset
        parts = [some.where(place[0] == number, place[1] >= start, place[1] < end) for number, start, end in spans]
        rows = self._rows(union_all(*parts)) if parts else []
        return sorted(rows, key=lambda row: (row.partition, row.offset))

    def _rows(self, statement: Select[Any] | CompoundSelect[Any]) -> Sequence[Any]:
        return self._ask(lambda connection: connection.execute(statement).all())

    def _ask(self, ask: Callable[[Connection], _T]) -> _T:
        try:
            return self._ask_once(ask)
        except DBAPIError as error:
            if not error.connection_invalidated:
                raise
            return self._ask_once(ask)  # the pool has dropped all connections of before

    def _ask_once(self, ask: Callable[[Connection], _T]) -> _T:
        with self._engine.begin() as connection:
            try:
                return ask(connection)
            except DBAPIError:
                connection.invalidate()  # nothing is rolled back here, so what it has prepared may be wrong for ever
                raise


def _faults(connection: Connection) -> list[str]:
    if not inspect(connection).has_table(form.name):
        return ["there are no views yet: no projector has made them"]
    found = form_of(connection)
    if found != FORM:
        return [f"the views have form {found}, this version reads form {FORM}"]
    return [] if connection.scalar(_IS_BUILT) else ["the views are being built"]


def _event_of(order_id: str, command_id: str) -> Select[Any]:
    of_command = order_events.c.order_id == order_id, order_events.c.command_id == command_id
    return select(order_events).where(*of_command).limit(1)


def _refused(row: Any) -> StoredRejection:
    return StoredRejection(_rejections.decode(row.document), row.partition, row.offset, row.command_offset)


def _recorded(row: Any) -> StoredEvent:
    return StoredEvent(_events.decode(row.document), row.user_id, row.partition, row.offset, row.command_offset)
