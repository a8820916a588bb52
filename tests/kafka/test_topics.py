"""The topics are as the table of topics says, or the worker does not run and says what is wrong."""

import asyncio

import pytest
from confluent_kafka.admin import (  # type: ignore[attr-defined]
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    NewPartitions,
    ResourceType,
)

from order_service.errors import TopicsError
from order_service.kafka import ask_admin
from order_service.stream.topics import check_topics, create_topics
from tests.service import until

MIB = 1024 * 1024
DAY_MS = 24 * 3600 * 1000
CHANGELOG = {
    "cleanup.policy": "compact",
    "segment.bytes": str(64 * MIB),
    "segment.ms": "3600000",
    "max.compaction.lag.ms": "3600000",
    "max.message.bytes": str(4 * MIB),
}
TABLE = {
    "commands": {"cleanup.policy": "delete", "retention.ms": str(7 * DAY_MS), "max.message.bytes": str(MIB)},
    "events": {"cleanup.policy": "delete", "retention.ms": "-1", "max.message.bytes": str(4 * MIB)},
    "rejections": {"cleanup.policy": "delete", "retention.ms": str(30 * DAY_MS), "max.message.bytes": str(4 * MIB)},
    "dead_letters": {"cleanup.policy": "delete", "retention.ms": str(30 * DAY_MS), "max.message.bytes": str(4 * MIB)},
    "table": CHANGELOG,
    "waiting": CHANGELOG,
}
"""DESIGN, section 2."""


async def with_admin(service, work):
    return await ask_admin(service.settings(), lambda admin: work(admin, service.settings()))


def faults(service):
    """Give what `check_topics` says against the topics."""
    with pytest.raises(TopicsError) as raised:
        asyncio.run(with_admin(service, check_topics))
    return str(raised.value).split("; ")


def set_config(service, topic, key, value):
    entry = ConfigEntry(key, value, incremental_operation=AlterConfigOpType.SET)
    resource = ConfigResource(ResourceType.TOPIC, topic, incremental_configs=[entry])
    for future in service.kafka.incremental_alter_configs([resource]).values():
        future.result(30)


def delete(service, *topics):
    """Delete topics, and wait until the broker's metadata is without them."""
    for future in service.kafka.delete_topics(list(topics)).values():
        future.result(30)
    until(lambda: not set(topics) & service.kafka.list_topics(timeout=30).topics.keys(), "topics are deleted")


def test_topics_are_created_once_and_as_the_table_says(service):
    asyncio.run(with_admin(service, check_topics))
    assert asyncio.run(with_admin(service, create_topics)) == []
    resources = {ConfigResource(ResourceType.TOPIC, getattr(service.names, field)): field for field in TABLE}
    for resource, future in service.kafka.describe_configs(list(resources)).items():
        expected = TABLE[resources[resource]]
        actual = future.result(30)
        assert {key: actual[key].value for key in expected} == expected
    described = service.kafka.list_topics(timeout=30).topics
    assert {len(described[getattr(service.names, field)].partitions) for field in TABLE} == {4}


def test_a_worker_refuses_topics_that_are_not_as_they_should_be(service):
    names = service.names
    set_config(service, names.events, "cleanup.policy", "compact")
    set_config(service, names.table, "max.message.bytes", "1048576")
    set_config(service, names.commands, "retention.ms", "1000")
    service.kafka.create_partitions([NewPartitions(names.rejections, 5)])[names.rejections].result(30)
    until(lambda: len(service.kafka.list_topics(timeout=30).topics[names.rejections].partitions) == 5, "5 partitions")
    delete(service, names.waiting)
    expected = [
        f"the topic {names.commands} has retention.ms=1000, expected {7 * DAY_MS}",
        f"the topic {names.events} has cleanup.policy=compact, expected delete",
        f"the topic {names.rejections} has 5 partitions, ORDERS_PARTITIONS says 4",
        f"the topic {names.table} has max.message.bytes=1048576, expected {4 * MIB}",
        f"the topic {names.waiting} is missing: run `order-service topics create`",
    ]
    assert faults(service) == expected
    worker = service.start_worker()
    assert worker.wait_ended(within_s=20) == 13
    [line] = worker.lines("This worker ends.")
    assert (line["exit_code"], line["reason"]) == (13, "; ".join(expected))
    assert "Traceback" not in worker.log()
    assert len(worker.log().splitlines()) == 1


def test_missing_topics_are_created_again_and_others_left_alone(service):
    names = service.names
    set_config(service, names.commands, "retention.ms", "1000")
    delete(service, names.waiting, names.table)
    assert asyncio.run(with_admin(service, create_topics)) == sorted([names.waiting, names.table])
    assert faults(service) == [f"the topic {names.commands} has retention.ms=1000, expected {7 * DAY_MS}"]
