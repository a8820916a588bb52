"""The messages: commands (wishes), facts and events (what happened), rejections (refusals).

Units:   money is whole minor units of the order's one ISO 4217 currency; times are aware UTC with whole milliseconds.
Kinds:   told apart by `type(x) is`: an `isinstance` that says no takes four times as long here, for it asks the
         metaclass of a Struct, and a command meets a dozen of them. They are final, so mypy narrows by it as well.
Memory:  `gc=False` keeps millions of them out of the garbage collector's sight; they hold no cycles.
Checked: while decoding only the types, then `order_id`, `command_id` and `correlation_id` (`wire.ids`); any other value
         that is out of range is a rejection (`content`).
"""

from datetime import datetime
from typing import Annotated, Final, final

from msgspec import Meta, Struct

ID_PATTERN: Final = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z"
Int64 = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
UtcTime = Annotated[datetime, Meta(tz=True)]


class Line(Struct, frozen=True, gc=False, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    """One line of an order. Events always carry a `line_id`: the given one, or the line's place, `1`…`n`."""

    line_id: str | None = None
    sku: str
    name: str | None = None
    quantity: Int64
    unit_price: Int64


class _Command(Struct, frozen=True, gc=False, tag=True, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    """What every command carries: `actor` is `user:<id>` or `service:<id>`, `expected_version` 0 means a new order."""

    command_id: str
    order_id: str
    actor: str
    expected_version: Int64 | None = None
    decide_by: UtcTime | None = None
    correlation_id: str | None = None


@final
class CreateOrder(_Command, frozen=True, gc=False, tag=True, kw_only=True):
    """Place an order for `user_id`, who must be an active user."""

    user_id: str
    currency: str
    lines: tuple[Line, ...]
    discount: Int64 = 0
    tax: Int64 = 0
    shipping: Int64 = 0
    shipping_address_ref: str | None = None
    metadata: dict[str, str] = {}


@final
class AmendOrder(_Command, frozen=True, gc=False, tag=True, kw_only=True):
    """Change an order before it is paid: what is given replaces what was, at least one of them."""

    lines: tuple[Line, ...] | None = None
    discount: Int64 | None = None
    tax: Int64 | None = None
    shipping: Int64 | None = None
    shipping_address_ref: str | None = None
    metadata: dict[str, str] | None = None


@final
class PayOrder(_Command, frozen=True, gc=False, tag=True, kw_only=True):
    """Record a payment of the whole total."""

    payment_id: str
    amount: Int64
    currency: str


@final
class ShipOrder(_Command, frozen=True, gc=False, tag=True, kw_only=True):
    """Record that a paid order left the house."""

    carrier: str
    tracking_number: str


@final
class DeliverOrder(_Command, frozen=True, gc=False, tag=True, kw_only=True):
    """Record that a shipped order arrived."""


@final
class CancelOrder(_Command, frozen=True, gc=False, tag=True, kw_only=True):
    """Cancel an order that has not been shipped. `reason` is one of `content.CANCEL_REASONS`."""

    reason: str
    note: str | None = None


Command = CreateOrder | AmendOrder | PayOrder | ShipOrder | DeliverOrder | CancelOrder
COMMAND_TYPES: Final[tuple[type[Command], ...]] = (
    CreateOrder,
    AmendOrder,
    PayOrder,
    ShipOrder,
    DeliverOrder,
    CancelOrder,
)


class Contents(Struct, frozen=True, gc=False):
    """All that is in an order; `total` is the sum of quantity * unit_price, - discount + tax + shipping."""

    user_id: str
    currency: str
    lines: tuple[Line, ...]
    discount: int
    tax: int
    shipping: int
    total: int
    shipping_address_ref: str | None
    metadata: dict[str, str]


@final
class OrderCreated(Contents, frozen=True, gc=False, tag=True):
    """An order was placed; this is what is in it."""


@final
class OrderAmended(Contents, frozen=True, gc=False, tag=True):
    """An order was changed; this is what is in it now."""


@final
class OrderPaid(Struct, frozen=True, gc=False, tag=True):
    """An order was paid in full."""

    payment_id: str
    amount: int
    currency: str


@final
class OrderShipped(Struct, frozen=True, gc=False, tag=True):
    """An order left the house."""

    carrier: str
    tracking_number: str


@final
class OrderDelivered(Struct, frozen=True, gc=False, tag=True):
    """An order arrived."""


@final
class OrderCancelled(Struct, frozen=True, gc=False, tag=True):
    """An order was cancelled. `refund_due` is what was paid, else 0."""

    reason: str
    note: str | None
    refund_due: int


Fact = OrderCreated | OrderAmended | OrderPaid | OrderShipped | OrderDelivered | OrderCancelled
FACT_TYPES: Final[tuple[type[Fact], ...]] = (
    OrderCreated,
    OrderAmended,
    OrderPaid,
    OrderShipped,
    OrderDelivered,
    OrderCancelled,
)


@final
class Event(Struct, frozen=True, gc=False, kw_only=True):
    """A fact in its place in an order's history: `version` counts from 1 without holes.

    `previous_digest` is the BLAKE2b-128 of the whole value of the order's previous event, None at version 1;
    `occurred_at` is the worker's clock at the decision and never runs backwards within an order.
    """

    event_id: str
    order_id: str
    version: int
    command_id: str
    command_digest: bytes
    correlation_id: str | None
    actor: str
    occurred_at: datetime
    previous_digest: bytes | None
    fact: Fact


@final
class Rejection(Struct, frozen=True, gc=False, kw_only=True):
    """A command that was refused: why, and the `status` and `version` of the order it was decided against."""

    rejection_id: str
    command_id: str
    command_digest: bytes
    command_type: str
    order_id: str
    reason: str
    detail: str
    status: str
    version: int
    actor: str
    rejected_at: datetime
    correlation_id: str | None
