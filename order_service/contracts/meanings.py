"""What no type and no table can say: what a message means beyond its schema, and what whoever reads it may rely on."""

from typing import Final

from msgspec import Struct

from order_service.domain.decision import MAX_AMENDMENTS
from order_service.domain.messages import (
    AmendOrder,
    CancelOrder,
    CreateOrder,
    DeliverOrder,
    OrderAmended,
    OrderCancelled,
    OrderCreated,
    OrderDelivered,
    OrderPaid,
    OrderShipped,
    PayOrder,
    Rejection,
    ShipOrder,
)
from order_service.domain.refusals import RULES, Status
from order_service.wire.schemas.catalogue import Message


class Said(Struct, frozen=True):
    """`more` is what a message means beyond the words of its schema, `relies` what is true of it alone."""

    more: str
    relies: str


class Promise(Struct, frozen=True):
    """One promise, and what it says."""

    name: str
    text: str


SAID: Final[dict[type[Message], Said]] = {
    OrderCreated: Said(
        "The User Service had said that the user is active. The whole order is in the event.",
        "It is the first event of its order, version 1, and no other event of the order is of this type.",
    ),
    OrderAmended: Said(
        "The event holds the whole order as it now stands, changed or not: what you know of it can be replaced.",
        f"It comes at most {MAX_AMENDMENTS} times in an order, and never once the order is paid.",
    ),
    OrderPaid: Said(
        "The money is there, to the last minor unit; from now on a cancellation owes it back.",
        "It comes at most once in an order. `amount` is the `total` of the order's last `OrderCreated` or "
        "`OrderAmended`, in the same `currency`.",
    ),
    OrderShipped: Said(
        "The order can no longer be cancelled.",
        "It comes at most once in an order, and only after `OrderPaid`.",
    ),
    OrderDelivered: Said(
        "The order is finished.",
        "It comes at most once in an order, and only after `OrderShipped`.",
    ),
    OrderCancelled: Said(
        "The order has ended without being shipped. Where payments have a deadline, the service itself cancels an "
        "order that is not paid in time: then `actor` is `service:order-service`, `reason` is `payment_timeout`, and "
        "there is no header `command_offset`.",
        "It comes at most once in an order, and never after `OrderShipped`. `refund_due` is the `amount` of its "
        "`OrderPaid`, or 0 if there was none.",
    ),
    Rejection: Said(
        "Nothing has happened to the order, and its version is the same as before.",
        "It is written in one transaction with the events that were decided with it. `status` and `version` are "
        "those that the command was decided against; whoever may not see an order is told `absent` and 0.",
    ),
}

SENDERS: Final[dict[type[Message], str]] = {
    CreateOrder: "Users for themselves, and services for any user. It waits for the answer of the User Service.",
    AmendOrder: "The user of the order, and services.",
    PayOrder: "Services.",
    ShipOrder: "Services.",
    DeliverOrder: "Services.",
    CancelOrder: "The user of the order, and services.",
}
"""Whose `actor` a command is accepted from."""

PROMISES: Final = (
    Promise(
        "Committed records only",
        "All of this holds for readers with `isolation.level=read_committed`. Others also see what was never "
        "committed.",
    ),
    Promise(
        "Order",
        "All records of an order have its `order_id` as key, so they lie in one partition, in the order in which "
        "they were decided. Nothing is said of the events of different orders, not even of one partition.",
    ),
    Promise(
        "Order across topics",
        "Nothing is said of which comes first, an event or a rejection. The header `command_offset` puts those of "
        "one order into one order, but for the service's own cancellations, which answer no command.",
    ),
    Promise(
        "Versions",
        "The events of an order have the versions 1, 2, 3 and so on, without a hole. A hole means that a record was "
        "not read: stop, and read again from before it.",
    ),
    Promise(
        "Once",
        "A command that is accepted makes exactly one event, and the event is in the topic exactly once. A command "
        "that is not accepted makes one rejection or one dead letter; a repeat that its order remembers makes "
        "nothing.",
    ),
    Promise(
        "Repeats",
        "You see a record again only if you read it again, such as after a restart. Drop an event whose `version` is "
        "not above the last one of its order. A command that is sent again may be refused again, with the same "
        "`rejection_id`: drop the twin.",
    ),
    Promise(
        "Chain",
        "`previous_digest` is the BLAKE2b-128 of the whole value of the order's previous event, with its first five "
        "bytes; it is null at version 1. So a damaged or changed history shows.",
    ),
    Promise(
        "Time",
        "`occurred_at` never runs backwards within an order. It is the clock of the worker that decided, so compare "
        "orders by it with care.",
    ),
    Promise(
        "Retention",
        "Events stay for ever, so a new consumer can begin with the first one. The other topics forget, as the table "
        "of topics says.",
    ),
    Promise(
        "New versions",
        "A schema that is released is never changed. A new version has a new id, and it may add optional fields "
        "behind the others (null by default) and nothing else: old readers read new records, and new readers old "
        "ones (`FULL_TRANSITIVE`). Pass over fields and headers that you do not know, and expect that reasons and "
        "types of events may be added.",
    ),
)
"""What is true of all events, each with a name."""


def causes(fact: type[Message]) -> list[tuple[str, list[Status]]]:
    """Say which commands lead to a fact, and where an order must stand for each."""
    found: dict[str, list[Status]] = {}
    for (command, status), outcome in RULES.items():
        if outcome is fact:
            found.setdefault(command.__name__, []).append(status)
    return list(found.items())


def followers(status: Status) -> list[str]:
    """Name the events that can come next for an order in this status."""
    return [outcome.__name__ for (_, where), outcome in RULES.items() if where is status and isinstance(outcome, type)]
