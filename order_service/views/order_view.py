"""An order as readers see it: its contents, payment, shipment and status, folded from its events."""

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
    """The payment of an order, and when it was made."""

    payment_id: str
    amount: int
    paid_at: datetime


class Shipment(Struct, frozen=True, gc=False):
    """The carrier of an order, and when it was shipped."""

    carrier: str
    tracking_number: str
    shipped_at: datetime


class Cancellation(Struct, frozen=True, gc=False):
    """The reason and time of a cancellation, and the amount to refund."""

    reason: str
    note: str | None
    refund_due: int
    cancelled_at: datetime


class OrderView(Contents, frozen=True, kw_only=True):
    """An order at one of its versions. Amounts and times have the same format as in the events."""

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
    """Return the view after an event. Raises HistoryError if the event is not the next one."""
    version = 0 if view is None else view.version
    if event.version != version + 1:
        raise HistoryError(f"version {event.version} of {event.order_id} cannot follow version {version}")
    fact, at = event.fact, event.occurred_at
    changes: dict[str, Any] = {"version": event.version, "status": STATUS_AFTER[type(fact)], "changed_at": at}
    if view is None:
        if type(fact) is not OrderCreated:
            raise HistoryError(f"the history of {event.order_id} begins with {type(fact).__name__}")
        return OrderView(**structs.asdict(fact), **changes, order_id=event.order_id, created_at=at)
    match fact:
        case OrderCreated():
            raise HistoryError(f"{event.order_id} is created again, at version {event.version}")
        case OrderAmended():
            return structs.replace(view, **structs.asdict(fact), **changes)
        case OrderPaid():
            return structs.replace(view, **changes, payment=Payment(fact.payment_id, fact.amount, at))
        case OrderShipped():
            return structs.replace(view, **changes, shipment=Shipment(fact.carrier, fact.tracking_number, at))
        case OrderDelivered():
            return structs.replace(view, **changes, delivered_at=at)
        case OrderCancelled():
            cancellation = Cancellation(fact.reason, fact.note, fact.refund_due, at)
            return structs.replace(view, **changes, cancellation=cancellation)


_encoder: Final = msgspec.json.Encoder()
_decoder: Final = msgspec.json.Decoder(OrderView)


def encode(view: OrderView) -> str:
    """Return the view as a document for the database: JSON, which escapes NUL."""
    return _encoder.encode(view).decode()


def decode(document: str) -> OrderView:
    """Return the view that `encode` wrote."""
    return _decoder.decode(document)
