"""What a later version of a schema may change: it may add optional fields behind the others, and nothing else.

So every version is read as every other (a registry's FULL_TRANSITIVE), and what is not known of a version is a few
fields that nobody needs. Nothing here hands a schema to fastavro, and nobody else may: a hostile one takes all memory.
"""

from collections.abc import Mapping
from typing import Any, Final

PRIMITIVES: Final = frozenset({"null", "boolean", "int", "long", "float", "double", "bytes", "string"})
ADDED: Final = ("string", "long")
"""What a new field may hold, or null: what `writer` and `reader` know, and what needs no upcasting."""


class NotAvro(ValueError):
    """This is no schema of Avro, or not one of a kind that we use."""


def essence(avro: Any, namespace: str = "") -> Any:
    """Reduce a schema to what its bytes and their meaning depend on: full names, no texts, defaults or properties."""
    match avro:
        case str():
            return avro if avro in PRIMITIVES else _full_name(avro, namespace)
        case list():
            return ["union", *[essence(branch, namespace) for branch in avro]]
        case {"type": "record", "name": str(name), "fields": list(fields)}:
            full_name = _full_name(name, avro.get("namespace", namespace))
            return ["record", full_name, [_field(field, full_name.rpartition(".")[0]) for field in fields]]
        case {"type": "fixed", "name": str(name), "size": int(size)}:
            return ["fixed", _full_name(name, avro.get("namespace", namespace)), size]
        case {"type": "array", "items": items}:
            return ["array", essence(items, namespace)]
        case {"type": "map", "values": values}:
            return ["map", essence(values, namespace)]
        case {"type": str(name), "logicalType": str(logical)} if name in PRIMITIVES:
            return ["logical", logical, name]
        case {"type": type_}:
            return essence(type_, namespace)
        case _:
            raise NotAvro("no schema")


def _field(field: Any, namespace: str) -> Any:
    match field:
        case {"name": str(name), "type": type_}:
            return [name, essence(type_, namespace)]
        case _:
            raise NotAvro("no field")


def _full_name(name: str, namespace: Any) -> str:
    return name if "." in name or not namespace else f"{namespace}.{name}"


def same(one: Any, other: Any) -> bool:
    """Tell whether two schemas write the same bytes with the same meaning. Raises NotAvro."""
    return bool(essence(one) == essence(other))


def added(before: Mapping[str, Any], later: Mapping[str, Any]) -> list[str]:
    """Give what the optional fields hold that a later version without `faults` has added: string or long."""
    return [type_[2] for _, type_ in essence(later)[2][len(before["fields"]) :]]


def faults(before: Mapping[str, Any], later: Any) -> list[str]:
    """Say what a later version of a record changes and must not; nothing if all readers read both. Raises NotAvro."""
    match later:
        case {"type": "record", "fields": list()}:
            _, found, found_fields = essence(later)
        case _:
            raise NotAvro("no record")
    _, name, fields = essence(before)
    if found != name:
        return [f"it is of {found}, not of {name}"]
    wrong = [
        f"the field `{field[0]}` is not as it was, in its place: what was released stays"
        for place, field in enumerate(fields)
        if found_fields[place : place + 1] != [field] or _default(later, place) != _default(before, place)
    ]
    names = [field[0] for field in found_fields]
    wrong += [f"the field `{twice}` is there twice" for twice in sorted({one for one in names if names.count(one) > 1})]
    return wrong + [
        f'the new field `{found_fields[place][0]}` must be optional: of type ["null", "string"] or ["null", "long"], '
        "with the default null"
        for place in range(len(fields), len(found_fields))
        if not _is_optional(found_fields[place][1]) or _default(later, place) != ("null",)
    ]


def _is_optional(type_: Any) -> bool:
    match type_:
        case ["union", "null", str(name)]:
            return name in ADDED
        case _:
            return False


def _default(record: Mapping[str, Any], place: int) -> tuple[Any, ...]:
    """Give the default of a field, so that none and null differ, and 0 and false."""
    field = record["fields"][place]
    if "default" not in field:
        return ()
    default = field["default"]
    return ("null",) if default is None else (type(default), default)
