"""The order: its states, and its rules as two pure functions, `decide` and `evolve`.

Each state has only the fields that it needs, so an order cannot be both open and cancelled.
"""

from collections.abc import Iterable
from typing import ClassVar, Final, assert_never, final

from msgspec import Struct, structs

from order_service.domain import validation
from order_service.domain.messages import (
    AmendOrder,
    CancelOrder,
    Command,
    Contents,
    CreateOrder,
    DeliverOrder,
    Fact,
    OrderAmended,
    OrderCancelled,
    OrderCreated,
    OrderDelivered,
    OrderPaid,
    OrderShipped,
    PayOrder,
    ShipOrder,
)
from order_service.domain.refusals import RULES, Reason, Refusal, Status
from order_service.errors import HistoryError


@final
class Absent(Struct, frozen=True, gc=False, tag="absent"):
    """The state of an order before its first event."""

    status: ClassVar = Status.ABSENT
    user_id: ClassVar[None] = None


@final
class Created(Contents, frozen=True, gc=False, tag="created"):
    """A created order, which can still be amended."""

    status: ClassVar = Status.CREATED


@final
class Paid(Struct, frozen=True, gc=False, tag="paid"):
    """An order paid in full; `total` is the refund if it is cancelled."""

    status: ClassVar = Status.PAID
    user_id: str
    total: int


@final
class Shipped(Struct, frozen=True, gc=False, tag="shipped"):
    """An order that was handed to the carrier."""

    status: ClassVar = Status.SHIPPED
    user_id: str


@final
class Delivered(Struct, frozen=True, gc=False, tag="delivered"):
    """An order that was delivered; it cannot change any more."""

    status: ClassVar = Status.DELIVERED
    user_id: str


@final
class Cancelled(Struct, frozen=True, gc=False, tag="cancelled"):
    """An order that was cancelled before it was shipped."""

    status: ClassVar = Status.CANCELLED
    user_id: str


Order = Absent | Created | Paid | Shipped | Delivered | Cancelled
ABSENT: Final[Order] = Absent()


def decide(command: Command, order: Order) -> Fact | Refusal:
    """Return the fact that `command` produces for `order`, or the reason it is refused."""
    if type(command) is CreateOrder:
        return _create(command, order)
    if type(command) is AmendOrder:
        return _amend(command, order)
    if type(command) is PayOrder:
        return _pay(command, order)
    if type(command) is ShipOrder:
        return _ship(command, order)
    if type(command) is DeliverOrder:
        return _deliver(command, order)
    if type(command) is CancelOrder:
        return _cancel(command, order)
    assert_never(command)


def _create(command: CreateOrder, order: Order) -> OrderCreated | Refusal:
    if type(order) is not Absent:
        return _refused(command, order)
    contents = OrderCreated(
        user_id=command.user_id,
        currency=command.currency,
        lines=validation.numbered(command.lines),
        discount=command.discount,
        tax=command.tax,
        shipping=command.shipping,
        total=validation.total(command.lines, command.discount, command.tax, command.shipping),
        shipping_address_ref=command.shipping_address_ref,
        metadata=command.metadata,
    )
    return validation.fault_of_contents(contents) or contents


def _amend(command: AmendOrder, order: Order) -> OrderAmended | Refusal:
    if type(order) is not Created:
        return _refused(command, order)
    lines = order.lines if command.lines is None else validation.numbered(command.lines)
    discount = order.discount if command.discount is None else command.discount
    tax = order.tax if command.tax is None else command.tax
    shipping = order.shipping if command.shipping is None else command.shipping
    contents = OrderAmended(
        user_id=order.user_id,
        currency=order.currency,
        lines=lines,
        discount=discount,
        tax=tax,
        shipping=shipping,
        total=validation.total(lines, discount, tax, shipping),
        shipping_address_ref=(
            order.shipping_address_ref if command.shipping_address_ref is None else command.shipping_address_ref
        ),
        metadata=order.metadata if command.metadata is None else command.metadata,
    )
    return validation.fault_of_contents(contents) or contents


def _pay(command: PayOrder, order: Order) -> OrderPaid | Refusal:
    if type(order) is not Created:
        return _refused(command, order)
    if (command.amount, command.currency) != (order.total, order.currency):
        expected, actual = f"{order.total} {order.currency}", f"{command.amount} {command.currency}"
        return Refusal(Reason.PAYMENT_MISMATCH, f"expected {expected}, got {actual}")
    return OrderPaid(command.payment_id, command.amount, command.currency)


def _ship(command: ShipOrder, order: Order) -> OrderShipped | Refusal:
    if type(order) is not Paid:
        return _refused(command, order)
    return OrderShipped(command.carrier, command.tracking_number)


def _deliver(command: DeliverOrder, order: Order) -> OrderDelivered | Refusal:
    return OrderDelivered() if type(order) is Shipped else _refused(command, order)


def _cancel(command: CancelOrder, order: Order) -> OrderCancelled | Refusal:
    if type(order) is Created:
        return OrderCancelled(command.reason, command.note, refund_due=0)
    if type(order) is Paid:
        return OrderCancelled(command.reason, command.note, refund_due=order.total)
    return _refused(command, order)


def _refused(command: Command, order: Order) -> Refusal:
    """Return the reason that `RULES` has for this command and state. Raises HistoryError if they allow the command."""
    reason = RULES[type(command), order.status]
    if not isinstance(reason, Reason):
        raise HistoryError(
            f"RULES allow {type(command).__name__} on an order that is {order.status}, but decide does not"
        )
    return Refusal(reason)


def evolve(order: Order, fact: Fact) -> Order:
    """Return the order after a fact. Raises HistoryError if the fact cannot follow."""
    if type(fact) is OrderCreated and type(order) is Absent:
        return Created(*structs.astuple(fact))
    if type(fact) is OrderAmended and type(order) is Created:
        return Created(*structs.astuple(fact))
    if type(fact) is OrderPaid and type(order) is Created:
        return Paid(order.user_id, fact.amount)
    if type(fact) is OrderShipped and type(order) is Paid:
        return Shipped(order.user_id)
    if type(fact) is OrderDelivered and type(order) is Shipped:
        return Delivered(order.user_id)
    if type(fact) is OrderCancelled and (type(order) is Created or type(order) is Paid):
        return Cancelled(order.user_id)
    raise HistoryError(f"{type(fact).__name__} cannot follow an order that is {order.status}")


def fold(facts: Iterable[Fact], order: Order = ABSENT) -> Order:
    """Return the order after several facts, oldest first."""
    for fact in facts:
        order = evolve(order, fact)
    return order
