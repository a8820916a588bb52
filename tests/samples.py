"""One order in sample values: dana orders two mugs and a poster, sends them elsewhere, pays, and gets them.

Tests and docs take their examples from here. `but` makes a variant of a sample: `but(pay, amount=3799)`.
"""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from hashlib import blake2b
from typing import Any, TypeVar
from uuid import UUID, uuid5

import msgspec
from msgspec import Struct, structs

from order_service.domain.decision import AskUser, Repeat, UserCheck, answer
from order_service.domain.entry import Entry, after_event, after_rejection
from order_service.domain.messages import (
    AmendOrder,
    CancelOrder,
    Command,
    CreateOrder,
    DeliverOrder,
    Event,
    Fact,
    Line,
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

# Names and times

ORDER_ID = "order-1"
USER_ID = "dana"
DANA = "user:dana"
EVE = "user:eve"  # a user whose order it is not
SHOP = "service:shop"
NAMESPACE = UUID("6d3a1f0e-6f2b-5d7e-9f5a-0f3c5f1d2b4a")  # of all ids that we make

NOW = datetime(2026, 1, 5, 9, 0, tzinfo=UTC)
EARLIER = NOW - timedelta(hours=1)
LATER = NOW + timedelta(hours=1)

# Commands, which are wishes

mugs = Line(sku="mug-blue", name="Blue mug", quantity=2, unit_price=1250)
poster = Line(line_id="wall", sku="poster-a2", quantity=1, unit_price=900)

create = CreateOrder(
    command_id="create-1",
    order_id=ORDER_ID,
    actor=DANA,
    correlation_id="visit-7",
    user_id=USER_ID,
    currency="EUR",
    lines=(mugs, poster),
    discount=400,
    tax=300,
    shipping=500,
    shipping_address_ref="home",
    metadata={"channel": "web"},
)
amend = AmendOrder(command_id="amend-1", order_id=ORDER_ID, actor=DANA, shipping_address_ref="office")
pay = PayOrder(command_id="pay-1", order_id=ORDER_ID, actor=SHOP, payment_id="payment-1", amount=3800, currency="EUR")
ship = ShipOrder(command_id="ship-1", order_id=ORDER_ID, actor=SHOP, carrier="DHL", tracking_number="JD0146")
deliver = DeliverOrder(command_id="deliver-1", order_id=ORDER_ID, actor=SHOP)
cancel = CancelOrder(
    command_id="cancel-1", order_id=ORDER_ID, actor=DANA, reason="customer_request", note="two were enough"
)
commands: tuple[Command, ...] = (create, amend, pay, ship, deliver, cancel)

# Facts, which are what happened

created = OrderCreated(
    user_id=USER_ID,
    currency="EUR",
    lines=(structs.replace(mugs, line_id="1"), poster),
    discount=400,
    tax=300,
    shipping=500,
    total=3800,  # 2 * 1250 + 900 - 400 + 300 + 500
    shipping_address_ref="home",
    metadata={"channel": "web"},
)
amended = OrderAmended(*structs.astuple(structs.replace(created, shipping_address_ref="office")))
paid = OrderPaid(payment_id="payment-1", amount=3800, currency="EUR")
shipped = OrderShipped(carrier="DHL", tracking_number="JD0146")
delivered = OrderDelivered()
cancelled = OrderCancelled(reason="customer_request", note="two were enough", refund_due=0)
cancelled_with_refund = structs.replace(cancelled, refund_due=3800)
facts: tuple[Fact, ...] = (created, amended, paid, shipped, delivered, cancelled)

# Events and a rejection, which are facts and refusals in their place, with a name, a time and an author

_T = TypeVar("_T", bound=Struct)


def but(sample: _T, **changes: Any) -> _T:
    """Make a variant of a sample."""
    return structs.replace(sample, **changes)


def uuid_of(*names: str) -> str:
    """Name what has these names, as our own ids do."""
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
    """Give the table's entry after these commands, of which one made the order."""
    for command in taken:
        _, entry = take(command, entry, now)
    if entry is None:
        raise ValueError("none of these commands made an order")
    return entry
