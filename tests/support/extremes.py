"""The largest value that a JSON Schema allows, and each of its bounds with the value one past it."""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, Final, NamedTuple

import msgspec

from order_service.contracts import asyncapi
from order_service.contracts.source import Source
from order_service.domain.messages import CreateOrder
from order_service.wire.avro import encode_command

Schema = Mapping[str, Any]
Path = tuple[str | int, ...]

FIRST_WIDE: Final = 0x1F300
LONGEST: Final = 1_000
"""The length from which a text counts as without bound."""

HEAD: Final = frozenset({"type", *CreateOrder.__struct_fields__[:6]})

WORTH: Final = 10**6
"""The quantity and the unit price of each line of the largest order: its total is in bounds."""


class Bound(NamedTuple):
    """One bound of a schema: where it is, its keyword, a value just at it, and one past it."""

    path: Path
    keyword: str
    at: Any
    above: Any


class Extremes:
    """Builds values from a schema and those that it refers to, by name."""

    def __init__(self, schemas: Mapping[str, Schema]) -> None:
        self._schemas = schemas

    def resolved(self, schema: Schema) -> Schema:
        """Return a schema without reference, and without its alternative null."""
        if "$ref" in schema:
            return self.resolved(self._schemas[schema["$ref"].rpartition("/")[2]])
        options = [option for option in schema.get("anyOf", ()) if option.get("type") != "null"]
        return {**schema, **self.resolved(options[0]), "anyOf": ()} if options else schema

    def largest(self, schema: Schema, number: int = 0, name: str = "") -> Any:
        """Return the largest value: every field, the longest lists, wide characters. Texts differ by `number`."""
        schema = self.resolved(schema)
        if "const" in schema or "enum" in schema:
            return schema.get("const") or max(schema["enum"], key=len)
        match schema["type"]:
            case "object" if schema.get("additionalProperties"):
                keys = [text(schema.get("propertyNames", {}), each) for each in range(schema["maxProperties"])]
                return {key: self.largest(schema["additionalProperties"]) for key in keys}
            case "object":
                return {key: self.largest(inner, number, key) for key, inner in schema["properties"].items()}
            case "array":
                return [self.largest(schema["items"], each) for each in range(schema["maxItems"])]
            case "integer":
                return schema.get("maximum", 2**53)
        return text(schema, number, name)

    def bounds(self, schema: Schema, path: Path = ()) -> Iterator[Bound]:
        """Yield every bound of a schema and of the schemas in it."""
        schema = self.resolved(schema)
        for keyword, at, above in self._own(schema):
            yield Bound(path, keyword, at, above)
        for name, inner in schema.get("properties", {}).items():
            yield from self.bounds(inner, (*path, name))
        if "items" in schema:
            yield from self.bounds(schema["items"], (*path, 0))

    def _own(self, schema: Schema) -> Iterator[tuple[str, Any, Any]]:
        if "enum" in schema:
            yield "enum", schema["enum"][-1], "none of them"
        match schema.get("type"):
            case "string":
                yield from _of_text(schema)
            case "integer":
                yield from (("minimum", schema["minimum"], schema["minimum"] - 1) for _ in _has(schema, "minimum"))
                yield from (("maximum", schema["maximum"], schema["maximum"] + 1) for _ in _has(schema, "maximum"))
            case "array":
                item = self.smallest(schema["items"])
                for keyword, more in (("minItems", -1), ("maxItems", 1)):
                    for count in _has(schema, keyword):
                        yield keyword, [item] * count, [item] * (count + more)
            case "object":
                yield from _of_map(schema)

    def smallest(self, schema: Schema) -> Any:
        """Return a value with the required fields alone."""
        schema = self.resolved(schema)
        match schema["type"]:
            case "object":
                return {name: self.smallest(schema["properties"][name]) for name in schema.get("required", ())}
            case "integer":
                return schema.get("minimum", 0)
        return text(schema, length=1)


