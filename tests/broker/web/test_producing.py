"""Commands on their way into a Kafka that is away in part or as a whole: only who writes there hears of it."""

import asyncio
import contextlib

import pytest
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from order_service.errors import KafkaAwayError
from order_service.kafka.command_producer import CommandsTopic, _stop
from order_service.kafka.topics import topic_names
from order_service.settings import Settings
from order_service.wire.commands import partition_of
from chaos.cluster import Cluster
from tests.support.samples import but, create

COMMANDS = topic_names().commands
WITHIN_S = 2.0
PATIENCE_S = 60.0


@contextlib.contextmanager
def running(directory, nodes, partitions):
    """Run a cluster with a commands topic whose partitions have one replica each."""
    with Cluster(directory, nodes) as cluster:
        admin = AdminClient({"bootstrap.servers": cluster.bootstrap_servers})
        admin.create_topics([NewTopic(COMMANDS, partitions, 1)])[COMMANDS].result(PATIENCE_S)
        cluster.wait_all_in_sync([COMMANDS])
        yield cluster, admin


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


async def test_a_partition_without_a_leader_hinders_nobody_who_writes_to_another(tmp_path):
    with running(tmp_path, 3, 3) as (cluster, admin):
        leaders = {one.id: one.leader for one in admin.list_topics(COMMANDS).topics[COMMANDS].partitions.values()}
        assert len(set(leaders.values())) == 3
        lost, *others = (command_to(partition, 3) for partition in leaders)
        async with producing(cluster.bootstrap_servers) as topic:
            for command in (lost, *others):
                await topic.send(command, [])
            producer = topic._producer
            await asyncio.to_thread(cluster.kill, leaders[0])
            refused = asyncio.gather(*(refusals(topic, lost, 4 * WITHIN_S) for _ in range(5)))
            counts = await asyncio.gather(*(go_on(topic, command, refused) for command in others))
            await refused
            assert min(counts) > 10
            assert topic._producer is producer
            await asyncio.to_thread(cluster.start, leaders[0])
            await arrives(topic, lost)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """Run one node."""
    with running(tmp_path_factory.mktemp("alone"), 1, 2) as (cluster, _):
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
