"""The one source of all contracts: the table of topics, the released schemas, the rules, and the meanings."""

from typing import Any, Final, Literal

from msgspec import Struct

from order_service.contracts.fields import with_current_bounds
from order_service.domain.messages import COMMAND_TYPES, FACT_TYPES, Rejection
from order_service.kafka.topics import TopicNames, topic_configs, topic_names
from order_service.settings import Settings
from order_service.wire.schemas.catalogue import SCHEMAS, Catalogue, Message, Schema

PARTITIONS: Final[int] = Settings.model_fields["partitions"].default
PRIVATE: Final = ("table", "waiting", "operations")
"""The topics whose format may change with every release, so they are part of no contract."""


class Topic(Struct, frozen=True):
    """One public topic. `key` is its field in `TopicNames`; without `messages` its records are arbitrary bytes."""

    key: str
    name: str
    contents: str
    action: Literal["receive", "send"]
    messages: tuple[type[Message], ...]
    config: dict[str, str]


class Source(Struct, frozen=True):
    """The values that differ between two runs of this service, and between two releases."""

    names: TopicNames = topic_names()
    partitions: int = PARTITIONS
    schemas: Catalogue = SCHEMAS

    def topics(self) -> tuple[Topic, ...]:
        """Return the public topics."""
        dead_letters = (
            "Records that cannot be decoded, or that have the wrong key or partition, with the reason. Their bytes are "
            "unmodified; very large ones are truncated."
        )
        return (
            self._topic("commands", "Commands, from any producer.", "receive", COMMAND_TYPES),
            self._topic("events", "What happened to orders: the source of truth.", "send", FACT_TYPES),
            self._topic("rejections", "Commands that were refused, and why.", "send", (Rejection,)),
            self._topic("dead_letters", dead_letters, "send", ()),
        )

    def schema(self, message: type[Message]) -> Schema:
        """Return the newest schema of a message."""
        return self.versions(message)[0]

    def avro(self, message: type[Message]) -> dict[str, Any]:
        """Return the newest schema of a message as it is shown: its docs have the current bounds of ids."""
        avro: dict[str, Any] = with_current_bounds(self.schema(message).avro)
        return avro

    def versions(self, message: type[Message]) -> list[Schema]:
        """Return all released schemas of a message, the newest first, without those that a registry has added."""
        released = [schema for schema in self.schemas.released if schema.message is message]
        return sorted(released, key=lambda schema: schema.version, reverse=True)

    def _topic(
        self, key: str, contents: str, action: Literal["receive", "send"], messages: tuple[type[Message], ...]
    ) -> Topic:
        name = getattr(self.names, key)
        return Topic(key, name, contents, action, messages, topic_configs(self.names)[name])
