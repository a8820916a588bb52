"""What the six topics hold, decoded without a line of the service's own code.

A checker that shared the service's decoders would share their mistakes. Here fastavro reads the Avro by the files in
`schemas/`, msgspec the JSON and MessagePack without types, and the shape of a command is checked by hand.
"""

import json
import re
import unicodedata
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from decimal import Decimal, InvalidOperation
from hashlib import blake2b
from io import BytesIO
from pathlib import Path
from typing import Annotated, Any, Final
from uuid import UUID, uuid5

import fastavro
import msgspec
from msgspec import Meta, Struct

SCHEMAS: Final = Path(__file__).parents[2] / "schemas"
MAX_COMMAND_BYTES: Final = 5 * 1024 * 1024
COMMAND_OFFSET: Final = "command_offset"
POSITION_KEY: Final = b"\0position"
IDS_FROM: Final = 1_000_000_000
"""Our ids are counted up from here."""
FOREIGN: Final = 1_000
FOREIGN_IDS: Final = 500
"""The registry of a run knows each schema under its own id, and under so many more, each `FOREIGN` further on."""
LINE_FIELDS: Final = ("line_id", "sku", "name", "quantity", "unit_price")
EVENT_HEADER: Final = frozenset(
    {
        "event_id",
        "order_id",
        "version",
        "command_id",
        "command_digest",
        "correlation_id",
        "actor",
        "occurred_at",
        "previous_digest",
    }
)
"""What every event carries; its other fields are the fact."""

_NAMESPACE: Final = UUID("6d3a1f0e-6f2b-5d7e-9f5a-0f3c5f1d2b4a")
_FORM: Final = 1
_SHORT_FORM: Final = 3
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
MILLISECOND: Final = timedelta(milliseconds=1)
_FIRST_MS: Final = (datetime(1, 1, 1, tzinfo=UTC) - _EPOCH) // MILLISECOND
_LAST_MS: Final = (datetime.max.replace(tzinfo=UTC) - _EPOCH) // MILLISECOND


class Unreadable(Exception):
    """Bytes that are not what their topic should hold."""


class Record(Struct, frozen=True, gc=False):
    """A record of any of the topics, as a committed consumer reads it."""

    partition: int
    offset: int
    timestamp_ms: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes | None], ...] = ()

    def header(self, name: str) -> bytes | None:
        """Return the first header of this name."""
        return next((value for found, value in self.headers if found == name), None)

    @property
    def command_offset(self) -> int | None:
        """Return which command it answers; None without an offset that is a number."""
        value = self.header(COMMAND_OFFSET)
        return int(value) if value is not None and value.isdigit() else None


class Command(Struct, frozen=True, gc=False):
    """A command; `body` holds the fields of its type, all of them, `digest` what tells it from others of its id."""

    type: str
    command_id: str
    order_id: str
    actor: str
    expected_version: int | None
    decide_by_ms: int | None
    correlation_id: str | None
    body: dict[str, Any]
    digest: bytes


class Poison(Struct, frozen=True):
    """Bytes that are no command. Where two readers can stumble over either of two faults first, both reasons stand."""

    reasons: tuple[str, ...]


class Event(Struct, frozen=True, gc=False):
    """An event: its type, what every event carries, and the fact. Times are milliseconds since 1970 UTC."""

    type: str
    event_id: str
    order_id: str
    version: int
    command_id: str
    command_digest: bytes
    correlation_id: str | None
    actor: str
    occurred_at: int
    previous_digest: bytes | None
    fact: dict[str, Any]


class Rejection(Struct, frozen=True, gc=False):
    """A rejection; `rejected_at` is milliseconds since 1970 UTC."""

    rejection_id: str
    command_id: str
    command_digest: bytes
    command_type: str
    order_id: str
    reason: str
    detail: str
    status: str
    version: int
    actor: str
    rejected_at: int
    correlation_id: str | None
    pointer: str | None = None


class Entry(Struct, frozen=True, gc=False):
    """The table's record of one order; `state` is what its status keeps. Times are milliseconds since 1970 UTC."""

    status: str
    state: dict[str, Any]
    created_at: int
    changed_at: int
    head: bytes
    accepted: tuple[tuple[str, bytes], ...]
    refused: tuple[tuple[str, bytes], ...]


