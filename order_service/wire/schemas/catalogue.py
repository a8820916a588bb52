"""The released Avro schemas, read once from `schemas/`, by id and by the message that they encode.

A schema registry may assign other ids to them, and may have later versions than this program.
"""

import json
from collections.abc import Iterable
from importlib.resources.abc import Traversable
from typing import Any, Final

import fastavro
from msgspec import Struct, structs

from order_service.domain.messages import COMMAND_TYPES, FACT_TYPES, Command, Fact, Rejection
from order_service.errors import NotAvro, SchemaError
from order_service.wire.schemas import evolution
from order_service.wire.schemas.files import ReleasedFile, entries, every_event, folder, name_and_version

Message = Fact | Command | Rejection
MESSAGE_TYPES: Final[dict[str, type[Message]]] = {
    message.__name__: message for message in (*FACT_TYPES, *COMMAND_TYPES, Rejection)
}

EVERY_EVENT: Final = every_event()
"""The fields with which every event begins, as a record."""

TEXT_MAX: Final = 256 * 1024
"""The maximum length of a schema from a registry, in characters."""


class Schema(Struct, frozen=True):
    """One released file.

    `prefix` starts every value written with it; `text` is the file, `avro` its parsed content. fastavro decodes with
    `plain`, which has no logical types, so that a time stays an integer.
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
        """The full name of the record, such as `orders.v1.OrderPaid`."""
        return f"{self.avro['namespace']}.{self.avro['name']}"

    def subject(self, topic: str) -> str:
        """Return the subject at a registry (TopicRecordNameStrategy): one topic has several types of records."""
        return f"{topic}-{self.name}"


class Catalogue:
    """All schemas by id, the newest of each message, and the `released` ones of this program.

    `new_types` has the ids of schemas of events that only a later version knows; `refused` those of schemas that break
    the contract, so that nothing is assumed about their records.
    """

    def __init__(self, released: Iterable[Schema]) -> None:
        self.released = tuple(released)
        self.by_id = {schema.id: schema for schema in self.released}
        self.new_types: set[int] = set()
        self.refused: set[int] = set()
        self.newest: dict[type[Message], Schema] = {}
        for schema in sorted(self.released, key=lambda schema: schema.version):
            self.newest[schema.message] = schema

    def adopt(self, file: str, registry_id: int) -> None:
        """Use the id that a schema registry assigned to `file` for encoding from now on; decode both ids.

        Raises SchemaError for an invalid id, or one that belongs to another file.
        """
        known = self.by_id.get(registry_id)
        if not 0 < registry_id < 2**31 or (known is not None and known.file != file):
            raise SchemaError(
                f"the schema registry gives {file} the id {registry_id}, which is invalid or belongs to another schema"
            )
        adopted = self._read_as(registry_id, self.of_file(file))
        if self.newest[adopted.message].file == file:
            self.newest[adopted.message] = adopted

    def learn(self, schema_id: int, text: str) -> bool:
        """Add a registry's id if its schema is a released one or a later version of one; return whether it was added.

        A later version of an event or a rejection has fields that this program does not know and leaves out. A command
        must be read completely, so its later versions are not added. All other schemas are ignored: they belong to a
        new type of event, or are refused.
        """
        avro = _parsed(text)
        message = MESSAGE_TYPES.get(str(avro.get("name")).rpartition(".")[2])
        try:
            if message is None and evolution.begins_with(EVERY_EVENT, avro):
                self.new_types.add(schema_id)
                return False
            later = None if message is None else self._known_or_later(message, avro)
        except (NotAvro, RecursionError):
            later = None
        if later is None:
            self.refused.add(schema_id)
        else:
            self._read_as(schema_id, later)
        return later is not None

    def _known_or_later(self, message: type[Message], avro: dict[str, Any]) -> Schema | None:
        of_message = [schema for schema in self.released if schema.message is message]
        known = next((schema for schema in of_message if evolution.same(schema.avro, avro)), None)
        return known or self._later(message, avro)

    def _later(self, message: type[Message], avro: dict[str, Any]) -> Schema | None:
        """Return a schema that decodes a later version, built only from our own schema and types that we support."""
        newest = self.newest[message]
        if message in COMMAND_TYPES or evolution.faults(newest.avro, avro):
            return None
        added = [
            {"name": f"added_{number}", "type": ["null", type_], "default": None}
            for number, type_ in enumerate(evolution.added(newest.avro, avro))
        ]
        ours = newest.avro | {"fields": [*newest.avro["fields"], *added]}
        return structs.replace(newest, version=newest.version + 1, text=json.dumps(ours), avro=ours, plain=_plain(ours))

    def _read_as(self, schema_id: int, schema: Schema) -> Schema:
        known = structs.replace(schema, id=schema_id, prefix=prefix_of(schema_id))
        self.by_id[schema_id] = known
        return known

    def of_file(self, file: str) -> Schema:
        """Return the schema with this file name."""
        return next(schema for schema in self.by_id.values() if schema.file == file)


def prefix_of(schema_id: int) -> bytes:
    """Return the first five bytes of a value: byte 0, then the id, big-endian (Confluent wire format)."""
    return b"\0" + schema_id.to_bytes(4, "big")


def load(where: Traversable | None = None) -> Catalogue:
    """Read all released files of a folder, by default those of this program."""
    where = where or folder()
    return Catalogue(_read(where, entry) for entry in entries(where))


def _read(where: Traversable, entry: ReleasedFile) -> Schema:
    text = (where / entry.file).read_text("utf-8")
    avro = json.loads(text)
    name, version = name_and_version(entry.file)
    return Schema(
        id=entry.id,
        file=entry.file,
        message=MESSAGE_TYPES[name],
        version=version,
        prefix=prefix_of(entry.id),
        text=text,
        avro=avro,
        plain=_plain(avro),
    )


def _parsed(text: str) -> dict[str, Any]:
    """Return the record schema that a registry returned, or an empty one for any other text."""
    if len(text) > TEXT_MAX:
        return {}
    try:
        avro = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return avro if isinstance(avro, dict) else {}


def _plain(avro: dict[str, Any]) -> Any:
    return fastavro.parse_schema(_without_logical_types(avro))


def _without_logical_types(avro: Any) -> Any:
    match avro:
        case dict():
            return {key: _without_logical_types(value) for key, value in avro.items() if key != "logicalType"}
        case list():
            return [_without_logical_types(value) for value in avro]
        case _:
            return avro


SCHEMAS: Final = load()
