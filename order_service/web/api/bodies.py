"""Request bodies and query parameters, as pydantic models. Unknown fields are refused."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, ClassVar, Final, Literal

import msgspec
from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    WithJsonSchema,
    field_validator,
    model_validator,
)

from order_service.domain import validation
from order_service.domain.messages import (
    FOREIGN_ID_JSON_SCHEMA,
    FOREIGN_ID_MUST_BE,
    AmendOrder,
    CancelOrder,
    Command,
    CreateOrder,
    DeliverOrder,
    Line,
    PayOrder,
    ShipOrder,
    UtcTime,
)

COPY_ID: Final = r"^[0-9]{1,18}-[0-9a-f]{32}$"
DATE_TIME: Final = r"^[0-9]{4}(-[0-9]{2}){2}T[0-9]{2}(:[0-9]{2}){2}(\.[0-9]{1,9})?(Z|[+-][0-9]{2}:[0-9]{2})$"
"""A time in a header. Not `format: date-time`, which client generators do not support for headers."""


def _foreign_id(value: str) -> str:
    """Return the id as it is. Raises ValueError in the words of a rejection."""
    if not validation.is_foreign_id(value):
        raise ValueError(f"must be {FOREIGN_ID_MUST_BE}")
    return value


ForeignId = Annotated[str, AfterValidator(_foreign_id), WithJsonSchema(FOREIGN_ID_JSON_SCHEMA)]
Text = Annotated[str, Field(max_length=validation.MAX_TEXT)]
Money = Annotated[int, Field(ge=0, le=validation.MAX_TOTAL, description="An amount in minor units, such as cents.")]
Currency = Annotated[
    str, Field(pattern=validation.CURRENCY_JSON_PATTERN, description="An ISO 4217 currency code.", examples=["EUR"])
]
Key = Annotated[str, Field(max_length=validation.MAX_METADATA_KEY)]
Value = Annotated[str, Field(max_length=validation.MAX_METADATA_VALUE)]
Metadata = Annotated[dict[Key, Value], Field(max_length=validation.MAX_METADATA)]
Wanted = Literal["created", "paid", "shipped", "delivered", "cancelled"]
"""The possible statuses of a listed order: all but `absent`."""


class Body(BaseModel):
    """A JSON object; types are not converted: a number is not accepted as text, or the reverse."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class CommandBody(Body):
    """The body of a command."""

    kind: ClassVar[type[Command]]

    def command(self, **head: Any) -> Command:
        """Return the command of this body; `head` are the fields that every command has."""
        return self.kind(**dict(self), **head)


class LineBody(Body):
    """One line of an order."""

    line_id: ForeignId | None = None
    sku: ForeignId
    name: Text | None = None
    quantity: int = Field(ge=1, le=validation.MAX_QUANTITY)
    unit_price: int = Field(ge=0, le=validation.MAX_UNIT_PRICE, description="An amount in minor units, such as cents.")

    def line(self) -> Line:
        """Return it as a line of the domain."""
        return Line(**dict(self))


Lines = Annotated[list[LineBody], Field(min_length=1, max_length=validation.MAX_LINES)]


class CreateBody(CommandBody):
    """A new order; without `user_id` it belongs to the caller."""

    kind = CreateOrder

    user_id: ForeignId | None = None
    currency: Currency
    lines: Lines
    discount: Money = 0
    tax: Money = 0
    shipping: Money = 0
    shipping_address_ref: ForeignId | None = None
    metadata: Metadata = {}

    def command(self, *, user_id: str = "", **head: Any) -> CreateOrder:
        """Return the command, for `user_id` if the body has no user."""
        fields = dict(self) | {"user_id": self.user_id or user_id, "lines": _lines(self.lines)}
        return CreateOrder(**fields, **head)


