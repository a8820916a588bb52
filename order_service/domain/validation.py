"""The valid values of a command. An invalid one is an `invalid_order` refusal: a JSON pointer and what it must be."""

import re
from typing import Final, Literal, get_args

from order_service.domain.messages import (
    FOREIGN_ID_MUST_BE,
    ID_PATTERN,
    MAX_FOREIGN_ID,
    AmendOrder,
    Command,
    Contents,
    CreateOrder,
    DeliverOrder,
    Line,
    PayOrder,
    ShipOrder,
)
from order_service.domain.refusals import Reason, Refusal

MAX_LINES: Final = 500
MAX_QUANTITY: Final = 10**6
MAX_UNIT_PRICE: Final = 10**12
MAX_TOTAL: Final = 2**53
MAX_TEXT: Final = 200
MAX_METADATA: Final = 20
MAX_METADATA_KEY: Final = 40
MAX_METADATA_VALUE: Final = 500
CHANGES: Final = ("lines", "discount", "tax", "shipping", "shipping_address_ref", "metadata")
"""The fields of an order that an amendment can change."""
CancelReason = Literal["customer_request", "payment_failed", "payment_timeout", "out_of_stock", "fraud", "other"]
CANCEL_REASONS: Final[tuple[str, ...]] = get_args(CancelReason)
CURRENCY_JSON_PATTERN: Final = "^[A-Z]{3}$"
CURRENCIES: Final = frozenset(
    """
    AED AFN ALL AMD AOA ARS AUD AWG AZN BAM BBD BDT BHD BIF BMD BND BOB BOV BRL BSD BTN BWP BYN BZD CAD CDF CHE CHF
    CHW CLF CLP CNY COP COU CRC CUP CVE CZK DJF DKK DOP DZD EGP ERN ETB EUR FJD FKP GBP GEL GHS GIP GMD GNF GTQ GYD
    HKD HNL HTG HUF IDR ILS INR IQD IRR ISK JMD JOD JPY KES KGS KHR KMF KPW KRW KWD KYD KZT LAK LBP LKR LRD LSL LYD
    MAD MDL MGA MKD MMK MNT MOP MRU MUR MVR MWK MXN MXV MYR MZN NAD NGN NIO NOK NPR NZD OMR PAB PEN PGK PHP PKR PLN
    PYG QAR RON RSD RUB RWF SAR SBD SCR SDG SEK SGD SHP SLE SOS SRD SSP STN SVC SYP SZL THB TJS TMT TND TOP TRY TTD
    TWD TZS UAH UGX USD USN UYI UYU UYW UZS VED VES VND VUV WST XAF XCD XCG XOF XPF YER ZAR ZMW ZWG
    """.split()  # noqa: SIM905, a block of codes reads better than 168 quoted strings
)
"""The active ISO 4217 codes of currencies for payments, without metals, units of account and test codes."""

is_id: Final = re.compile(ID_PATTERN).match
"""Matches an `order_id` or a `command_id`."""
is_foreign_id: Final = re.compile(rf"[^\x00-\x1f\x7f-\x9f\ud800-\udfff]{{1,{MAX_FOREIGN_ID}}}\Z").match
"""Matches an id of another system: any characters but control characters (category Cc) and lone surrogates."""


def fault(command: Command) -> Refusal | None:
    """Return a refusal for the first value that is out of range, which depends on the command alone, or None."""
    if type(command) is CreateOrder:
        return _foreign_id("/user_id", command.user_id) or _currency(command.currency) or _values(command)
    if type(command) is AmendOrder:
        return _any_change(command) or _values(command)
    if type(command) is PayOrder:
        return (
            _foreign_id("/payment_id", command.payment_id)
            or _currency(command.currency)
            or _money("/amount", command.amount)
        )
    if type(command) is ShipOrder:
        return _foreign_id("/carrier", command.carrier) or _foreign_id("/tracking_number", command.tracking_number)
    if type(command) is DeliverOrder:
        return None
    return _cancel_reason(command.reason) or _text("/note", command.note)


def fault_of_contents(contents: Contents) -> Refusal | None:
    """Return a refusal if the discount exceeds the subtotal or the total is out of range, or None."""
    subtotal = contents.total + contents.discount - contents.tax - contents.shipping
    if contents.discount > subtotal:
        return _invalid("/discount", f"at most the subtotal, {subtotal}")
    if not 0 <= contents.total <= MAX_TOTAL:
        return _invalid("/lines", "at most 2^53 in total")
    return None