def digest_of(data: bytes) -> bytes:
    """Digest bytes: BLAKE2b-128."""
    return blake2b(data, digest_size=16).digest()


def id_of(*names: str) -> str:
    """Return the name of what the service names: the uuid5 of the names joined by NUL."""
    return str(uuid5(_NAMESPACE, "\0".join(names)))


# The shape of a command


def is_foreign_id(value: object) -> bool:
    """Return whether this is a text of 1 to 255 characters without control characters and surrogates (Cc and Cs)."""
    return (
        isinstance(value, str)
        and 1 <= len(value) <= 255
        and all(unicodedata.category(char) not in {"Cc", "Cs"} for char in value)
    )


def is_id(value: object) -> bool:
    """Return whether a value is an id: 1 to 128 characters, the first a letter or digit."""
    return isinstance(value, str) and _ID(value) is not None


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_int64(value: object) -> bool:
    return type(value) is int and -(2**63) <= value < 2**63  # only in Python a bool is an int


def _is_text_map(value: object) -> bool:
    return isinstance(value, dict) and all(map(_is_text, value.values()))


def _is_lines(value: object) -> bool:
    return isinstance(value, list) and all(map(_is_line, value))


def _is_line(value: object) -> bool:
    return isinstance(value, dict) and _fits(value, _LINE)


_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}").fullmatch
_REQUIRED: Final = object()

Field = tuple[Callable[[object], bool], object]
"""The test of a field's value, and its default."""

_LINE: Final[Mapping[str, Field]] = {
    "line_id": (_is_text, None),
    "sku": (_is_text, _REQUIRED),
    "name": (_is_text, None),
    "quantity": (_is_int64, _REQUIRED),
    "unit_price": (_is_int64, _REQUIRED),
}
_EVERY: Final[Mapping[str, Field]] = {
    "command_id": (is_id, _REQUIRED),
    "order_id": (is_id, _REQUIRED),
    "actor": (_is_text, _REQUIRED),
    "expected_version": (_is_int64, None),
    "decide_by": (lambda value: type(value) is int and _FIRST_MS <= value <= _LAST_MS, None),
    "correlation_id": (is_foreign_id, None),
}
_OF_TYPE: Final[Mapping[str, Mapping[str, Field]]] = {
    "CreateOrder": {
        "user_id": (_is_text, _REQUIRED),
        "currency": (_is_text, _REQUIRED),
        "lines": (_is_lines, _REQUIRED),
        "discount": (_is_int64, 0),
        "tax": (_is_int64, 0),
        "shipping": (_is_int64, 0),
        "shipping_address_ref": (_is_text, None),
        "metadata": (_is_text_map, {}),
    },
    "AmendOrder": {
        "lines": (_is_lines, None),
        "discount": (_is_int64, None),
        "tax": (_is_int64, None),
        "shipping": (_is_int64, None),
        "shipping_address_ref": (_is_text, None),
        "metadata": (_is_text_map, None),
    },
    "PayOrder": {
        "payment_id": (_is_text, _REQUIRED),
        "amount": (_is_int64, _REQUIRED),
        "currency": (_is_text, _REQUIRED),
    },
    "ShipOrder": {"carrier": (_is_text, _REQUIRED), "tracking_number": (_is_text, _REQUIRED)},
    "DeliverOrder": {},
    "CancelOrder": {"reason": (_is_text, _REQUIRED), "note": (_is_text, None)},
}
_ALL_FIELDS: Final = {name: {**_EVERY, **own} for name, own in _OF_TYPE.items()}


def _fits(given: dict[str, Any], fields: Mapping[str, Field]) -> bool:
    """Return whether all required fields are given, none that is unknown, and each of its type."""
    for name, (test, default) in fields.items():
        value = given.get(name, default)
        if value is not default and not test(value):
            return False
        if value is _REQUIRED:
            return False
    return given.keys() <= fields.keys()


# Commands

