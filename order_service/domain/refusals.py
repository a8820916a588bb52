"""Why commands are refused: the reasons and the table of rules, as data for the rules, the documents and the tests."""

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
    """Every status of an order."""

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
    """A reason, and a detail for the caller if the reason alone does not explain it.

    `pointer` is the JSON pointer (RFC 6901) of the invalid field, or None if no single field is. For an amendment it
    can be a field that the order keeps.
    """

    reason: Reason
    detail: str = ""
    pointer: str | None = None


class Meaning(Struct, frozen=True):
    """The explanation of a reason (`cause`) and what the caller can do (`cure`)."""

    cause: str
    cure: str


MEANINGS: Final[dict[Reason, Meaning]] = {
    Reason.ORDER_EXISTS: Meaning("An order with this order_id already exists.", "Use another order_id."),
    Reason.ORDER_NOT_FOUND: Meaning("There is no order with this order_id for this actor.", "Check the order_id."),
    Reason.ORDER_CANCELLED: Meaning("The order was cancelled.", "Create a new order."),
    Reason.NOT_PAID: Meaning("The order is not paid yet.", "Pay the order first."),
    Reason.NOT_SHIPPED: Meaning("The order is not shipped yet.", "Ship the order first."),
    Reason.ALREADY_PAID: Meaning("The order is already paid.", "If a second payment was made, refund it."),
    Reason.ALREADY_SHIPPED: Meaning(
        "The order is already shipped.", "No action is needed; the order can no longer be changed."
    ),
    Reason.ALREADY_DELIVERED: Meaning(
        "The order is already delivered.", "No action is needed; the order can no longer be changed."
    ),
    Reason.PAYMENT_MISMATCH: Meaning(
        "The amount or currency differs from the order's total.", "Read the order and pay exactly its total."
    ),
    Reason.TOO_MANY_CHANGES: Meaning(
        "The order has been amended 50 times, which is the limit.", "Cancel the order and create a new one."
    ),
    Reason.INVALID_ORDER: Meaning("A value is out of range.", "Correct the value that the detail points to."),
    Reason.VERSION_CONFLICT: Meaning(
        "The order is not at the expected version.",
        "Read the order again. If the change still applies, send it as a new command.",
    ),
    Reason.NOT_ALLOWED: Meaning(
        "The actor may not send this command.",
        "Users may create, amend and cancel their own orders. All other commands need a service as the actor.",
    ),
    Reason.COMMAND_ID_REUSED: Meaning(
        "This command_id was already used for a different command.", "Use a new command_id for every new command."
    ),
    Reason.DEADLINE_PASSED: Meaning(
        "The command was not decided by its decide_by time.", "Send the command again with a later decide_by."
    ),
    Reason.TOO_MANY_WAITING: Meaning(
        "32 commands of this order already wait for the User Service.", "Send the command again later."
    ),
    Reason.USER_NOT_FOUND: Meaning("The User Service has no user with this user_id.", "Check the user_id."),
    Reason.USER_NOT_ACTIVE: Meaning("The user is not active.", "Activate the user, then send the command again."),
    Reason.USER_CHECK_TIMED_OUT: Meaning(
        "The User Service did not answer in time.", "Send the command again when the User Service is available."
    ),
}

NEVER_REMEMBERED: Final = frozenset({Reason.DEADLINE_PASSED, Reason.USER_CHECK_TIMED_OUT, Reason.TOO_MANY_WAITING})
"""Temporary refusals: an order does not remember them, so a retry is a new attempt."""

_R: Final = Reason
_ROWS: Final[dict[type[Command], tuple[type[Fact] | Reason, ...]]] = {  # one outcome for each `Status`, in its sequence
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
    (command, status): outcome for command, row in _ROWS.items() for status, outcome in zip(Status, row, strict=True)
}
"""The outcome of each command in each status: a fact of this type, or the reason of the refusal."""
