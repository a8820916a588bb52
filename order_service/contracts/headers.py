"""The headers of our records, as JSON Schemas: each of our values is UTF-8 text. `wire.headers` writes them."""

from typing import Any, Final

from order_service.wire.dead_letters import DeadLetterReason
from order_service.wire.headers import COMMAND_OFFSET, CONTENT_TYPE, MAX_ORIGINAL_BYTES
from order_service.wire.trace_context import TRACEPARENT, TRACESTATE

Schema = dict[str, Any]


def _text(description: str, **more: Any) -> Schema:
    return {"type": "string", "description": description, **more}


def _number(description: str) -> Schema:
    return _text(description, pattern="^-?[0-9]+$")


def _object(required: dict[str, Schema], optional: dict[str, Schema]) -> Schema:
    return {"type": "object", "required": list(required), "properties": required | optional}


_OFFSET: Final = "The command's offset in its partition of the commands topic."
_TRACE: Final = {
    TRACEPARENT: _text("The trace that the command belongs to, if there is one. W3C Trace Context."),
    TRACESTATE: _text("What tracing systems have added to that trace context, unchanged, if there is something."),
}

COMMAND: Final[Schema] = {"type": "object", "properties": _TRACE}
"""The headers of a command: a sender may add any, and the service reads only these."""

CLOUD_EVENT: Final = _object(
    {
        "ce_specversion": _text("The version of CloudEvents.", const="1.0"),
        "ce_type": _text("The name of the message, such as `orders.v1.OrderPaid`."),
        "ce_source": _text("The sender of the message.", const="/order-service"),
        "content-type": _text("The format of the value.", const=CONTENT_TYPE),
        "ce_id": _text("The `event_id`, or the `rejection_id`.", format="uuid"),
        "ce_time": _text("The `occurred_at`, or the `rejected_at`: RFC 3339, UTC, milliseconds.", format="date-time"),
        "ce_subject": _text("The `order_id`."),
    },
    {COMMAND_OFFSET: _number(f"{_OFFSET} Absent on cancellations by the service itself.")} | _TRACE,
)
"""The headers of an event or a rejection: CloudEvents 1.0, Kafka protocol binding, binary content mode."""

DEAD_LETTER: Final = _object(
    {
        "dl_reason": _text("Why the record is not a command.", enum=[reason.value for reason in DeadLetterReason]),
        "dl_detail": _text("Details for people."),
        "dl_topic": _text("The topic of the original record."),
        "dl_partition": _number("The partition of the original record."),
        "dl_offset": _number("The offset of the original record."),
        "dl_timestamp": _number("When the broker appended the original record, in milliseconds since 1970-01-01 UTC."),
        COMMAND_OFFSET: _number(_OFFSET),
    },
    {
        "dl_cut": _number("The original length in bytes of the key or the value, if it was too long and was cut."),
        "dl_headers_dropped": _number(f"The number of original headers dropped past {MAX_ORIGINAL_BYTES:,} bytes."),
    },
) | {
    "patternProperties": {
        "^orig_": _text("An original header, with `orig_` before its name and with its original bytes.")
    }
}
"""The headers of a dead letter: the reason, the origin, and the original headers."""
