"""An encoder for Avro's binary encoding, for the types in our schemas: one function generated from each file.

It exists only for speed: fastavro's writer takes six times as long, and a worker writes an event for every command.
The bytes are the same; a test compares them. Like `dataclasses`, it generates the source of each function and
compiles it once. Source: Avro 1.11 specification, "Binary encoding".
"""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any, Final

Write = Callable[[Any], bytes]
"""Encodes one value of one type."""

EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
MILLISECOND: Final = timedelta(milliseconds=1)


def compiled(avro: dict[str, Any], header: tuple[str, ...] | None = None) -> Write:
    """Return the writer of a record schema; it reads its values from attributes of the same names.

    With `header`, only those names are attributes of the value itself, the others are attributes of its `fact`.
    """
    expressions = {field["name"]: f"value.{field['name']}" for field in avro["fields"]}
    if header is not None:
        expressions |= {name: f"value.fact.{name}" for name in expressions.keys() - set(header)}
    return _record(avro, expressions, {})


def _record(avro: dict[str, Any], expressions: dict[str, str], named: dict[str, Write]) -> Write:
    """Return the function for a record: one line for each string in it, then all parts joined."""
    known: dict[str, Any] = {"LENGTHS": _LENGTHS, "long": _long}
    lines, parts = [], []
    for number, field in enumerate(avro["fields"]):
        expression = expressions[field["name"]]
        match field["type"]:
            case "string":
                text = f"text{number}"
                lines.append(f"    {text} = {expression}.encode()")
                parts += [f"LENGTHS[len({text})] if len({text}) < 64 else long(len({text}))", text]
            case ["null", avro_type]:
                known[f"write{number}"] = _type(avro_type, named)
                parts.append(f'b"\\0" if {expression} is None else b"\\2" + write{number}({expression})')
            case avro_type:
                known[f"write{number}"] = _type(avro_type, named)
                parts.append(f"write{number}({expression})")
    source = "\n".join(["def write(value):", *lines, f'    return b"".join(({", ".join(parts)},))'])
    exec(source, known)  # noqa: S102, all names in it come from our own schema files
    write: Write = known["write"]
    return write


def _type(avro: Any, named: dict[str, Write]) -> Write:
    match avro:
        case "string":
            return _string
        case "long":
            return _long
        case {"type": "long", "logicalType": "timestamp-millis"}:
            return _time
        case {"type": "map", "values": "string"}:
            return _map
        case {"type": "array", "items": items}:
            return _array(_record(items, {field["name"]: f"value.{field['name']}" for field in items["fields"]}, named))
        case {"type": "fixed", "name": name, "size": size}:
            return named.setdefault(f"orders.v1.{name}", _fixed(size))
        case _:
            return named[avro]


def _string(text: str) -> bytes:
    data = text.encode()
    return (_LENGTHS[len(data)] if len(data) < 64 else _long(len(data))) + data


@lru_cache(maxsize=8192)  # quantities, prices and versions repeat
def _long(number: int) -> bytes:
    """Encode a zigzag varint: seven bits a byte, the lowest first; the high bit means that more bytes follow."""
    if not -(2**63) <= number < 2**63:
        raise OverflowError("an Avro long has 64 bits")
    rest, encoded = (number << 1) ^ (number >> 63), bytearray()
    while rest > 0x7F:
        encoded.append(rest & 0x7F | 0x80)
        rest >>= 7
    encoded.append(rest)
    return bytes(encoded)


_LENGTHS: Final = [_long(length) for length in range(64)]


@lru_cache(maxsize=64)  # all events of a turn have the same time
def _time(moment: datetime) -> bytes:
    return _long((moment - EPOCH) // MILLISECOND)


def _fixed(size: int) -> Write:
    def write(data: bytes) -> bytes:
        if len(data) != size:
            raise ValueError(f"expected {size} bytes, got {len(data)}")
        return data

    return write


def _map(entries: dict[str, str]) -> bytes:
    if not entries:
        return b"\0"
    return b"".join([_long(len(entries)), *[_string(key) + _string(value) for key, value in entries.items()], b"\0"])


def _array(write_item: Write) -> Write:
    def write(items: tuple[Any, ...]) -> bytes:
        return b"".join([_long(len(items)), *map(write_item, items), b"\0"]) if items else b"\0"

    return write
