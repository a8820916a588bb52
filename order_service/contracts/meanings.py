"""The texts that no type and no table has: the meaning of a message beyond its schema, and the guarantees."""

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


class Notes(Struct, frozen=True):
    """Notes on one message: its `meaning` beyond the text of its schema, and the `guarantee` for it alone."""

    meaning: str
    guarantee: str


class Guarantee(Struct, frozen=True):
    """One guarantee for all events, with its name."""

    name: str
    text: str


NOTES: Final[dict[type[Message], Notes]] = {
    OrderCreated: Notes(
        "The User Service has confirmed that the user is active. The event holds the whole order.",
        "It is the first event of its order, at version 1. The order has no other event of this type.",
    ),
    OrderAmended: Notes(
        "The event holds the whole order, changed or not: replace your copy of the order with it.",
        f"It occurs at most {MAX_AMENDMENTS} times per order, and never after `OrderPaid`.",
    ),
    OrderPaid: Notes(
        "The order is paid in full. A later cancellation requires a refund of `amount`.",
        "It occurs at most once per order. `amount` is the `total` of the order's last `OrderCreated` or "
        "`OrderAmended`, in the same `currency`.",
    ),
    OrderShipped: Notes(
        "The order can no longer be cancelled.",
        "It occurs at most once per order, and only after `OrderPaid`.",
    ),
    OrderDelivered: Notes(
        "The order is complete.",
        "It occurs at most once per order, and only after `OrderShipped`.",
    ),
    OrderCancelled: Notes(
        "The order has ended without being shipped. If payments have a deadline, the service itself cancels an order "
        "that is not paid in time. Then `actor` is `service:order-service`, `reason` is `payment_timeout`, and the "
        "header `command_offset` is missing.",
        "It occurs at most once per order, and never after `OrderShipped`. `refund_due` is the `amount` of its "
        "`OrderPaid`, or 0 without one.",
    ),
    Rejection: Notes(
        "Nothing has happened to the order, and its version is unchanged.",
        "It is committed in one transaction with the events that were decided with it. `status` and `version` are "
        "those that the command was decided against. An actor who may not see the order gets `absent` and 0.",
    ),
}

SENDERS: Final[dict[type[Message], str]] = {
    CreateOrder: "Users for themselves, and services for any user. The command waits for the User Service.",
    AmendOrder: "The user of the order, and services.",
    PayOrder: "Services.",
    ShipOrder: "Services.",
    DeliverOrder: "Services.",
    CancelOrder: "The user of the order, and services.",
}
"""The actors that may send each command."""

GUARANTEES: Final = (
    Guarantee(
        "Committed records only",
        "All guarantees hold for consumers with `isolation.level=read_committed`. Others also see records that were "
        "never committed.",
    ),
    Guarantee(
        "Order",
        "All records of an order have its `order_id` as key, so they are in one partition, in the order in which "
        "they were decided. There is no such guarantee between the events of different orders, even in one partition.",
    ),
    Guarantee(
        "Order across topics",
        "An event and a rejection may arrive in either order. Those of one order can be sorted by the header "
        "`command_offset`. Only the service's own cancellations lack it, because they answer no command.",
    ),
    Guarantee(
        "Versions",
        "The events of an order have the versions 1, 2, 3 and so on, without a gap. A gap means that a record was "
        "not read: stop, and read again from before it.",
    ),
    Guarantee(
        "Once",
        "An accepted command makes exactly one event, and the event is in the topic exactly once. A command that is "
        "not accepted makes one rejection or one dead letter. A repeat that its order remembers makes no record.",
    ),
    Guarantee(
        "Repeats",
        "You see a record again only if you read it again, such as after a restart. Drop an event whose `version` is "
        "not above the last one of its order. A command that is sent again may be refused again, with the same "
        "`rejection_id`: drop the duplicate.",
    ),
    Guarantee(
        "Refused creates",
        "A refusal is not final while the order does not exist. The same command can be sent again and is then "
        "decided again: a rejection of a create can be followed by another one, or by the `OrderCreated` of the same "
        "command. "
        "The outcome with the highest `command_offset` counts. Over HTTP the same holds for an `Idempotency-Key`.",
    ),
    Guarantee(
        "Digest chain",
        "`previous_digest` is the BLAKE2b-128 of the whole value of the order's previous event, including its first "
        "five bytes. It is null at version 1. A damaged or changed history breaks the chain.",
    ),
    Guarantee(
        "Time",
        "`occurred_at` never decreases within an order. It is the clock of the worker that decided, so compare "
        "different orders by it with care.",
    ),
    Guarantee(
        "Retention",
        "Events are kept forever, so a new consumer can begin with the first one. The other topics delete old "
        "records; see the table of topics.",
    ),
    Guarantee(
        "New versions",
        "A released schema never changes. A new version has a new id, and it may only add optional fields after the "
        "others (null by default). Old readers can read new records, and new readers old ones (`FULL_TRANSITIVE`). "
        "Ignore fields and headers that you do not know, and expect new reasons and new types of events. An event of a "
        "new type has the same headers, begins with the fields of every event, and counts as a version of its order.",
    ),
)
"""The guarantees for all events."""


def causes(fact: type[Message]) -> list[tuple[str, list[Status]]]:
    """Return the commands that lead to a fact, each with the statuses that allow it."""
    statuses: dict[str, list[Status]] = {}
    for (command, status), outcome in RULES.items():
        if outcome is fact:
            statuses.setdefault(command.__name__, []).append(status)
    return list(statuses.items())


def followers(status: Status) -> list[str]:
    """Return the names of the events that can come next for an order in this status."""
    return [outcome.__name__ for (_, start), outcome in RULES.items() if start is status and isinstance(outcome, type)]
