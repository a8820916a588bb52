"""Events and rejections as flat dictionaries with the fields of their Avro records, for people and programs."""

from typing import Any

from msgspec import structs

from order_service.domain.messages import Event, Rejection


def flat(message: Event | Rejection) -> dict[str, Any]:
    """Return the type and the fields of a message, including those of an event's fact; digests are hexadecimal."""
    fields = structs.asdict(message)
    kind = "Rejection"
    if isinstance(message, Event):
        del fields["fact"]
        fields |= structs.asdict(message.fact)
        kind = type(message.fact).__name__
    plain = {name: value.hex() if isinstance(value, bytes) else value for name, value in fields.items()}
    return {"type": kind, **plain}
