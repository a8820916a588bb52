"""All sample messages with the functions that encode and decode them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from order_service.errors import DecodeError
from order_service.wire.avro import (
    decode_event,
    decode_rejection,
    encode_command,
    encode_event,
    encode_rejection,
)
from order_service.wire.commands import decode_command
from order_service.wire.schemas.catalogue import MESSAGE_TYPES, SCHEMAS
from tests.support import samples

GOLDEN = Path(__file__).parent / "golden"

CORPUS = Path(__file__).parent / "corpus"
"""What the fuzzer found that reaches code of its own."""


class Case(NamedTuple):
    """A message, the name of its schema, and its codec."""

    name: str
    message: Any
    encode: Callable[[Any], bytes]
    decode: Callable[[bytes], Any]

    @property
    def golden(self) -> bytes:
        """Its bytes, as they were when its newest schema was released."""
        return self.releases[-1]

    @property
    def releases(self) -> list[bytes]:
        """Its bytes in each version of its schema, the oldest first."""
        versions = range(1, SCHEMAS.newest[MESSAGE_TYPES[self.name]].version + 1)
        return [bytes.fromhex((GOLDEN / f"{self.name}.v{version}.hex").read_text()) for version in versions]


CASES = (
    *(Case(type(event.fact).__name__, event, encode_event, decode_event) for event in samples.all_events[:6]),
    Case("Rejection", samples.ship_refused, encode_rejection, decode_rejection),
    *(Case(type(command).__name__, command, encode_command, decode_command) for command in samples.commands),
)

DECODERS = tuple({(case.decode, case.encode): None for case in CASES})
"""Each with the encoder that undoes it, once."""


def value_or_error(decode, encode, data):
    """Decode; what comes out must be a message that can go in again, what is raised a DecodeError."""
    try:
        value = decode(data)
    except DecodeError:
        return
    assert decode(encode(value)) == value
