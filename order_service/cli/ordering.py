"""The six commands and their own options; `envelope` sends them."""

import re
from pathlib import Path
from typing import Annotated, Final

import msgspec
import typer

from order_service.cli.envelope import Fields, sends, without_none
from order_service.domain.messages import AmendOrder, CancelOrder, CreateOrder, DeliverOrder, PayOrder, ShipOrder
from order_service.domain.validation import CANCEL_REASONS

User = Annotated[str | None, typer.Option(help="The order's user, who must be active.")]
Currency = Annotated[str | None, typer.Option(help="ISO 4217 code.")]
Lines = Annotated[
    list[str] | None,
    typer.Option(
        "--line",
        metavar="SKU:QUANTITY:UNIT_PRICE[:NAME]",
        help="One line; its price is in minor units (cents). A SKU may contain colons.",
    ),
]
Discount = Annotated[int | None, typer.Option(help="In minor units, at most the subtotal.")]
Tax = Annotated[int | None, typer.Option(help="In minor units.")]
Shipping = Annotated[int | None, typer.Option(help="In minor units.")]
AddressRef = Annotated[str | None, typer.Option(help="Reference to a shipping address that is stored elsewhere.")]
Metadata = Annotated[list[str] | None, typer.Option(metavar="KEY=VALUE", help="Your own data; can be repeated.")]
Body = Annotated[
    Path | None,
    typer.Option(metavar="FILE.json", help="Fields as a JSON object; - reads stdin."),
]

_is_line: Final = re.compile(r"(.+):([+-]?[0-9]{1,20}):([+-]?[0-9]{1,20})(?::(.*))?", re.DOTALL).fullmatch
"""Matches a line: the last two whole numbers that follow each other are the quantity and the price."""


@sends(CreateOrder)
def create(
    user: User = None,
    currency: Currency = None,
    line: Lines = None,
    discount: Discount = None,
    tax: Tax = None,
    shipping: Shipping = None,
    address_ref: AddressRef = None,
    metadata: Metadata = None,
    body: Body = None,
) -> Fields:
    """Create an order from options or from a file; an option overrides the file."""
    contents = _contents(line, discount, tax, shipping, address_ref, metadata)
    return _from_file(body) | without_none(user_id=user, currency=currency) | contents


@sends(AmendOrder)
def amend(
    line: Lines = None,
    discount: Discount = None,
    tax: Tax = None,
    shipping: Shipping = None,
    address_ref: AddressRef = None,
    metadata: Metadata = None,
    body: Body = None,
) -> Fields:
    """Change an order before it is paid. An option replaces the current value."""
    return _from_file(body) | _contents(line, discount, tax, shipping, address_ref, metadata)


@sends(PayOrder)
def pay(
    payment_id: Annotated[str, typer.Option(help="The payment's id.")],
    amount: Annotated[int, typer.Option(help="The order's full total, in minor units.")],
    currency: Annotated[str, typer.Option(help="The order's currency.")],
) -> Fields:
    """Record a payment of the full total."""
    return {"payment_id": payment_id, "amount": amount, "currency": currency}


@sends(ShipOrder)
def ship(
    carrier: Annotated[str, typer.Option(help="The carrier's name.")],
    tracking_number: Annotated[str, typer.Option(help="The carrier's number of the parcel.")],
) -> Fields:
    """Record that a paid order was shipped."""
    return {"carrier": carrier, "tracking_number": tracking_number}


@sends(DeliverOrder)
def deliver() -> Fields:
    """Record that a shipped order was delivered."""
    return {}


@sends(CancelOrder)
def cancel(
    reason: Annotated[str, typer.Option(help=f"One of {', '.join(CANCEL_REASONS)}.")],
    note: Annotated[str | None, typer.Option(help="A note in your own words.")] = None,
) -> Fields:
    """Cancel an order that is not shipped yet."""
    return {"reason": reason, **without_none(note=note)}


def _contents(
    lines: list[str] | None,
    discount: int | None,
    tax: int | None,
    shipping: int | None,
    address_ref: str | None,
    metadata: list[str] | None,
) -> Fields:
    return without_none(
        lines=[_line(text) for text in lines] if lines else None,
        discount=discount,
        tax=tax,
        shipping=shipping,
        shipping_address_ref=address_ref,
        metadata=dict(_pair(text) for text in metadata) if metadata else None,
    )


def _line(text: str) -> Fields:
    match = _is_line(text)
    if match is None:
        expected = "SKU:QUANTITY:UNIT_PRICE, with whole numbers; a price is in minor units: 1250 cents for EUR 12.50"
        raise typer.BadParameter(f"--line {text!r} is not {expected}")
    sku, quantity, unit_price, name = match.groups()
    return {"sku": sku, "quantity": int(quantity), "unit_price": int(unit_price), **without_none(name=name)}


def _pair(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals:
        raise typer.BadParameter(f"--metadata {text!r} is not KEY=VALUE")
    return key, value


def _from_file(path: Path | None) -> Fields:
    if path is None:
        return {}
    try:
        data = typer.get_binary_stream("stdin").read() if str(path) == "-" else path.read_bytes()
        return msgspec.json.decode(data, type=dict[str, object])
    except OSError as error:
        raise typer.BadParameter(f"{path} cannot be read: {error.strerror}") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise typer.BadParameter(f"{path} is not one JSON object: {error}") from error
