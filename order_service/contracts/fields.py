"""The fields of a record, from its Avro schema: their names, types, units and meanings."""

from collections.abc import Iterator
from typing import Any, Final

from msgspec import Struct

from order_service.wire.schemas.files import NAMESPACE

UNITS: Final = {
    **dict.fromkeys(("amount", "discount", "refund_due", "shipping", "tax", "total", "unit_price"), "minor units"),
    **dict.fromkeys(("version", "expected_version"), "events"),
    "quantity": "pieces",
}
"""The unit of each field that is a number, by its name."""


class Field(Struct, frozen=True):
    """One field. A field of the records in an array has the array's name before its own: `lines[].sku`."""

    name: str
    type: str
    unit: str
    meaning: str


def fields(record: dict[str, Any]) -> list[Field]:
    """Return the fields of a record schema; those of a nested record follow the field that holds it."""
    return list(_fields(record, "", {}))


def _fields(record: dict[str, Any], before: str, named: dict[str, str]) -> Iterator[Field]:
    for field in record["fields"]:
        kind = _type(field["type"], named)
        default = field.get("default")
        suffix = "" if default is None else f", default {default}"
        yield Field(before + field["name"], kind + suffix, _unit(kind, field["name"]), field["doc"])
        for inner in _records(field["type"]):
            yield from _fields(inner, f"{before}{field['name']}[].", named)


def _type(avro: Any, named: dict[str, str]) -> str:
    """Return a type in words; `named` keeps the named types, because later uses have the name only."""
    match avro:
        case ["null", inner]:
            return f"{_type(inner, named)} or null"
        case {"type": "array", "items": items}:
            return f"array of {_type(items, named)}"
        case {"type": "map", "values": values}:
            return f"map of {_type(values, named)}"
        case {"type": "fixed", "name": name, "size": size}:
            return named.setdefault(f"{NAMESPACE}.{name}", f"{size} bytes")
        case {"type": "record", "name": name}:
            return str(name)
        case {"logicalType": logical}:
            return str(logical)
        case _:
            return named.get(avro, str(avro))


def _records(avro: Any) -> Iterator[dict[str, Any]]:
    """Yield the record schema that an array, or an optional one, holds."""
    match avro:
        case ["null", inner]:
            yield from _records(inner)
        case {"type": "array", "items": {"type": "record"} as record}:
            yield record


def _unit(kind: str, name: str) -> str:
    """Return the unit of a field, or an empty string for a field without a unit."""
    if kind.startswith("timestamp"):
        return "ms since 1970 UTC"
    return UNITS.get(name, "") if kind.startswith("long") else ""