_EMPTY: Final = Poison(("empty",))
_TOO_LARGE: Final = Poison(("too_large",))
_UNKNOWN_FORMAT: Final = Poison(("unknown_format",))
_UNKNOWN_SCHEMA: Final = Poison(("unknown_schema",))
_NO_AVRO: Final = Poison(("not_avro",))
_BROKEN_AVRO: Final = Poison(("not_avro", "bad_shape"))
_BROKEN_JSON: Final = Poison(("not_json", "bad_shape"))
_BAD_SHAPE: Final = Poison(("bad_shape",))
_KEY_MISSING: Final = Poison(("key_missing",))
_KEY_MISMATCH: Final = Poison(("key_mismatch",))
_WRONG_PARTITION: Final = Poison(("wrong_partition",))


def decode_command(record: Record, partition_count: int) -> Command | Poison:
    """Decode a record of the commands topic, or return why it is not a command.

    The value is checked first, then the key, then the partition.
    """
    command = _decode_value(record.value)
    if isinstance(command, Poison):
        return command
    if record.key is None:
        return _KEY_MISSING
    if record.key != command.order_id.encode():
        return _KEY_MISMATCH
    if partition_of(record.key, partition_count) != record.partition:
        return _WRONG_PARTITION
    return command


def _decode_value(value: bytes | None) -> Command | Poison:
    if not value:
        return _EMPTY
    if len(value) > MAX_COMMAND_BYTES:
        return _TOO_LARGE
    if value[0] == 0:
        return _decode_avro(value)
    return _decode_json(value.removeprefix(_MARK)) if _is_json(value) else _UNKNOWN_FORMAT


def _is_json(value: bytes) -> bool:
    """Return whether this begins as a JSON object does, after a byte order mark and whitespace."""
    return value.removeprefix(_MARK).lstrip(b" \t\n\r")[:1] == b"{"


def _whole(text: str) -> int | float:
    """Return a number with a fraction or an exponent; as an int if it is whole and small enough for any field."""
    number = float(text)
    try:
        exact = Decimal(text) if abs(number) < 2**64 else None
    except InvalidOperation:  # the exponent has more digits than a Decimal can have
        exact = None
    return int(exact) if exact is not None and exact % 1 == 0 else number


_MARK: Final = b"\xef\xbb\xbf"
_read_json: Final = msgspec.json.Decoder(float_hook=_whole).decode


def _decode_json(value: bytes) -> Command | Poison:
    try:
        given = _read_json(value)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return _BROKEN_JSON
    name = given.pop("type", None)
    if given.get("decide_by") is not None:
        given["decide_by"] = _milliseconds_of(given["decide_by"])
    return _command(name, given)


def or_refused(command: Command | Poison, value: bytes | None) -> Command | Poison:
    """Return what a refused record can be that came as JSON with a name twice in one object: bad_shape, too.

    Which of both counts is nowhere said, and each of them may be looked at for its shape.
    """
    if not value or not _is_json(value) or not _has_twins(value):
        return command
    return Poison(("bad_shape", *(command.reasons if isinstance(command, Poison) else ())))


