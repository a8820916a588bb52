"""The topics: one table says what they are; `create` makes them so, `check` refuses to run on others."""

import asyncio
from typing import Any, Final

import structlog
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import NodeNotReadyError, TopicAlreadyExistsError, for_code
from msgspec import Struct

from order_service.domain.messages import COMMAND_TYPES, Rejection
from order_service.errors import KafkaAwayError, TopicsError
from order_service.settings import Settings
from order_service.wire.schemas import Message

log = structlog.get_logger()

MIB: Final = 1024 * 1024
DAY_MS: Final = 24 * 3600 * 1000
_DELETE: Final = {"cleanup.policy": "delete"}
_CHANGELOG: Final = {
    "cleanup.policy": "compact",
    "segment.bytes": str(64 * MIB),
    "segment.ms": "3600000",
    "max.compaction.lag.ms": "3600000",
    "min.cleanable.dirty.ratio": "0.2",
    "max.message.bytes": str(4 * MIB),
}
_COMPARED: Final = ("cleanup.policy", "max.message.bytes", "retention.ms")


class TopicNames(Struct, frozen=True):
    """The names of our topics under one prefix."""

    commands: str
    events: str
    rejections: str
    dead_letters: str
    table: str
    waiting: str

    def of(self, message: type[Message]) -> str:
        """Name the topic that carries a message."""
        if message in COMMAND_TYPES:
            return self.commands
        return self.rejections if message is Rejection else self.events


def topic_names(prefix: str = "") -> TopicNames:
    """Name the topics; `prefix` keeps services (and tests) apart on one Kafka."""
    return TopicNames(
        commands=f"{prefix}orders.commands.v1",
        events=f"{prefix}orders.events.v1",
        rejections=f"{prefix}orders.rejections.v1",
        dead_letters=f"{prefix}orders.dead-letters.v1",
        table=f"{prefix}orders.table.v1",
        waiting=f"{prefix}orders.waiting.v1",
    )


def topic_configs(names: TopicNames) -> dict[str, dict[str, str]]:
    """Say how each topic must be configured."""
    return {
        names.commands: _DELETE | {"retention.ms": str(7 * DAY_MS), "max.message.bytes": str(MIB)},
        names.events: _DELETE | {"retention.ms": "-1", "max.message.bytes": str(4 * MIB)},
        names.rejections: _DELETE | {"retention.ms": str(30 * DAY_MS), "max.message.bytes": str(4 * MIB)},
        names.dead_letters: _DELETE | {"retention.ms": str(30 * DAY_MS), "max.message.bytes": str(4 * MIB)},
        names.table: dict(_CHANGELOG),
        names.waiting: dict(_CHANGELOG),
    }


async def create_topics(admin: AIOKafkaAdminClient, settings: Settings) -> list[str]:
    """Create the topics that are missing and give their names; replicated three times where there are three brokers."""
    configs = topic_configs(topic_names(settings.topic_prefix))
    missing = sorted(configs.keys() - set(await admin.list_topics()))
    brokers = len((await admin.describe_cluster())["brokers"])
    replicated = {"min.insync.replicas": "2"} if brokers >= 3 else {}
    topics = [
        NewTopic(
            name=name,
            num_partitions=settings.partitions,
            replication_factor=3 if brokers >= 3 else 1,
            topic_configs=configs[name] | replicated,
        )
        for name in missing
    ]
    if topics:
        response = await _created(admin, topics)
        for name, code, message in response.topic_errors:
            if code and for_code(code) is not TopicAlreadyExistsError:
                raise TopicsError(f"cannot create the topic {name}: {for_code(code).__name__}: {message}")
        await _until_led(admin, missing)
    return missing


async def check_topics(admin: AIOKafkaAdminClient, settings: Settings) -> None:
    """Compare the topics with the table; TopicsError names every difference."""
    faults = await topic_faults(admin, settings)
    if faults:
        raise TopicsError("; ".join(faults))


async def topic_faults(admin: AIOKafkaAdminClient, settings: Settings) -> list[str]:
    """List how the topics differ from the table: missing, another partition count, another configuration."""
    configs = topic_configs(topic_names(settings.topic_prefix))
    existing = set(await admin.list_topics())
    faults = [f"the topic {name} is missing: run `order-service topics create`" for name in configs.keys() - existing]
    present = sorted(configs.keys() & existing)
    if not present:
        return sorted(faults)
    for topic in await admin.describe_topics(present):
        _raise_for(topic["error_code"])
        count = len(topic["partitions"])
        if count != settings.partitions:
            faults.append(
                f"the topic {topic['topic']} has {count} partitions, ORDERS_PARTITIONS says {settings.partitions}"
            )
    actual = await _actual_configs(admin, present)
    faults += [
        f"the topic {name} has {key}={actual[name].get(key)}, expected {configs[name][key]}"
        for name in present
        for key in _COMPARED
        if key in configs[name] and actual[name].get(key) != configs[name][key]
    ]
    return sorted(faults)


async def _actual_configs(admin: AIOKafkaAdminClient, names: list[str]) -> dict[str, dict[str, str]]:
    resources = [ConfigResource(ConfigResourceType.TOPIC, name) for name in names]
    actual: dict[str, dict[str, str]] = {}
    for response in await admin.describe_configs(resources):
        for code, _message, _kind, name, entries in response.resources:
            _raise_for(code)
            actual[name] = {entry[0]: entry[1] for entry in entries}
    return actual


async def _created(admin: AIOKafkaAdminClient, topics: list[NewTopic]) -> Any:
    try:
        return await admin.create_topics(topics)
    except AttributeError as error:  # aiokafka takes it for granted that a cluster has a controller
        raise NodeNotReadyError("the cluster has no controller now") from error


def _raise_for(code: int) -> None:
    """Raise the KafkaError of an answer about one topic, which aiokafka hands on as a number."""
    if code:
        raise for_code(code)


async def _until_led(admin: AIOKafkaAdminClient, names: list[str], *, tries: int = 100) -> None:
    """Wait until every partition of new topics has a leader: before that, clients see them come and go."""
    for _ in range(tries):
        described = await admin.describe_topics(names)
        if all(topic["error_code"] == 0 and _is_led(topic["partitions"]) for topic in described):
            return
        await asyncio.sleep(0.1)
    raise KafkaAwayError(f"new topics have no leaders after {tries / 10:.0f} s: {', '.join(names)}")


def _is_led(partitions: list[dict[str, int]]) -> bool:
    return bool(partitions) and all(partition["leader"] >= 0 for partition in partitions)
