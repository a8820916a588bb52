"""A partition of a topic of outcomes without a leader: commands to other partitions work, and nothing is missed."""

import asyncio
from random import Random

import pytest
from aiokafka.structs import TopicPartition

from order_service.errors import KafkaAwayError, LeaderAwayError
from order_service.wire.commands import partition_of
from tests.support.samples import but, create
from tests.unit.sdk.outcome_log import NAMES
from tests.unit.sdk.test_followed import World

PARTITIONS = 2
BY_PARTITION = {partition_of(f"order-{n}".encode(), PARTITIONS): f"order-{n}" for n in range(20)}
AWAY = TopicPartition(NAMES.rejections, 1)


@pytest.fixture
async def world():
    made = World(Random(1), PARTITIONS)
    made.log.without_leader.add(AWAY)
    await made.outcomes.open()
    yield made
    await made.outcomes.close()


def command_to(partition):
    return but(create, order_id=BY_PARTITION[partition])


async def test_a_command_to_a_partition_whose_outcomes_can_be_read_is_sent(world):
    await world.call(BY_PARTITION[0])


async def test_a_command_whose_outcome_could_be_missed_is_not_sent_until_there_is_a_leader(world):
    async with world.outcomes.awaiting(command_to(0)) as other:
        with pytest.raises(LeaderAwayError, match=f"^partition 1 of {NAMES.rejections} has no leader$"):
            async with world.outcomes.awaiting(command_to(1)):
                pytest.fail("it is sent")
        world.log.without_leader.clear()
        await world.call(BY_PARTITION[1])
        assert not other.outcome.done()


async def test_a_lookup_without_an_answer_delays_only_the_commands_of_its_partition(world, monkeypatch):
    ends = world.lookups.ends

    async def hang(partitions):
        if AWAY in partitions:
            await asyncio.Event().wait()
        return await ends(partitions)

    monkeypatch.setattr(world.lookups, "ends", hang)
    monkeypatch.setattr(world.outcomes, "_within_s", 0.05)
    waiting = asyncio.create_task(world.call(BY_PARTITION[1]))
    await world.call(BY_PARTITION[0])
    with pytest.raises(KafkaAwayError, match="does not answer in time"):
        await waiting


async def test_a_caller_whose_lookup_hangs_hears_that_the_client_closes(monkeypatch):
    world = World(Random(1), PARTITIONS)
    await world.outcomes.open()
    is_asked = asyncio.Event()

    async def hang(_):
        is_asked.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(world.lookups, "ends", hang)
    waiting = [asyncio.create_task(world.call(BY_PARTITION[1])) for _ in range(2)]
    await is_asked.wait()
    waiting.pop().cancel()
    await world.outcomes.close()
    with pytest.raises(KafkaAwayError, match="was stopped"):
        await waiting[0]
