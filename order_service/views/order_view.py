"""An order as readers see it: its contents, and all that was done with it, folded from its events."""

from datetime import datetime
from typing import Any, Final

import msgspec
from msgspec import Struct, structs

from order_service.domain.messages import (
    Contents,
    Event,
    OrderAmended,
    OrderCancelled,
    OrderCreated,
    OrderDelivered,
    OrderPaid,
    OrderShipped,
)
from order_service.domain.refusals import Status
from order_service.errors import HistoryError


class Payment(Struct, frozen=True, gc=False):
    """What was paid, and when."""

    payment_id: str
    amount: int
    paid_at: datetime


class Shipment(Struct, frozen=True, gc=False):
    """With whom an order left the house, and when."""

    carrier: str
    tracking_number: str
    shipped_at: datetime


class Cancellation(Struct, frozen=True, gc=False):
    """Why and when an order was cancelled, and what is owed to its user."""

    reason: str
    note: str | None
    refund_due: int
    cancelled_at: datetime


class OrderView(Contents, frozen=True, kw_only=True):
    """An order at one of its versions. Money and times as in the events."""

    order_id: str
    version: int
    status: Status
    created_at: datetime
    changed_at: datetime
    payment: Payment | None = None
    shipment: Shipment | None = None
    delivered_at: datetime | None = None
    cancellation: Cancellation | None = None


STATUS_AFTER: Final = {
    OrderCreated: Status.CREATED,
    OrderAmended: Status.CREATED,
    OrderPaid: Status.PAID,
    OrderShipped: Status.SHIPPED,
    OrderDelivered: Status.DELIVERED,
    OrderCancelled: Status.CANCELLED,
}


def after(view: OrderView | None, event: Event) -> OrderView:
    """Fold an event into the view of its order; HistoryError if it is not the next one."""
    version = 0 if view is None else view.version
    if event.version != version + 1:
        raise HistoryError(f"version {event.version} of {event.order_id} cannot follow on version {version}")
    fact, at = event.fact, event.occurred_at
    said: dict[str, Any] = {"version": event.version, "status": STATUS_AFTER[type(fact)], "changed_at": at}
    if view is None:
        if type(fact) is not OrderCreated:
            raise HistoryError(f"the history of {event.order_id} begins with {type(fact).__name__}")
        return OrderView(**structs.asdict(fact), **said, order_id=event.order_id, created_at=at)
    match fact:
        case OrderCreated():
            raise HistoryError(f"{event.order_id} is created again, at version {event.version}")
        case OrderAmended():
            return structs.replace(view, **structs.asdict(fact), **said)
        case OrderPaid():
            return structs.replace(view, **said, payment=Payment(fact.payment_id, fact.amount, at))
        case OrderShipped():
            return structs.replace(view, **said, shipment=Shipment(fact.carrier, fact.tracking_number, at))
        case OrderDelivered():
            return structs.replace(view, **said, delivered_at=at)
        case OrderCancelled():
            cancellation = Cancellation(fact.reason, fact.note, fact.refund_due, at)
            return structs.replace(view, **said, cancellation=cancellation)


_encoder: Final = msgspec.json.Encoder()
_decoder: Final = msgspec.json.Decoder(OrderView)


def encode(view: OrderView) -> str:
    """Make the document that the database keeps: JSON, in which even NUL is text."""
    return _encoder.encode(view).decode()


def decode(document: str) -> OrderView:
    """Read it again."""
    return _decoder.decode(document)