class AmendBody(CommandBody):
    """Changes to an order that is not paid: each field present replaces the old value; at least one field."""

    model_config = ConfigDict(json_schema_extra={"minProperties": 1})
    kind = AmendOrder

    lines: Lines | None = None
    discount: Money | None = None
    tax: Money | None = None
    shipping: Money | None = None
    shipping_address_ref: ForeignId | None = None
    metadata: Metadata | None = None

    def command(self, **head: Any) -> AmendOrder:
        """Return the command of this body."""
        fields = dict(self) | {"lines": None if self.lines is None else _lines(self.lines)}
        return AmendOrder(**fields, **head)

    @field_validator(*validation.CHANGES, mode="before")
    @classmethod
    def _is_something(cls, value: object) -> object:
        if value is None:
            raise ValueError("must not be null: leave out a field to keep its value")
        return value

    @model_validator(mode="after")
    def _changes_something(self) -> AmendBody:
        if all(getattr(self, name) is None for name in validation.CHANGES):
            raise ValueError("must change at least one field")
        return self


class PayBody(CommandBody):
    """A payment of the full total."""

    kind = PayOrder

    payment_id: ForeignId
    amount: Money
    currency: Currency


class ShipBody(CommandBody):
    """The carrier and the tracking number of a shipment."""

    kind = ShipOrder

    carrier: ForeignId
    tracking_number: ForeignId


class DeliverBody(CommandBody):
    """A delivery. It has no fields, and the body is optional."""

    kind = DeliverOrder


class CancelBody(CommandBody):
    """The reason for a cancellation. The body is optional and defaults to `customer_request`."""

    kind = CancelOrder

    reason: validation.CancelReason = "customer_request"
    note: Text | None = None


class Query(BaseModel):
    """Query parameters: each at most once, and no unknown ones."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def _time(text: object) -> datetime:
    """Return the time that `text` holds; pydantic would read a number as seconds since 1970."""
    try:
        return msgspec.convert(text, UtcTime)
    except msgspec.ValidationError:
        raise ValueError("must be an RFC 3339 time with an offset") from None


Version = Annotated[int, Field(ge=1, le=2**31)]
Time = Annotated[AwareDatetime, BeforeValidator(_time)]


class NoQuery(Query):
    """A query without parameters."""


class OrderQuery(Query):
    """The state of an order to return: now, at a version, or at a time."""

    version: Version | None = None
    at: Time | None = Field(None, description="An RFC 3339 time.", examples=["2026-11-24T12:00:00Z"])
    min_version: Version | None = Field(None, description="Wait until the order has reached this version.")

    @model_validator(mode="after")
    def _is_one_state(self) -> OrderQuery:
        if self.version is not None and self.at is not None:
            raise ValueError("must not have both version and at")
        return self


class ListQuery(Query):
    """The orders to list, newest first. `created_from` is inclusive, `created_to` is exclusive."""

    user_id: ForeignId | None = None
    status: Wanted | None = None
    created_from: Time | None = None
    created_to: Time | None = None
    limit: int = Field(50, ge=1, le=200)
    cursor: str | None = Field(None, max_length=300, description="The `next` value of the previous page. Opaque.")


class CommandQuery(Query):
    """The copy of a command to look up."""

    copy_id: str | None = Field(
        None,
        pattern=COPY_ID,
        description=(
            "The `copy_id` of a 202. Opaque. An unknown one also gets 202, because issued ids are not stored."
        ),
    )


class HistoryQuery(Query):
    """The events of an order to return, oldest first."""

    after_version: int = Field(0, ge=0, le=2**31)
    limit: int = Field(200, ge=1, le=1000)
    include_refused: bool = Field(False, description="Also return the refused commands, as `rejections`.")


class WhyQuery(Query):
    """How much of the topics to search."""

    all_partitions: bool = Field(
        False, description="Search all partitions, also if an order or a command with this id is found in its own."
    )


def _lines(lines: list[LineBody]) -> tuple[Line, ...]:
    return tuple(line.line() for line in lines)
