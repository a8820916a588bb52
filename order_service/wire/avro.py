"""Messages as Avro in the Confluent wire format.

Shape:   byte 0, 4 bytes schema id (big-endian), Avro body; nothing after it.
Units:   times are milliseconds since 1970 UTC, money is minor units.
Source:  Confluent wire format; Avro 1.11 specification, "Binary encoding".
"""

from datetime import datetime, timedelta
from io import BytesIO
from typing import Any, Final

import fastavro
import msgspec

from order_service.domain.identity import blake2b_128
from order_service.domain.messages import COMMAND_TYPES, FACT_TYPES, Command, Event, Rejection
from order_service.errors import DecodeError
from order_service.wire.avro_codegen import EPOCH, UNREAD, Read, Write, compiled_reader, compiled_writer
from order_service.wire.dead_letters import DeadLetterReason as Why
from order_service.wire.ids import with_ids
from order_service.wire.schemas.catalogue import SCHEMAS, Message, Schema

MAX_COMMAND_BYTES: Final = 5 * 1024 * 1024
"""The largest command that the contract allows, as JSON with every character escaped, fits. A test computes it."""
MAX_CONTENT_BYTES: Final = 2 * 1024 * 1024
"""The largest command that the contract allows, as Avro or MessagePack, fits: rejections and changelogs hold it."""
MAX_EVENT_BYTES: Final = 4 * 1024 * 1024

_HEADER: Final = tuple(field for field in Event.__struct_fields__ if field != "fact")
_FACTS: Final = frozenset(FACT_TYPES)
_COMMANDS: Final = frozenset(COMMAND_TYPES)
_REJECTIONS: Final = frozenset({Rejection})
_TIMES: Final = ("occurred_at", "rejected_at", "decide_by")


def encode_event(event: Event) -> bytes:
    """Encode one event with the newest schema of its fact."""
    fact = type(event.fact)
    return SCHEMAS.newest[fact].prefix + _WRITE[fact](event)


def encode_rejection(rejection: Rejection) -> bytes:
    """Encode one rejection with its newest schema."""
    return SCHEMAS.newest[Rejection].prefix + _WRITE[Rejection](rejection)


def encode_command(command: Command) -> bytes:
    """Encode one command with the newest schema of its type."""
    return SCHEMAS.newest[type(command)].prefix + _WRITE[type(command)](command)


def decode_event(data: bytes) -> Event:
    """Decode one event.

    Raises DecodeError for any other bytes: truncated, not an event's schema, trailing bytes, over 4 MiB.
    """
    event: Event = _decoded(data, _FACTS, MAX_EVENT_BYTES)
    return event


def decode_rejection(data: bytes) -> Rejection:
    """Decode one rejection. Raises DecodeError for any other bytes."""
    rejection: Rejection = _decoded(data, _REJECTIONS, MAX_EVENT_BYTES)
    return rejection


def decode_avro_command(data: bytes, *, is_past: bool = False) -> Command:
    """Decode one command; `commands.decode_command` decodes JSON as well.

    Raises DecodeError for any other bytes, for more than 2 MiB, and for an invalid id (`with_ids`).
    """
    command: Command = _decoded(data, _COMMANDS, MAX_CONTENT_BYTES)
    return with_ids(command, is_past=is_past)


def decode_beginning(data: bytes, message: type[Message]) -> Any:
    """Decode a message by the newest schema of its type, whatever its id, and ignore bytes after its fields.

    Those are fields of a later version. Raises DecodeError if a field of the newest schema is missing or invalid.
    """
    try:
        decoded, end = _READ[message](data, 5)
    except UNREAD:
        raise DecodeError(Why.NOT_AVRO, "not as the newest schema of its type") from None  # the cause can quote bytes
    if end > len(data):
        raise DecodeError(Why.NOT_AVRO, "truncated")
    return decoded


def _decoded(data: bytes, wanted: frozenset[type[Message]], max_bytes: int) -> Any:
    schema = _schema(data, wanted, max_bytes)
    return _usual(data, schema) or _by_fastavro(data, schema)


def _usual(data: bytes, schema: Schema) -> Any:
    """Return a message of the newest schema, decoded by our own reader, or None if fastavro must decode it."""
    if schema.version != SCHEMAS.newest[schema.message].version:
        return None
    try:
        message, end = _READ[schema.message](data, len(schema.prefix))
    except UNREAD:
        return None
    return message if end == len(data) else None