def _has_twins(value: bytes) -> bool:
    twins = False

    def look(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        nonlocal twins
        given = dict(pairs)
        twins = twins or len(given) < len(pairs)
        return given

    try:
        json.loads(value, object_pairs_hook=look)
    except (ValueError, RecursionError):  # not JSON
        return False
    return twins


def _milliseconds_of(text: object) -> int | str:
    """Read an RFC 3339 time with its offset, in milliseconds rounded down; or give a text, which fits nothing."""
    if not isinstance(text, str):
        return ""
    try:
        moment: datetime = msgspec.convert(text, _TIME)
        return (moment.astimezone(UTC) - _EPOCH) // MILLISECOND
    except (msgspec.ValidationError, OverflowError):
        return ""


_TIME: Final = Annotated[datetime, Meta(tz=True)]


def released_id(schema_id: int) -> int:
    """Return our id of a schema that a command names by ours, or by one that the registry of a run gives it."""
    number, place = divmod(schema_id - IDS_FROM, FOREIGN)
    return IDS_FROM + place if 0 <= number <= FOREIGN_IDS else schema_id


def _decode_avro(value: bytes) -> Command | Poison:
    if len(value) < 5:
        return _NO_AVRO
    name, schema = _SCHEMAS_BY_ID.get(released_id(int.from_bytes(value[1:5], "big")), ("", None))
    if name not in _ALL_FIELDS:
        return _UNKNOWN_SCHEMA
    body = BytesIO(value)
    body.seek(5)
    try:
        given = fastavro.schemaless_reader(body, schema)
    except (EOFError, IndexError, UnicodeDecodeError):
        return _BROKEN_AVRO
    return _command(name, given) if body.tell() == len(value) else _NO_AVRO  # type: ignore[arg-type]


def _command(name: object, given: dict[str, Any]) -> Command | Poison:
    fields = _ALL_FIELDS.get(name) if isinstance(name, str) else None
    if fields is None or not isinstance(name, str) or not _fits(given, fields):
        return _BAD_SHAPE
    body = {field: given.get(field, default) for field, (_, default) in _OF_TYPE[name].items()}
    if body.get("lines") is not None:
        body["lines"] = [{field: line.get(field) for field in LINE_FIELDS} for line in body["lines"]]
    return Command(
        type=name,
        command_id=given["command_id"],
        order_id=given["order_id"],
        actor=given["actor"],
        expected_version=given.get("expected_version"),
        decide_by_ms=given.get("decide_by"),
        correlation_id=given.get("correlation_id"),
        body=body,
        digest=command_digest(name, given["command_id"], given["order_id"], given["actor"], body, given),
    )


def command_digest(
    name: str, command_id: str, order_id: str, actor: str, body: dict[str, Any], given: dict[str, Any]
) -> bytes:
    """Digest a command: the MessagePack map of its type and fields in their order, without those at their default."""
    said = {"type": name, "command_id": command_id, "order_id": order_id, "actor": actor}
    if given.get("expected_version") is not None:
        said["expected_version"] = given["expected_version"]
    for field, (_, default) in _OF_TYPE[name].items():
        if body[field] != default:
            said[field] = _DIGESTED.get(field, _as_it_is)(body[field])
    return digest_of(msgspec.msgpack.encode(said))


def _as_it_is(value: Any) -> Any:
    return value


def _digested_lines(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{field: value for field, value in line.items() if value is not None} for line in lines]


def _sorted_map(texts: dict[str, str]) -> dict[str, str]:
    return dict(sorted(texts.items()))


_DIGESTED: Final[Mapping[str, Callable[[Any], Any]]] = {"lines": _digested_lines, "metadata": _sorted_map}


def partition_of(key: bytes, partition_count: int) -> int:
    """Return the partition in which Kafka's own producer puts a key.

    Source: `Utils.murmur2` of Apache Kafka's clients.
    """
    return (_murmur2(key) & 0x7FFFFFFF) % partition_count


def _murmur2(key: bytes) -> int:
    """Hash as the reference implementation does: four bytes at a time, all arithmetic in 32 bits."""
    hashed = (0x9747B28C ^ len(key)) & 0xFFFFFFFF
    end = len(key) & ~3
    for at in range(0, end, 4):
        word = int.from_bytes(key[at : at + 4], "little") * 0x5BD1E995 & 0xFFFFFFFF
        word = (word ^ word >> 24) * 0x5BD1E995 & 0xFFFFFFFF
        hashed = (hashed * 0x5BD1E995 & 0xFFFFFFFF) ^ word
    if end < len(key):
        hashed = (hashed ^ int.from_bytes(key[end:], "little")) * 0x5BD1E995 & 0xFFFFFFFF
    hashed = (hashed ^ hashed >> 13) * 0x5BD1E995 & 0xFFFFFFFF
    return hashed ^ hashed >> 15


# Events and rejections


def decode_event(value: bytes | None) -> Event:
    """Decode an event. Raises Unreadable for any other bytes."""
    name, flat = _read_avro(value)
    if name not in _EVENT_TYPES:
        raise Unreadable(f"expected an event, got {name}")
    header = {field: flat.pop(field) for field in EVENT_HEADER}
    return Event(type=name, fact=flat, **header)


def decode_rejection(value: bytes | None) -> Rejection:
    """Decode a rejection. Raises Unreadable for any other bytes."""
    name, flat = _read_avro(value)
    if name != "Rejection":
        raise Unreadable(f"expected a rejection, got {name}")
    return Rejection(**flat)


_EVENT_TYPES: Final = frozenset(
    {"OrderCreated", "OrderAmended", "OrderPaid", "OrderShipped", "OrderDelivered", "OrderCancelled"}
)


def _read_avro(value: bytes | None) -> tuple[str, dict[str, Any]]:
    if value is None or len(value) < 5 or value[0] != 0:
        raise Unreadable("expected byte 0 and a schema id of 4 bytes")
    name, schema = _SCHEMAS_BY_ID.get(int.from_bytes(value[1:5], "big"), ("", None))
    if schema is None:
        raise Unreadable("the schema id is not ours")
    body = BytesIO(value)
    body.seek(5)
    try:
        flat = fastavro.schemaless_reader(body, schema)
    except (EOFError, IndexError, UnicodeDecodeError) as error:
        raise Unreadable("the Avro body cannot be read") from error
    if body.tell() != len(value) or not isinstance(flat, dict):
        raise Unreadable("bytes are left over")
    return name, flat


def _read_schemas() -> dict[int, tuple[str, Any]]:
    """Compile the schemas that have an id; times stay the numbers that they are."""
    ids = json.loads((SCHEMAS / "ids.json").read_text())
    found = {}
    for schema_id, about in ids.items():
        schema = json.loads((SCHEMAS / about["file"]).read_text())
        found[int(schema_id)] = (schema["name"], fastavro.parse_schema(_without_logical_types(schema)))
    return found


def _without_logical_types(schema: Any) -> Any:
    match schema:
        case dict():
            return {name: _without_logical_types(value) for name, value in schema.items() if name != "logicalType"}
        case list():
            return [_without_logical_types(value) for value in schema]
    return schema


_SCHEMAS_BY_ID: Final = _read_schemas()


# Changelogs


def decode_entry(value: bytes) -> Entry:
    """Decode the table's record of an order. Raises Unreadable for any other bytes."""
    try:
        order, created_at, changed_at, head, accepted, refused = _read_changelog(value)
        status = order.pop("type")
        if "lines" in order:
            order["lines"] = [{field: line.get(field) for field in LINE_FIELDS} for line in order["lines"]]
        return Entry(
            status=status,
            state=order,
            created_at=(created_at - _EPOCH) // MILLISECOND,
            changed_at=(changed_at - _EPOCH) // MILLISECOND,
            head=head,
            accepted=tuple(map(tuple, accepted)),
            refused=tuple(map(tuple, refused)),
        )
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise Unreadable("a table record has another shape") from error


def without_commands(value: bytes) -> bytes:
    """Return the table's record of a closed order after it has forgotten its commands: their number is left."""
    order, created_at, changed_at, head, accepted, _refused = _read_changelog(value)
    return bytes([_SHORT_FORM]) + msgspec.msgpack.encode([order, created_at, changed_at, head, len(accepted)])


class Position(Struct, frozen=True, gc=False):
    """How far a partition is decided: the offset of the next command, and the end that the commands had then."""

    next_offset: int
    end_offset: int


def decode_position(value: bytes) -> Position:
    """Decode a position. Raises Unreadable for any other bytes."""
    try:
        next_offset, _owner, end_offset, _last_timestamp_ms, *_later_fields = _read_changelog(value)
    except (ValueError, TypeError) as error:
        raise Unreadable("a position record has another shape") from error
    if not (_is_int64(next_offset) and _is_int64(end_offset)):
        raise Unreadable("a position is no number")
    return Position(next_offset, end_offset)


def waiting_offset(key: bytes) -> int | None:
    """Return which command a record of the waiting room keeps, by its key; None for a key of another kind."""
    order_id, _, offset = key.partition(b"\0")
    return int(offset) if order_id and offset.isdigit() else None


def _read_changelog(value: bytes) -> Any:
    if value[:1] != bytes([_FORM]):
        raise Unreadable("a changelog record has another form")
    try:
        return msgspec.msgpack.decode(value[1:])
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Unreadable("a changelog record is no MessagePack") from error
