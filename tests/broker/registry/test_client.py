"""Our client and a real registry: what it takes, what it refuses, and which of its schemas we read by."""

import json

import pytest
from confluent_kafka.schema_registry import Schema, SchemaRegistryClient

from order_service.domain.messages import Event, OrderPaid
from order_service.errors import DecodeError, SchemaError
from order_service.kafka.registry_client import (
    COMPATIBILITY,
    Ids,
    RegistryPolicy,
    SchemaRegistry,
    adopt,
    weak_levels,
)
from order_service.local.broker import free_port
from order_service.wire import avro
from order_service.wire.schemas.catalogue import SCHEMAS, load
from tests.broker.registry.foreign_schemas import LIST, ZEROS
from tests.support.samples import order_paid

PAID = SCHEMAS.of_file("OrderPaid.v1.avsc")
NOTE = {"name": "note", "type": ["null", "string"], "default": None}


@pytest.fixture(scope="module")
def foreign(apicurio):
    """Provide Confluent's own client of the same registry."""
    with SchemaRegistryClient({"url": apicurio.url}) as client:
        yield client


def changed(**changes):
    """Return the schema of OrderPaid with other fields."""
    return json.dumps(PAID.avro | changes)


async def test_all_schemas_are_registered_once_and_nothing_may_break_them(registry, foreign, names):
    first, second = load(), load()
    await adopt(registry, names.of, first)
    await adopt(registry, names.of, second)
    assert first.by_id.keys() == second.by_id.keys()
    for schema in load().released:
        subject, newest = schema.subject(names.of(schema.message)), first.newest[schema.message]
        assert foreign.get_versions(subject) == list(range(1, newest.version + 1))
        assert foreign.get_compatibility(subject) == COMPATIBILITY
        registered = foreign.lookup_schema(subject, Schema(schema.text, "AVRO"))
        assert registered.version == schema.version
        assert (newest.id == registered.schema_id) is (newest.version == schema.version)
        assert first.by_id[registered.schema_id].file == first.by_id[schema.id].file == schema.file


async def test_a_level_that_others_have_set_stays(registry, foreign, names):
    subject = PAID.subject(names.events)
    foreign.set_compatibility(subject, "BACKWARD")
    await adopt(registry, names.of, load())
    assert foreign.get_compatibility(subject) == "BACKWARD"
    assert await weak_levels(registry, names.of) == {subject: "BACKWARD"}


async def test_a_registry_that_must_not_be_written_to_is_read_once_the_schemas_are_there(apicurio, registry, names):
    subject = f"{names.events}-orders.v1.OrderCreated"
    async with SchemaRegistry(RegistryPolicy(urls=(apicurio.url,), registers=False)) as reading:
        with pytest.raises(SchemaError, match=rf"lacks OrderCreated.v1.avsc in the subject {subject}, and "):
            await adopt(reading, names.of, load())
        assert await registry.id_of(subject, SCHEMAS.of_file("OrderCreated.v1.avsc").text) is None
        assert await registry.own_compatibility(subject) is None
        written, read = load(), load()
        await adopt(registry, names.of, written)
        await adopt(reading, names.of, read)
        assert written.by_id.keys() == read.by_id.keys()


async def test_a_registry_answers_at_the_url_that_is_left(apicurio, registry, names):
    closed = f"http://127.0.0.1:{free_port()}"
    async with SchemaRegistry(RegistryPolicy(urls=(closed, apicurio.url))) as client:
        catalogue = load()
        await adopt(client, names.of, catalogue)
    assert await registry.id_of(PAID.subject(names.events), PAID.text) in catalogue.by_id


async def test_what_would_break_readers_is_refused_by_the_registry(registry, names):
    await adopt(registry, names.of, load())
    broken = changed(fields=[*PAID.avro["fields"][:-1], {"name": "currency", "type": "int"}])
    with pytest.raises(SchemaError, match=r"refuses POST /subjects/.*OrderPaid/versions: status 409 .*[Ii]ncompatible"):
        await registry.register(PAID.subject(names.events), broken)


async def test_what_is_no_schema_is_refused(registry, names):
    with pytest.raises(SchemaError, match="status 422"):
        await registry.register(PAID.subject(names.events), "{nonsense")


