"""Heads: where the history of an order ends, so that the next event can be checked and folded."""

from collections import OrderedDict
from collections.abc import Mapping
from typing import Final

from aiokafka.structs import TopicPartition
from msgspec import Struct
from sqlalchemy import select
from sqlalchemy.engine import Connection

from order_service.domain.messages import Event
from order_service.errors import HistoryError
from order_service.kafka.reader import OutcomeRecord
from order_service.views import order_view
from order_service.views.order_view import OrderView
from order_service.views.tables import orders

KEPT_MAX: Final = 300_000
"""How much a projector remembers: an order counts ten, and one for each of its lines. It is about 0.3 KB."""

ASKED_MAX: Final = 900
"""How many heads are asked for at once: older SQLite takes 999 values."""


class OrderHead(Struct, frozen=True, gc=False):
    """An order, and the digest of its newest event."""

    view: OrderView
    digest: bytes


class OrderHeads:
    """The heads of orders. Those of the latest events are remembered, while their places are where we left them.

    Whoever moves a place moves its orders: what another projector has done is read from the tables.
    """

    def __init__(self) -> None:
        self._remembered: OrderedDict[str, OrderHead] = OrderedDict()
        self._kept = 0
        self._left: dict[TopicPartition, int] = {}

    def of(
        self, order_ids: set[str], connection: Connection, places: Mapping[TopicPartition, int]
    ) -> dict[str, OrderHead]:
        """Give the heads of orders, of those that there are. `places` are those of their events, as we found them."""
        if any(self._left.get(place, offset) != offset for place, offset in places.items()):
            self._remembered.clear()
            self._kept = 0
        heads = {order_id: self._remembered[order_id] for order_id in order_ids & self._remembered.keys()}
        unknown = list(order_ids - heads.keys())
        for first in range(0, len(unknown), ASKED_MAX):
            some = orders.c.order_id.in_(unknown[first : first + ASKED_MAX])
            found = select(orders.c.order_id, orders.c.document, orders.c.head).where(some)
            heads |= {
                row.order_id: OrderHead(order_view.decode(row.document), row.head) for row in connection.execute(found)
            }
        return heads

    def keep(self, heads: Mapping[str, OrderHead], after: Mapping[TopicPartition, int]) -> None:
        """Remember heads once they are committed, and where the places then are."""
        self._left |= after
        for order_id, head in heads.items():
            self._forget(self._remembered.pop(order_id, None))
            self._remembered[order_id] = head
            self._kept += _weight(head)
        while self._kept > KEPT_MAX:
            self._forget(self._remembered.popitem(last=False)[1])

    def _forget(self, head: OrderHead | None) -> None:
        self._kept -= 0 if head is None else _weight(head)


def _weight(head: OrderHead) -> int:
    return 10 + len(head.view.lines)


def head_after(head: OrderHead | None, seen: OutcomeRecord, event: Event) -> OrderHead:
    """Fold an event into the head of its order; HistoryError if it does not name the event before it."""
    if event.previous_digest != (None if head is None else head.digest):
        raise HistoryError(f"version {event.version} of {event.order_id} does not name the event before it")
    return OrderHead(order_view.after(None if head is None else head.view, event), seen.digest)
