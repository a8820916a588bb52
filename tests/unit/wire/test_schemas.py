"""The released schemas: never edited, complete, and readable by each other's readers."""

import json
import shutil
from hashlib import sha256
from io import BytesIO
from itertools import product

import fastavro
import pytest
from fastavro.read import SchemaResolutionError
from fastavro.utils import generate_many
from msgspec import NODEFAULT, structs

from order_service.domain.messages import Event, OrderPaid, PayOrder
from order_service.errors import NotAvro
from order_service.wire.schemas import evolution
from order_service.wire.schemas.catalogue import MESSAGE_TYPES, SCHEMAS, load
from order_service.wire.schemas.files import faults, folder
from tests.support.later import give_id as release

PAID = "OrderPaid.v1.avsc"
NOTE = {"name": "note", "type": ["null", "string"], "default": None, "doc": "What the payer wrote."}
released = sorted(SCHEMAS.by_id.values(), key=lambda schema: schema.id)
pairs = [
    pytest.param(writer.plain, reader.plain, id=f"{writer.file} is read as {reader.file}")
    for writer, reader in product(released, released)
    if writer.message is reader.message
]


def test_the_released_files_are_as_they_were():
    assert faults(folder()) == []


@pytest.fixture
def copy(tmp_path):
    """Return a copy of `schemas/` to be spoilt."""
    return shutil.copytree(str(folder()), tmp_path / "schemas")


def write(place, avro):
    place.write_text(json.dumps(avro))


def paid(**changes):
    """Return the released schema of OrderPaid with other parts."""
    return SCHEMAS.of_file(PAID).avro | changes


def with_field(field, name="currency"):
    """Return it with another field in the place of one of its own."""
    return paid(fields=[field if one["name"] == name else one for one in paid()["fields"]])


def test_an_edit_of_a_released_file_is_seen(copy):
    (copy / PAID).write_text((copy / PAID).read_text().replace("An order was paid", "An order has been paid"))
    [line] = faults(copy)
    assert line.startswith(f"{PAID} was edited after its release")
    assert "undo the edit, and make it in a new file with the next version" in line


def test_a_new_version_needs_an_id_and_is_told_which(copy):
    write(copy / "OrderPaid.v2.avsc", paid(fields=[*paid()["fields"], NOTE]))
    [line] = faults(copy)
    assert line.startswith("OrderPaid.v2.avsc has no id: to release it as it is, add to ids.json")
    entry = json.loads("{" + line.partition("ids.json ")[2] + "}")
    assert list(entry) == [str(max(SCHEMAS.by_id) + 1)]
    release(copy, "OrderPaid.v2.avsc", next(iter(entry)))
    assert faults(copy) == []
    assert load(copy).newest[OrderPaid].version == 2


def test_what_was_released_stays_as_it_was_in_ids_json(copy):
    """An edit with its new digest, and an id given to a later version with another one for the first."""
    (copy / PAID).write_text((copy / PAID).read_text().replace("An order was paid", "An order has been paid"))
    listed = copy / "ids.json"
    before = listed.read_text()
    old, new = (sha256(place.read_bytes()).hexdigest() for place in (folder() / PAID, copy / PAID))
    listed.write_text(before.replace(old, new))
    assert faults(copy) == ["the first 14 lines of ids.json were changed after their release: restore them"]
    shutil.copy(str(folder() / PAID), copy / PAID)
    write(copy / "OrderPaid.v2.avsc", paid(fields=[*paid()["fields"], NOTE]))
    listed.write_text(before.replace(PAID, "OrderPaid.v2.avsc"))
    release(copy, PAID, max(SCHEMAS.by_id) + 1)
    assert "the first 14 lines of ids.json were changed after their release: restore them" in faults(copy)


@pytest.mark.parametrize(
    ("file", "text", "line"),
    [
        ("ids.json", "{", "ids.json must be an object of ids"),
        ("ids.json", "[1]", "ids.json must be an object of ids"),
        ("ids.json", '{"7": {"file": "x"}}', "ids.json must be an object of ids"),
        ("OrderPaid.avsc", "{}", "OrderPaid.avsc must be named <message>.v<version>.avsc"),
        ("OrderPaid.v2.avsc", "[]", "OrderPaid.v2.avsc must be the record"),
        ("OrderPaid.v2.avsc", "nonsense", "OrderPaid.v2.avsc must be the record"),
    ],
)
def test_what_cannot_be_read_is_a_line_as_well(copy, file, text, line):
    (copy / file).write_text(text)
    assert any(fault.startswith(line) for fault in faults(copy))


@pytest.mark.parametrize("schema_id", [min(SCHEMAS.by_id), max(SCHEMAS.by_id), max(SCHEMAS.by_id) + 2, 7])
def test_an_id_that_was_given_before_or_not_the_next_one_is_refused(copy, schema_id):
    write(copy / "OrderPaid.v2.avsc", paid(fields=[*paid()["fields"], NOTE]))
    release(copy, "OrderPaid.v2.avsc", schema_id)
    [line] = faults(copy)
    assert line.startswith(f"OrderPaid.v2.avsc has the id {schema_id}, expected {max(SCHEMAS.by_id) + 1}")


