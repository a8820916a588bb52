"""Other programs on the same Kafka: a consumer in our group, and a producer with a transaction open on our topics."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Final
from uuid import uuid4

from aiokafka import AIOKafkaConsumer
from aiokafka.coordinator.assignors.abstract import AbstractPartitionAssignor
from aiokafka.coordinator.assignors.roundrobin import RoundRobinPartitionAssignor
from aiokafka.coordinator.assignors.sticky.sticky_assignor import StickyPartitionAssignor
from aiokafka.errors import InconsistentGroupProtocolError
from confluent_kafka import KafkaException, Producer

ABORT_WITHIN_S: Final = 60.0
SESSION_MS: Final = 3_000


FOREIGN: Final = (RoundRobinPartitionAssignor, StickyPartitionAssignor)


def visit_group(
    servers: str,
    group: str,
    topic: str,
    stay: Callable[[], object],
    assignors: Sequence[type[AbstractPartitionAssignor]] = FOREIGN,
) -> frozenset[int]:
    """Join a group as a foreign consumer, leave it after `stay`, and return the partitions that it was given.

    A group whose members have no assignor in common with it keeps it out: then there are none.
    """
    return asyncio.run(_visit_group(servers, group, topic, stay, assignors))


async def _visit_group(
    servers: str,
    group: str,
    topic: str,
    stay: Callable[[], object],
    assignors: Sequence[type[AbstractPartitionAssignor]],
) -> frozenset[int]:
    consumer = AIOKafkaConsumer(
        topic,
        bootstrap_servers=servers,
        group_id=group,
        client_id="stranger",
        enable_auto_commit=False,
        session_timeout_ms=SESSION_MS,
        heartbeat_interval_ms=SESSION_MS // 5,
        partition_assignment_strategy=assignors,
    )
    try:
        await consumer.start()
        await asyncio.to_thread(stay)
        return frozenset(place.partition for place in consumer.assignment())
    except InconsistentGroupProtocolError:
        return frozenset()
    finally:
        await consumer.stop()


def hold_transaction(servers: str, topic: str, partition: int, stay: Callable[[], object]) -> None:
    """Open a transaction on a partition, with a record in it, and abort it after `stay`.

    Raises TimeoutError if it cannot be aborted; the broker then does, after 15 s.
    """
    stranger = Producer(
        {
            "log_level": 0,
            "bootstrap.servers": servers,
            "transactional.id": f"stranger-{uuid4().hex}",
            "transaction.timeout.ms": 15_000,
        }
    )
    stranger.init_transactions(ABORT_WITHIN_S)
    stranger.begin_transaction()
    stranger.produce(topic, key=b"\0stranger", value=b"stranger", partition=partition)
    if stranger.flush(ABORT_WITHIN_S):
        raise TimeoutError(f"a record of a foreign transaction does not arrive in {topic} [{partition}]")
    stay()
    try:
        stranger.abort_transaction(ABORT_WITHIN_S)
    except KafkaException as error:
        if error.args[0].retriable():
            raise TimeoutError(f"a foreign transaction on {topic} [{partition}] is not aborted") from error
