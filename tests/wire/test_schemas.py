"""The released schemas: never edited, complete, and readable by each other's readers."""

import json
from hashlib import sha256
from io import BytesIO
from itertools import product

import fastavro
import pytest
from fastavro.read import SchemaResolutionError
from fastavro.utils import generate_many
from msgspec import NODEFAULT, structs

from order_service.domain.messages import Event, OrderPaid, PayOrder
from order_service.wire.schemas import MESSAGE_TYPES, SCHEMAS, folder, load, released_ids

FIRST_ID = 1_000_000_001
released = sorted(SCHEMAS.by_id.values(), key=lambda schema: schema.id)
pairs = [
    pytest.param(writer.plain, reader.plain, id=f"{writer.file} is read as {reader.file}")
    for writer, reader in product(released, released)
    if writer.message is reader.message
]


def test_a_released_file_was_not_edited_since():
    assert {
        schema_id: sha256((folder() / entry["file"]).read_bytes()).hexdigest()
        for schema_id, entry in released_ids().items()
    } == {schema_id: entry["sha256"] for schema_id, entry in released_ids().items()}


def test_every_file_has_one_id_and_every_id_a_file():
    assert sorted(entry["file"] for entry in released_ids().values()) == sorted(
        file.name for file in folder().iterdir() if file.name.endswith(".avsc")
    )


def test_ids_are_numbered_from_the_first_one_without_holes():
    assert sorted(released_ids()) == list(range(FIRST_ID, FIRST_ID + len(released)))


def test_every_message_has_a_schema():
    assert set(SCHEMAS.newest) == set(MESSAGE_TYPES.values())


@pytest.mark.parametrize("schema", released, ids=lambda schema: schema.file)
def test_a_file_is_named_for_what_it_holds(schema):
    assert (schema.file, schema.name) == (
        f"{schema.message.__name__}.v{schema.version}.avsc",
        f"orders.v1.{schema.message.__name__}",
    )


@pytest.mark.parametrize("schema", released, ids=lambda schema: schema.file)
def test_every_field_is_documented(schema):
    assert [field["name"] for field in schema.avro["fields"] if not field.get("doc")] == []


@pytest.mark.parametrize("schema", list(SCHEMAS.newest.values()), ids=lambda schema: schema.file)
def test_the_newest_schema_has_the_fields_of_its_message_and_their_defaults(schema):
    names = [field["name"] for field in schema.avro["fields"]]
    assert names in (list(schema.message.__struct_fields__), _event_fields(schema.message))
    if schema.message.__name__.endswith("Order"):
        assert {field["name"]: field["default"] for field in schema.avro["fields"] if "default" in field} == {
            field.name: field.default_factory() if field.default is NODEFAULT else field.default
            for field in structs.fields(schema.message)
            if not field.required
        }


def _event_fields(fact):
    return [*Event.__struct_fields__[:-1], *fact.__struct_fields__]


@pytest.mark.parametrize(("writer", "reader"), pairs)
def test_every_version_is_read_as_every_other(writer, reader):
    _read_as(writer, reader)


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"name": "cost_centre", "type": "string"}, id="a new field without a default"),
        pytest.param({"name": "amount", "type": "string"}, id="another type"),
    ],
)
def test_an_incompatible_change_would_be_seen(change):
    released = SCHEMAS.newest[PayOrder].avro
    fields = [field for field in released["fields"] if field["name"] != change["name"]]
    changed = fastavro.parse_schema(released | {"fields": [*fields, change]})
    with pytest.raises(SchemaResolutionError):
        _read_as(SCHEMAS.newest[PayOrder].plain, changed)


def _read_as(writer, reader):
    for value in generate_many(writer, 5):
        data = BytesIO()
        fastavro.schemaless_writer(data, writer, value)
        data.seek(0)
        fastavro.schemaless_reader(data, writer, reader)


def test_a_registry_s_id_is_written_from_then_on_and_both_are_read():
    catalogue = load()
    ours = catalogue.newest[OrderPaid]
    catalogue.adopt("OrderPaid.v1.avsc", 7)
    assert catalogue.newest[OrderPaid].prefix == b"\0\0\0\0\7"
    assert (catalogue.by_id[7].message, catalogue.by_id[7].id, catalogue.by_id[ours.id]) == (OrderPaid, 7, ours)


def test_a_schema_keeps_the_text_of_its_file():
    assert [json.loads(schema.text) for schema in released] == [schema.avro for schema in released]
