"""The AsyncAPI 3 document: servers, public channels, operations from the service's side, and every message."""

import json
from io import BytesIO
from typing import Any, Final

import fastavro

from order_service import __version__
from order_service.contracts import examples, headers, words
from order_service.contracts.examples import DeadLetter, Example
from order_service.contracts.meanings import GUARANTEES, NOTES, SENDERS
from order_service.contracts.shapes import shapes
from order_service.contracts.source import Source, Topic
from order_service.domain.messages import COMMAND_TYPES, FACT_TYPES, ID_JSON_PATTERN, Rejection
from order_service.settings import Settings
from order_service.wire.headers import CONTENT_TYPE
from order_service.wire.schemas.catalogue import Message

Node = dict[str, Any]

AVRO: Final = "application/vnd.apache.avro;version=1.9.0"
BINDING: Final = "0.5.0"
KEY: Final = {"type": "string", "pattern": ID_JSON_PATTERN, "description": "The `order_id`, in UTF-8."}
SECURITY: Final[Node] = {
    **{
        kind: {"type": kind, "description": "SASL, with name and password."}
        for kind in ("scramSha512", "scramSha256", "plain")
    },
    "X509": {"type": "X509", "description": "Mutual TLS, with a client certificate."},
}
GROUP: Final[str] = Settings.model_fields["app_id"].default


def document(source: Source) -> Node:
    """Return the document."""
    return {
        "asyncapi": "3.0.0",
        "id": "urn:order-service",
        "info": _info(source),
        "defaultContentType": CONTENT_TYPE,
        "servers": SERVERS,
        "channels": {_channel_name(topic): _channel(topic, source) for topic in source.topics()},
        "operations": {_operation_name(topic): _operation(topic) for topic in source.topics()},
        "components": {
            "messages": _messages(source),
            "schemas": shapes(source),
            "messageTraits": TRAITS,
            "correlationIds": CORRELATION,
            "securitySchemes": SECURITY,
        },
    }


def text(source: Source) -> str:
    """Return the document as stored text: one value a line for readable changes, ASCII only."""
    return json.dumps(document(source), indent=2) + "\n"


# Everything but the messages


def _info(source: Source) -> Node:
    names = words.NAMES.format(partitions=source.partitions)
    private = words.private(source.names)
    guarantees = "\n".join(f"* **{guarantee.name}.** {guarantee.text}" for guarantee in GUARANTEES)
    return {
        "title": "Order Service",
        "version": __version__,
        "description": f"{words.ABOUT} {words.VIEW}\n\n{names}\n\n{private}\n\n{guarantees}",
        "license": {"name": "MIT", "url": "https://spdx.org/licenses/MIT.html"},
        "tags": [{"name": "orders", "description": "The life cycle of an order: created to delivered or cancelled."}],
    }


def _ref(kind: str, name: str) -> Node:
    return {"$ref": f"#/components/{kind}/{name}"}


def _server(protocol: str, description: str, **more: Any) -> Node:
    return {
        "host": "{bootstrapServer}",
        "protocol": protocol,
        "description": description,
        "variables": {
            "bootstrapServer": {
                "default": "127.0.0.1:9092",
                "description": "One of the addresses in `KAFKA_BOOTSTRAP_SERVERS`.",
            }
        },
        **more,
        "bindings": {
            "kafka": {
                "schemaRegistryUrl": "http://127.0.0.1:8080/schema-registry",
                "schemaRegistryVendor": "confluent",
                "bindingVersion": BINDING,
            }
        },
    }


SERVERS: Final = {
    "plain": _server("kafka", "Kafka without encryption, as `order-service up` runs it on one machine."),
    "secured": _server(
        "kafka-secure",
        "Kafka with TLS, and with SASL or a client certificate, if `ORDERS_KAFKA_SECURITY_PROTOCOL` says so. SASL can "
        "also be OAUTHBEARER with access tokens, which AsyncAPI cannot describe.",
        security=[_ref("securitySchemes", kind) for kind in SECURITY],
    ),
}


def _channel(topic: Topic, source: Source) -> Node:
    return {
        "address": topic.name,
        "title": words.title(topic),
        "description": f"{topic.contents} Kept {words.retention(topic)}.",
        "messages": {name: _ref("messages", name) for name in _message_names(topic)},
        "bindings": {
            "kafka": {
                "topic": topic.name,
                "partitions": source.partitions,
                "topicConfiguration": {
                    "cleanup.policy": topic.config["cleanup.policy"].split(","),
                    "retention.ms": int(topic.config["retention.ms"]),
                    "retention.bytes": int(topic.config["retention.bytes"]),
                    "max.message.bytes": int(topic.config["max.message.bytes"]),
                },
                "bindingVersion": BINDING,
            }
        },
    }


def _operation(topic: Topic) -> Node:
    """Return the operation of the service on a channel."""
    channel = f"#/channels/{_channel_name(topic)}"
    group = {"groupId": {"type": "string", "default": GROUP, "description": "`ORDERS_APP_ID`."}}
    return {
        "action": topic.action,
        "channel": {"$ref": channel},
        "title": f"{topic.action.capitalize()} {words.title(topic).lower()}",
        "summary": words.ACTIONS[topic.key],
        "messages": [{"$ref": f"{channel}/messages/{name}"} for name in _message_names(topic)],
        "bindings": {"kafka": (group if topic.action == "receive" else {}) | {"bindingVersion": BINDING}},
    }


def _operation_name(topic: Topic) -> str:
    return topic.action + "".join(word.capitalize() for word in topic.key.split("_"))


