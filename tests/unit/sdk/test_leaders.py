"""A partition of a topic of outcomes without a leader: commands to other partitions work, and nothing is missed."""

import asyncio

import pytest
from aiokafka.structs import TopicPartition

from order_service.errors import LeaderAwayError
from order_service.kafka.topics import topic_names
from order_service.sdk import outcome_reader
from order_service.sdk.outcome_reader import OutcomeReader
from order_service.settings import Settings
from order_service.wire.commands import partition_of
from tests.support.samples import but, create

NAMES = topic_names()
PARTITIONS = 2
PLACES = [
    TopicPartition(topic, partition)
    for topic in (NAMES.events, NAMES.rejections, NAMES.dead_letters, NAMES.table, NAMES.waiting)
    for partition in range(PARTITIONS)
]
BY_PARTITION = {partition_of(f"order-{n}".encode(), PARTITIONS): f"order-{n}" for n in range(20)}
AWAY = TopicPartition(NAMES.rejections, 1)


class Played:
    """A `Reader` of partitions of which a test takes the leaders."""

    def __init__(self):
        self.without_leader = {AWAY}
        self.reading = set()

    async def leaderless(self, places):
        return [place for place in places if place in self.without_leader]

    async def ends(self, places):
        if missing := await self.leaderless(places):
            raise LeaderAwayError(missing)
        return dict.fromkeys(places, 5)

    def begin(self, starts):
        self.reading = set(starts)

    async def add(self, starts):
        assert starts
        self.reading |= set(starts)

    async def poll(self):
        await asyncio.sleep(0.005)
        return []

    async def follow_many(self, starts):
        self.begin(starts)
        while True:
            yield await self.poll()

    async def __aexit__(self, *_):
        pass


@pytest.fixture
async def followed(monkeypatch):
    made = OutcomeReader(Settings(), within_s=30.0)
    monkeypatch.setattr(made, "_reader", Played(), raising=False)
    made._partitions, made._partition_count = PLACES, PARTITIONS
    yield made
    await made.close()


def command_to(partition):
    return but(create, order_id=BY_PARTITION[partition])


async def test_a_command_to_a_partition_whose_outcomes_can_be_read_is_sent(followed):
    async with followed.awaiting(command_to(0)):
        assert followed._reader.reading == set(PLACES) - {AWAY}


async def test_a_command_whose_outcome_could_be_missed_is_not_sent_until_there_is_a_leader(followed, monkeypatch):
    monkeypatch.setattr(outcome_reader, "ADD_EVERY_S", 0.01, raising=False)
    async with followed.awaiting(command_to(0)) as other:
        with pytest.raises(LeaderAwayError, match=f"^partition 1 of {NAMES.rejections} has no leader$"):
            async with followed.awaiting(command_to(1)):
                pytest.fail("it is sent")
        followed._reader.without_leader.clear()
        async with asyncio.timeout(30):
            while AWAY not in followed._reader.reading:  # noqa: ASYNC110 - the reading is a task of its own
                await asyncio.sleep(0.005)
        async with followed.awaiting(command_to(1)):
            assert followed._reader.reading == set(PLACES)
        assert not other.outcome.done()
