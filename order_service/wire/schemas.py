"""The released Avro schemas: read once from `schemas/`, found by id or by the message that they encode.

A file is named `<message>.v<version>.avsc` and never edited; `ids.json` gives each its id, and its SHA-256 to prove it.
"""

import json
from collections.abc import Iterable
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, Final

import fastavro
from msgspec import Struct, structs

from order_service.domain.messages import COMMAND_TYPES, FACT_TYPES, Command, Fact, Rejection

Message = Fact | Command | Rejection
MESSAGE_TYPES: Final[dict[str, type[Message]]] = {
    message.__name__: message for message in (*FACT_TYPES, *COMMAND_TYPES, Rejection)
}


class Schema(Struct, frozen=True):
    """One released file.

    `prefix` opens every value written with it; `text` is the file, `avro` what it says; `plain` is what fastavro reads
    by: without logical types, so that a time is the whole number that it is on the wire.
    """

    id: int
    file: str
    message: type[Message]
    version: int
    prefix: bytes
    text: str
    avro: dict[str, Any]
    plain: Any

    @property
    def name(self) -> str:
        """The full name of its record, such as `orders.v1.OrderPaid`."""
        return f"{self.avro['namespace']}.{self.avro['name']}"


class Catalogue:
    """All schemas by id, and the newest of each message."""

    def __init__(self, released: Iterable[Schema]) -> None:
        self.by_id = {schema.id: schema for schema in released}
        self.newest: dict[type[Message], Schema] = {}
        for schema in sorted(self.by_id.values(), key=lambda schema: schema.version):
            self.newest[schema.message] = schema

    def adopt(self, file: str, registry_id: int) -> None:
        """Write `file` with the id that a schema registry gave it from now on, and read both ids."""
        adopted = structs.replace(self.of_file(file), id=registry_id, prefix=prefix_of(registry_id))
        self.by_id[registry_id] = adopted
        if self.newest[adopted.message].file == file:
            self.newest[adopted.message] = adopted

    def of_file(self, file: str) -> Schema:
        """Find a schema by the name of its file."""
        return next(schema for schema in self.by_id.values() if schema.file == file)


def prefix_of(schema_id: int) -> bytes:
    """Make the first five bytes of a value: byte 0, then the id, big-endian (Confluent wire format)."""
    return b"\0" + schema_id.to_bytes(4, "big")


def folder() -> Traversable:
    """Find the released files: inside the package where it is installed, beside it in a checkout."""
    installed = files("order_service") / "schemas"
    return installed if installed.is_dir() else Path(__file__).parents[2] / "schemas"


def released_ids() -> dict[int, dict[str, str]]:
    """Read `ids.json`: the `file` of each id, and its `sha256`."""
    return {int(key): entry for key, entry in json.loads((folder() / "ids.json").read_text("utf-8")).items()}


def load() -> Catalogue:
    """Read all released files."""
    return Catalogue(_read(schema_id, entry["file"]) for schema_id, entry in released_ids().items())


def _read(schema_id: int, file: str) -> Schema:
    text = (folder() / file).read_text("utf-8")
    avro = json.loads(text)
    return Schema(
        id=schema_id,
        file=file,
        message=MESSAGE_TYPES[avro["name"]],
        version=int(file.split(".")[1].removeprefix("v")),
        prefix=prefix_of(schema_id),
        text=text,
        avro=avro,
        plain=fastavro.parse_schema(_without_logical_types(avro)),
    )


def _without_logical_types(avro: Any) -> Any:
    match avro:
        case dict():
            return {key: _without_logical_types(value) for key, value in avro.items() if key != "logicalType"}
        case list():
            return [_without_logical_types(value) for value in avro]
        case _:
            return avro


SCHEMAS: Final = load()
