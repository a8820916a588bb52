"""The sentences that stand around the tables and lists of the catalogue and of the AsyncAPI document."""

from collections.abc import Iterable
from typing import Final

from order_service.contracts.meanings import causes
from order_service.contracts.source import Topic
from order_service.domain.messages import Rejection
from order_service.kafka.topics import DAY_MS, MIB
from order_service.wire.avro import MAX_COMMAND_BYTES
from order_service.wire.schemas.catalogue import Message

TITLE: Final = "Events of the Order Service"
ABOUT: Final = "What the service says in Kafka, what others may say to it, and what they may rely on."
VIEW: Final = "Operations are the service's own: it receives commands and sends all else; its users do the reverse."
MADE: Final = (
    "This text is made from the table of topics, the schemas and the rules of an order, as the AsyncAPI document is."
)
NAMES: Final = (
    "A name begins with `ORDERS_TOPIC_PREFIX`, which is empty by default. Each topic has {partitions} partitions, "
    "unless `ORDERS_PARTITIONS` says otherwise, and three replicas where there are three brokers, of which two must "
    "have a record before it counts. The partition comes from the key by murmur2, as with Kafka's own producer; "
    "librdkafka needs `partitioner=murmur2_random`."
)
PRIVATE: Final = (
    "Two more topics, `{table}` and `{waiting}`, are the service's own changelogs. They are private and in no "
    "contract: their form changes without notice."
)
WIRE: Final = (
    "The key is the `order_id` in UTF-8. The value of an event or a rejection is Avro in the Confluent wire format: "
    "byte 0, then the id of the schema in 4 bytes, big-endian, then the Avro body, and nothing behind it. In the "
    "examples these first five bytes are the first line. The timestamp of a record is the broker's clock when it was "
    "appended (`LogAppendTime`), whatever its producer said; when something was decided is in the value, as "
    "`occurred_at` or `rejected_at`."
)
LOOK_UP: Final = (
    "`schemas/ids.json` names the file of each id. The web process serves the schemas as a schema registry does, "
    "under `/schema-registry`, so every deserializer for this format can read our topics. Where the service runs "
    "with a schema registry of your own, records carry the ids that it gave."
)
AS_JSON: Final = (
    "The JSON of an example is how HTTP and the command line show the same values: a time is RFC 3339, a digest is "
    "hexadecimal, and `type` is the name of the record. Only commands can be sent as JSON."
)
EVERY_EVENT: Final = (
    "Every event begins with these fields; its own follow in its section. Money is in whole minor units (of EUR: "
    "cents) of the one currency of the order."
)
REFUSED: Final = (
    "A command was not accepted, because of where its order stood or for another reason: `reason` names it. Values "
    "of `reason` and `status` may be added."
)
DEAD_LETTER: Final = (
    "A record of the commands topic is no command. Key and value are the record's own, whatever they were, and may "
    "be null; the headers say why it is here and where it came from."
)
UNREADABLE: Final = "The record cannot be decoded, or it has not the key or the partition of its order."
DEAD_LETTER_RELIES: Final = (
    "It comes once for each such record, and the record is whole unless `dl_cut` or `dl_headers_dropped` says "
    "otherwise. It says nothing of any order."
)
COMMANDS: Final = (
    "Whoever may write to the topic of commands is trusted: `actor` is believed. The value is Avro as above or one "
    f"JSON object, as its first byte tells, 0 or `{{`, and of at most {MAX_COMMAND_BYTES // 1024} KiB. In JSON, "
    "`type` names the command, times are RFC 3339, and what is null or at its default may be left out. A field that "
    "is not listed here makes the record a dead letter, and so does a `command_id`, an `order_id` or a "
    "`correlation_id` out of range, or with a control character; any other value out of range is refused as "
    "`invalid_order`, an `actor` as `not_allowed`. Send a command again with the same "
    "`command_id` and content until its outcome is there. What its table does not say can be a reason too, see "
    "[Rejection](#rejection). Every command has these fields; its own follow."
)


ACTIONS: Final = {
    "commands": "Take what any producer wants of an order, and decide it once.",
    "events": "Say what happened to an order.",
    "rejections": "Say why a command was refused.",
    "dead_letters": "Keep what is no command.",
}
"""What the service does with each topic."""


def when(message: type[Message]) -> str:
    """Say when an event or a rejection comes."""
    if message is Rejection:
        return REFUSED
    said = (f"`{command}` was accepted, and the order was {one_of(statuses)}" for command, statuses in causes(message))
    return f"{'; or '.join(said)} before."


def one_of(names: Iterable[str]) -> str:
    """Join names as a sentence does: `a`, `b` or `c`."""
    *first, last = [f"`{name}`" for name in names]
    return f"{', '.join(first)} or {last}" if first else last


def title(topic: Topic) -> str:
    """Name a topic as a heading does."""
    return topic.key.replace("_", " ").capitalize()


def kept(topic: Topic) -> str:
    """Say how long a topic keeps its records."""
    retention_ms = int(topic.config["retention.ms"])
    return "for ever" if retention_ms < 0 else f"{retention_ms // DAY_MS} days"


def size(topic: Topic) -> str:
    """Say how large a record may be."""
    return f"{int(topic.config['max.message.bytes']) // MIB} MiB"


def role(topic: Topic) -> str:
    """Say what the service does with a topic."""
    return f"{topic.action}s"