def _by_fastavro(data: bytes, schema: Schema) -> Any:
    """Return a message of any version of its schema. Raises DecodeError."""
    flat = _fields(data, schema)
    for name in _TIMES:
        if flat.get(name) is not None:
            flat[name] = _time(flat[name])
    if schema.message not in _FACTS:
        return _shaped(flat, schema.message)
    return _shaped(flat | {"fact": _shaped(flat, schema.message)}, Event)


def digest(value: bytes) -> bytes:
    """Return the BLAKE2b-128 digest of the whole value of a record, including its first five bytes."""
    return blake2b_128(value)


def _schema(data: bytes, wanted: frozenset[type[Message]], max_bytes: int) -> Schema:
    """Return the schema of a message of one of the `wanted` types. Raises DecodeError."""
    if len(data) > max_bytes:
        raise DecodeError(Why.TOO_LARGE, f"{len(data)} bytes, at most {max_bytes}")
    if len(data) < 5 or data[0] != 0:
        raise DecodeError(Why.NOT_AVRO, "expected byte 0 and a schema id of 4 bytes")
    schema_id = int.from_bytes(data[1:5], "big")
    schema = SCHEMAS.by_id.get(schema_id)
    if schema is None:
        raise DecodeError(Why.UNKNOWN_SCHEMA, f"the schema id {schema_id} is unknown")
    if schema.message not in wanted:
        name = schema.message.__name__
        raise DecodeError(
            Why.UNKNOWN_SCHEMA, f"the schema id {schema_id} is that of {name}, which is not expected here"
        )
    return schema


def _fields(data: bytes, schema: Schema) -> dict[str, Any]:
    """Read the fields of a message. Raises DecodeError if bytes follow it."""
    body = BytesIO(data)
    body.seek(len(schema.prefix))
    flat = _body(body, schema)
    if body.tell() != len(data):
        raise DecodeError(Why.NOT_AVRO, f"trailing bytes: {len(data) - body.tell()}")
    return _as_newest(flat, schema)


def _as_newest(flat: dict[str, Any], schema: Schema) -> dict[str, Any]:
    """Convert the fields of an older schema version to the newest. No other code converts versions.

    Fields that a later version adds are optional (`evolution`), so they are null in older records. If an old record
    means another value than null, set that value here.
    """
    newest = SCHEMAS.newest[schema.message]
    if schema.version >= newest.version:
        return flat
    return {field["name"]: None for field in newest.avro["fields"]} | flat


def _body(body: BytesIO, schema: Schema) -> dict[str, Any]:
    """Decode with the writer's schema alone: with a reader's schema, fastavro misses the end of a skipped field."""
    try:
        flat: dict[str, Any] = fastavro.schemaless_reader(body, schema.plain, None)  # type: ignore[assignment]
    except (EOFError, IndexError) as error:  # IndexError: a number is missing, or a union has no such branch
        raise DecodeError(Why.NOT_AVRO, "truncated, or a union index is out of range") from error
    except UnicodeDecodeError:
        raise DecodeError(Why.NOT_AVRO, "a string is not UTF-8") from None  # its cause would hold the bytes
    return flat


def _time(milliseconds: int) -> datetime:
    try:
        return EPOCH + timedelta(milliseconds=milliseconds)
    except OverflowError as error:
        raise DecodeError(Why.BAD_SHAPE, "a time is outside the years 1 to 9999") from error


def _shaped(flat: dict[str, Any], shape: type[Any]) -> Any:
    try:
        return msgspec.convert(flat, shape)
    except msgspec.ValidationError as error:
        raise DecodeError(Why.BAD_SHAPE, str(error)) from error


def _writer(schema: Schema) -> Write:
    return compiled_writer(schema.avro, _HEADER if schema.message in _FACTS else None)


def _reader(schema: Schema) -> Read:
    return compiled_reader(schema.avro, schema.message, Event if schema.message in _FACTS else None)


_WRITE: Final = {message: _writer(schema) for message, schema in SCHEMAS.newest.items()}
_READ: Final = {message: _reader(schema) for message, schema in SCHEMAS.newest.items()}
