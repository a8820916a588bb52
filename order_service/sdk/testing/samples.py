"""Sample messages of one order: dana orders two mugs and a poster, changes the address, pays, and receives them.

Every function returns one message. Keyword arguments override its fields: `pay_order("order-7", amount=1)`.
The service's own tests and the examples in its documents take their values from here.
"""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, Final, TypeVar

from msgspec import structs

from order_service.domain.decision import UserCheck, answer
from order_service.domain.entry import Entry, after_event
from order_service.domain.identity import blake2b_128, event_id
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
    ShipOrder,
)
from order_service.wire import avro
from order_service.wire.headers import Headers, event_headers
from order_service.wire.schemas.catalogue import prefix_of
from order_service.wire.schemas.files import NAMESPACE

ORDER_ID: Final = "order-1"
USER_ID: Final = "dana"
DANA: Final = f"user:{USER_ID}"
SHOP: Final = "service:shop"
CORRELATION_ID: Final = "visit-7"
UNKNOWN_ID: Final = 1_999_999_999
"""A schema id that no file has."""
BEGIN: Final = datetime(2026, 1, 5, 9, 0, tzinfo=UTC)
TRACEPARENT: Final = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
TRACESTATE: Final = "shop=t61rcWkgMzE"
"""The example of the W3C Trace Context specification."""

MUGS: Final = Line(sku="mug-blue", name="Blue mug", quantity=2, unit_price=1250)
POSTER: Final = Line(line_id="wall", sku="poster-a2", quantity=1, unit_price=900)

CREATE: Final = CreateOrder(
    command_id="create-1",
    order_id=ORDER_ID,
    actor=DANA,
    correlation_id=CORRELATION_ID,
    user_id=USER_ID,
    currency="EUR",
    lines=(MUGS, POSTER),
    discount=400,
    tax=300,
    shipping=500,
    shipping_address_ref="home",
    metadata={"channel": "web"},
)
AMEND: Final = AmendOrder(command_id="amend-1", order_id=ORDER_ID, actor=DANA, shipping_address_ref="office")
PAY: Final = PayOrder(
    command_id="pay-1", order_id=ORDER_ID, actor=SHOP, payment_id="payment-1", amount=3800, currency="EUR"
)
SHIP: Final = ShipOrder(command_id="ship-1", order_id=ORDER_ID, actor=SHOP, carrier="DHL", tracking_number="JD0146")
DELIVER: Final = DeliverOrder(command_id="deliver-1", order_id=ORDER_ID, actor=SHOP)
CANCEL: Final = CancelOrder(
    command_id="cancel-1", order_id=ORDER_ID, actor=DANA, reason="customer_request", note="two were enough"
)

CREATED: Final = OrderCreated(
    user_id=USER_ID,
    currency="EUR",
    lines=(structs.replace(MUGS, line_id="1"), POSTER),
    discount=400,
    tax=300,
    shipping=500,
    total=3800,  # 2 * 1250 + 900 - 400 + 300 + 500
    shipping_address_ref="home",
    metadata={"channel": "web"},
)
AMENDED: Final = OrderAmended(*structs.astuple(structs.replace(CREATED, shipping_address_ref="office")))
PAID: Final = OrderPaid(payment_id="payment-1", amount=3800, currency="EUR")
SHIPPED: Final = OrderShipped(carrier="DHL", tracking_number="JD0146")
DELIVERED: Final = OrderDelivered()
CANCELLED: Final = OrderCancelled(reason="customer_request", note="two were enough", refund_due=0)

_C = TypeVar("_C", bound=Command)


def create_order(order_id: str = ORDER_ID, **changes: Any) -> CreateOrder:
    """Return the command that creates the sample order, with a total of 3800 EUR cents."""
    return _command(CREATE, order_id, changes)


def amend_order(order_id: str = ORDER_ID, **changes: Any) -> AmendOrder:
    """Return the command that changes the shipping address of the sample order."""
    return _command(AMEND, order_id, changes)


def pay_order(order_id: str = ORDER_ID, **changes: Any) -> PayOrder:
    """Return the command that pays the sample order in full."""
    return _command(PAY, order_id, changes)


def ship_order(order_id: str = ORDER_ID, **changes: Any) -> ShipOrder:
    """Return the command that ships the sample order."""
    return _command(SHIP, order_id, changes)


def deliver_order(order_id: str = ORDER_ID, **changes: Any) -> DeliverOrder:
    """Return the command that marks the sample order as delivered."""
    return _command(DELIVER, order_id, changes)


