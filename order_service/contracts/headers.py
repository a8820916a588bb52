"""The headers of our records, as JSON Schemas: each value of ours is UTF-8 text. What makes them is `wire.headers`."""

from typing import Any, Final

from order_service.wire.dead_letters import DeadLetterReason
from order_service.wire.headers import COMMAND_OFFSET, MAX_ORIGINAL_BYTES

Schema = dict[str, Any]


def _text(description: str, **more: Any) -> Schema:
    return {"type": "string", "description": description, **more}


def _number(description: str) -> Schema:
    return _text(description, pattern="^-?[0-9]+$")


def _object(required: dict[str, Schema], optional: dict[str, Schema]) -> Schema:
    return {"type": "object", "required": list(required), "properties": required | optional}


_OFFSET: Final = "Where the command lay in its partition of the commands topic."
_TRACE: Final = {"traceparent": _text("The trace that the command was a part of, if it was of any. W3C Trace Context.")}

COMMAND: Final[Schema] = {"type": "object", "properties": _TRACE}
"""Of a command: whatever its sender likes; this alone is read."""

CLOUD_EVENT: Final = _object(
    {
        "ce_specversion": _text("The version of CloudEvents.", const="1.0"),
        "ce_type": _text("The name of the message, such as `orders.v1.OrderPaid`."),
        "ce_source": _text("Who says it.", const="/order-service"),
        "content-type": _text("How the value is written.", const="application/avro"),
        "ce_id": _text("The `event_id`, or the `rejection_id`.", format="uuid"),
        "ce_time": _text("The `occurred_at`, or the `rejected_at`: RFC 3339, UTC, milliseconds.", format="date-time"),
        "ce_subject": _text("The `order_id`."),
    },
    {COMMAND_OFFSET: _number(f"{_OFFSET} What the service does by itself has none.")} | _TRACE,
)
"""Of an event and of a rejection: CloudEvents 1.0, Kafka protocol binding, binary content mode."""

DEAD_LETTER: Final = _object(
    {
        "dl_reason": _text("Why it is no command.", enum=[reason.value for reason in DeadLetterReason]),
        "dl_detail": _text("More about it, for people."),
        "dl_topic": _text("The topic that it came from."),
        "dl_partition": _number("The partition that it came from."),
        "dl_offset": _number("Its offset there."),
        "dl_timestamp": _number(
            "The timestamp of the record there: when the broker appended it, milliseconds since 1970-01-01 UTC."
        ),
        COMMAND_OFFSET: _number(_OFFSET),
    },
    {
        "dl_cut": _number("How many bytes the key or the value had, where it was too long to be kept whole."),
        "dl_headers_dropped": _number(f"How many of its own headers, past {MAX_ORIGINAL_BYTES:,} bytes, are not kept."),
    },
) | {
    "patternProperties": {
        "^orig_": _text("One of its own headers, under its own name behind `orig_`, with its own bytes.")
    }
}
"""Of a dead letter: why, from where, and its own headers."""
