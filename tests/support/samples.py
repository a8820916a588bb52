"""The samples of the SDK as values, with a history of events, and what a lane does with them.

`but` returns a variant of a sample: `but(pay, amount=3799)`.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta
from hashlib import blake2b
from typing import Any, TypeVar
from uuid import UUID, uuid5

import msgspec
from msgspec import Struct, structs

from order_service.domain.decision import AskUser, Repeat, UserCheck, answer
from order_service.domain.entry import Entry, ShortEntry, after_event, after_rejection, short_entry
from order_service.domain.messages import Command, Event, Fact, Rejection
from order_service.sdk.testing import samples

ORDER_ID = samples.ORDER_ID
USER_ID = samples.USER_ID
DANA = samples.DANA
EVE = "user:eve"  # a user whose order it is not
SHOP = samples.SHOP
NAMESPACE = UUID("6d3a1f0e-6f2b-5d7e-9f5a-0f3c5f1d2b4a")  # of all ids that we make

NOW = samples.BEGIN
EARLIER = NOW - timedelta(hours=1)
LATER = NOW + timedelta(hours=1)

mugs, poster = samples.MUGS, samples.POSTER

create, amend, pay = samples.CREATE, samples.AMEND, samples.PAY
ship, deliver, cancel = samples.SHIP, samples.DELIVER, samples.CANCEL
commands: tuple[Command, ...] = (create, amend, pay, ship, deliver, cancel)

created, amended, paid = samples.CREATED, samples.AMENDED, samples.PAID
shipped, delivered, cancelled = samples.SHIPPED, samples.DELIVERED, samples.CANCELLED
cancelled_with_refund = structs.replace(cancelled, refund_due=paid.amount)
facts: tuple[Fact, ...] = (created, amended, paid, shipped, delivered, cancelled)

# Events and a rejection: facts and a refusal with an id, a version, a time and an actor

_T = TypeVar("_T", bound=Struct)


def but(sample: _T, **changes: Any) -> _T:
    """Make a variant of a sample."""
    return structs.replace(sample, **changes)


def uuid_of(*names: str) -> str:
    """Return the name of what has these names, as our own ids do."""
    return str(uuid5(NAMESPACE, "\0".join(names)))


def digest_of(value: object) -> bytes:
    """Digest a value; of an event, this stands in for the digest of its encoded form, which is made in `wire`."""
    return blake2b(msgspec.msgpack.encode(value, order="deterministic"), digest_size=16).digest()


def event_of(command: Command, fact: Fact, previous: Event | None = None) -> Event:
    """Make the event by which `command` led to `fact`, an hour after the `previous` one."""
    version = 1 if previous is None else previous.version + 1
    return Event(
        event_id=uuid_of(ORDER_ID, str(version)),
        order_id=ORDER_ID,
        version=version,
        command_id=command.command_id,
        command_digest=digest_of(but(command, correlation_id=None, decide_by=None)),
        correlation_id=command.correlation_id,
        actor=command.actor,
        occurred_at=NOW + timedelta(hours=version - 1),
        previous_digest=None if previous is None else digest_of(previous),
        fact=fact,
    )


order_created = event_of(create, created)
order_amended = event_of(amend, amended, order_created)
order_paid = event_of(pay, paid, order_amended)
order_shipped = event_of(ship, shipped, order_paid)
order_delivered = event_of(deliver, delivered, order_shipped)
order_cancelled = event_of(cancel, cancelled, order_amended)
order_cancelled_with_refund = event_of(cancel, cancelled_with_refund, order_paid)
events = (order_created, order_amended, order_paid, order_shipped, order_delivered)
"""A whole history, version 1 to 5."""

all_events = (*events, order_cancelled, order_cancelled_with_refund)
"""One event of every type, and a cancellation of both kinds; not one history."""

ship_refused = Rejection(
    rejection_id=uuid_of(ORDER_ID, "ship-1", digest_of(ship).hex()),
    command_id="ship-1",
    command_digest=digest_of(ship),
    command_type="ShipOrder",
    order_id=ORDER_ID,
    reason="not_paid",
    detail="The order is not paid yet.",
    status="created",
    version=1,
    actor=SHOP,
    rejected_at=NOW,
    correlation_id=None,
)

# What a lane does with them, without Kafka


def take(
    command: Command, entry: Entry | None = None, now: datetime = NOW, user: UserCheck | None = UserCheck.ACTIVE
) -> tuple[Event | Rejection | Repeat | AskUser, Entry | None]:
    """Answer one command; give the answer and the table's entry after it."""
    outcome = answer(command, entry, now, user)
    match outcome:
        case Event():
            return outcome, after_event(entry, outcome, digest_of(outcome))
        case Rejection():
            return outcome, after_rejection(entry, outcome)
        case _:
            return outcome, entry


def entry_after(taken: Sequence[Command], entry: Entry | None = None, now: datetime = NOW) -> Entry:
    """Return the table's entry after these commands, of which one made the order."""
    for command in taken:
        _, entry = take(command, entry, now)
    if entry is None:
        raise ValueError("none of these commands made an order")
    return entry


def short_of(entry: Entry) -> ShortEntry:
    """Return the table's entry of a closed order after it has forgotten its commands."""
    short = short_entry(entry)
    if short is None:
        raise ValueError("an order that is open forgets nothing")
    return short
