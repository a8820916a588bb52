"""Confluent's own deserializer reads what we write, with nothing but the schemas that a registry serves."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from confluent_kafka.schema_registry import SchemaRegistryClient
from confluent_kafka.schema_registry.avro import AvroDeserializer
from confluent_kafka.serialization import MessageField, SerializationContext
from msgspec import structs

from order_service.domain.messages import Event
from order_service.wire.schemas import SCHEMAS
from tests.wire.table import CASES

ROUTES = {f"/schemas/ids/{schema.id}": {"schema": schema.text} for schema in SCHEMAS.by_id.values()}
"""All that a reader needs of a registry; it also asks for associations of its topic and is content with 404."""


class Registry(BaseHTTPRequestHandler):
    """A registry that knows our schemas by their ids."""

    def do_GET(self):
        answer = ROUTES.get(self.path.partition("?")[0])
        body = json.dumps(answer or {"error_code": 404, "message": "not found"}).encode()
        self.send_response(404 if answer is None else 200)
        self.send_header("Content-Type", "application/vnd.schemaregistry.v1+json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format, *args):  # noqa: A002, the name is the standard library's
        """Say nothing."""


@pytest.fixture(scope="module")
def deserializer():
    with ThreadingHTTPServer(("127.0.0.1", 0), Registry) as server:
        serving = threading.Thread(target=server.serve_forever)
        serving.start()
        with SchemaRegistryClient({"url": f"http://127.0.0.1:{server.server_port}"}) as client:
            yield AvroDeserializer(client)
        server.shutdown()
        serving.join()


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
