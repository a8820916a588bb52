"""The producer of operators' tools: their changes are transactions, and one tool writes at a time."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final

from aiokafka.errors import TransactionalIdAuthorizationFailed

from order_service.errors import Fenced, KafkaAwayError, OperationRefused, Stuck, TurnRefused
from order_service.kafka.connection import connection
from order_service.kafka.topics import topic_names
from order_service.runtime.deadline import deadline
from order_service.settings import Settings
from order_service.wire.operations import Operation, encode
from order_service.worker.transactions import (
    CLAIM_METADATA_AGE_MS,
    DEADLINE_S,
    TRANSACTION_TIMEOUT_S,
    Sent,
    TurnProducer,
    fence,
    stop,
)

START_WITHIN_S: Final = 20.0
"""Limit for the start: the last transaction with the same id must end first."""


@asynccontextmanager
async def operator_producer(settings: Settings) -> AsyncIterator[TurnProducer]:
    """Start the producer, and stop it when the block ends. Starting it fences the producer of any other such tool.

    Raises OperationRefused if another tool fences this one, or if Kafka does not allow the writes; the open transaction
    is then aborted. Raises KafkaAwayError if Kafka does not answer.
    """
    arguments = connection(settings)
    transactional_id = f"{settings.group_id}-operations"
    producer = TurnProducer(transactional_id, arguments, metadata_age_ms=CLAIM_METADATA_AGE_MS)
    try:
        async with deadline(START_WITHIN_S):
            await producer.start()
        yield producer
        await stop(producer)
    except Fenced as error:
        await producer.abandon()
        _mark_retrieved(producer)
        raise OperationRefused(
            f"another operator has started a tool that writes ({transactional_id}): the transaction of this one was"
            " aborted; see what the other one did, then start again"
        ) from error
    except TurnRefused as error:
        await producer.abandon()
        ending = await _end_transaction(transactional_id, arguments)
        reasons = "; ".join(dict.fromkeys((error.lanes | error.suspects).values())) or str(error)
        raise OperationRefused(f"Kafka refused a transaction, which {ending}: {reasons}") from error
    except (Stuck, TimeoutError) as error:
        await producer.abandon()
        raise _translated(error, transactional_id, arguments["bootstrap_servers"]) from error
    except BaseException:
        await producer.abandon()
        raise


async def record_operations(settings: Settings, operations: Mapping[int, Operation]) -> None:
    """Write operations, by partition: all of them or none. Raises the errors of `operator_producer`."""
    topic = topic_names(settings.topic_prefix).operations
    async with operator_producer(settings) as producer, deadline(DEADLINE_S):
        await producer.begin()
        await producer.commit(await send_operations(producer, topic, operations))


async def send_operations(producer: TurnProducer, topic: str, operations: Mapping[int, Operation]) -> list[Sent]:
    """Send operations, by partition, in the open transaction."""
    sent = []
    for partition, operation in operations.items():
        sent += await producer.send_all(topic, partition, [(operation.id.encode(), encode(operation), [])])
    return sent


async def _end_transaction(transactional_id: str, arguments: dict[str, Any]) -> str:
    """Abort the open transaction at once, if Kafka answers. Return how it ends, in words."""
    try:
        async with deadline(START_WITHIN_S):
            await fence(transactional_id, arguments)
    except (Fenced, Stuck, TimeoutError):
        return f"is aborted by Kafka within {TRANSACTION_TIMEOUT_S:.0f} s and changes nothing"
    return "was aborted and has changed nothing"


def _mark_retrieved(producer: TurnProducer) -> None:
    """Mark the errors of a fenced producer as retrieved, or asyncio would print them with a traceback."""
    batches = producer._message_accumulator._batches.values()  # noqa: SLF001
    waiters = [batch._drain_waiter for of_partition in batches for batch in of_partition]  # noqa: SLF001
    for waiter in (*waiters, producer._txn_manager._transaction_waiter):  # noqa: SLF001
        if waiter is not None and waiter.done() and not waiter.cancelled():
            waiter.exception()


def _translated(error: Exception, transactional_id: str, servers: str) -> OperationRefused | KafkaAwayError:
    if isinstance(error.__cause__, TransactionalIdAuthorizationFailed):
        return OperationRefused(
            f"Kafka does not allow this principal to write: grant Write on the transactional id {transactional_id};"
            " nothing was changed"
        )
    return KafkaAwayError(
        f"a transaction at {servers} did not end in time ({error}): Kafka commits or aborts it as a whole, within"
        f" {TRANSACTION_TIMEOUT_S:.0f} s; start again to see which"
    )
