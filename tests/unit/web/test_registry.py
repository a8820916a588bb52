"""The schemas as a registry serves them: read by Confluent's own client, and path by path."""

import json

import pytest
from confluent_kafka.schema_registry import Schema, SchemaRegistryClient, topic_record_subject_name_strategy
from confluent_kafka.schema_registry.avro import AvroSerializer
from confluent_kafka.serialization import MessageField, SerializationContext
from msgspec import structs

from order_service.domain.messages import OrderPaid, Rejection
from order_service.errors import NotThere
from order_service.kafka.topics import topic_names
from order_service.web.docs.schema_registry import Registry
from order_service.wire.commands import decode_command
from order_service.wire.schemas.catalogue import SCHEMAS, Catalogue
from tests.support import samples
from tests.support.alone import server_alone
from tests.support.shop import Http

EVENTS = "orders.events.v1"
PAID = f"{EVENTS}-orders.v1.OrderPaid"
PAY = "orders.commands.v1-orders.v1.PayOrder"
REJECTION = "orders.rejections.v1-orders.v1.Rejection"
CONNECT = {
    "Content_Type": "application/vnd.schemaregistry.v1+json",
    "Confluent_Accept_Unknown_Properties": "true",
    "Confluent_Client_Version": "8.5.0",
    "Accept": "text/html, image/gif, image/jpeg, */*; q=0.2",
}
"""The headers of Confluent's client in Java. Source: its RestService, and HttpURLConnection."""


@pytest.fixture(scope="module")
def port(tmp_path_factory):
    with server_alone(tmp_path_factory.mktemp("alone")) as port:
        yield port


@pytest.fixture(scope="module")
def http(port):
    return Http(port)


@pytest.fixture(scope="module")
def client(port):
    with SchemaRegistryClient({"url": f"http://127.0.0.1:{port}/schema-registry"}) as client:
        yield client


def test_every_released_schema_is_there_under_its_topic_and_its_name(client):
    released = {schema.name for schema in SCHEMAS.by_id.values()}
    assert {subject.partition("-")[2] for subject in client.get_subjects()} == {*released, "value"}
    assert {PAID, PAY, REJECTION} <= set(client.get_subjects())
    for schema in SCHEMAS.by_id.values():
        by_record, by_topic = sorted(client.get_schema_versions(schema.id), key=lambda found: found.subject)
        assert by_record.version == schema.version
        for found in (by_record, by_topic):
            assert client.get_version(found.subject, found.version).schema_id == schema.id
        assert client.get_schema(schema.id).schema_str == schema.text
        assert set(client.get_subjects_by_schema_id(schema.id)) == {by_record.subject, by_topic.subject}
        assert client.get_compatibility(by_record.subject) == "FULL_TRANSITIVE"
    assert client.get_compatibility() == "FULL_TRANSITIVE"
    assert client.get_global_mode() == "READONLY"


@pytest.mark.parametrize("command", samples.commands, ids=lambda command: type(command).__name__)
def test_a_producer_writes_commands_by_the_newest_schema(client, command):
    serializer = AvroSerializer(
        client,
        conf={
            "auto.register.schemas": False,
            "use.latest.version": True,
            "subject.name.strategy": lambda context, _: topic_record_subject_name_strategy(
                context, f"orders.v1.{type(command).__name__}"
            ),
        },
    )
    fields = json.loads(json.dumps(structs.asdict(command), default=structs.asdict))
    context = SerializationContext("orders.commands.v1", MessageField.VALUE)
    assert decode_command(serializer(fields, context)) == command


