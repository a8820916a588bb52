"""What can be asked of the views: an order now and then, lists of orders, histories, what became of a command."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final

import msgspec
from msgspec import Struct
from sqlalchemy import Engine, Select, select, tuple_

from order_service.domain.messages import Event, Rejection
from order_service.domain.reasons import Status
from order_service.views import state
from order_service.views.state import OrderView
from order_service.views.tables import commands, milliseconds, milliseconds_from, order_events, orders

_events: Final = msgspec.json.Decoder(Event)
_rejections: Final = msgspec.json.Decoder(Rejection)


class Recorded(Struct, frozen=True):
    """An event and where it stands; `command_offset` is None for a cancellation by the service itself."""

    event: Event
    partition: int
    offset: int
    command_offset: int | None


class Cursor(Struct, frozen=True, array_like=True):
    """The last order of a page: the next page begins behind it, whatever has come meanwhile."""

    created_at_ms: int
    order_id: str


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


class Views:
    """Questions to the tables. Calls block: they belong into a thread of their own."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def order(self, order_id: str) -> OrderView | None:
        """Give an order as it is now."""
        rows = self._rows(select(orders.c.document).where(orders.c.order_id == order_id))
        return state.decode(rows[0].document) if rows else None

    def order_then(self, order_id: str, *, version: int | None = None, at: datetime | None = None) -> OrderView | None:
        """Give an order as it was at a version, or at a time; None if it has no such version, or was not there yet."""
        history = self._history(order_id)
        if version is not None:
            history = history.where(order_events.c.version <= version)
        if at is not None:
            history = history.where(order_events.c.occurred_at <= milliseconds(at))
        view: OrderView | None = None
        for row in self._rows(history):
            view = state.after(view, _events.decode(row.document))
        return view if version is None or (view is not None and view.version == version) else None

    def history(self, order_id: str, *, after_version: int = 0, limit: int = 1000) -> tuple[Recorded, ...]:
        """Give the events of an order behind a version, oldest first."""
        some = self._history(order_id).where(order_events.c.version > after_version).limit(limit)
        return tuple(
            Recorded(_events.decode(row.document), row.partition, row.offset, row.command_offset)
            for row in self._rows(some)
        )

    def command(self, order_id: str, command_id: str) -> Event | Rejection | None:
        """Say what became of a command: its event; else why it was first refused; None if nothing is known of it."""
        its_event = (
            commands.c.is_accepted
            & (order_events.c.order_id == commands.c.order_id)
            & (order_events.c.version == commands.c.version)
        )
        first = (
            select(commands.c.document, order_events.c.document.label("event"))
            .outerjoin(order_events, its_event)
            .where(commands.c.order_id == order_id, commands.c.command_id == command_id)
            .order_by(commands.c.is_accepted.desc(), commands.c.decided_at)
            .limit(1)
        )
        for row in self._rows(first):
            return _rejections.decode(row.document) if row.event is None else _events.decode(row.event)
        return None

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
        found = tuple(state.decode(row.document) for row in self._rows(some.limit(limit + 1)))
        shown = found[:limit]
        more = len(found) > limit
        return Page(shown, Cursor(milliseconds(shown[-1].created_at), shown[-1].order_id) if more else None)

    def _history(self, order_id: str) -> Select[Any]:
        return select(order_events).where(order_events.c.order_id == order_id).order_by(order_events.c.version)

    def _rows(self, statement: Select[Any]) -> Sequence[Any]:
        with self._engine.begin() as connection:
            return connection.execute(statement).all()
