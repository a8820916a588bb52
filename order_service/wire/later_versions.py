"""Outcomes that a later version of the service wrote, where no schema of their id is known.

They are read by what the contract promises of every version (docs/events.md). Events begin with the same fields. The
headers name the type and the id. A later version of a type only adds fields after those that are known, and these are
ignored. Key, headers and value must agree, and an event's id follows from its order and version: so damaged or foreign
records are not taken for later ones.
"""

import re
from datetime import datetime
from typing import Final, final

from msgspec import Struct

from order_service.domain.identity import event_id
from order_service.domain.messages import FACT_TYPES, Event, Rejection
from order_service.errors import DecodeError
from order_service.wire import avro
from order_service.wire.avro_codegen import UNREAD, compiled_reader
from order_service.wire.headers import ReadHeaders
from order_service.wire.schemas.catalogue import EVERY_EVENT, MESSAGE_TYPES, SCHEMAS
from order_service.wire.schemas.files import NAMESPACE

_TYPE: Final = re.compile(rf"{re.escape(NAMESPACE)}\.([A-Za-z_][A-Za-z0-9_]{{0,199}})\Z")
"""A `ce_type`; names as in Avro."""


@final
class UnknownEvent(Struct, frozen=True, gc=False, kw_only=True):
    """An event of a type that this version does not know: the fields that every event has.

    `type` is the name of the type, such as `OrderReturned`, and `fact` is always None. `value` is the whole value of
    the record, with the schema id in bytes 1 to 4. `digest` is its digest, which the order's next event contains.
    """

    type: str
    event_id: str
    order_id: str
    version: int
    command_id: str
    command_digest: bytes
    correlation_id: str | None
    actor: str
    occurred_at: datetime
    previous_digest: bytes | None
    digest: bytes
    value: bytes
    fact: None = None


def decode_later(key: bytes | None, value: bytes, headers: ReadHeaders) -> Event | Rejection | UnknownEvent | None:
    """Decode an outcome whose schema id is unknown. Return None if the record is not as the contract promises."""
    texts = {name: (text or b"").decode(errors="replace") for name, text in headers}
    named = _TYPE.match(texts.get("ce_type", ""))
    schema_id = int.from_bytes(value[1:5], "big")
    if named is None or value[:1] != b"\0" or schema_id in SCHEMAS.by_id or schema_id in SCHEMAS.refused:
        return None
    try:
        message = _decoded(named[1], value)
    except DecodeError:
        return None
    agrees = message is not None and message.order_id.encode() == key and _id_of(message) == texts.get("ce_id")
    return message if agrees else None


def _decoded(name: str, value: bytes) -> Event | Rejection | UnknownEvent | None:
    """Return the outcome, or None if no event or rejection can have this name. Raises DecodeError."""
    message = MESSAGE_TYPES.get(name)
    if message is None:
        return _unknown_event(name, value)
    if message not in (*FACT_TYPES, Rejection):
        return None
    outcome: Event | Rejection = avro.decode_beginning(value, message)
    return outcome


def _unknown_event(name: str, value: bytes) -> UnknownEvent | None:
    try:
        fields, end = _READ_EVERY_EVENT(value, 5)
    except UNREAD:
        return None
    return UnknownEvent(type=name, digest=avro.digest(value), value=value, **fields) if end <= len(value) else None


def _id_of(message: Event | Rejection | UnknownEvent) -> str | None:
    """Return the id of an outcome, or None if it is an event whose id does not follow from its order and version."""
    if isinstance(message, Rejection):
        return message.rejection_id
    return message.event_id if message.event_id == event_id(message.order_id, message.version) else None


_READ_EVERY_EVENT: Final = compiled_reader(EVERY_EVENT, dict)
