"""The rules for later versions of a schema: they may append optional fields, and change nothing else.

So each version can be read as any other (FULL_TRANSITIVE at a registry), and an older program lacks only optional
fields. Neither this module nor its callers pass a foreign schema to fastavro: a hostile one takes all memory.
"""

from collections.abc import Mapping
from typing import Any, Final

from order_service.errors import NotAvro

PRIMITIVES: Final = frozenset({"null", "boolean", "int", "long", "float", "double", "bytes", "string"})
ADDED: Final = ("string", "long")
"""The types of new optional fields: those that `avro_codegen` supports and that need no upcasting."""


def essence(avro: Any, namespace: str = "") -> Any:
    """Return what defines a schema's bytes and their meaning: full names and types, no docs, defaults or properties."""
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
            raise NotAvro("it contains a part that is not an Avro schema")


def _field(field: Any, namespace: str) -> Any:
    match field:
        case {"name": str(name), "type": type_}:
            return [name, essence(type_, namespace)]
        case _:
            raise NotAvro("it contains a field without a name or a type")


def _full_name(name: str, namespace: Any) -> str:
    return name if "." in name or not namespace else f"{namespace}.{name}"


def same(schema: Any, other: Any) -> bool:
    """Return whether two schemas write the same bytes with the same meaning. Raises NotAvro."""
    return bool(essence(schema) == essence(other))


def added(before: Mapping[str, Any], later: Mapping[str, Any]) -> list[str]:
    """Return the types, string or long, of the optional fields that a later version without `faults` has added."""
    return [type_[2] for _, type_ in essence(later)[2][len(before["fields"]) :]]


def begins_with(beginning: Mapping[str, Any], record: Any) -> bool:
    """Return whether a record begins with the fields of another: their names and types. Raises NotAvro."""
    match record:
        case {"type": "record", "fields": list()}:
            fields = essence(beginning)[2]
            return bool(essence(record)[2][: len(fields)] == fields)
        case _:
            raise NotAvro("it is not an Avro record")


def faults(before: Mapping[str, Any], later: Any) -> list[str]:
    """Return the forbidden changes in a later version of a record; none if all readers read both. Raises NotAvro."""
    match later:
        case {"type": "record", "fields": list()}:
            _, later_name, later_fields = essence(later)
        case _:
            raise NotAvro("it is not an Avro record")
    _, name, fields = essence(before)
    if later_name != name:
        return [f"the record is {later_name}, not {name}"]
    changes = [
        f"the field `{field[0]}` differs from the released version: keep its name, type, default and index"
        for index, field in enumerate(fields)
        if later_fields[index : index + 1] != [field] or _default(later, index) != _default(before, index)
    ]
    names = [field[0] for field in later_fields]
    duplicates = sorted({field_name for field_name in names if names.count(field_name) > 1})
    changes += [f"the field `{field_name}` appears twice" for field_name in duplicates]
    return changes + [
        f'the new field `{later_fields[index][0]}` must be optional: of type ["null", "string"] or ["null", "long"], '
        "with the default null"
        for index in range(len(fields), len(later_fields))
        if not _is_optional(later_fields[index][1]) or _default(later, index) != ("null",)
    ]


def _is_optional(type_: Any) -> bool:
    match type_:
        case ["union", "null", str(name)]:
            return name in ADDED
        case _:
            return False


def _default(record: Mapping[str, Any], index: int) -> tuple[Any, ...]:
    """Return the default of a field in a form that distinguishes null from no default, and 0 from false."""
    field = record["fields"][index]
    if "default" not in field:
        return ()
    default = field["default"]
    return ("null",) if default is None else (type(default), default)
