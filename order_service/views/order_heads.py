"""The head of each order: the end of its history, against which the next event is checked and folded."""

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
"""The cache limit: an order counts ten, plus one for each of its lines. An order takes about 0.3 KB."""

QUERY_MAX: Final = 900
"""The number of heads in one query: older SQLite accepts 999 values."""


class OrderHead(Struct, frozen=True, gc=False):
    """An order and the digest of its newest event."""

    view: OrderView
    digest: bytes


class OrderHeads:
    """The heads of orders, with a cache for those of the latest events.

    The cache is valid while the positions are where this projector left them. If another projector has moved one, the
    heads are read from the tables.
    """

    def __init__(self) -> None:
        self._remembered: OrderedDict[str, OrderHead] = OrderedDict()
        self._kept = 0
        self._left: dict[TopicPartition, int] = {}

    def load(
        self, order_ids: set[str], connection: Connection, positions: Mapping[TopicPartition, int]
    ) -> dict[str, OrderHead]:
        """Return the heads of those orders that exist. `positions` are the current ones of their events."""
        if any(self._left.get(partition, offset) != offset for partition, offset in positions.items()):
            self._remembered.clear()
            self._kept = 0
        heads = {order_id: self._remembered[order_id] for order_id in order_ids & self._remembered.keys()}
        unknown = list(order_ids - heads.keys())
        for first in range(0, len(unknown), QUERY_MAX):
            is_wanted = orders.c.order_id.in_(unknown[first : first + QUERY_MAX])
            query = select(orders.c.order_id, orders.c.document, orders.c.head).where(is_wanted)
            heads |= {
                row.order_id: OrderHead(order_view.decode(row.document), row.head) for row in connection.execute(query)
            }
        return heads

    def remember(self, heads: Mapping[str, OrderHead], after: Mapping[TopicPartition, int]) -> None:
        """Add committed heads to the cache, with the positions after that commit."""
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


def head_after(head: OrderHead | None, record: OutcomeRecord, event: Event) -> OrderHead:
    """Return the head after an event. Raises HistoryError if the event does not have the digest of the one before."""
    if event.previous_digest != (None if head is None else head.digest):
        raise HistoryError(f"version {event.version} of {event.order_id} does not name the event before it")
    return OrderHead(order_view.after(None if head is None else head.view, event), record.digest)
