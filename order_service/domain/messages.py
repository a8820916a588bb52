"""The messages: commands, facts, events (a fact with its version, time and actor), and rejections of commands.

Units:   money is whole minor units of the order's one ISO 4217 currency; times are aware UTC with whole milliseconds.
Kinds:   distinguished by `type(x) is`. A negative `isinstance` takes four times as long, because it calls the metaclass
         of a Struct, and each command takes a dozen checks. The classes are final, so mypy narrows by it as well.
Memory:  `gc=False` keeps millions of them away from the garbage collector; they contain no cycles.
Checks:  decoding checks the types, then `order_id`, `command_id` and `correlation_id` (`wire.ids`); any other value
         that is out of range causes a rejection (`validation`).
Ids:     `order_id` and `command_id` stand in URLs and keys, and have a narrow pattern. All other ids are foreign: they
         belong to other systems, and are compared code point by code point, neither trimmed nor normalized.
"""

from datetime import datetime
from typing import Annotated, Any, Final, final, get_args

from msgspec import Meta, Struct

ID_JSON_PATTERN: Final = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$"
"""The pattern of an id in JSON Schema and pydantic, whose `$` matches the end of the text only."""
ID_PATTERN: Final = ID_JSON_PATTERN.removesuffix("$") + r"\Z"
"""The same for `re`, whose `$` matches before a line feed at the end, too."""
ID_MUST_BE: Final = "1 to 128 characters of A-Z a-z 0-9 . _ -, the first a letter or digit"
MAX_FOREIGN_ID: Final = 255
FOREIGN_ID_JSON_SCHEMA: Final[dict[str, Any]] = {
    "type": "string",
    "minLength": 1,
    "maxLength": MAX_FOREIGN_ID,
    "pattern": r"^[^\x00-\x1f\x7f-\x9f]*$",
}
"""A foreign id in JSON Schema, which counts code points. ECMA 262, Java, Go and Python share these escapes."""
FOREIGN_ID_MUST_BE: Final = f"1 to {MAX_FOREIGN_ID} characters of Unicode without control characters"
Int64 = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
UtcTime = Annotated[datetime, Meta(tz=True)]


class Line(Struct, frozen=True, gc=False, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    """One line of an order. Lines in events always have a `line_id`: the command's, or the line number, `1`…`n`."""

    line_id: str | None = None
    sku: str
    name: str | None = None
    quantity: Int64
    unit_price: Int64


class _Command(Struct, frozen=True, gc=False, tag=True, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    """The fields of every command: `actor` is `user:<id>` or `service:<id>`; `expected_version` 0 means a new order."""

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
    """Change an order before it is paid: each field that is set replaces the old value; at least one must be set."""

    lines: tuple[Line, ...] | None = None
    discount: Int64 | None = None
    tax: Int64 | None = None
    shipping: Int64 | None = None
    shipping_address_ref: str | None = None
    metadata: dict[str, str] | None = None


@final
class PayOrder(_Command, frozen=True, gc=False, tag=True, kw_only=True):
    """Record the payment of the full total."""

    payment_id: str
    amount: Int64
    currency: str


@final
class ShipOrder(_Command, frozen=True, gc=False, tag=True, kw_only=True):
    """Record that a paid order was handed to the carrier."""

    carrier: str
    tracking_number: str


@final
class DeliverOrder(_Command, frozen=True, gc=False, tag=True, kw_only=True):
    """Record that a shipped order was delivered."""


@final
class CancelOrder(_Command, frozen=True, gc=False, tag=True, kw_only=True):
    """Cancel an order that has not been shipped. `reason` is one of `validation.CANCEL_REASONS`."""

    reason: str
    note: str | None = None


Command = CreateOrder | AmendOrder | PayOrder | ShipOrder | DeliverOrder | CancelOrder
COMMAND_TYPES: Final[tuple[type[Command], ...]] = get_args(Command)


class Contents(Struct, frozen=True, gc=False):
    """The contents of an order; `total` is the sum of quantity * unit_price, - discount + tax + shipping."""

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
    """An order was created with these contents."""


@final
class OrderAmended(Contents, frozen=True, gc=False, tag=True):
    """An order was changed; these are its new contents."""


@final
class OrderPaid(Struct, frozen=True, gc=False, tag=True):
    """An order was paid in full."""

    payment_id: str
    amount: int
    currency: str


@final
class OrderShipped(Struct, frozen=True, gc=False, tag=True):
    """A paid order was handed to the carrier."""

    carrier: str
    tracking_number: str


@final
class OrderDelivered(Struct, frozen=True, gc=False, tag=True):
    """A shipped order was delivered."""


@final
class OrderCancelled(Struct, frozen=True, gc=False, tag=True):
    """An order was cancelled. `refund_due` is the amount paid, or 0."""

    reason: str
    note: str | None
    refund_due: int


Fact = OrderCreated | OrderAmended | OrderPaid | OrderShipped | OrderDelivered | OrderCancelled
FACT_TYPES: Final[tuple[type[Fact], ...]] = get_args(Fact)


@final
class Event(Struct, frozen=True, gc=False, kw_only=True):
    """A fact as one version in an order's history: `version` counts from 1 without gaps.

    `previous_digest` is the BLAKE2b-128 of the whole value of the order's previous event, None at version 1;
    `occurred_at` is the worker's clock at the decision and never goes back within an order.
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
    """A refused command: the reason, and the `status` and `version` of the order at the decision."""

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
    pointer: str | None = None
    """The JSON pointer (RFC 6901) of the invalid field, or None if no single field is invalid.

    For an amendment it can be a field that the order keeps. It is also None in a record of version 1 of the schema,
    which answers later repeats of its command, too.
    """
