"""Sample messages of one order: dana orders two mugs and a poster, changes the address, pays, and receives them.

Every function returns one message. Keyword arguments override its fields: `pay_order("order-7", amount=1)`.
"""

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

ORDER_ID: Final = "order-1"
BEGIN: Final = datetime(2026, 1, 5, 9, 0, tzinfo=UTC)
_DANA: Final = "user:dana"
_SHOP: Final = "service:shop"

_create: Final = CreateOrder(
    command_id="create-1",
    order_id=ORDER_ID,
    actor=_DANA,
    user_id="dana",
    currency="EUR",
    lines=(
        Line(line_id="1", sku="mug-blue", name="Blue mug", quantity=2, unit_price=1250),
        Line(line_id="2", sku="poster-a2", quantity=1, unit_price=900),
    ),
    shipping_address_ref="home",
    metadata={"channel": "web"},
)
_amend: Final = AmendOrder(command_id="amend-1", order_id=ORDER_ID, actor=_DANA, shipping_address_ref="office")
_pay: Final = PayOrder(
    command_id="pay-1", order_id=ORDER_ID, actor=_SHOP, payment_id="payment-1", amount=3400, currency="EUR"
)
_ship: Final = ShipOrder(
    command_id="ship-1", order_id=ORDER_ID, actor=_SHOP, carrier="DHL", tracking_number="JD014600003"
)
_deliver: Final = DeliverOrder(command_id="deliver-1", order_id=ORDER_ID, actor=_SHOP)
_cancel: Final = CancelOrder(command_id="cancel-1", order_id=ORDER_ID, actor=_DANA, reason="customer_request")

_created: Final = OrderCreated(
    user_id="dana",
    currency="EUR",
    lines=_create.lines,
    discount=0,
    tax=0,
    shipping=0,
    total=3400,
    shipping_address_ref="home",
    metadata=_create.metadata,
)
_amended: Final = OrderAmended(*structs.astuple(structs.replace(_created, shipping_address_ref="office")))
_paid: Final = OrderPaid(payment_id="payment-1", amount=3400, currency="EUR")
_shipped: Final = OrderShipped(carrier="DHL", tracking_number="JD014600003")
_cancelled: Final = OrderCancelled(reason="customer_request", note=None, refund_due=0)

_C = TypeVar("_C", bound=Command)


def create_order(order_id: str = ORDER_ID, **changes: Any) -> CreateOrder:
    """Return the command that creates the sample order, with a total of 3400 EUR cents."""
    return _command(_create, order_id, changes)


def amend_order(order_id: str = ORDER_ID, **changes: Any) -> AmendOrder:
    """Return the command that changes the shipping address of the sample order."""
    return _command(_amend, order_id, changes)


def pay_order(order_id: str = ORDER_ID, **changes: Any) -> PayOrder:
    """Return the command that pays the sample order in full."""
    return _command(_pay, order_id, changes)


def ship_order(order_id: str = ORDER_ID, **changes: Any) -> ShipOrder:
    """Return the command that ships the sample order."""
    return _command(_ship, order_id, changes)


def deliver_order(order_id: str = ORDER_ID, **changes: Any) -> DeliverOrder:
    """Return the command that marks the sample order as delivered."""
    return _command(_deliver, order_id, changes)


def cancel_order(order_id: str = ORDER_ID, **changes: Any) -> CancelOrder:
    """Return the command that cancels the sample order."""
    return _command(_cancel, order_id, changes)


def order_created(order_id: str = ORDER_ID, version: int = 1, **changes: Any) -> Event:
    """Return the event that creates the sample order."""
    return event_of(_created, order_id, version, changes)


def order_amended(order_id: str = ORDER_ID, version: int = 2, **changes: Any) -> Event:
    """Return the event that changes the shipping address of the sample order."""
    return event_of(_amended, order_id, version, changes)


def order_paid(order_id: str = ORDER_ID, version: int = 3, **changes: Any) -> Event:
    """Return the event of the payment of the sample order."""
    return event_of(_paid, order_id, version, changes)


def order_shipped(order_id: str = ORDER_ID, version: int = 4, **changes: Any) -> Event:
    """Return the event of the shipment of the sample order."""
    return event_of(_shipped, order_id, version, changes)


def order_delivered(order_id: str = ORDER_ID, version: int = 5, **changes: Any) -> Event:
    """Return the event of the delivery of the sample order."""
    return event_of(OrderDelivered(), order_id, version, changes)


def order_cancelled(order_id: str = ORDER_ID, version: int = 2, **changes: Any) -> Event:
    """Return the event that cancels the sample order before it is paid."""
    return event_of(_cancelled, order_id, version, changes)


def sample_commands(order_id: str = ORDER_ID) -> tuple[Command, ...]:
    """Return the commands of a complete order: create, amend, pay, ship, deliver."""
    samples = (create_order, amend_order, pay_order, ship_order, deliver_order)
    return tuple(sample(order_id) for sample in samples)


def sample_life(order_id: str = ORDER_ID) -> tuple[Event, ...]:
    """Return the events of a complete order, versions 1 to 5, as the rules decide them, one hour apart."""
    events: list[Event] = []
    entry: Entry | None = None
    for hours, command in enumerate(sample_commands(order_id)):
        event = answer(command, entry, BEGIN + timedelta(hours=hours), UserCheck.ACTIVE)
        assert isinstance(event, Event)
        entry = after_event(entry, event, head_of(event))
        events.append(event)
    return tuple(events)


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
        actor=_SHOP,
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
