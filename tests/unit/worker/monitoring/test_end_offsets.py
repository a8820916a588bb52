"""What the broker says of the ends of the commands: for the lag, and to see who holds the commands back."""

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest
from aiokafka.errors import KafkaConnectionError
from prometheus_client import REGISTRY

from order_service.worker.monitoring.end_offsets import End, LogEnds


async def nothing() -> Mapping[int, End | None]:
    return {}


def held_s(partition):
    labels = {"topic": "orders.commands.v1", "partition": str(partition)}
    return REGISTRY.get_sample_value("orders_foreign_transaction_seconds", labels)


@pytest.fixture
def ends(clock):
    return LogEnds("orders.commands.v1", nothing, clock)


def test_an_open_transaction_is_reported_with_partition_offset_and_age(ends, clock):
    for _ in range(5):
        ends.take({0: End(9, 9), 1: End(20, 17)})
        clock.now += 3
    [fault] = ends.faults()
    assert fault.startswith("partition 1: a transaction of another program is open on orders.commands.v1 ")
    assert fault.endswith("from offset 17 for 12 s; the commands behind it wait")
    ends.take({0: End(9, 9), 1: End(21, 17)})
    assert (held_s(0), held_s(1)) == (0, 15)
    assert ends.end_of(1) == 21
    ends.take({0: End(9, 9), 1: End(22, 22)})
    assert ends.faults() == []
    assert held_s(1) == 0


def test_transactions_that_follow_each_other_are_no_fault(ends, clock):
    for offset in range(30):
        ends.take({0: End(offset + 3, offset)})
        clock.now += 1
    assert ends.faults() == []


def test_partitions_that_went_away_are_forgotten(ends, clock):
    ends.take({1: End(20, 17)})
    clock.now += 11
    ends.take({1: End(20, 17)})
    assert held_s(1) == 11
    ends.take({})
    assert ends.faults() == []
    assert held_s(1) is None
    assert ends.end_of(1) == 0


def test_faults_are_told_while_the_ends_are_replaced(ends, clock):
    """The admin server asks in a thread of its own."""
    for _ in range(5):
        ends.take({1: End(20, 17)})
        clock.now += 3

    class Replaced(dict[int, Any]):
        def items(self):
            ends.take({})
            return super().items()

    ends._seen = Replaced(ends._seen)
    assert "partition 1: a transaction of another program is open" in ends.faults()[0]


def test_a_partition_without_a_leader_is_old_alone(ends, clock):
    ends.take({0: End(9, 9), 1: End(20, 17), 2: End(5, 5)})
    for _ in range(4):
        clock.now += 5
        ends.take({0: End(9, 9), 1: None, 2: End(7, 6)})
    said = (
        "Kafka has not reported the end of orders.commands.v1 partition 1 for 20 s:"
        " it has no leader, its lag is out of date"
    )
    held = "partition 2: a transaction of another program is open on orders.commands.v1 from offset 6 for 15 s"
    assert [fault.partition(";")[0] for fault in ends.faults()] == [held, said]
    assert (held_s(1), held_s(2)) == (0, 15)
    assert (ends.end_of(1), ends.stable_end_of(1), ends.stable_end_of(2)) == (20, 0, 6)
    ends.take({0: End(9, 9), 1: End(21, 21), 2: End(7, 7)})
    assert ends.faults() == []
    assert (ends.end_of(1), ends.stable_end_of(1)) == (21, 21)


def test_what_held_back_a_partition_is_told_of_while_it_has_no_leader(ends, clock):
    for _ in range(5):
        ends.take({1: End(20, 17)})
        clock.now += 3
    for _ in range(5):
        ends.take({1: None})
        clock.now += 3
    assert "from offset 17 for 12 s" in ends.faults()[0]
    assert held_s(1) == 12


def test_a_partition_that_never_had_a_leader_is_told_of(ends, clock):
    for _ in range(5):
        ends.take({1: None})
        clock.now += 4
    assert "partition 1 for 20 s: it has no leader" in ends.faults()[0]
    assert ends.end_of(1) == 0


async def test_a_broker_that_does_not_answer_leaves_the_last_ends_and_is_a_fault(clock):
    asked = asyncio.Event()
    answers: list[Mapping[int, End | None]] = [{0: End(7, 7)}]

    async def read() -> Mapping[int, End | None]:
        if answers:
            return answers.pop()
        asked.set()
        raise KafkaConnectionError

    ends = LogEnds("orders.commands.v1", read, clock)
    running = asyncio.create_task(ends.run())
    async with asyncio.timeout(20):
        await asked.wait()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    clock.now += 16
    assert ends.end_of(0) == 7
    assert ends.faults() == ["Kafka has not reported the ends of orders.commands.v1 for 16 s: the lag is out of date"]