def test_a_file_with_two_ids_and_a_file_that_is_gone_are_seen(copy):
    release(copy, PAID, max(SCHEMAS.by_id) + 1)
    assert faults(copy) == [f"{PAID} has 2 ids: keep the first one"]
    (copy / PAID).unlink()
    assert f"{PAID} is missing: restore the released file" in faults(copy)


@pytest.mark.parametrize(
    ("file", "avro", "line"),
    [
        pytest.param("OrderPaid.v3.avsc", paid(), "v3.avsc follows v1: name it v2", id="a version left out"),
        pytest.param("OrderPaid.v2.avsc", paid(name="OrderLost"), "must be the record", id="another name"),
        pytest.param("OrderLost.v1.avsc", paid(name="OrderLost"), "must be the record", id="not one of our messages"),
        pytest.param(
            "OrderPaid.v2.avsc", paid(fields=[*paid()["fields"], NOTE | {"doc": ""}]), "describe in `doc`", id="no doc"
        ),
        pytest.param(
            "OrderPaid.v2.avsc",
            with_field({"name": "currency", "type": "int", "doc": "-"}),
            "`currency`",
            id="another type",
        ),
        pytest.param(
            "OrderPaid.v2.avsc",
            paid(fields=paid()["fields"][1:]),
            "must begin with the fields of every event",
            id="other fields first",
        ),
    ],
)
def test_what_else_is_wrong_with_a_new_file_is_said(copy, file, avro, line):
    write(copy / file, avro)
    release(copy, file, max(SCHEMAS.by_id) + 1)
    assert any(line in fault for fault in faults(copy))


def test_every_message_has_a_schema():
    assert set(SCHEMAS.newest) == set(MESSAGE_TYPES.values())


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


CHANGES = [
    pytest.param(with_field({"name": "currency", "type": "int"}), "`currency` differs from", id="another type"),
    pytest.param(with_field({"name": "money", "type": "string"}), "`currency` differs from", id="another name"),
    pytest.param(with_field({"name": "currency", "type": ["null", "string"]}), "differs from", id="an optional one"),
    pytest.param(
        with_field({"name": "currency", "type": "string", "default": "EUR"}), "differs from", id="another default"
    ),
    pytest.param(
        with_field({"name": "occurred_at", "type": {"type": "long", "logicalType": "timestamp-micros"}}, "occurred_at"),
        "`occurred_at` differs from",
        id="another unit",
    ),
    pytest.param(paid(fields=paid()["fields"][:-1]), "`currency` differs from", id="a field less"),
    pytest.param(paid(fields=[NOTE, *paid()["fields"]]), "`event_id` differs from", id="a field in front"),
    pytest.param(paid(fields=[*paid()["fields"], NOTE, NOTE]), "`note` appears twice", id="a field twice"),
    pytest.param(paid(fields=[*paid()["fields"], {"name": "n", "type": "string"}]), "must be optional", id="a duty"),
    pytest.param(
        paid(fields=[*paid()["fields"], {"name": "n", "type": "string", "default": ""}]),
        "must be optional",
        id="no null",
    ),
    pytest.param(
        paid(fields=[*paid()["fields"], {"name": "n", "type": ["null", "string"]}]), "must be optional", id="no default"
    ),
    pytest.param(
        paid(fields=[*paid()["fields"], {"name": "n", "type": ["null", "orders.v1.OrderPaid"], "default": None}]),
        "must be optional",
        id="a recursive one",
    ),
    *[
        pytest.param(
            paid(fields=[*paid()["fields"], {"name": "n", "type": ["null", type_], "default": None}]),
            "must be optional",
            id=f"an optional {name}",
        )
        for name, type_ in {
            "boolean": "boolean",
            "list": {"type": "array", "items": "string"},
            "map": {"type": "map", "values": "long"},
            "time": {"type": "long", "logicalType": "timestamp-millis"},
            "union": ["x", "string"],
            "nothing": "null",
        }.items()
    ],
    pytest.param(paid(name="OrderCharged"), "the record is orders.v1.OrderCharged", id="another record"),
]


@pytest.mark.parametrize(("later", "line"), CHANGES)
def test_a_later_version_adds_optional_fields_and_changes_nothing_else(later, line):
    assert any(line in fault for fault in evolution.faults(paid(), later))


@pytest.mark.parametrize("type_", ["string", "long"])
def test_an_optional_field_may_be_added(type_):
    later = paid(fields=[*paid()["fields"], {"name": "n", "type": ["null", type_], "default": None}])
    assert evolution.faults(paid(), later) == []
    _read_as(fastavro.parse_schema(paid()), fastavro.parse_schema(later))
    _read_as(fastavro.parse_schema(later), fastavro.parse_schema(paid()))


@pytest.mark.parametrize(
    "odd",
    [None, 7, [], {}, "string", {"type": "enum"}, {"type": "record", "name": "x", "fields": [1]}, {"type": paid()}],
)
def test_what_is_no_record_is_refused(odd):
    with pytest.raises(NotAvro):
        evolution.faults(paid(), odd)


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
