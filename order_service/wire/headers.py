"""Headers of the records that a turn writes.

Events and rejections have CloudEvents attributes and the `command_offset` they answer; dead letters have their origin
and the reason. Source: CloudEvents 1.0.2, Kafka protocol binding, binary content mode.
"""

from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Final

from order_service.domain.messages import FACT_TYPES, Event, Rejection
from order_service.errors import DecodeError
from order_service.wire.schemas.files import NAMESPACE
from order_service.wire.trace_context import TraceContext

Headers = list[tuple[str, bytes]]
ReadHeaders = Sequence[tuple[str, bytes | None]]
"""Headers as a consumer returns them: a value can be null."""

COMMAND_OFFSET: Final = "command_offset"
CONTENT_TYPE: Final = "application/avro"
"""The `content-type` of every event and rejection."""
_OFFSET_DIGITS: Final = 19
MAX_ORIGINAL_BYTES: Final = 1024 * 1024
"""The most bytes of original headers in a dead letter, which then fits its topic."""

_CONSTANT: Final = {
    message: (
        ("ce_specversion", b"1.0"),
        ("ce_type", f"{NAMESPACE}.{message.__name__}".encode()),
        ("ce_source", b"/order-service"),
        ("content-type", CONTENT_TYPE.encode()),
    )
    for message in (*FACT_TYPES, Rejection)
}


def event_headers(event: Event, trace: TraceContext | None, command_offset: int | None) -> Headers:
    """Return the headers of an event; the service's own commands have neither a trace nor an offset."""
    headers = [
        *_CONSTANT[type(event.fact)],
        ("ce_id", event.event_id.encode()),
        ("ce_time", _rfc3339(event.occurred_at)),
        ("ce_subject", event.order_id.encode()),
    ]
    return _with_origin(headers, trace, command_offset)


def rejection_headers(rejection: Rejection, trace: TraceContext | None, command_offset: int | None) -> Headers:
    """Return the headers of a rejection, like those of an event."""
    headers = [
        *_CONSTANT[Rejection],
        ("ce_id", rejection.rejection_id.encode()),
        ("ce_time", _rfc3339(rejection.rejected_at)),
        ("ce_subject", rejection.order_id.encode()),
    ]
    return _with_origin(headers, trace, command_offset)


def command_offset_of(headers: ReadHeaders) -> int | None:
    """Return the offset of the command that a record answers, or None if its header is missing or is not an offset."""
    for name, value in reversed(headers):  # the last one counts, and it is near the end
        if name == COMMAND_OFFSET:
            return None if value is None else _offset_from(value)
    return None


def _offset_from(value: bytes) -> int | None:
    if not value.isdigit() or len(value) > _OFFSET_DIGITS:
        return None
    offset = int(value)
    return offset if offset < 2**63 else None


def dead_letter_part(data: bytes | None, max_bytes: int) -> tuple[bytes | None, Headers]:
    """Return a dead letter's key or value, and, if it was truncated, a header `dl_cut` with the original length.

    Kafka limits the compressed size of a batch, so a record can decompress to more than fits our topics. The whole
    record is in the commands topic until its retention ends.
    """
    if data is None or len(data) <= max_bytes:
        return data, []
    return data[:max_bytes], [("dl_cut", b"%d" % len(data))]


def dead_letter_headers(
    error: DecodeError, topic: str, partition: int, offset: int, timestamp: int, original_headers: ReadHeaders
) -> Headers:
    """Return the headers of a dead letter: `dl_…` are the reason and origin, `orig_…` are the record's own headers.

    Units: `timestamp` is milliseconds since 1970 UTC. The record's headers past 1 MiB are only counted, in
    `dl_headers_dropped`.
    """
    original = [(f"orig_{name}", value or b"") for name, value in fitting(original_headers)]
    dropped = len(original_headers) - len(original)
    return [
        ("dl_reason", error.reason.encode()),
        ("dl_detail", error.detail.encode()),
        ("dl_topic", topic.encode()),
        ("dl_partition", b"%d" % partition),
        ("dl_offset", b"%d" % offset),
        ("dl_timestamp", b"%d" % timestamp),
        (COMMAND_OFFSET, b"%d" % offset),
        *([("dl_headers_dropped", b"%d" % dropped)] if dropped else []),
        *original,
    ]


def _with_origin(headers: Headers, trace: TraceContext | None, command_offset: int | None) -> Headers:
    if command_offset is not None:
        headers.append((COMMAND_OFFSET, str(command_offset).encode()))
    if trace is not None:
        headers += trace.headers()
    return headers


@lru_cache(maxsize=64)  # all events of a turn have the same time
def _rfc3339(moment: datetime) -> bytes:
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z").encode()


def fitting(headers: Iterable[tuple[str, bytes | None]]) -> Iterator[tuple[str, bytes | None]]:
    """Return a record's headers in order, up to 1 MiB in total."""
    size = 0
    for name, value in headers:
        size += len(name.encode()) + len(value or b"") + _LENGTHS
        if size > MAX_ORIGINAL_BYTES:
            return
        yield name, value


_LENGTHS: Final = 15
"""The maximum size of a header's two lengths (Kafka record format v2: two varints), plus the prefix `orig_`."""
