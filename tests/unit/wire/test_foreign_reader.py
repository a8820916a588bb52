"""Confluent's own deserializer reads what we write, with nothing but the schemas that our HTTP server serves."""

import pytest
from confluent_kafka.schema_registry import SchemaRegistryClient
from confluent_kafka.schema_registry.avro import AvroDeserializer
from confluent_kafka.serialization import MessageField, SerializationContext
from msgspec import structs

from order_service.domain.messages import Event
from tests.support.alone import server_alone
from tests.unit.wire.table import CASES


@pytest.fixture(scope="module")
def deserializer(tmp_path_factory):
    with (
        server_alone(tmp_path_factory.mktemp("alone")) as port,
        SchemaRegistryClient({"url": f"http://127.0.0.1:{port}/schema-registry"}) as client,
    ):
        yield AvroDeserializer(client)


def plain(message):
    """Write a message as the flat dictionary that Avro makes of it."""
    fields = structs.asdict(message)
    if isinstance(message, Event):
        fields |= structs.asdict(fields.pop("fact"))
    if fields.get("lines") is not None:
        fields["lines"] = [structs.asdict(line) for line in fields["lines"]]
    return fields


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_confluent_s_deserializer_reads_our_bytes(case, deserializer):
    context = SerializationContext("orders.events.v1", MessageField.VALUE)
    assert deserializer(case.encode(case.message), context) == plain(case.message)
