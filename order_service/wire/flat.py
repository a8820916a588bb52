"""Events and rejections as people and programs read them: flat, as their Avro records are."""

from typing import Any

from msgspec import structs

from order_service.domain.messages import Event, Rejection


def flat(message: Event | Rejection) -> dict[str, Any]:
    """Give its fields, those of an event's fact among them, and its type; digests are hexadecimal."""
    fields = structs.asdict(message)
    kind = "Rejection"
    if isinstance(message, Event):
        del fields["fact"]
        fields |= structs.asdict(message.fact)
        kind = type(message.fact).__name__
    plain = {name: value.hex() if isinstance(value, bytes) else value for name, value in fields.items()}
    return {"type": kind, **plain}
