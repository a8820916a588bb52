"""Avro's binary encoding, for the types in our schemas: one writer and one reader generated from each file.

It exists only for speed. fastavro's writer takes six times as long. fastavro's reader and `msgspec.convert` take 16 µs
for a command that places an order and 10 for an event that ships it; these readers take 10 and 4. A worker spends
about 40 on a command in total, a projector 60 on an event.

The bytes and the messages are those of fastavro; tests compare them. A reader raises only UNREAD; fastavro then
decodes the value or reports the error. Like `dataclasses`, this module generates the source of each function and
compiles it once. Source: Avro 1.11 specification, "Binary encoding".
"""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any, Final

from order_service.domain.messages import Line
from order_service.wire.schemas.files import NAMESPACE

Write = Callable[[Any], bytes]
"""Encodes one value of one type."""

EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
MILLISECOND: Final = timedelta(milliseconds=1)

Read = Callable[[bytes, int], tuple[Any, int]]
"""Reads the value at an offset; returns it and the offset after it, which can be past the end of the data."""

UNREAD: Final = (IndexError, ValueError, OverflowError)
"""A reader's exceptions: truncated; not UTF-8, no such branch, a number over 63 bits; a time out of range."""

_NUMBER: Final = [
    "number = data[at]",
    "at += 1",
    "if number > 0x7F:",
    "    second = data[at]",
    "    if second > 0x7F: number, at = zigzag(data, at - 1)",
    "    else: number, at = number - 0x80 + (second << 7), at + 1",
]
"""The lines that read a number, still in zigzag encoding; lengths have one byte, most prices two."""
_SIGNED: Final = "(number >> 1) ^ -(number & 1)"


def compiled_writer(avro: dict[str, Any], header: tuple[str, ...] | None = None) -> Write:
    """Return the writer of a record schema; it reads its values from attributes of the same names.

    With `header`, only those names are attributes of the value itself, the others are attributes of its `fact`.
    """
    expressions = {field["name"]: f"value.{field['name']}" for field in avro["fields"]}
    if header is not None:
        expressions |= {name: f"value.fact.{name}" for name in expressions.keys() - set(header)}
    return _record_writer(avro, expressions, {})


def _record_writer(avro: dict[str, Any], expressions: dict[str, str], named: dict[str, Write]) -> Write:
    """Return the function for a record: one line for each string in it, then all parts joined."""
    known: dict[str, Any] = {"LENGTHS": _LENGTHS, "long": _write_long}
    lines, parts = [], []
    for number, field in enumerate(avro["fields"]):
        expression = expressions[field["name"]]
        match field["type"]:
            case "string":
                text = f"text{number}"
                lines.append(f"    {text} = {expression}.encode()")
                parts += [f"LENGTHS[len({text})] if len({text}) < 64 else long(len({text}))", text]
            case ["null", avro_type]:
                known[f"write{number}"] = _writer_of(avro_type, named)
                parts.append(f'b"\\0" if {expression} is None else b"\\2" + write{number}({expression})')
            case avro_type:
                known[f"write{number}"] = _writer_of(avro_type, named)
                parts.append(f"write{number}({expression})")
    source = "\n".join(["def write(value):", *lines, f'    return b"".join(({", ".join(parts)},))'])
    exec(source, known)  # noqa: S102, all names in it come from our own schema files
    write: Write = known["write"]
    return write


def _writer_of(avro: Any, named: dict[str, Write]) -> Write:
    match avro:
        case "string":
            return _write_string
        case "long":
            return _write_long
        case {"type": "long", "logicalType": "timestamp-millis"}:
            return _write_time
        case {"type": "map", "values": "string"}:
            return _write_map
        case {"type": "array", "items": items}:
            return _array_writer(
                _record_writer(items, {field["name"]: f"value.{field['name']}" for field in items["fields"]}, named)
            )
        case {"type": "fixed", "name": name, "size": size}:
            return named.setdefault(f"{NAMESPACE}.{name}", _fixed_writer(size))
        case _:
            return named[avro]


def _write_string(text: str) -> bytes:
    data = text.encode()
    return (_LENGTHS[len(data)] if len(data) < 64 else _write_long(len(data))) + data


@lru_cache(maxsize=8192)  # quantities, prices and versions repeat
def _write_long(number: int) -> bytes:
    """Encode a zigzag varint: seven bits a byte, the lowest first; the high bit means that more bytes follow."""
    if not -(2**63) <= number < 2**63:
        raise OverflowError("an Avro long has 64 bits")
    rest, encoded = (number << 1) ^ (number >> 63), bytearray()
    while rest > 0x7F:
        encoded.append(rest & 0x7F | 0x80)
        rest >>= 7
    encoded.append(rest)
    return bytes(encoded)


_LENGTHS: Final = [_write_long(length) for length in range(64)]


