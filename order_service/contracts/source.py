"""The one source of all contracts: the table of topics, the released schemas, the rules, and what no type can say."""

from typing import Final, Literal

from msgspec import Struct

from order_service.domain.messages import COMMAND_TYPES, FACT_TYPES, Rejection
from order_service.kafka.topics import TopicNames, topic_configs, topic_names
from order_service.settings import Settings
from order_service.wire.schemas.catalogue import SCHEMAS, Catalogue, Message, Schema

PARTITIONS: Final[int] = Settings.model_fields["partitions"].default
PRIVATE: Final = ("table", "waiting")
"""The changelogs: their form may change with every release, so they are no part of any contract."""


class Topic(Struct, frozen=True):
    """One public topic. `key` is its field in `TopicNames`; no `messages` means that its records are any bytes."""

    key: str
    name: str
    holds: str
    action: Literal["receive", "send"]
    messages: tuple[type[Message], ...]
    config: dict[str, str]


class Source(Struct, frozen=True):
    """What differs between two runs of this service, and between two releases."""

    names: TopicNames = topic_names()
    partitions: int = PARTITIONS
    schemas: Catalogue = SCHEMAS

    def topics(self) -> tuple[Topic, ...]:
        """Give the public topics."""
        return (
            self._topic("commands", "Wishes, from any producer.", "receive", COMMAND_TYPES),
            self._topic("events", "What happened: the source of truth.", "send", FACT_TYPES),
            self._topic("rejections", "Commands that were refused, and why.", "send", (Rejection,)),
            self._topic("dead_letters", "Records that are no command, whole, and why.", "send", ()),
        )

    def schema(self, message: type[Message]) -> Schema:
        """Give the newest schema of a message."""
        return self.versions(message)[0]

    def versions(self, message: type[Message]) -> list[Schema]:
        """Give all released schemas of a message, the newest first, whatever a registry has taught us since."""
        found = [schema for schema in self.schemas.released if schema.message is message]
        return sorted(found, key=lambda schema: schema.version, reverse=True)

    def _topic(
        self, key: str, holds: str, action: Literal["receive", "send"], messages: tuple[type[Message], ...]
    ) -> Topic:
        name = getattr(self.names, key)
        return Topic(key, name, holds, action, messages, topic_configs(self.names)[name])