def total(lines: tuple[Line, ...], discount: int, tax: int, shipping: int) -> int:
    """Return the total of an order in minor units."""
    subtotal = 0
    for line in lines:
        subtotal += line.quantity * line.unit_price
    return subtotal - discount + tax + shipping


def numbered(lines: tuple[Line, ...]) -> tuple[Line, ...]:
    """Return the lines with the line number, counted from 1, as the `line_id` of each line without one."""
    return tuple(
        [
            Line(
                line_id=line.line_id or str(number),
                sku=line.sku,
                name=line.name,
                quantity=line.quantity,
                unit_price=line.unit_price,
            )
            for number, line in enumerate(lines, start=1)
        ]
    )


def _invalid(pointer: str, must_be: str) -> Refusal:
    return Refusal(Reason.INVALID_ORDER, f"{pointer} must be {must_be}", pointer)


def _any_change(command: AmendOrder) -> Refusal | None:
    if any(getattr(command, name) is not None for name in CHANGES):
        return None
    return Refusal(Reason.INVALID_ORDER, "the command must be an amendment of at least one field")


def _values(command: CreateOrder | AmendOrder) -> Refusal | None:
    return (
        _lines(command.lines)
        or _money("/discount", command.discount)
        or _money("/tax", command.tax)
        or _money("/shipping", command.shipping)
        or _foreign_id("/shipping_address_ref", command.shipping_address_ref)
        or _metadata(command.metadata)
    )


def _lines(lines: tuple[Line, ...] | None) -> Refusal | None:
    if lines is None:
        return None
    if not 1 <= len(lines) <= MAX_LINES:
        return _invalid("/lines", f"1…{MAX_LINES} lines, not {len(lines)}")
    for index, line in enumerate(lines):
        refusal = _line(index, line)
        if refusal is not None:
            return refusal
    ids = {line.line_id or str(number) for number, line in enumerate(lines, start=1)}
    if len(ids) != len(lines):
        return _invalid("/lines", "lines with different line_ids")
    return None


def _line(index: int, line: Line) -> Refusal | None:
    if line.line_id is not None and not is_foreign_id(line.line_id):
        return _foreign_id(f"/lines/{index}/line_id", line.line_id)
    if not is_foreign_id(line.sku):
        return _foreign_id(f"/lines/{index}/sku", line.sku)
    if line.name is not None and len(line.name) > MAX_TEXT:
        return _text(f"/lines/{index}/name", line.name)
    if not 1 <= line.quantity <= MAX_QUANTITY:
        return _invalid(f"/lines/{index}/quantity", f"1…{MAX_QUANTITY}")
    if not 0 <= line.unit_price <= MAX_UNIT_PRICE:
        return _invalid(f"/lines/{index}/unit_price", f"0…{MAX_UNIT_PRICE}")
    return None


def _metadata(metadata: dict[str, str] | None) -> Refusal | None:
    if not metadata:
        return None
    if len(metadata) > MAX_METADATA:
        return _invalid("/metadata", f"at most {MAX_METADATA} entries")
    if any(len(key) > MAX_METADATA_KEY for key in metadata):
        return _invalid("/metadata", f"a map with keys of at most {MAX_METADATA_KEY} characters")
    if any(len(value) > MAX_METADATA_VALUE for value in metadata.values()):
        return _invalid("/metadata", f"a map with values of at most {MAX_METADATA_VALUE} characters")
    return None


def _foreign_id(pointer: str, value: str | None) -> Refusal | None:
    if value is None or is_foreign_id(value):
        return None
    return _invalid(pointer, FOREIGN_ID_MUST_BE)


def _text(pointer: str, value: str | None) -> Refusal | None:
    if value is None or len(value) <= MAX_TEXT:
        return None
    return _invalid(pointer, f"at most {MAX_TEXT} characters")


def _money(pointer: str, amount: int | None) -> Refusal | None:
    return None if amount is None or 0 <= amount <= MAX_TOTAL else _invalid(pointer, f"0…{MAX_TOTAL}")


def _currency(currency: str) -> Refusal | None:
    return None if currency in CURRENCIES else _invalid("/currency", "an ISO 4217 currency code")


def _cancel_reason(reason: str) -> Refusal | None:
    return None if reason in CANCEL_REASONS else _invalid("/reason", "one of " + ", ".join(CANCEL_REASONS))
