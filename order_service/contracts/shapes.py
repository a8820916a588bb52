"""The JSON Schemas of commands, from the types that decode them; the descriptions are those of the Avro schemas.

They define the shape, as the types do, and the bounds. A value of another shape is a dead letter, and so is a
`command_id`, an `order_id` or a `correlation_id` out of bounds. Any other value out of bounds is refused with
`invalid_order`, an `actor` with `not_allowed`.
"""

from typing import Any, Final

import msgspec

from order_service.contracts.fields import FOREIGN_IDS, IDS, fields
from order_service.contracts.source import Source
from order_service.domain import validation
from order_service.domain.messages import (
    COMMAND_TYPES,
    FOREIGN_ID_JSON_SCHEMA,
    ID_JSON_PATTERN,
    MAX_FOREIGN_ID,
    Command,
    CreateOrder,
)

Schema = dict[str, Any]

DECIDE_BY: Final = "Refuse after this time: RFC 3339 with its offset. Null: no limit."
"""The description of the one field that has another unit in JSON than in Avro."""
_ACTOR_PATTERN: Final = rf"^(user|service):[^\x00-\x1f\x7f-\x9f]{{1,{MAX_FOREIGN_ID}}}$"
_AMOUNT: Final[Schema] = {"minimum": 0, "maximum": validation.MAX_TOTAL}
_BOUNDS: Final[dict[str, Schema]] = {
    **{name: {"pattern": ID_JSON_PATTERN} for name in IDS},
    **dict.fromkeys(FOREIGN_IDS, FOREIGN_ID_JSON_SCHEMA),
    "actor": {"pattern": _ACTOR_PATTERN},
    **{name: {"maxLength": validation.MAX_TEXT} for name in ("name", "note")},
    **dict.fromkeys(("discount", "tax", "shipping", "amount"), _AMOUNT),
    "currency": {"pattern": validation.CURRENCY_JSON_PATTERN},
    "lines": {"minItems": 1, "maxItems": validation.MAX_LINES},
    "quantity": {"minimum": 1, "maximum": validation.MAX_QUANTITY},
    "unit_price": {"minimum": 0, "maximum": validation.MAX_UNIT_PRICE},
    "metadata": {
        "maxProperties": validation.MAX_METADATA,
        "propertyNames": {"maxLength": validation.MAX_METADATA_KEY},
        "additionalProperties": {"type": "string", "maxLength": validation.MAX_METADATA_VALUE},
    },
    "reason": {"enum": list(validation.CANCEL_REASONS)},
}
"""The bounds of each field, by its name."""


def shapes(source: Source) -> dict[str, Schema]:
    """Return the schema of each command by its name, and that of `Line`, which they share."""
    _, components = msgspec.json.schema_components(COMMAND_TYPES, ref_template="#/components/schemas/{name}")
    schemas = {name: _plain(schema) for name, schema in components.items()}
    for command in COMMAND_TYPES:
        properties = schemas[command.__name__]["properties"]
        _describe(properties, _meanings(source, command) | {"decide_by": DECIDE_BY})
    _describe(schemas["Line"]["properties"], _meanings(source, CreateOrder, "lines[]."))
    return schemas


def _meanings(source: Source, command: type[Command], prefix: str = "") -> dict[str, str]:
    listed = fields(source.avro(command))
    return {field.name.removeprefix(prefix): field.meaning for field in listed if field.name.startswith(prefix)}


def _describe(properties: Schema, meanings: dict[str, str]) -> None:
    """Add the meanings and the bounds of fields."""
    for name in properties.keys() & meanings.keys():
        properties[name]["description"] = meanings[name]
    for name in properties.keys() & _BOUNDS.keys():
        schema = properties[name]
        (schema["anyOf"][0] if "anyOf" in schema else schema).update(_BOUNDS[name])


def _plain(schema: Any) -> Any:
    """Remove titles, which repeat a name, and replace the bounds of a 64-bit integer by its format."""
    match schema:
        case list():
            return [_plain(item) for item in schema]
        case {"minimum": least, "maximum": most, **rest} if (least, most) == (-(2**63), 2**63 - 1):
            return rest | {"format": "int64"}
        case dict():
            return {key: _plain(value) for key, value in schema.items() if (key, type(value)) != ("title", str)}
        case _:
            return schema
