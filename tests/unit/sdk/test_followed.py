"""Which partitions a caller reads: those of its awaited commands, and no outcome is missed, whatever happens when."""

import asyncio
from itertools import count
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from order_service.errors import RegistryAwayError
from order_service.sdk import followed_partitions
from order_service.sdk.outcome_reader import OutcomeReader
from order_service.sdk.outcomes import Accepted
from order_service.settings import Settings
from order_service.wire.commands import partition_of
from tests.support.samples import but, pay
from tests.unit.sdk.outcome_log import NAMES, TOPICS, Log, LogReader

PARTITIONS = 4
ORDER_IDS = [f"order-{number}" for number in range(12)]
COMMAND_IDS = (f"command-{number}" for number in count())


class World:
    """A client over a log in memory, whose steps follow each other as a random source says."""

    def __init__(self, random, partitions=PARTITIONS):
        self.random = random
        self.log = Log(partitions, self.pause)
        self.readers = []
        self.outcomes = OutcomeReader(Settings(), within_s=30.0, new_reader=self.new_reader)

    def new_reader(self, *_, **__):
        self.readers.append(LogReader(self.log))
        return self.readers[-1]

    @property
    def lookups(self):
        return self.readers[0]

    @property
    def reader(self):
        return self.readers[1]

    async def pause(self):
        for _ in range(self.random.randrange(6)):
            await asyncio.sleep(0)

    async def call(self, order_id, hangs_up=False):
        """Send a command and await its outcome, or hang up some steps later."""
        command = but(pay, order_id=order_id, command_id=next(COMMAND_IDS))
        async with self.outcomes.awaiting(command) as awaited:
            offset = self.log.append(NAMES.commands, awaited.partition, order_id.encode(), b"")
            deciding = asyncio.create_task(self.log.decide(command, offset))
            await self.pause()  # the acknowledgement may come after the outcome
            if hangs_up:
                return await deciding
            self.outcomes.set_offset(awaited, offset)
            outcome = await awaited.wait(30.0)
            assert isinstance(outcome, Accepted), outcome
            assert (outcome.event.command_id, outcome.record.command_offset) == (command.command_id, offset)
            return await deciding

    async def others(self, stop):
        """Write records of other orders to all partitions."""
        while not stop.is_set():
            topic, partition = self.random.choice(TOPICS), self.random.randrange(self.log.partitions)
            self.log.append(topic, partition, b"other", b"")
            await asyncio.sleep(0)


async def called(world, plan):
    """Run callers that begin some steps after each other, beside the writers of other orders."""
    await world.outcomes.open()
    stop = asyncio.Event()
    beside = asyncio.create_task(world.others(stop))
    calls = []
    for order_number, pauses, hangs_up in plan:
        calls.append(asyncio.create_task(world.call(ORDER_IDS[order_number], hangs_up)))
        for _ in range(pauses):
            await asyncio.sleep(0.001 if pauses > 8 else 0)
    async with asyncio.timeout(30):
        results = await asyncio.gather(*calls, return_exceptions=True)
    stop.set()
    await beside
    await world.outcomes.close()
    return results


plans = st.lists(
    st.tuples(st.integers(0, len(ORDER_IDS) - 1), st.integers(0, 10), st.booleans() | st.just(value=False)),
    min_size=1,
    max_size=12,
)


@settings(max_examples=150, deadline=None)
@given(
    plan=plans,
    seed=st.integers(0, 2**32),
    assigned_max=st.sampled_from([1, 2, 64]),
    read_on_s=st.sampled_from([0.0, 0.003, 1.0]),
)
def test_no_outcome_is_missed_whatever_happens_between_lookup_send_and_reading(plan, seed, assigned_max, read_on_s):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(followed_partitions, "ASSIGNED_MAX", assigned_max)
        patch.setattr(followed_partitions, "READ_ON_S", read_on_s)
        patch.setattr(followed_partitions, "ASSIGN_EVERY_S", 0.002)
        results = asyncio.run(called(World(Random(seed)), plan))
    assert results == [None] * len(plan)


@settings(max_examples=50, deadline=None)
@given(plan=plans, seed=st.integers(0, 2**32), fails_after=st.integers(0, 30))
def test_after_a_failed_reading_callers_get_its_error_or_their_outcome(plan, seed, fails_after):
    async def run():
        world = World(Random(seed))

        async def fail():
            for _ in range(fails_after):
                await asyncio.sleep(0)
            if len(world.readers) == 2:
                world.reader.failure = RegistryAwayError("away")

        failing = asyncio.create_task(fail())
        results = await called(world, plan)
        await failing
        return results

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(followed_partitions, "ASSIGN_EVERY_S", 0.002)
        results = asyncio.run(run())
    assert {type(result) for result in results} <= {type(None), RegistryAwayError}


@pytest.fixture
async def world():
    class Still:
        """A random source without pauses."""

        def randrange(self, _):
            return 0

    made = World(Still())
    await made.outcomes.open()
    yield made
    await made.outcomes.close()


def followed(world):
    return {partition for _, partition in world.reader.followed}


def order_in(partition):
    return next(order_id for order_id in ORDER_IDS if partition_of(order_id.encode(), PARTITIONS) == partition)


async def until(condition):
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110 - the reading is a task of its own
            await asyncio.sleep(0.001)


async def test_only_the_partitions_of_awaited_commands_are_read(world):
    async with world.outcomes.awaiting(but(pay, order_id=order_in(1))):
        await until(lambda: followed(world) == {1})
        async with world.outcomes.awaiting(but(pay, order_id=order_in(3))):
            await until(lambda: followed(world) == {1, 3})
        await until(lambda: followed(world) == {1})
    await until(lambda: followed(world) == set())
    for partition in range(PARTITIONS):
        world.log.append(NAMES.events, partition, b"other", b"")
    await world.call(order_in(2))
    assert {record.partition for record in world.reader.returned} == {2}


async def test_what_was_written_before_a_command_is_not_read(world):
    for _ in range(100):
        world.log.append(NAMES.events, 1, b"other", b"")
    await world.call(order_in(1))
    assert {record.key for record in world.reader.returned} <= {order_in(1).encode(), b"\0position"}


async def test_a_caller_whose_commands_follow_each_other_looks_the_ends_up_once(world, monkeypatch):
    lookups = []
    ends = world.lookups.ends

    async def counted(partitions):
        lookups.append(partitions)
        return await ends(partitions)

    monkeypatch.setattr(world.lookups, "ends", counted)
    monkeypatch.setattr(followed_partitions, "READ_ON_S", 30.0)
    for _ in range(5):
        await world.call(order_in(1))
    assert len(lookups) == 1


async def test_no_more_partitions_stay_assigned_than_allowed(world, monkeypatch):
    monkeypatch.setattr(followed_partitions, "ASSIGNED_MAX", 2)
    monkeypatch.setattr(followed_partitions, "ASSIGN_EVERY_S", 0.0)
    for partition in (0, 1, 2, 3, 0, 1):
        await world.call(order_in(partition))
        assert len(world.reader.reading) <= 2 * len(TOPICS)