def cancel_order(order_id: str = ORDER_ID, **changes: Any) -> CancelOrder:
    """Return the command that cancels the sample order."""
    return _command(CANCEL, order_id, changes)


def order_created(order_id: str = ORDER_ID, version: int = 1, **changes: Any) -> Event:
    """Return the event that creates the sample order."""
    return event_of(CREATED, order_id, version, changes)


def order_amended(order_id: str = ORDER_ID, version: int = 2, **changes: Any) -> Event:
    """Return the event that changes the shipping address of the sample order."""
    return event_of(AMENDED, order_id, version, changes)


def order_paid(order_id: str = ORDER_ID, version: int = 3, **changes: Any) -> Event:
    """Return the event of the payment of the sample order."""
    return event_of(PAID, order_id, version, changes)


def order_shipped(order_id: str = ORDER_ID, version: int = 4, **changes: Any) -> Event:
    """Return the event of the shipment of the sample order."""
    return event_of(SHIPPED, order_id, version, changes)


def order_delivered(order_id: str = ORDER_ID, version: int = 5, **changes: Any) -> Event:
    """Return the event of the delivery of the sample order."""
    return event_of(DELIVERED, order_id, version, changes)


def order_cancelled(order_id: str = ORDER_ID, version: int = 2, **changes: Any) -> Event:
    """Return the event that cancels the sample order before it is paid."""
    return event_of(CANCELLED, order_id, version, changes)


def sample_commands(order_id: str = ORDER_ID) -> tuple[Command, ...]:
    """Return the commands of a complete order: create, amend, pay, ship, deliver."""
    samples = (create_order, amend_order, pay_order, ship_order, deliver_order)
    return tuple(sample(order_id) for sample in samples)


def sample_life(order_id: str = ORDER_ID) -> tuple[Event, ...]:
    """Return the events of a complete order, versions 1 to 5, as the rules decide them, one hour apart."""
    return tuple(event for event, _ in decided(*sample_commands(order_id)))


def decided(*commands: Command) -> Iterator[tuple[Event, Entry]]:
    """Decide commands of one order, an hour apart; yield each event with the order's table entry after it.

    Raises TypeError if a command is refused.
    """
    entry: Entry | None = None
    for hours, command in enumerate(commands):
        event = answer(command, entry, BEGIN + timedelta(hours=hours), UserCheck.ACTIVE)
        if not isinstance(event, Event):
            raise TypeError(f"the sample {command.command_id} is not accepted: {event}")
        entry = after_event(entry, event, head_of(event))
        yield event, entry


def as_unknown(event: Event, name: str, schema_id: int = UNKNOWN_ID) -> tuple[bytes, Headers]:
    """Return value and headers of an event of the type `name`, as a later version of the service may write them.

    It has the fields of every event from `event`, and one of its own.
    """
    common = avro.encode_event(structs.replace(event, fact=DELIVERED))[5:]  # a delivery has no other fields
    headers = dict(event_headers(event, None, None)) | {"ce_type": f"{NAMESPACE}.{name}".encode()}
    return prefix_of(schema_id) + common + b"\x0ebecause", list(headers.items())


def head_of(event: Event) -> bytes:
    """Return the digest of an event, which the next event of the order must contain."""
    return avro.digest(avro.encode_event(event))


def event_of(fact: Fact, order_id: str, version: int, changes: dict[str, Any]) -> Event:
    """Return an event with this fact; `changes` override fields of the fact or of the event."""
    own = {name: value for name, value in changes.items() if name in Event.__struct_fields__}
    command_id = own.get("command_id", f"command-{version}")
    event = Event(
        event_id=event_id(order_id, version),
        order_id=order_id,
        version=version,
        command_id=command_id,
        command_digest=blake2b_128(command_id.encode()),
        correlation_id=None,
        actor=SHOP,
        occurred_at=BEGIN + timedelta(hours=version - 1),
        previous_digest=None if version == 1 else blake2b_128(event_id(order_id, version - 1).encode()),
        fact=structs.replace(fact, **{name: value for name, value in changes.items() if name not in own}),
    )
    return structs.replace(event, **own)


def _command(sample: _C, order_id: str, changes: dict[str, Any]) -> _C:
    """Return a variant of a sample for an order; commands of different orders have different ids."""
    suffix = "" if order_id == ORDER_ID else f"-{order_id}"
    named = {"order_id": order_id, "command_id": f"{sample.command_id}{suffix}"}
    return structs.replace(sample, **(named | changes))
