"""Commands that are sent to a Kafka of which a part or all is unavailable."""

import asyncio
import contextlib

import pytest
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from order_service.errors import KafkaAwayError
from order_service.kafka.command_producer import CommandsTopic
from order_service.kafka.topics import topic_names
from order_service.settings import Settings
from order_service.wire.commands import partition_of
from tests.support.samples import but, create

COMMANDS = topic_names().commands
WITHIN_S = 2.0
PATIENCE_S = 60.0


def create_commands_topic(cluster, partitions):
    """Create a commands topic whose partitions have one replica each; returns an admin client."""
    admin = AdminClient({"bootstrap.servers": cluster.bootstrap_servers, "log_level": 0})
    admin.create_topics([NewTopic(COMMANDS, partitions, 1)])[COMMANDS].result(PATIENCE_S)
    cluster.wait_all_in_sync([COMMANDS])
    return admin


@contextlib.asynccontextmanager
async def producing(servers):
    """Make the topic as the process does, but impatient; at its end nothing of it is left."""
    before = asyncio.all_tasks()
    topic = CommandsTopic(Settings(kafka_bootstrap_servers=servers), WITHIN_S)
    try:
        yield topic
    finally:
        await topic.stop()
        await asyncio.sleep(0)
        assert asyncio.all_tasks() <= before


def command_to(partition, of):
    """Make a command whose order lies in this partition."""
    ids = (f"order-{number}" for number in range(1000))
    return but(create, order_id=next(one for one in ids if partition_of(one.encode(), of) == partition))


async def arrives(topic, command):
    """Send a command again until it arrives."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            with contextlib.suppress(KafkaAwayError):
                return await topic.send(command, [])
            await asyncio.sleep(0.1)


async def go_on(topic, command, until):
    """Send a command again and again, and count; raises what the first raises that does not arrive."""
    count = 0
    while not until.done():
        await topic.send(command, [])
        count += 1
        await asyncio.sleep(0.02)
    return count


async def refusals(topic, command, for_s):
    """Send a command again and again; none arrives."""
    end = asyncio.get_running_loop().time() + for_s
    while asyncio.get_running_loop().time() < end:
        with pytest.raises(KafkaAwayError):
            await topic.send(command, [])
        await asyncio.sleep(0.1)
