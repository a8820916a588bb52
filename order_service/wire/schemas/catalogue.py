"""The released Avro schemas: read once from `schemas/`, found by id or by the message that they encode.

A schema registry may give them ids of its own, and know later versions than this program.
"""

import json
from collections.abc import Iterable
from importlib.resources.abc import Traversable
from typing import Any, Final

import fastavro
from msgspec import Struct, structs

from order_service.domain.messages import COMMAND_TYPES, FACT_TYPES, Command, Fact, Rejection
from order_service.errors import SchemaError
from order_service.wire.schemas import evolution
from order_service.wire.schemas.files import ReleasedFile, entries, folder, name_and_version

Message = Fact | Command | Rejection
MESSAGE_TYPES: Final[dict[str, type[Message]]] = {
    message.__name__: message for message in (*FACT_TYPES, *COMMAND_TYPES, Rejection)
}

TEXT_MAX: Final = 256 * 1024
"""Characters of a schema that a registry may give us."""


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

    def subject(self, topic: str) -> str:
        """Name its subject at a registry (TopicRecordNameStrategy): one topic carries several kinds of records."""
        return f"{topic}-{self.name}"


class Catalogue:
    """All schemas by id, the newest of each message, and those that this program has `released`."""

    def __init__(self, released: Iterable[Schema]) -> None:
        self.released = tuple(released)
        self.by_id = {schema.id: schema for schema in self.released}
        self.newest: dict[type[Message], Schema] = {}
        for schema in sorted(self.released, key=lambda schema: schema.version):
            self.newest[schema.message] = schema

    def adopt(self, file: str, registry_id: int) -> None:
        """Write `file` with the id that a schema registry gave it from now on, and read both ids.

        Raises SchemaError for an id that stands for another file, or is none.
        """
        known = self.by_id.get(registry_id)
        if not 0 < registry_id < 2**31 or (known is not None and known.file != file):
            raise SchemaError(f"the schema registry gives {file} the id {registry_id}, which is another's or none")
        adopted = self._read_as(registry_id, self.of_file(file))
        if self.newest[adopted.message].file == file:
            self.newest[adopted.message] = adopted

    def learn(self, schema_id: int, text: str) -> bool:
        """Read by an id of a registry from now on, if its schema is one of ours or follows on one; tell whether it is.

        A later version of an event or a rejection has fields that this program does not know and leaves out. Of a
        command nothing may be left out. No other schema gets any further than this.
        """
        avro = _parsed(text)
        message = MESSAGE_TYPES.get(str(avro.get("name")).rpartition(".")[2])
        if message is None:
            return False
        try:
            known = next(
                (one for one in self.released if one.message is message and evolution.same(one.avro, avro)), None
            )
            later = known or self._later(message, avro)
        except (evolution.NotAvro, RecursionError):
            return False
        if later is not None:
            self._read_as(schema_id, later)
        return later is not None

    def _later(self, message: type[Message], avro: dict[str, Any]) -> Schema | None:
        """Make a schema that reads what a later version wrote, of nothing but our own and of types that we know."""
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
        """Find a schema by the name of its file."""
        return next(schema for schema in self.by_id.values() if schema.file == file)


def prefix_of(schema_id: int) -> bytes:
    """Make the first five bytes of a value: byte 0, then the id, big-endian (Confluent wire format)."""
    return b"\0" + schema_id.to_bytes(4, "big")


def load(where: Traversable | None = None) -> Catalogue:
    """Read all released files, those of this program by default."""
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
    """Read what a registry gives as the schema of a record; empty for anything else."""
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