@pytest.mark.parametrize(
    ("path", "told"),
    [
        (f"/subjects/{PAID}/versions/1/schema", "OrderPaid"),
        (f"/subjects/{PAID}/versions/latest/schema", "OrderPaid"),
        (f"/schemas/ids/{SCHEMAS.newest[OrderPaid].id}/schema", "OrderPaid"),
    ],
)
def test_a_schema_alone_is_the_file(http, path, told):
    answer = http.get(f"/schema-registry{path}")
    assert answer.headers["content-type"] == "application/vnd.schemaregistry.v1+json"
    assert answer.body["name"] == told
    assert answer.body == SCHEMAS.newest[OrderPaid].avro


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("/schemas/ids/1", 404, 40403),
        ("/schemas/ids/x", 404, 40403),
        ("/schemas/ids/99999999999999999999/schema", 404, 40403),
        ("/schemas/ids/%D9%A1/versions", 404, 40403),
        ("/subjects/nobody/versions", 404, 40401),
        ("/subjects/nobody/versions/1", 404, 40401),
        ("/config/nobody", 404, 40401),
        (f"/subjects/{PAID}/versions/2", 404, 40402),
        (f"/subjects/{PAID}/versions/0", 422, 42202),
        (f"/subjects/{PAID}/versions/first", 422, 42202),
        (f"/subjects/{PAID}/versions/-2", 422, 42202),
        ("/associations/resources/orders.events.v1", 404, 404),
    ],
)
def test_what_is_not_there_is_told_as_a_registry_tells_it(http, path, status, code):
    answer = http.get(f"/schema-registry{path}")
    assert (answer.status, answer.headers["content-type"]) == (status, "application/vnd.schemaregistry.v1+json")
    assert answer.body["error_code"] == code


def test_a_registry_is_here(http):
    assert http.get("/schema-registry/").body == {}


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
def test_nothing_can_be_changed(http, method):
    answer = http.ask(method, f"/schema-registry/subjects/{PAID}/versions", {"schema": "{}"})
    assert (answer.status, answer.body["error_code"]) == (405, 405)


def test_the_newest_version_is_the_latest_and_all_are_there():
    first = SCHEMAS.newest[OrderPaid]
    second = structs.replace(first, id=7, version=2)
    registry = Registry(topic_names(), Catalogue([second, first]))
    assert registry.versions({"subject": PAID}) == [1, 2]
    for wanted, schema_id in {"1": first.id, "2": 7, "latest": 7, "-1": 7}.items():
        assert registry.version({"subject": PAID, "version": wanted})["id"] == schema_id


def test_an_id_that_a_registry_gave_is_known_beside_the_released_one():
    released, subject = SCHEMAS.newest[OrderPaid], f"x.{PAID}"
    catalogue = Catalogue(list(SCHEMAS.by_id.values()))
    registry = Registry(topic_names("x."), catalogue)
    catalogue.adopt(released.file, 7)
    assert registry.version({"subject": subject, "version": "latest"})["id"] == 7
    of_topic = registry.lookup({"subject": f"x.{EVENTS}-value"}, released.text)
    assert of_topic["id"] == 7
    for schema_id in ("7", str(released.id)):
        assert registry.subject_versions({"id": schema_id}) == [
            {"subject": f"x.{EVENTS}-value", "version": of_topic["version"]},
            {"subject": subject, "version": 1},
        ]
    with pytest.raises(NotThere):
        registry.subject_versions({"id": "8"})


@pytest.mark.parametrize("schema", SCHEMAS.released, ids=lambda schema: schema.file)
def test_kafka_connect_s_avro_converter_finds_each_schema_under_the_value_of_its_topic(http, schema):
    """Replay the requests of Confluent's client for a record with this id, and what its tools ask next.

    Source: `schemaFromRegistry` and `schemaVersion` of AbstractKafkaAvroDeserializer, 8.5.
    """
    subject = f"{topic_names().of(schema.message)}-value"

    def ask(method, path, body=None):
        answer = http.ask(method, f"/schema-registry{path}", body, **CONNECT)
        assert answer.status == 200
        return answer.body

    by_id = ask("GET", f"/schemas/ids/{schema.id}?fetchMaxId=false&subject={subject}")
    canonical = json.dumps(json.loads(by_id["schema"]), separators=(",", ":"))
    found = ask("POST", f"/subjects/{subject}?normalize=false&deleted=true", {"schema": canonical})
    assert (found["subject"], found["id"]) == (subject, schema.id)
    version = found["version"]
    assert ask("GET", f"/subjects/{subject}/versions/{version}?deleted=true") == found
    versions = ask("GET", f"/subjects/{subject}/versions?deleted=false&deletedOnly=false")
    assert versions == list(range(1, len(versions) + 1))
    latest = ask("GET", f"/subjects/{subject}/versions/latest")
    assert (latest["subject"], latest["version"]) == (subject, versions[-1])
    assert subject in ask("GET", f"/schemas/ids/{schema.id}/subjects?deleted=false")
    assert {"subject": subject, "version": version} in ask("GET", f"/schemas/ids/{schema.id}/versions?deleted=false")
    level = ask("GET", f"/config/{subject}?defaultToGlobal=true")["compatibilityLevel"]
    assert level == ("FULL_TRANSITIVE" if schema.message is Rejection else "NONE"), "an event is no version of another"


