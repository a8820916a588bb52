"""The records that a turn writes: an outcome in Avro with its headers, or a command that cannot be decoded."""

from typing import TYPE_CHECKING, Final

from aiokafka import ConsumerRecord
from msgspec import Struct

from order_service.domain.messages import Event, Rejection
from order_service.errors import DecodeError
from order_service.kafka.topics import COMMAND_RECORD_BYTES
from order_service.wire import avro
from order_service.wire.headers import (
    Headers,
    dead_letter_headers,
    dead_letter_part,
    event_headers,
    rejection_headers,
)
from order_service.wire.trace_context import TraceContext

if TYPE_CHECKING:
    from order_service.worker.command_spans import CommandSpan

MAX_DEAD_KEY: Final = 64 * 1024
MAX_DEAD_VALUE: Final = COMMAND_RECORD_BYTES
"""With 1 MiB of headers it fits into a dead letter. Values that were not compressed are never cut."""

Record = tuple[bytes | None, bytes | None, Headers]
"""The key, value and headers of a record to write."""


class Origin(Struct, frozen=True, gc=False):
    """The offset of the command that an outcome answers, and its trace; None for the worker's own commands.

    If the trace is recorded here, `trace` is that of `span`, which is the command's.
    """

    offset: int | None = None
    trace: TraceContext | None = None
    span: "CommandSpan | None" = None


def event_record(event: Event, origin: Origin) -> tuple[Record, bytes]:
    """Return the record of an event, and the digest of its value, which the next event of the order carries."""
    value = avro.encode_event(event)
    record = (event.order_id.encode(), value, event_headers(event, origin.trace, origin.offset))
    return record, avro.digest(value)


def rejection_record(rejection: Rejection, origin: Origin) -> Record:
    """Return the record of a rejection."""
    headers = rejection_headers(rejection, origin.trace, origin.offset)
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