@lru_cache(maxsize=64)  # all events of a turn have the same time
def _write_time(moment: datetime) -> bytes:
    return _write_long((moment - EPOCH) // MILLISECOND)


def _fixed_writer(size: int) -> Write:
    def write(data: bytes) -> bytes:
        if len(data) != size:
            raise ValueError(f"expected {size} bytes, got {len(data)}")
        return data

    return write


def _write_map(entries: dict[str, str]) -> bytes:
    if not entries:
        return b"\0"
    return b"".join(
        [
            _write_long(len(entries)),
            *[_write_string(key) + _write_string(value) for key, value in entries.items()],
            b"\0",
        ]
    )


def _array_writer(write_item: Write) -> Write:
    def write(items: tuple[Any, ...]) -> bytes:
        return b"".join([_write_long(len(items)), *map(write_item, items), b"\0"]) if items else b"\0"

    return write


def compiled_reader(avro: dict[str, Any], shape: type[Any], around: type[Any] | None = None) -> Read:
    """Return the reader of a record schema; the fields of `shape` have the same names.

    With `around`, the reader returns an `around`: the fields that it lacks build the `shape`, which is its `fact`.
    """
    known: dict[str, Any] = {"EPOCH": EPOCH, "timedelta": timedelta, "zigzag": _read_zigzag, "map": _read_map}
    known |= {"shape": shape, "around": around}
    own = frozenset(around.__struct_fields__ if around else ())
    lines: list[str] = []
    inside: list[str] = []
    outside: list[str] = []
    for number, field in enumerate(avro["fields"]):
        lines += _lines_reading(field["type"], f"field{number}", known)
        (outside if field["name"] in own else inside).append(f"{field['name']}=field{number}")
    value = f"shape({', '.join(inside)})"
    if around:
        value = f"around({', '.join(outside)}, fact={value})"
    source = "\n    ".join(["def read(data, at):", *lines, f"return {value}, at"])
    exec(source, known)  # noqa: S102, all names in it come from our own schema files
    read: Read = known["read"]
    return read


def _lines_reading(avro: Any, name: str, known: dict[str, Any]) -> list[str]:
    """Return the lines that read a value into `name` and move `at` past it."""
    match avro:
        case "string":
            return [
                *_NUMBER,
                "if number & 1: raise ValueError",
                f"{name} = data[at : (at := at + (number >> 1))].decode()",
            ]
        case "long":
            return [*_NUMBER, f"{name} = {_SIGNED}"]
        case {"type": "long", "logicalType": "timestamp-millis"}:
            return [*_NUMBER, f"{name} = EPOCH + timedelta(milliseconds={_SIGNED})"]
        case {"type": "fixed", "name": fixed, "size": size}:
            known[f"{NAMESPACE}.{fixed}"] = size
            return [f"{name} = data[at : (at := at + {size})]"]
        case {"type": "map", "values": "string"}:
            return [f"{name}, at = map(data, at)"]
        case {"type": "array", "items": line}:
            known[f"array_{name}"] = _array_reader(compiled_reader(line, Line))
            return [f"{name}, at = array_{name}(data, at)"]
        case ["null", value]:
            return [
                "branch = data[at]",
                "at += 1",
                f"if branch == 0: {name} = None",
                "elif branch == 2:",
                *(f"    {line}" for line in _lines_reading(value, name, known)),
                "else: raise ValueError",
            ]
        case str() if avro in known:
            return [f"{name} = data[at : (at := at + {known[avro]})]"]
        case _:
            raise NotImplementedError(f"the reader does not support the type {avro}")


def _read_zigzag(data: bytes, at: int) -> tuple[int, int]:
    number = 0
    for shift in range(0, 63, 7):
        byte = data[at]
        at += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, at
    raise ValueError("a number over 63 bits")


def _read_length(data: bytes, at: int) -> tuple[int, int]:
    number, at = (data[at], at + 1) if data[at] < 0x80 else _read_zigzag(data, at)
    if number & 1:
        raise ValueError("a negative length: before a block it means that the block size follows")
    return number >> 1, at


def _read_string(data: bytes, at: int) -> tuple[str, int]:
    length, at = _read_length(data, at)
    return data[at : at + length].decode(), at + length


def _read_map(data: bytes, at: int) -> tuple[dict[str, str], int]:
    entries: dict[str, str] = {}
    count, at = _read_length(data, at)
    while count:
        for _ in range(count):
            key, at = _read_string(data, at)
            entries[key], at = _read_string(data, at)
        count, at = _read_length(data, at)
    return entries, at


def _array_reader(read_item: Read) -> Read:
    def read(data: bytes, at: int) -> tuple[tuple[Any, ...], int]:
        items = []
        count, at = _read_length(data, at)
        while count:
            for _ in range(count):
                item, at = read_item(data, at)
                items.append(item)
            count, at = _read_length(data, at)
        return tuple(items), at

    return read