async def test_what_is_not_there_is_none(registry, names):
    subject = PAID.subject(names.events)
    assert await registry.id_of(subject, PAID.text) is None
    assert await registry.text_of(2_000_000_000) is None


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(PAID.text, id="as it was released"),
        pytest.param(json.dumps(PAID.avro, separators=(",", ":")), id="without spaces"),
        pytest.param(
            changed(doc="theirs", fields=[{"name": f["name"], "type": f["type"]} for f in PAID.avro["fields"]]),
            id="without docs and defaults",
        ),
        pytest.param(changed(fields=[*PAID.avro["fields"], NOTE]), id="a later version"),
    ],
)
async def test_an_id_of_a_schema_of_ours_is_looked_up_and_read(registry, foreign, names, text):
    catalogue = load()
    schema_id = foreign.register_schema(f"{names.events}-value", Schema(text, "AVRO"))
    await Ids(registry, catalogue).learn([None, b"", b"{}", b"\0" + schema_id.to_bytes(4, "big")])
    assert catalogue.by_id[schema_id].message is OrderPaid
    assert catalogue.newest[OrderPaid] is catalogue.by_id[PAID.id]


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(json.dumps(LIST), id="a recursive one"),
        pytest.param(json.dumps(ZEROS), id="one that a few bytes make huge"),
        pytest.param('"string"', id="no record"),
        pytest.param(changed(name="OrderLost"), id="of none of our messages"),
        pytest.param(PAID.text.replace("orders.v1", "theirs.v1"), id="of another namespace"),
        pytest.param(changed(fields=PAID.avro["fields"][:-1]), id="with a field less"),
        pytest.param(
            changed(fields=[*PAID.avro["fields"], NOTE | {"type": ["null", {"type": "array", "items": "null"}]}]),
            id="with more than a plain field more",
        ),
    ],
)
async def test_no_other_schema_is_ever_read_by(registry, foreign, names, text):
    catalogue = load()
    schema_id = foreign.register_schema(f"{names.events}-value", Schema(text, "AVRO"))
    ids = Ids(registry, catalogue)
    await ids.learn([b"\0" + schema_id.to_bytes(4, "big")])
    assert schema_id not in catalogue.by_id
    assert not ids._new([b"\0" + schema_id.to_bytes(4, "big")]), "it is not asked about again for a while"


def nested(depth):
    """Return something that is so deep."""
    return json.loads("[" * depth + "]" * depth)


@pytest.mark.parametrize(
    "hostile",
    [
        pytest.param({"x": nested(600)}, id="a deep property"),
        pytest.param({"aliases": 5}, id="odd aliases"),
        pytest.param(
            {"__fastavro_parsed": True, "__named_schemas": {"orders.v1.Digest": {"type": "array", "items": "null"}}},
            id="what fastavro believes to be its own",
        ),
    ],
)
def test_of_a_later_version_nothing_but_its_fields_is_used(hostile):
    catalogue = load()
    assert catalogue.learn(7, changed(fields=[*PAID.avro["fields"], NOTE], **hostile))
    assert catalogue.by_id[7].avro.keys() == PAID.avro.keys()
    assert [field["name"] for field in catalogue.by_id[7].avro["fields"]] == [
        *[field["name"] for field in PAID.avro["fields"]],
        "added_0",
    ]


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(
            json.dumps({"name": "OrderPaid", "type": PAID.avro | {"fields": [*PAID.avro["fields"], NOTE]}}),
            id="a record within",
        ),
        pytest.param(
            changed(fields=[*PAID.avro["fields"], NOTE | {"type": ["null", ["foo", "string"]]}]), id="an odd union"
        ),
        pytest.param(
            changed(fields=[*PAID.avro["fields"], NOTE | {"type": {"type": {"type": "string"}}}]), id="types of types"
        ),
        pytest.param("[" * 100_000, id="deep"),
        pytest.param(" " * 300_000, id="long"),
        pytest.param("null", id="nothing"),
    ],
)
def test_what_no_registry_should_give_is_none_of_ours(text):
    catalogue = load()
    assert not catalogue.learn(7, text)
    assert 7 not in catalogue.by_id


async def test_an_event_of_a_later_version_is_read_without_what_is_new(registry, foreign, names):
    text = changed(fields=[*PAID.avro["fields"], NOTE])
    schema_id = foreign.register_schema(f"{names.events}-value", Schema(text, "AVRO"))
    prefix = b"\0" + schema_id.to_bytes(4, "big")
    value = prefix + avro.encode_event(order_paid)[5:] + b"\2\4hi"
    with pytest.raises(DecodeError, match=f"the schema id {schema_id} is unknown"):
        avro.decode_event(value)
    await Ids(registry).learn([value])
    assert avro.decode_event(value) == order_paid
    assert isinstance(avro.decode_event(prefix + avro.encode_event(order_paid)[5:] + b"\0"), Event)
    with pytest.raises(DecodeError):
        avro.decode_event(value[:-1])


async def test_of_a_command_nothing_is_left_out(registry, foreign, names):
    pay = SCHEMAS.of_file("PayOrder.v1.avsc")
    catalogue = load()
    later = json.dumps(pay.avro | {"fields": [*pay.avro["fields"], NOTE]})
    schema_id = foreign.register_schema(f"{names.commands}-value", Schema(later, "AVRO"))
    await Ids(registry, catalogue).learn([b"\0" + schema_id.to_bytes(4, "big")])
    assert schema_id not in catalogue.by_id
