"""Runs that wait for the schema registry: in order per partition, and no other partition with them."""

import asyncio
from typing import Any

import pytest
from aiokafka import ConsumerRecord

from order_service.worker.inbox import Inbox, Run
from order_service.worker.schema_lookups import SchemaLookups


class Registry:
    """Knows an id when it is told to, as `Ids` behind a registry that is away."""

    def __init__(self):
        self.known = {b"known"}
        self.answers = asyncio.Event()

    def are_known(self, values):
        return set(values) <= self.known

    async def learn_patiently(self, values):
        values = set(values)
        if not self.are_known(values):
            await self.answers.wait()
            self.known.update(values)


class World:
    def __init__(self):
        self.registry = Registry()
        self.delivered: list[tuple[int, int]] = []
        self.fetched: list[tuple[str, int]] = []
        ids: Any = self.registry
        self.inbox = Inbox(
            lambda partition: self.fetched.append(("pause", partition)),
            lambda partition: self.fetched.append(("resume", partition)),
        )
        self.inbox.open(0)
        self.tasks = []
        self.lookups = SchemaLookups(
            ids, self.inbox, lambda partition, run: self.delivered.append((partition, run.number)), self.start
        )

    def start(self, work):
        self.tasks.append(asyncio.create_task(work))

    def receive(self, partition, number, value):
        record: Any = ConsumerRecord("commands", partition, number, 0, 0, b"", value, None, 0, 0, ())
        self.lookups.receive(partition, Run(1, number, [record]))

    async def answered(self):
        self.registry.answers.set()
        await asyncio.gather(*self.tasks)


async def test_a_run_by_an_unknown_id_holds_its_own_partition_only_and_keeps_the_order():
    world = World()
    world.receive(0, 0, b"known")
    world.receive(0, 1, b"new")
    world.receive(0, 2, b"known")
    world.receive(1, 0, b"known")
    await asyncio.sleep(0)
    assert world.delivered == [(0, 0), (1, 0)]
    assert world.lookups.waiting == [0]
    assert world.fetched == [("pause", 0), ("pause", 0)]
    await world.answered()
    assert world.delivered == [(0, 0), (1, 0), (0, 1), (0, 2)]
    assert (world.lookups.waiting, world.fetched[-1]) == ([], ("resume", 0))


@pytest.mark.parametrize("is_long", [False, True])
async def test_a_partition_whose_queue_is_long_stays_paused_after_the_lookup(is_long):
    world = World()
    world.receive(0, 0, b"new")
    if is_long:
        record: Any = ConsumerRecord("commands", 0, 1, 0, 0, b"", b"x" * (17 << 20), None, 0, 0, ())
        command: Any = None
        world.inbox.put(0, [(record, command)])
    await asyncio.sleep(0)
    await world.answered()
    assert (("resume", 0) in world.fetched) == (not is_long)


async def test_a_lane_that_parks_while_it_waits_is_not_fetched_again():
    world = World()
    world.receive(0, 0, b"new")
    await asyncio.sleep(0)
    world.inbox.close(0)
    await world.answered()
    assert world.fetched == [("pause", 0)]
