"""The fields of a record, from its Avro schema: their names, types, units, meanings and the bounds of ids."""

import re
from collections.abc import Iterator
from typing import Any, Final

from msgspec import Struct

from order_service.domain.messages import FOREIGN_ID_MUST_BE, ID_MUST_BE
from order_service.wire.schemas.files import NAMESPACE

UNITS: Final = {
    **dict.fromkeys(("amount", "discount", "refund_due", "shipping", "tax", "total", "unit_price"), "minor units"),
    **dict.fromkeys(("version", "expected_version"), "events"),
    "quantity": "pieces",
}
"""The unit of each field that is a number, by its name."""
IDS: Final = ("order_id", "command_id")
FOREIGN_IDS: Final = (
    "user_id",
    "line_id",
    "sku",
    "shipping_address_ref",
    "payment_id",
    "carrier",
    "tracking_number",
    "correlation_id",
)
"""The fields with ids of other systems, beside `actor`, which contains one."""
_BOUNDS: Final = {
    **dict.fromkeys(IDS, f"{ID_MUST_BE}."),
    **dict.fromkeys(FOREIGN_IDS, f"{FOREIGN_ID_MUST_BE}."),
    "actor": f"The id has {FOREIGN_ID_MUST_BE}.",
}
_FORMER: Final = re.compile(
    r"(: 1 to 64 characters of A-Z a-z 0-9 \. _ -, the first a letter or digit|; at most 200 characters)(?=\.)"
)
"""The bounds of ids in the docs of released schemas."""


class Field(Struct, frozen=True):
    """One field. A field of the records in an array has the array's name before its own: `lines[].sku`."""

    name: str
    type: str
    unit: str
    meaning: str


def with_current_bounds(avro: Any) -> Any:
    """Return a schema whose docs have the current bounds of ids. Released files keep those of their release."""
    match avro:
        case list():
            return [with_current_bounds(part) for part in avro]
        case {"name": str(name), "doc": str(doc)} if name in _BOUNDS and not _is_any_actor(name, doc):
            return avro | {"doc": f"{_FORMER.sub('', doc)} {_BOUNDS[name]}"}
        case dict():
            return {key: with_current_bounds(part) for key, part in avro.items()}
        case _:
            return avro


def _is_any_actor(name: str, doc: str) -> bool:
    """Return whether a field is the actor of a rejection, which may have been refused because it is invalid."""
    return name == "actor" and "<id>" not in doc


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
