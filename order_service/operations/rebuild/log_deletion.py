"""Deletes the records at the start of a changelog.

Kafka refuses that for a topic with `cleanup.policy=compact` (POLICY_VIOLATION). So the topic also gets the policy
`delete` for this moment, without a retention time: nothing else is deleted. A process that was killed in between
leaves that policy; the next rebuild sets it back. It cannot tell whether another one still deletes: that one then sets
the policy again.
"""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Final

from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.admin.records_to_delete import RecordsToDelete
from aiokafka.errors import PolicyViolationError, TopicAuthorizationFailedError, for_code
from aiokafka.structs import TopicPartition

from order_service.errors import KafkaAwayError, OperationRefused
from order_service.kafka.admin_requests import alter_topic
from order_service.kafka.connection import Admin, ask_admin
from order_service.kafka.topics import TopicNames
from order_service.settings import Settings

_DELETABLE: Final = {"cleanup.policy": "compact,delete", "retention.ms": "-1", "retention.bytes": "-1"}
_COMPACTED: Final = {"cleanup.policy": "compact", "retention.ms": None}
APPLIED_WITHIN_S: Final = 30.0
"""Time until every broker has a new setting."""
LOOK_EVERY_S: Final = 0.2


async def delete_before(settings: Settings, topic_partition: TopicPartition, offset: int) -> None:
    """Delete the records of a changelog before an offset. The topic is compacted only, before and after.

    Raises OperationRefused if a right is missing.
    """
    topic = topic_partition.topic
    with _granted(f"AlterConfigs and Delete on {topic}"):
        try:
            await ask_admin(settings, lambda admin: _delete(admin, topic_partition, offset))
        finally:
            await ask_admin(settings, lambda admin: _set_back(admin, topic))


async def _delete(admin: Admin, topic_partition: TopicPartition, offset: int) -> None:
    """Set the policy, and delete records. The leader refuses it until it has the policy, or if it was set back."""
    loop = asyncio.get_running_loop()
    give_up_at = loop.time() + APPLIED_WITHIN_S
    while True:
        await alter_topic(admin, topic_partition.topic, _DELETABLE)
        try:
            await admin.delete_records({topic_partition: RecordsToDelete(offset)})
        except PolicyViolationError as error:
            if loop.time() > give_up_at:
                raise KafkaAwayError(f"{topic_partition.topic} does not get its new settings: {error!r}") from error
        else:
            return
        await asyncio.sleep(LOOK_EVERY_S)


async def restore_policy(settings: Settings, names: TopicNames) -> list[str]:
    """Set the policy of the changelogs back if an interrupted deletion has left it. Return their names.

    Raises OperationRefused if a right is missing.
    """
    topics = [names.table, names.waiting]
    with _granted("DescribeConfigs on the changelogs"):
        changed = await ask_admin(settings, lambda admin: _deletable(admin, topics))
    for topic in changed:
        with _granted(f"AlterConfigs on {topic}"):
            await ask_admin(settings, partial(_set_back, topic=topic))
    return changed


async def _set_back(admin: Admin, topic: str) -> None:
    """Set the policy of a changelog back, and wait until a broker shows it: a worker that starts before is refused.

    Brokers get a new setting from the controller a moment after it is made.
    """
    await alter_topic(admin, topic, _COMPACTED)
    loop = asyncio.get_running_loop()
    give_up_at = loop.time() + APPLIED_WITHIN_S
    while await _deletable(admin, [topic]):
        if loop.time() > give_up_at:
            raise KafkaAwayError(
                f"{topic} does not get cleanup.policy=compact back: the broker still shows the old one"
            )
        await asyncio.sleep(LOOK_EVERY_S)


async def _deletable(admin: Admin, topics: list[str]) -> list[str]:
    """Return the topics that have the policy of an interrupted deletion."""
    changed = []
    for response in await admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, topic) for topic in topics]):
        for code, _, _, topic, entries in response.resources:
            if code:
                raise for_code(code)
            config: dict[str, Any] = {entry[0]: entry[1] for entry in entries}
            if config["retention.ms"] == "-1" and set(config["cleanup.policy"].split(",")) == {"compact", "delete"}:
                changed.append(topic)
    return changed


@contextmanager
def _granted(rights: str) -> Iterator[None]:
    """Raise OperationRefused with the needed rights if Kafka refuses a request of this block for a missing one."""
    try:
        yield
    except KafkaAwayError as error:
        if isinstance(error.__cause__, TopicAuthorizationFailedError):
            raise OperationRefused(f"{error}: grant this principal {rights}, and run this again") from error
        raise
