"""AsyncAPI's own parser reads the document without a complaint, and what it reads is what the service does."""

import json
import shutil
import subprocess
from io import BytesIO
from pathlib import Path

import fastavro
import jsonschema_rs
import pytest

from order_service import __version__
from order_service.contracts.__main__ import ROOT
from order_service.contracts.source import PRIVATE
from order_service.domain.messages import COMMAND_TYPES, FACT_TYPES
from order_service.errors import DecodeError
from order_service.kafka.topics import DAY_MS, TopicNames, topic_configs, topic_names
from order_service.local.kafka import find_program
from order_service.wire.dead_letters import DeadLetterReason
from order_service.wire.headers import MAX_ORIGINAL_BYTES, dead_letter_headers, dead_letter_part
from tests.support.node_packages import link_packages

FOLDER = Path(__file__).parent
DOCUMENT = json.loads((ROOT / "asyncapi.json").read_text(encoding="utf-8"))
MESSAGES = DOCUMENT["components"]["messages"]
NAMES = topic_names()
ERROR, WARNING = 0, 1
pytestmark = pytest.mark.timeout(400)  # the first test fetches the parser


@pytest.fixture(scope="module")
def check(tmp_path_factory):
    """Return what reads a document with AsyncAPI's parser, fetched as its lock says."""
    place = tmp_path_factory.mktemp("parser")
    for name in ("package.json", "package-lock.json", "check.js"):
        shutil.copy(FOLDER / name, place)
    link_packages(place)

    def read(document):
        (place / "asyncapi.json").write_text(json.dumps(document))
        command = [find_program("node") or "node", "check.js", "asyncapi.json"]
        return json.loads(subprocess.run(command, cwd=place, check=True, capture_output=True, timeout=60).stdout)

    return read


@pytest.fixture(scope="module")
def as_read(check):
    return check(DOCUMENT)


def complaints(read):
    return [one for one in read["diagnostics"] if one["severity"] in {ERROR, WARNING}] + read["avroFaults"]


def test_the_parser_finds_no_error_and_nothing_to_warn_of(as_read):
    assert complaints(as_read) == []


def test_the_parser_would_say_so_if_there_were_any(check):
    operation = DOCUMENT["operations"]["sendEvents"]
    rejection = {"$ref": "#/channels/rejections/messages/Rejection"}
    assert complaints(check(DOCUMENT | {"operations": {"sendEvents": operation | {"messages": [rejection]}}}))

    schema = MESSAGES["OrderPaid"]["payload"]["schema"]
    unknown = schema | {"fields": [*schema["fields"], {"name": "more", "type": "unknown"}]}
    payload = MESSAGES["OrderPaid"]["payload"] | {"schema": unknown}
    messages = MESSAGES | {"OrderPaid": MESSAGES["OrderPaid"] | {"payload": payload}}
    assert complaints(check(DOCUMENT | {"components": DOCUMENT["components"] | {"messages": messages}}))


def test_the_operations_are_what_the_service_does(as_read):
    facts, commands = [fact.__name__ for fact in FACT_TYPES], [command.__name__ for command in COMMAND_TYPES]
    read = {one["id"]: (one["action"], one["address"], one["messages"]) for one in as_read["operations"]}
    assert read == {
        "receiveCommands": ("receive", NAMES.commands, [*commands, *(f"{name}Json" for name in commands)]),
        "sendEvents": ("send", NAMES.events, facts),
        "sendRejections": ("send", NAMES.rejections, ["Rejection"]),
        "sendDeadLetters": ("send", NAMES.dead_letters, ["DeadLetter"]),
    }


def test_every_message_has_an_example_whose_headers_and_json_are_as_it_says(as_read):
    assert {one["id"] for one in as_read["messages"]} == set(MESSAGES)
    for message in as_read["messages"]:
        [example] = message["examples"]
        assert faults(message["headers"], example["headers"]) == []
        if message["contentType"] == "application/json":
            assert faults(message["payload"], example["payload"]) == []


def test_what_the_service_sends_can_be_followed_and_is_keyed_by_its_order(as_read):
    for message in as_read["messages"]:
        if message["id"] == "DeadLetter":
            continue
        assert message["correlationId"] == "$message.payload#/correlation_id"
        assert faults(message["kafka"]["key"], "order-1") == []
        assert faults(message["kafka"]["key"], "no order") != []
        if message["contentType"] == "application/avro":
            assert (message["kafka"]["schemaIdLocation"], message["kafka"]["schemaIdPayloadEncoding"]) == (
                "payload",
                "confluent",
            )


@pytest.mark.parametrize("name", [name for name, message in MESSAGES.items() if "x-wire" in message])
def test_the_values_of_an_example_are_its_bytes(name):
    message = MESSAGES[name]
    assert message["payload"]["schemaFormat"] == "application/vnd.apache.avro;version=1.9.0"
    [example] = message["examples"]
    digests = {"command_digest", "previous_digest"}
    values = {
        field: value.encode("latin-1") if field in digests and value is not None else value
        for field, value in example["payload"].items()
    }
    body = BytesIO()
    fastavro.schemaless_writer(body, fastavro.parse_schema(message["payload"]["schema"]), values)
    data = bytes.fromhex(message["x-wire"]["exampleHex"])
    assert data[5:] == body.getvalue()
    assert int.from_bytes(data[:5], "big") == message["x-wire"]["versions"][0]["schemaId"]


def test_the_channels_are_the_public_topics_as_the_table_says_them():
    configs = topic_configs(NAMES)
    assert {channel["address"] for channel in DOCUMENT["channels"].values()} == {
        getattr(NAMES, field) for field in TopicNames.__struct_fields__ if field not in PRIVATE
    }
    for channel in DOCUMENT["channels"].values():
        kafka, config = channel["bindings"]["kafka"], configs[channel["address"]]
        assert (kafka["topic"], kafka["partitions"]) == (channel["address"], 12)
        assert kafka["topicConfiguration"] == {
            "cleanup.policy": [config["cleanup.policy"]],
            "retention.ms": int(config["retention.ms"]),
            "retention.bytes": -1,
            "max.message.bytes": int(config["max.message.bytes"]),
        }
    assert DOCUMENT["channels"]["events"]["bindings"]["kafka"]["topicConfiguration"]["retention.ms"] == -1
    assert DOCUMENT["channels"]["commands"]["bindings"]["kafka"]["topicConfiguration"]["retention.ms"] == 7 * DAY_MS


def test_the_document_has_the_version_of_the_package_and_names_what_it_leaves_out():
    assert DOCUMENT["info"]["version"] == __version__
    for field in PRIVATE:
        assert f"`{getattr(NAMES, field)}`" in DOCUMENT["info"]["description"]


def test_every_header_that_a_dead_letter_can_have_is_in_its_schema():
    long = [("long", b"x" * MAX_ORIGINAL_BYTES), ("short", b"x")]
    error = DecodeError(DeadLetterReason.TOO_LARGE, "too large")
    made = dead_letter_headers(error, NAMES.commands, 0, 0, 0, [("a", None), *long]) + dead_letter_part(b"xy", 1)[1]
    schema = MESSAGES["DeadLetter"]["headers"] | {"additionalProperties": False}
    assert {"dl_headers_dropped", "dl_cut", "orig_a"} <= dict(made).keys()
    assert faults(schema, {name: value.decode() for name, value in made}) == []


def faults(schema, value):
    return [str(error) for error in jsonschema_rs.Draft7Validator(schema, validate_formats=True).iter_errors(value)]