@pytest.mark.parametrize("command", samples.commands, ids=lambda command: type(command).__name__)
def test_confluent_s_serializer_finds_the_id_of_a_command_under_the_value_of_its_topic(client, command):
    """Without a name strategy, as a source connector of Kafka Connect does."""
    schema = SCHEMAS.newest[type(command)]
    serializer = AvroSerializer(client, schema.text, conf={"auto.register.schemas": False})
    fields = json.loads(json.dumps(structs.asdict(command), default=structs.asdict))
    value = serializer(fields, SerializationContext("orders.commands.v1", MessageField.VALUE))
    assert value.startswith(schema.prefix)
    assert decode_command(value) == command


def test_the_versions_under_the_value_of_a_topic_count_its_schemas_by_id(client):
    for topic in (EVENTS, "orders.commands.v1", "orders.rejections.v1"):
        versions = [client.get_version(f"{topic}-value", number) for number in client.get_versions(f"{topic}-value")]
        ids = [version.schema_id for version in versions]
        assert ids == sorted(schema.id for schema in SCHEMAS.released if topic_names().of(schema.message) == topic)


@pytest.mark.parametrize(
    ("topic", "file", "code"),
    [
        (EVENTS, "PayOrder.v1.avsc", 40403),
        ("orders.commands.v1", "OrderPaid.v1.avsc", 40403),
        ("orders.table.v1", "OrderPaid.v1.avsc", 40401),
    ],
)
def test_a_schema_of_another_topic_is_not_found_under_the_value_of_a_topic(http, topic, file, code):
    body = {"schema": SCHEMAS.of_file(file).text}
    answer = http.ask("POST", f"/schema-registry/subjects/{topic}-value?normalize=false&deleted=true", body)
    assert (answer.status, answer.body["error_code"]) == (404, code)


def test_a_schema_is_found_by_its_text(client):
    released = SCHEMAS.of_file("OrderPaid.v1.avsc")
    bare = json.dumps(released.avro | {"doc": "theirs"}, separators=(",", ":"))
    for text in (released.text, bare):
        found = client.lookup_schema(PAID, Schema(text, "AVRO"))
        assert (found.schema_id, found.version, found.subject) == (released.id, 1, PAID)


@pytest.mark.parametrize(
    ("subject", "body", "code"),
    [
        (PAID, {"schema": SCHEMAS.of_file("OrderShipped.v1.avsc").text}, 40403),
        (PAID, {"schema": "no schema"}, 40403),
        (PAID, {"schema": "[" * 30_000}, 40403),
        (
            PAID,
            {"schema": json.dumps({"type": "record", "name": "x", "fields": [{"name": "next", "type": "x"}]})},
            40403,
        ),
        ("none", {"schema": "{}"}, 40401),
        (PAID, {"text": "{}"}, 42201),
        (PAID, "no json", 42201),
    ],
)
def test_what_is_none_of_ours_is_not_found(http, subject, body, code):
    answer = http.ask("POST", f"/schema-registry/subjects/{subject}", body)
    assert (answer.status, answer.body["error_code"]) == (code // 100, code)