def _channel_name(topic: Topic) -> str:
    name = _operation_name(topic).removeprefix(topic.action)
    return name[0].lower() + name[1:]


def _message_names(topic: Topic) -> list[str]:
    """Return the message names of a channel; each of the two formats of a command is a message."""
    names = [message.__name__ for message in topic.messages] or ["DeadLetter"]
    return [*names, *(f"{name}Json" for name in names if topic.action == "receive")]


# Messages


def _messages(source: Source) -> Node:
    messages = {message.__name__: _outcome(source, message) for message in (*FACT_TYPES, Rejection)}
    for command in COMMAND_TYPES:
        example = examples.command(command)
        messages |= {
            command.__name__: _avro_command(source, command, example),
            f"{command.__name__}Json": _json_command(source, command, example),
        }
    return messages | {"DeadLetter": _dead_letter(source)}


def _outcome(source: Source, message: type[Message]) -> Node:
    """Return the message of an event or a rejection."""
    avro = source.avro(message)
    example = examples.rejection() if message is Rejection else examples.events()[message]
    return {
        "name": message.__name__,
        "title": message.__name__,
        "summary": avro["doc"],
        "description": f"{NOTES[message].meaning}\n\n{words.when(message)}\n\n{NOTES[message].guarantee}",
        "contentType": CONTENT_TYPE,
        "traits": [_ref("messageTraits", "outcome")],
        "headers": {
            "type": "object",
            "properties": {"ce_type": {"type": "string", "const": source.schema(message).name}},
        },
        "payload": {"schemaFormat": AVRO, "schema": avro},
        "examples": [_example(example, values(example.value, source))],
        "x-wire": _wire(source, message, example),
    }


def _command(source: Source, command: type[Message]) -> Node:
    """Return what both formats of a command share."""
    return {
        "name": command.__name__,
        "summary": source.avro(command)["doc"],
        "description": f"Allowed actors: {SENDERS[command]}",
        "traits": [_ref("messageTraits", "command")],
    }


def _avro_command(source: Source, command: type[Message], example: Example) -> Node:
    return _command(source, command) | {
        "title": f"{command.__name__} as Avro",
        "contentType": CONTENT_TYPE,
        "bindings": {"kafka": AVRO_BINDING},
        "payload": {"schemaFormat": AVRO, "schema": source.avro(command)},
        "examples": [_example(example, values(example.value, source))],
        "x-wire": _wire(source, command, example),
    }


def _json_command(source: Source, command: type[Message], example: Example) -> Node:
    return _command(source, command) | {
        "title": f"{command.__name__} as JSON",
        "contentType": "application/json",
        "payload": _ref("schemas", command.__name__),
        "examples": [_example(example, example.json)],
    }


def _dead_letter(source: Source) -> Node:
    example = examples.dead_letter(source.names, source.partitions)
    any_key = KEY | {"type": ["string", "null"], "description": "The original key."}
    del any_key["pattern"]
    return {
        "name": "DeadLetter",
        "title": "Dead letter",
        "summary": words.DEAD_LETTER,
        "description": f"{words.UNREADABLE}\n\n{words.DEAD_LETTER_GUARANTEE}",
        "contentType": "application/octet-stream",
        "headers": headers.DEAD_LETTER,
        "payload": {"type": ["string", "null"], "description": "The original bytes, in any format."},
        "bindings": {"kafka": {"key": any_key, "bindingVersion": BINDING}},
        "examples": [_example(example, example.value.decode())],
    }


AVRO_BINDING: Final[Node] = {
    "key": KEY,
    "schemaIdLocation": "payload",
    "schemaIdPayloadEncoding": "confluent",
    "schemaLookupStrategy": "TopicRecordNameStrategy",
    "bindingVersion": BINDING,
}
CORRELATION: Final = {
    "correlation": {
        "description": "The id that the sender of a command set, copied to its outcome; null if it set none.",
        "location": "$message.payload#/correlation_id",
    }
}
TRAITS: Final = {
    "outcome": {
        "headers": headers.CLOUD_EVENT,
        "correlationId": _ref("correlationIds", "correlation"),
        "bindings": {"kafka": AVRO_BINDING},
    },
    "command": {
        "headers": headers.COMMAND,
        "correlationId": _ref("correlationIds", "correlation"),
        "bindings": {"kafka": {"key": KEY, "bindingVersion": BINDING}},
    },
}
"""The part that all events and rejections share, and the part that all commands share."""


# Values


def _example(example: Example | DeadLetter, payload: Any) -> Node:
    return {"summary": f"The key is {example.key}.", "headers": examples.texts(example.headers), "payload": payload}


def _wire(source: Source, message: type[Message], example: Example) -> Node:
    """Return the schemas of a message, and the bytes of its example in the topic."""
    versions = [
        {"version": schema.version, "schemaId": schema.id, "file": schema.file} for schema in source.versions(message)
    ]
    subject = source.schema(message).subject(source.names.of(message))
    return {"subject": subject, "versions": versions, "exampleHex": example.value.hex()}


def values(value: bytes, source: Source) -> Node:
    """Decode bytes to values as in Avro's JSON encoding: times are numbers, a digest is a string of 16 characters."""
    schema = source.schemas.by_id[int.from_bytes(value[1:5], "big")]
    record: Any = fastavro.schemaless_reader(BytesIO(value[len(schema.prefix) :]), schema.plain, None)
    return {name: field.decode("latin-1") if isinstance(field, bytes) else field for name, field in record.items()}
