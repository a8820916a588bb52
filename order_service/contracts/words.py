"""The sentences around the tables and lists of the catalogue and of the AsyncAPI document."""

from collections.abc import Iterable
from typing import Final

from order_service.contracts.meanings import causes
from order_service.contracts.source import Topic
from order_service.domain.messages import Rejection
from order_service.kafka.topics import DAY_MS, MIB, TopicNames
from order_service.wire.avro import MAX_COMMAND_BYTES, MAX_CONTENT_BYTES
from order_service.wire.schemas.catalogue import Message

TITLE: Final = "Events of the Order Service"
ABOUT: Final = "The messages that the service receives and sends through Kafka, and the guarantees for its clients."
VIEW: Final = (
    "Operations are described from the service's side: it receives commands and sends everything else. Clients do the "
    "reverse."
)
GENERATED: Final = (
    "This text and the AsyncAPI document are generated from the table of topics, the schemas and the rules of an order."
)
NAMES: Final = (
    "A topic name begins with `ORDERS_TOPIC_PREFIX`, which is empty by default. Each topic has {partitions} "
    "partitions, unless `ORDERS_PARTITIONS` sets another number. With three brokers or more it has three replicas, and "
    "a record is committed once two of them have it. The partition is chosen by the murmur2 hash of the key, as "
    "in Kafka's own producer; librdkafka needs `partitioner=murmur2_random`."
)
WIRE: Final = (
    "The key is the `order_id` in UTF-8. The value of an event or a rejection is Avro in the Confluent wire format. "
    "Byte 0 comes first, then the schema id in 4 bytes (big-endian), then the Avro body, and nothing after it. In the "
    "examples these first five bytes are the first line. The timestamp of a record is the broker's clock when it was "
    "appended (`LogAppendTime`), not the producer's. The time of the decision is in the value, as `occurred_at` or "
    "`rejected_at`."
)
LOOK_UP: Final = (
    "`schemas/ids.json` has the file of each id. The web process serves the schemas with the API of a schema registry, "
    "under `/schema-registry`, so deserializers for this format can read the topics. Its subjects are "
    "`<topic>-<record name>`, and for Kafka Connect's converters `<topic>-value` with all schemas of the topic. If the "
    "service runs with your own schema registry, records carry the ids from that registry. A released file is never "
    "edited: the `doc` of a field can have the bounds of its release, and the tables here have the current ones."
)
AS_JSON: Final = (
    "The JSON of an example shows its values as HTTP and the command line do. A time is RFC 3339, a digest is "
    "hexadecimal, and `type` is the name of the record. Only commands can be sent as JSON."
)
EVERY_EVENT: Final = (
    "Every event begins with these fields; its own are in its section. Money is in whole minor units (for EUR: cents) "
    "of the one currency of the order."
)
REFUSED: Final = (
    "A command was not accepted, because of the status of its order or for another reason; see `reason`. Values of "
    "`reason` and `status` may be added."
)
DEAD_LETTER: Final = (
    "A record of the commands topic that is not a command. Key and value are the original ones and may be null; the "
    "headers say why and where it came from."
)
UNREADABLE: Final = "The record cannot be decoded, or its key or partition is not that of its order."
DEAD_LETTER_GUARANTEE: Final = (
    "Each such record makes one dead letter, which is complete unless `dl_cut` or `dl_headers_dropped` says otherwise. "
    "It says nothing about any order."
)
COMMANDS: Final = (
    "Every producer that may write to the commands topic is trusted: `actor` is not authenticated. The value is Avro "
    "as above or one JSON object, and its first byte tells which: 0, or `{` after an optional byte order mark and "
    f"whitespace. It has at most {MAX_COMMAND_BYTES // MIB} MiB as JSON, and {MAX_CONTENT_BYTES // MIB} MiB as Avro or "
    "without the escapes and spaces of JSON. In JSON, `type` is the name of the command, times are RFC 3339, and "
    "fields that are null or at their default may be omitted. A field that is not listed here makes the record a dead "
    "letter. So does a `command_id`, an `order_id` or a `correlation_id` that is out of range or has a control "
    "character. Any other value out of range is refused as `invalid_order`, an `actor` as `not_allowed`. Send a "
    "command again with the same `command_id` and content until its outcome arrives. Every command has these fields; "
    "its own are in its section."
)
RULES: Final = (
    "Every command produces one event or one rejection. Which one depends on the status of its order. A command can "
    "also be refused for reasons that this table does not show, see [Rejection](#rejection)."
)


ACTIONS: Final = {
    "commands": "Accept commands from any producer, and decide each of them once.",
    "events": "Publish what happened to an order.",
    "rejections": "Publish why a command was refused.",
    "dead_letters": "Keep the records that are not commands.",
}
"""What the service does with each topic."""


def when(message: type[Message]) -> str:
    """Return the sentence that says when an event or a rejection occurs."""
    if message is Rejection:
        return REFUSED
    clauses = (
        f"`{command}` was accepted while the order was {one_of(statuses)}" for command, statuses in causes(message)
    )
    return f"{'; or '.join(clauses)}."


def one_of(names: Iterable[str]) -> str:
    """Join names as a sentence does: `a`, `b` or `c`."""
    *first, last = [f"`{name}`" for name in names]
    return f"{', '.join(first)} or {last}" if first else last


def title(topic: Topic) -> str:
    """Return the heading of a topic."""
    return topic.key.replace("_", " ").capitalize()


def retention(topic: Topic) -> str:
    """Return how long a topic keeps its records, in words."""
    retention_ms = int(topic.config["retention.ms"])
    return "forever" if retention_ms < 0 else f"{retention_ms // DAY_MS} days"


def largest_record(topic: Topic) -> str:
    """Return how large a record may be, in words."""
    return f"{int(topic.config['max.message.bytes']) // MIB} MiB"


def private(names: TopicNames) -> str:
    """Return which topics are part of no contract."""
    return (
        f"Three more topics belong to the service: its changelogs `{names.table}` and `{names.waiting}`, and "
        f"`{names.operations}`, which keeps what operators did. They are private and part of no contract: their format "
        "changes without notice."
    )
