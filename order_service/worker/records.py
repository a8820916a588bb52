"""The records that a turn writes: an outcome in Avro with its headers, or a command that cannot be decoded."""

from typing import Final

from aiokafka import ConsumerRecord
from msgspec import Struct

from order_service.domain.messages import Event, Rejection
from order_service.errors import DecodeError
from order_service.kafka.topics import COMMAND_RECORD_BYTES
from order_service.wire import avro
from order_service.wire.headers import (
    Headers,
    ReadHeaders,
    dead_letter_headers,
    dead_letter_part,
    event_headers,
    rejection_headers,
)

MAX_DEAD_KEY: Final = 64 * 1024
MAX_DEAD_VALUE: Final = COMMAND_RECORD_BYTES
"""With 1 MiB of headers it fits into a dead letter. Values that were not compressed are never cut."""
MAX_TRACEPARENT: Final = 256

Record = tuple[bytes | None, bytes | None, Headers]
"""The key, value and headers of a record to write."""


class Origin(Struct, frozen=True, gc=False):
    """The offset and `traceparent` of the command that an outcome answers; None for the worker's own commands."""

    offset: int | None = None
    traceparent: bytes | None = None


def origin_of(record: "ConsumerRecord[bytes, bytes]") -> Origin:
    """Return the origin that a record of the commands topic gives its outcome."""
    return Origin(record.offset, traceparent_of(record.headers))


def traceparent_of(headers: ReadHeaders) -> bytes | None:
    """Return the `traceparent` header of a command, or None if it is missing or longer than `MAX_TRACEPARENT`."""
    for name, value in headers:
        if name == "traceparent" and value is not None and len(value) <= MAX_TRACEPARENT:
            return value
    return None


def event_record(event: Event, origin: Origin) -> tuple[Record, bytes]:
    """Return the record of an event, and the digest of its value, which the next event of the order carries."""
    value = avro.encode_event(event)
    record = (event.order_id.encode(), value, event_headers(event, origin.traceparent, origin.offset))
    return record, avro.digest(value)


def rejection_record(rejection: Rejection, origin: Origin) -> Record:
    """Return the record of a rejection."""
    headers = rejection_headers(rejection, origin.traceparent, origin.offset)
    return rejection.order_id.encode(), avro.encode_rejection(rejection), headers


def dead_letter_record(record: "ConsumerRecord[bytes, bytes]", error: DecodeError, topic: str) -> Record:
    """Return the dead letter of a record of `topic` that is not a command: its bytes, with the reason as headers."""
    headers = dead_letter_headers(error, topic, record.partition, record.offset, record.timestamp, record.headers)
    key, key_cut = dead_letter_part(record.key, MAX_DEAD_KEY)
    value, value_cut = dead_letter_part(record.value, MAX_DEAD_VALUE)
    return key, value, headers + key_cut + value_cut


def dead_letter_parts(record: "ConsumerRecord[bytes, bytes]") -> tuple[bytes | None, bytes | None]:
    """Return the key and the value that the dead letter of a record has."""
    return dead_letter_part(record.key, MAX_DEAD_KEY)[0], dead_letter_part(record.value, MAX_DEAD_VALUE)[0]
