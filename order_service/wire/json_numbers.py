"""Whole numbers in JSON: the strict decoders refuse 1250.0 and 1.25e3 as integers, JSON Schema 2020-12 does not."""

import math
from decimal import Decimal, InvalidOperation
from typing import Final

import msgspec

BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"
WHITESPACE: Final = b" \t\n\r"
"""What may stand before a JSON text. Source: RFC 8259, sections 2 and 8.1."""


def with_whole_numbers(data: bytes) -> bytes:
    """Return a JSON text in which each number whose fraction is zero is written as an integer, if it fits 64 bits.

    It costs several times as much as decoding: use it after that has failed. Of duplicate names the last one stays.
    Raises msgspec.DecodeError, UnicodeDecodeError or RecursionError if `data` is not JSON.
    Source: JSON Schema 2020-12, Validation, section 6.1.1.
    """
    return msgspec.json.encode(_decode(data))


def _number(text: str) -> int | float:
    number = float(text)
    if math.isinf(number):  # JSON has no infinity: it would be written as null
        raise msgspec.ValidationError("Number out of range")
    if not abs(number) < 2**63:
        return number
    try:
        exact = Decimal(text)
    except InvalidOperation:  # the exponent has more than 18 digits
        return number
    return int(exact) if exact == exact.to_integral_value() else number


_decode: Final = msgspec.json.Decoder(float_hook=_number).decode
