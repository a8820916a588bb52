"""What callers send: bodies and parameters, as pydantic models. Whatever is not named here is refused."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Final, Literal

import msgspec
from pydantic import AwareDatetime, BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from order_service.domain import validation
from order_service.domain.messages import (
    AmendOrder,
    CancelOrder,
    CreateOrder,
    DeliverOrder,
    Line,
    PayOrder,
    ShipOrder,
    UtcTime,
)

ID: Final = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
COPY_ID: Final = r"^[0-9]{1,18}-[0-9a-f]{32}$"
DATE_TIME: Final = r"^[0-9]{4}(-[0-9]{2}){2}T[0-9]{2}(:[0-9]{2}){2}(\.[0-9]{1,9})?(Z|[+-][0-9]{2}:[0-9]{2})$"
"""A time in a header. Not `format: date-time`: generators of clients do not take that there."""
CHANGES: Final = ("lines", "discount", "tax", "shipping", "shipping_address_ref", "metadata")

Id = Annotated[str, Field(pattern=ID)]
Text = Annotated[str, Field(max_length=validation.MAX_TEXT)]
Money = Annotated[int, Field(ge=0, le=validation.MAX_TOTAL, description="In minor units, for example cents.")]
Currency = Annotated[str, Field(pattern=r"^[A-Z]{3}$", description="A code of ISO 4217.", examples=["EUR"])]
Key = Annotated[str, Field(max_length=validation.MAX_METADATA_KEY)]
Value = Annotated[str, Field(max_length=validation.MAX_METADATA_VALUE)]
Metadata = Annotated[dict[Key, Value], Field(max_length=validation.MAX_METADATA)]
Wanted = Literal["created", "paid", "shipped", "delivered", "cancelled"]
"""Where an order that is listed can stand: never `absent`."""


class Body(BaseModel):
    """A JSON object; numbers are numbers and texts are texts."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class LineBody(Body):
    """One line of an order."""

    line_id: Id | None = None
    sku: Id
    name: Text | None = None
    quantity: int = Field(ge=1, le=validation.MAX_QUANTITY)
    unit_price: int = Field(ge=0, le=validation.MAX_UNIT_PRICE, description="In minor units, for example cents.")

    def line(self) -> Line:
        """Give it as the domain's."""
        return Line(**dict(self))


Lines = Annotated[list[LineBody], Field(min_length=1, max_length=validation.MAX_LINES)]


class CreateBody(Body):
    """A new order; without `user_id` it is the caller's own."""

    user_id: Id | None = None
    currency: Currency
    lines: Lines
    discount: Money = 0
    tax: Money = 0
    shipping: Money = 0
    shipping_address_ref: Id | None = None
    metadata: Metadata = {}

    def command(self, user_id: str, **head: Any) -> CreateOrder:
        """Make the command, for `user_id` if the body names nobody."""
        said = dict(self) | {"user_id": self.user_id or user_id, "lines": _lines(self.lines)}
        return CreateOrder(**said, **head)


class AmendBody(Body):
    """A change of an order before it is paid: what is given replaces what was; at least one field."""

    model_config = ConfigDict(json_schema_extra={"minProperties": 1})

    lines: Lines | None = None
    discount: Money | None = None
    tax: Money | None = None
    shipping: Money | None = None
    shipping_address_ref: Id | None = None
    metadata: Metadata | None = None

    def command(self, **head: Any) -> AmendOrder:
        """Make the command."""
        said = dict(self) | {"lines": None if self.lines is None else _lines(self.lines)}
        return AmendOrder(**said, **head)

    @field_validator(*CHANGES, mode="before")
    @classmethod
    def _is_something(cls, value: object) -> object:
        if value is None:
            raise ValueError("must not be null: what is not given stays as it is")
        return value

    @model_validator(mode="after")
    def _changes_something(self) -> AmendBody:
        if all(getattr(self, name) is None for name in CHANGES):
            raise ValueError("must change at least one field")
        return self


class PayBody(Body):
    """A payment of the whole total."""

    payment_id: Id
    amount: Money
    currency: Currency

    def command(self, **head: Any) -> PayOrder:
        """Make the command."""
        return PayOrder(**dict(self), **head)


class ShipBody(Body):
    """Who carries a paid order."""

    carrier: Text
    tracking_number: Text

    def command(self, **head: Any) -> ShipOrder:
        """Make the command."""
        return ShipOrder(**dict(self), **head)


class DeliverBody(Body):
    """Nothing: the order arrived. The body may be left out."""

    def command(self, **head: Any) -> DeliverOrder:
        """Make the command."""
        return DeliverOrder(**head)


class CancelBody(Body):
    """Why an order is cancelled. The body may be left out: then its user has asked for it."""

    reason: Literal["customer_request", "payment_failed", "payment_timeout", "out_of_stock", "fraud", "other"] = (
        "customer_request"
    )
    note: Text | None = None

    def command(self, **head: Any) -> CancelOrder:
        """Make the command."""
        return CancelOrder(**dict(self), **head)


class Query(BaseModel):
    """Parameters behind the `?`: each at most once, none beside these."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def _time(text: object) -> datetime:
    """Read a time: pydantic would take a number for seconds since 1970."""
    try:
        return msgspec.convert(text, UtcTime)
    except msgspec.ValidationError:
        raise ValueError("must be a time of RFC 3339, with its offset") from None


Version = Annotated[int, Field(ge=1, le=2**31)]
Time = Annotated[AwareDatetime, BeforeValidator(_time)]


class NoQuery(Query):
    """None."""


class OrderQuery(Query):
    """Which state of an order: now, at a version, or at a time."""

    version: Version | None = None
    at: Time | None = Field(None, description="A time of RFC 3339.", examples=["2026-11-24T12:00:00Z"])
    min_version: Version | None = Field(None, description="Wait until the order has this version.")

    @model_validator(mode="after")
    def _is_one_state(self) -> OrderQuery:
        if self.version is not None and self.at is not None:
            raise ValueError("version and at exclude each other")
        return self


class ListQuery(Query):
    """Which orders, the newest first. `created_from` is included, `created_to` is not."""

    user_id: Id | None = None
    status: Wanted | None = None
    created_from: Time | None = None
    created_to: Time | None = None
    limit: int = Field(50, ge=1, le=200)
    cursor: str | None = Field(None, max_length=200, description="`next` of the page before; opaque.")


class CommandQuery(Query):
    """Which copy of a command."""

    copy_id: str | None = Field(
        None,
        pattern=COPY_ID,
        description=(
            "The copy that a 202 names: the answer is the outcome of this one. Opaque. The service does not keep which "
            "copies it named: one that it never did is answered with 202, too."
        ),
    )


class HistoryQuery(Query):
    """Which events of an order, the oldest first."""

    after_version: int = Field(0, ge=0, le=2**31)
    limit: int = Field(200, ge=1, le=1000)
    include_refused: bool = Field(False, description="Give the refused commands as well, as `rejections`.")


def _lines(lines: list[LineBody]) -> tuple[Line, ...]:
    return tuple(line.line() for line in lines)
