"""Why a command is refused, and the table of rules: data, from which the rules, the docs and the tests come."""

from enum import StrEnum
from typing import Final, final

from msgspec import Struct

from order_service.domain.messages import (
    AmendOrder,
    CancelOrder,
    Command,
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


class Status(StrEnum):
    """Where an order stands."""

    ABSENT = "absent"
    CREATED = "created"
    PAID = "paid"
    SHIPPED = "shipped"
    DELIVERED = "delivered"
    CANCELLED = "cancelled"


class Reason(StrEnum):
    """Every reason for which a command can be refused."""

    ORDER_EXISTS = "order_exists"
    ORDER_NOT_FOUND = "order_not_found"
    ORDER_CANCELLED = "order_cancelled"
    NOT_PAID = "not_paid"
    NOT_SHIPPED = "not_shipped"
    ALREADY_PAID = "already_paid"
    ALREADY_SHIPPED = "already_shipped"
    ALREADY_DELIVERED = "already_delivered"
    PAYMENT_MISMATCH = "payment_mismatch"
    TOO_MANY_CHANGES = "too_many_changes"
    INVALID_ORDER = "invalid_order"
    VERSION_CONFLICT = "version_conflict"
    NOT_ALLOWED = "not_allowed"
    COMMAND_ID_REUSED = "command_id_reused"
    DEADLINE_PASSED = "deadline_passed"
    TOO_MANY_WAITING = "too_many_waiting"
    USER_NOT_FOUND = "user_not_found"
    USER_NOT_ACTIVE = "user_not_active"
    USER_CHECK_TIMED_OUT = "user_check_timed_out"


@final
class Refusal(Struct, frozen=True):
    """A reason, and what a caller should know beyond it."""

    reason: Reason
    detail: str = ""


class Meaning(Struct, frozen=True):
    """What a reason says (`cause`) and what its caller can do (`cure`)."""

    cause: str
    cure: str


MEANINGS: Final[dict[Reason, Meaning]] = {
    Reason.ORDER_EXISTS: Meaning("An order has this order_id already.", "Choose another order_id."),
    Reason.ORDER_NOT_FOUND: Meaning("There is no order with this order_id for this actor.", "Check the order_id."),
    Reason.ORDER_CANCELLED: Meaning("The order was cancelled.", "Create a new order."),
    Reason.NOT_PAID: Meaning("The order is not paid yet.", "Pay it first."),
    Reason.NOT_SHIPPED: Meaning("The order is not shipped yet.", "Ship it first."),
    Reason.ALREADY_PAID: Meaning("The order is paid already.", "Nothing to do; a second payment must be returned."),
    Reason.ALREADY_SHIPPED: Meaning("The order is shipped already.", "Nothing to do; it can no longer be changed."),
    Reason.ALREADY_DELIVERED: Meaning("The order is delivered already.", "Nothing to do; it can no longer be changed."),
    Reason.PAYMENT_MISMATCH: Meaning(
        "Amount or currency is not the order's total.", "Read the order and pay exactly its total."
    ),
    Reason.TOO_MANY_CHANGES: Meaning("The order was amended 50 times.", "Cancel it and create a new one."),
    Reason.INVALID_ORDER: Meaning("A value is out of range.", "Correct the value that the detail points to."),
    Reason.VERSION_CONFLICT: Meaning(
        "The order is not at the expected version.", "Read the order again and decide anew."
    ),
    Reason.NOT_ALLOWED: Meaning(
        "This actor may not do this.",
        "Users create, amend and cancel their own orders; payments and shipments are a service's.",
    ),
    Reason.COMMAND_ID_REUSED: Meaning(
        "This command_id was used with another content.", "Give every new command a new command_id."
    ),
    Reason.DEADLINE_PASSED: Meaning("The command's decide_by had passed.", "Send it again with a later decide_by."),
    Reason.TOO_MANY_WAITING: Meaning(
        "32 commands of this order wait for the User Service already.", "Send it again later."
    ),
    Reason.USER_NOT_FOUND: Meaning("The User Service knows no such user.", "Check the user_id."),
    Reason.USER_NOT_ACTIVE: Meaning("The user may not order.", "Activate the user, then send it again."),
    Reason.USER_CHECK_TIMED_OUT: Meaning(
        "The User Service gave no answer in time.", "Send it again when the User Service answers."
    ),
}

NEVER_REMEMBERED: Final = frozenset({Reason.DEADLINE_PASSED, Reason.USER_CHECK_TIMED_OUT, Reason.TOO_MANY_WAITING})
"""Refusals of the moment: an order does not remember them, so a retry is a new attempt."""

_R: Final = Reason
_COLUMNS: Final = (Status.ABSENT, Status.CREATED, Status.PAID, Status.SHIPPED, Status.DELIVERED, Status.CANCELLED)
_ROWS: Final[dict[type[Command], tuple[type[Fact] | Reason, ...]]] = {
    CreateOrder: (OrderCreated, _R.ORDER_EXISTS, _R.ORDER_EXISTS, _R.ORDER_EXISTS, _R.ORDER_EXISTS, _R.ORDER_EXISTS),
    AmendOrder: (
        _R.ORDER_NOT_FOUND, OrderAmended, _R.ALREADY_PAID, _R.ALREADY_SHIPPED, _R.ALREADY_DELIVERED, _R.ORDER_CANCELLED,
    ),
    PayOrder: (
        _R.ORDER_NOT_FOUND, OrderPaid, _R.ALREADY_PAID, _R.ALREADY_PAID, _R.ALREADY_PAID, _R.ORDER_CANCELLED,
    ),
    ShipOrder: (
        _R.ORDER_NOT_FOUND, _R.NOT_PAID, OrderShipped, _R.ALREADY_SHIPPED, _R.ALREADY_DELIVERED, _R.ORDER_CANCELLED,
    ),
    DeliverOrder: (
        _R.ORDER_NOT_FOUND, _R.NOT_PAID, _R.NOT_SHIPPED, OrderDelivered, _R.ALREADY_DELIVERED, _R.ORDER_CANCELLED,
    ),
    CancelOrder: (
        _R.ORDER_NOT_FOUND, OrderCancelled, OrderCancelled, _R.ALREADY_SHIPPED, _R.ALREADY_DELIVERED,
        _R.ORDER_CANCELLED,
    ),
}  # fmt: skip
RULES: Final = {
    (command, status): outcome for command, row in _ROWS.items() for status, outcome in zip(_COLUMNS, row, strict=True)
}
"""What a command makes of an order in a status: a fact of this type, or the reason of its refusal."""
