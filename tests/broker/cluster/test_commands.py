"""Commands to a cluster while one partition has no leader."""

import asyncio

from tests.support.producing import (
    COMMANDS,
    WITHIN_S,
    arrives,
    command_to,
    create_commands_topic,
    go_on,
    producing,
    refusals,
)


async def test_a_partition_without_a_leader_hinders_nobody_who_writes_to_another(cluster):
    admin = create_commands_topic(cluster, 3)
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
