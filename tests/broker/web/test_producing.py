"""Commands on their way into a Kafka that does not answer."""

import asyncio

import pytest

from chaos.cluster import Cluster
from order_service.kafka.command_producer import _stop
from tests.support.producing import (
    WITHIN_S,
    arrives,
    command_to,
    create_commands_topic,
    producing,
    refusals,
)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """Run one node."""
    with Cluster(tmp_path_factory.mktemp("alone")) as cluster:
        create_commands_topic(cluster, 2)
        yield cluster


async def test_while_kafka_gives_no_answer_producers_come_and_go_and_leave_nothing_behind(alone):
    first, second = (command_to(partition, 2) for partition in range(2))
    async with producing(alone.proxied_servers) as topic:
        await topic.send(first, [])
        producer = topic._producer
        alone.proxies[1].freeze(6 * WITHIN_S)
        await asyncio.gather(refusals(topic, first, 5 * WITHIN_S), refusals(topic, second, 4 * WITHIN_S))
        assert topic._producer is not producer
        await arrives(topic, first)
        await arrives(topic, second)


async def test_a_producer_that_does_not_end_in_time_is_broken_off(alone):
    async with producing(alone.proxied_servers) as topic:
        first, second = (command_to(partition, 2) for partition in range(2))
        await topic.send(first, [])
        alone.proxies[1].freeze(WITHIN_S)
        refused = asyncio.gather(*(refusals(topic, command, 0.1) for command in (first, second)))
        await asyncio.sleep(0.05)
        async with asyncio.timeout(WITHIN_S / 2):
            await _stop(topic._producer, 0.1)
        await refused