def text(schema: Schema, number: int = 0, name: str = "", length: int | None = None) -> str:
    """Return the longest text that a schema allows, or one of this length, in the widest characters that it allows."""
    if name == "currency":
        return "EUR"
    if schema.get("format") == "date-time":
        return "2999-12-31T23:59:59.999999+00:00"
    characters = chr(FIRST_WIDE + number), "a"
    for last in characters:
        filler = chr(FIRST_WIDE) if last != "a" else "a"
        prefix = "service:" if name == "actor" else ""
        longest = _longest(schema, prefix, filler) if length is None else length
        if longest is not None and _matches(schema, written := prefix + _end(filler, longest, last, number)):
            return written
    raise AssertionError(f"no text matches {schema}")


def _end(filler: str, length: int, last: str, number: int) -> str:
    if last == "a":
        digits = str(number)[-length:]
        return filler * (length - len(digits)) + digits if length > 1 else filler
    return filler * (length - 1) + last


def _longest(schema: Schema, prefix: str, filler: str) -> int | None:
    lengths = [schema["maxLength"]] if "maxLength" in schema else range(LONGEST, 0, -1)
    return next((length for length in lengths if _matches(schema, prefix + filler * length)), None)


def _matches(schema: Schema, value: str) -> bool:
    return re.search(schema.get("pattern", "").replace("$", r"\Z"), value) is not None


def _of_text(schema: Schema) -> Iterator[tuple[str, Any, Any]]:
    if schema.get("format") or "enum" in schema or "const" in schema:
        return
    if schema.get("minLength"):
        yield "minLength", text(schema, length=schema["minLength"]), ""
    if "maxLength" in schema:
        longest = text(schema)
        yield "maxLength", longest, longest + longest[0]
    if "pattern" in schema and _matches(schema, "a"):
        if "maxLength" not in schema:
            longest = text(schema)
            yield "pattern", longest, longest + longest[0]
        yield "pattern", "a", "a\x00"
        yield "pattern", "a", "a\n"


def _of_map(schema: Schema) -> Iterator[tuple[str, Any, Any]]:
    values = schema.get("additionalProperties")
    for most in _has(schema, "maxProperties"):
        entries = {text(schema.get("propertyNames", {"maxLength": 9}), number): "" for number in range(most + 1)}
        yield "maxProperties", dict(list(entries.items())[:most]), entries
    for names in _has(schema, "propertyNames"):
        longest = text(names)
        yield "propertyNames", {longest: ""}, {longest + longest[0]: ""}
    if isinstance(values, dict) and "maxLength" in values:
        longest = text(values)
        yield "additionalProperties", {"a": longest}, {"a": longest + longest[0]}


def largest_order(**changes: Any) -> dict[str, Any]:
    """Return the largest create that the AsyncAPI document allows, with a total that is in bounds."""
    schemas = asyncapi.document(Source())["components"]["schemas"]
    order: dict[str, Any] = Extremes(schemas).largest(schemas["CreateOrder"])
    for line in order["lines"]:
        line["quantity"] = line["unit_price"] = WORTH
    return order | {"discount": 10**14, "tax": 10**14, "shipping": 10**14, "expected_version": 0, **changes}


def body_of(command: Mapping[str, Any]) -> dict[str, Any]:
    """Return a command without the fields that HTTP has in the path, in headers and in the token."""
    return {name: value for name, value in command.items() if name not in HEAD}


def in_every_form(order: dict[str, Any]) -> dict[str, bytes]:
    """Return an order as JSON, as JSON with every character escaped that is not ASCII, and as Avro."""
    return {
        "UTF-8": json.dumps(order, ensure_ascii=False).encode(),
        "escaped": json.dumps(order).encode(),
        "Avro": encode_command(msgspec.convert(order, CreateOrder)),
    }


def _has(schema: Schema, keyword: str) -> Iterator[Any]:
    if keyword in schema:
        yield schema[keyword]


def with_value(document: Any, path: Path, value: Any) -> Any:
    """Return a copy of a document with another value at a path."""
    if not path:
        return value
    first, *rest = path
    if isinstance(first, int):
        return [with_value(item, tuple(rest), value) if at == first else item for at, item in enumerate(document)]
    return {**document, first: with_value(document.get(first), tuple(rest), value)}
