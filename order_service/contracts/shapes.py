"""The JSON Schemas of commands, from the types that decode them; their words are those of the Avro schemas.

They say the shape alone, as the types do: what does not have it is a dead letter. A value that has the shape and is out
of range is refused with `invalid_order`, and its range is in the description.
"""

from typing import Any, Final

import msgspec

from order_service.contracts.fields import fields
from order_service.contracts.source import Source
from order_service.domain.messages import COMMAND_TYPES, Command, CreateOrder

Schema = dict[str, Any]

ID: Final = "^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
"""What is an id, in the dialect of JSON Schema."""

DECIDE_BY: Final = "Refuse after this time: RFC 3339 with its offset. Null: no limit."
"""The one field that JSON writes in another unit than Avro."""


def shapes(source: Source) -> dict[str, Schema]:
    """Make the schema of each command, by its name, and that of `Line`, which they share."""
    _, made = msgspec.json.schema_components(COMMAND_TYPES, ref_template="#/components/schemas/{name}")
    shaped = {name: _plain(schema) for name, schema in made.items()}
    for command in COMMAND_TYPES:
        properties = shaped[command.__name__]["properties"]
        _describe(properties, _meanings(source, command) | {"decide_by": DECIDE_BY})
        properties["command_id"]["pattern"] = properties["order_id"]["pattern"] = ID
    _describe(shaped["Line"]["properties"], _meanings(source, CreateOrder, "lines[]."))
    return shaped


def _meanings(source: Source, command: type[Command], within: str = "") -> dict[str, str]:
    found = fields(source.schema(command).avro)
    return {field.name.removeprefix(within): field.meaning for field in found if field.name.startswith(within)}


def _describe(properties: Schema, meanings: dict[str, str]) -> None:
    for name in properties.keys() & meanings.keys():
        properties[name]["description"] = meanings[name]


def _plain(schema: Any) -> Any:
    """Leave out titles, which repeat a name, and say of a whole number that it has 64 bits."""
    match schema:
        case list():
            return [_plain(one) for one in schema]
        case {"minimum": least, "maximum": most, **rest} if (least, most) == (-(2**63), 2**63 - 1):
            return rest | {"format": "int64"}
        case dict():
            return {key: _plain(value) for key, value in schema.items() if (key, type(value)) != ("title", str)}
        case _:
            return schema
