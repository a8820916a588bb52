"""The producer of turns without a broker: what becomes of the answers to its batches."""

import asyncio

import pytest
from aiokafka.errors import InvalidTimestampError, MessageSizeTooLargeError, ProducerFenced, UnknownError
from aiokafka.structs import PartitionMetadata

from order_service.errors import Fenced, Stuck, TurnRefused
from order_service.kafka.connection import NO_LEADER
from order_service.worker.transactions import Sent, TurnProducer


@pytest.fixture
async def producer():
    made = TurnProducer("orders-worker-1", {"bootstrap_servers": "127.0.0.1:1"})
    yield made
    await made.stop()


def batch(producer, partition, error=None):
    """Put a batch on its way, and answer it."""
    future = asyncio.get_running_loop().create_future()
    if error is None:
        future.set_result(partition)
    else:
        future.set_exception(error)
    producer._sent.append(Sent("orders.events.v1", partition, future))


@pytest.mark.parametrize(
    ("errors", "lanes", "suspects"),
    [
        ({1: MessageSizeTooLargeError()}, {1}, set()),
        ({1: InvalidTimestampError()}, {1}, set()),
        ({1: MessageSizeTooLargeError(), 2: MessageSizeTooLargeError()}, {1, 2}, set()),
        ({1: MessageSizeTooLargeError(), 2: UnknownError()}, {1}, set()),
        ({2: UnknownError()}, set(), {2}),
    ],
)
async def test_a_refused_batch_names_its_lane_and_one_that_may_pass_is_a_suspect(producer, errors, lanes, suspects):
    for partition in range(3):
        batch(producer, partition, errors.get(partition))
    with pytest.raises(TurnRefused) as caught:
        await producer.wait_for_acks(producer._sent)
    assert (caught.value.lanes.keys(), caught.value.suspects.keys()) == (lanes, suspects)


async def test_a_fence_is_called_one_and_a_transaction_that_was_open_for_too_long_is_not(producer):
    batch(producer, 0, ProducerFenced())
    with pytest.raises(Fenced, match="another worker has fenced orders-worker-1"):
        await producer.wait_for_acks(producer._sent)
    producer._begun_at = asyncio.get_running_loop().time() - 16
    with pytest.raises(Stuck, match="was open for 16 s: Kafka aborts it after 15 s"):
        await producer.wait_for_acks(producer._sent)


async def test_what_arrived_is_returned_in_the_order_of_the_batches(producer):
    for partition in (2, 0, 1):
        batch(producer, partition)
    assert await producer.wait_for_acks(producer._sent) == [2, 0, 1]


@pytest.mark.parametrize(
    ("leader", "replicas", "in_sync", "min_in_sync", "why"),
    [
        (1, [1, 2, 3], [1, 2, 3], 2, None),
        (1, [1, 2, 3], [1, 2], 2, None),
        (1, [1, 2, 3], [1], 2, "orders.events.v1-7 has 1 of 2 in-sync replicas"),
        (1, [1, 2, 3, 4], [1, 2], 3, "orders.events.v1-7 has 2 of 3 in-sync replicas"),
        (1, [1, 2, 3, 4], [1, 2], 2, None),
        (1, [1, 2], [1], 1, None),
        (1, [1, 2], [], 1, "orders.events.v1-7 has 0 of 1 in-sync replicas"),
        (1, [1], [1], 1, None),
        pytest.param(1, [1], [1], 2, None, id="Kafka asks for no more than there are replicas"),
        (NO_LEADER, [1, 2, 3], [1, 2, 3], 2, "orders.events.v1-7 has no leader"),
        (NO_LEADER, [1, 2, 3], [], 2, "orders.events.v1-7 has no leader"),
    ],
)
async def test_writing_a_partition_needs_a_leader_and_enough_in_sync_replicas(
    producer, monkeypatch, leader, replicas, in_sync, min_in_sync, why
):
    topic = "orders.events.v1"
    partition = PartitionMetadata(topic, 7, leader, replicas, in_sync, None)
    monkeypatch.setattr(producer, "_followed", [topic])
    monkeypatch.setattr(producer, "_in_sync", {topic: min_in_sync})
    monkeypatch.setattr(producer.client.cluster, "_partitions", {topic: {7: partition}})
    assert producer.unavailable().get(7) == why
