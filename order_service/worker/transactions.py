"""Transactional producers: one for the turns of a worker, one for each claim, one to fence the previous owner.

aiokafka 0.14 has two traps, both confirmed by experiment. A batch that fails permanently does not fail its transaction,
so `commit` first waits for every batch. And an EndTxn whose response is lost is resent indefinitely, and its late first
copy can end the *next* transaction. So after a resent EndTxn the transactional id is not used again.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final

from aiokafka import TopicPartition
from aiokafka.cluster import ClusterMetadata
from aiokafka.errors import (
    IllegalOperation,
    InvalidProducerIdMapping,
    InvalidTimestampError,
    InvalidTopicError,
    KafkaError,
    MessageSizeTooLargeError,
    PolicyViolationError,
    ProducerFenced,
    RecordListTooLargeError,
    TopicAuthorizationFailedError,
    UnknownError,
    UnsupportedForMessageFormatError,
)
from aiokafka.producer.transaction_manager import TransactionState
from aiokafka.structs import PartitionMetadata, RecordMetadata
from msgspec import Struct

from order_service.errors import Fenced, Stuck, TurnRefused
from order_service.kafka.connection import NO_LEADER, Producer
from order_service.kafka.topics import DEAD_LETTER_BYTES
from order_service.runtime.deadline import deadline
from order_service.worker.records import Record

MAX_REQUEST_BYTES: Final = DEAD_LETTER_BYTES
BATCH_BYTES: Final = 1024 * 1024
DEADLINE_S: Final = 10.0
"""Limit for a commit, an abort, a start or a stop. After it the outcome is unknown, and the id is not used again."""
ABANDON_WITHIN_S: Final = 2.0
TRANSACTION_TIMEOUT_S: Final = 15.0
"""The age at which the coordinator aborts an open transaction."""
METADATA_AGE_MS: Final = 1_000
"""Maximum time until the turn producer notices that a partition has lost its leader or too many replicas."""
CLAIM_METADATA_AGE_MS: Final = 300_000
"""A claim starts with the metadata of the turn producer. An error makes it ask for newer ones."""
REFUSALS: Final = (
    InvalidTimestampError,
    InvalidTopicError,
    MessageSizeTooLargeError,
    PolicyViolationError,
    RecordListTooLargeError,
    TopicAuthorizationFailedError,
    UnsupportedForMessageFormatError,
)
"""Responses to a batch that no retry can fix."""


class Sent(Struct, frozen=True):
    """A batch of so many records in flight. The future resolves to its metadata when the broker acknowledges it."""

    topic: str
    partition: int
    future: "asyncio.Future[RecordMetadata]"
    record_count: int = 1


class TurnProducer(Producer):
    """A transactional producer that commits only acknowledged batches, and detects a resent EndTxn."""

    def __init__(
        self, transactional_id: str, connection: dict[str, Any], *, metadata_age_ms: int = METADATA_AGE_MS
    ) -> None:
        super().__init__(
            **connection,
            metadata_max_age_ms=metadata_age_ms,
            transactional_id=transactional_id,
            transaction_timeout_ms=int(TRANSACTION_TIMEOUT_S * 1000),
            acks="all",
            linger_ms=0,
            retry_backoff_ms=5,
            max_batch_size=BATCH_BYTES,
            max_request_size=MAX_REQUEST_BYTES,
        )
        self.transactional_id = transactional_id
        self._end_count = 0
        self._begun_at: float | None = None
        self._sent: list[Sent] = []
        self._followed: list[str] = []
        self._in_sync: Mapping[str, int] = {}
        self._metadata_seen: object = None
        self._unavailable: dict[TopicPartition, str] = {}
        self._send_end_txn = self._sender._do_txn_commit  # noqa: SLF001, the only method that sends EndTxn
        self._sender._do_txn_commit = self._end  # noqa: SLF001

    async def _end(self, result: object) -> None:
        self._end_count += 1
        await self._send_end_txn(result)

    async def start(self) -> None:
        """Start the producer. This ends every earlier transaction with the same id."""
        with _translated_errors(self):
            await super().start()

    async def follow(self, topics: Iterable[str], in_sync: Mapping[str, int]) -> None:
        """Fetch the metadata of these topics, and refresh it every `metadata_age_ms`.

        `in_sync` maps each topic to its `min.insync.replicas`; the caller may update it later.
        """
        self._in_sync = in_sync
        self._followed = list(topics)
        await self.client.set_topics(self._followed)

    async def begin(self) -> None:
        """Begin a transaction, and forget the batches of the previous one."""
        with _translated_errors(self):
            await self.begin_transaction()
        self._begun_at = time.monotonic()
        self._end_count = 0
        self._sent = []

    async def send_all(self, topic: str, partition: int, records: Iterable[Record]) -> list[Sent]:
        """Send records in as few batches as their sizes allow."""
        first = len(self._sent)
        batch = self.create_batch()
        for key, value, headers in records:
            while batch.append(timestamp=None, key=key, value=value, headers=headers) is None:
                await self._send(batch, topic, partition)
                batch = self.create_batch()
        if batch.record_count():
            await self._send(batch, topic, partition)
        return self._sent[first:]

    async def _send(self, batch: Any, topic: str, partition: int) -> None:
        with _translated_errors(self):
            record_count = batch.record_count()
            if (refusal := self._transaction_error()) is not None:  # aiokafka would fail an assertion
                raise refusal
            try:
                future = await self.send_batch(batch, topic, partition=partition)
            except AssertionError as error:  # refused while this batch waited for the previous one
                raise self._transaction_error() or error from error
        self._sent.append(Sent(topic, partition, future, record_count))

    async def wait_for_acks(self, sent: list[Sent]) -> list[RecordMetadata]:
        """Wait until the broker has acknowledged every batch. Raises TurnRefused, Fenced or Stuck if one fails."""
        if not sent:
            return []
        with _translated_errors(self):
            futures = [batch.future for batch in sent]
            await asyncio.wait(futures, return_when=asyncio.FIRST_EXCEPTION)
            if any(isinstance(_error_of(future), REFUSALS) for future in futures):
                await asyncio.wait(futures)  # to find all refused lanes at once
            errors = [error for future in futures if (error := _error_of(future)) is not None]
            if errors:
                raise next((error for error in errors if isinstance(error, REFUSALS)), errors[0])
            return [future.result() for future in futures]

    async def commit(self, sent: list[Sent]) -> list[RecordMetadata]:
        """Commit when the broker has acknowledged every batch. After an error the id can write nothing more."""
        acknowledged = await self.wait_for_acks(sent)
        with _translated_errors(self):
            await self.commit_transaction()
        if self._end_count > 1:
            raise Stuck(f"the EndTxn request of {self.transactional_id} was sent twice: the id cannot be used again")
        self._begun_at = None
        return acknowledged

    async def abandon(self) -> None:
        """Close the connections at once. Unsent batches are dropped, and the transaction stays open."""
        self._closed = True
        sending = self._sender.sender_task
        if sending is not None:
            sending.cancel()
        await self.client.close()  # so that nothing waits for a response
        if sending is not None:
            await asyncio.wait({sending}, timeout=ABANDON_WITHIN_S)

    def cause(self, error: Exception) -> Exception:
        """Return the cause of `error`. After a fence, aiokafka reports each later call only as an illegal operation."""
        first: Exception = self._message_accumulator._exception or error  # noqa: SLF001
        return first.__cause__ if isinstance(first.__cause__, InvalidProducerIdMapping) else first

    def refused_lanes(self, *errors: type[KafkaError]) -> dict[int, str]:
        """Return the partitions of this transaction for which Kafka refused a batch, with the reason.

        The default errors are `REFUSALS`. UnknownError is -1 or a code that aiokafka does not know, such as 87,
        INVALID_RECORD; it may be transient.
        """
        errors = errors or REFUSALS
        topics = getattr(self._transaction_error(), "args", [()])[0]
        reasons = {}
        for batch in self._sent:
            error = _error_of(batch.future)
            if isinstance(error, errors) or batch.topic in topics:
                kind = type(error).__name__ if isinstance(error, errors) else TopicAuthorizationFailedError.__name__
                reasons[batch.partition] = f"Kafka refuses a record for {batch.topic}-{batch.partition}: {kind}"
        return reasons

    def unavailable(self, only: str | None = None) -> dict[int, str]:
        """Return the partitions that cannot be written to in any followed topic, or only in this one, and why."""
        metadata = self.client.cluster._partitions  # noqa: SLF001, replaced as a whole whenever it changes
        if metadata is not self._metadata_seen:
            self._metadata_seen = metadata
            self._unavailable = {
                TopicPartition(topic, partition): reason
                for topic in self._followed
                for partition, details in metadata.get(topic, {}).items()
                if (reason := _unwritable_reason(details, self._in_sync[topic])) is not None
            }
        return {partition: reason for (topic, partition), reason in self._unavailable.items() if only in {None, topic}}

    def open_s(self) -> float:
        """Return for how many seconds a transaction has been open, or 0 if none is."""
        return 0.0 if self._begun_at is None else time.monotonic() - self._begun_at

    def _transaction_error(self) -> BaseException | None:
        """Return the error with which the coordinator refused topics, a TopicAuthorizationFailedError, or None."""
        if self._txn_manager.state is not TransactionState.ABORTABLE_ERROR:
            return None
        ended: asyncio.Future[None] = self._txn_manager.wait_for_transaction_end()
        return _error_of(ended)


def _unwritable_reason(partition: PartitionMetadata, min_in_sync: int) -> str | None:
    needed = min(min_in_sync, len(partition.replicas))  # as the broker computes it
    if partition.leader == NO_LEADER:
        return f"{partition.topic}-{partition.partition} has no leader"
    if len(partition.isr) < needed:
        return f"{partition.topic}-{partition.partition} has {len(partition.isr)} of {needed} in-sync replicas"
    return None


def _error_of(future: "asyncio.Future[Any]") -> BaseException | None:
    return future.exception() if future.done() and not future.cancelled() else None


@asynccontextmanager
async def started(transactional_id: str, connection: dict[str, Any]) -> AsyncIterator[TurnProducer]:
    """Start a producer, and stop it when the block ends."""
    producer = TurnProducer(transactional_id, connection, metadata_age_ms=CLAIM_METADATA_AGE_MS)
    try:
        await producer.start()
        yield producer
    finally:
        await stop(producer)


@asynccontextmanager
async def claiming(
    transactional_id: str, connection: dict[str, Any], metadata: ClusterMetadata, topics: list[str]
) -> AsyncIterator[TurnProducer]:
    """Start the producer of a claim, and stop it when the block ends. After an error, abandon it.

    A claim has DEADLINE_S for a transaction. If Kafka refuses one after TRANSACTION_TIMEOUT_S, this process was
    suspended, and another worker may own the partition. A second attempt would fence that worker, so Fenced is raised.

    The next claim starts the same id again, which aborts an open transaction of this one.
    """
    producer = TurnProducer(transactional_id, connection, metadata_age_ms=CLAIM_METADATA_AGE_MS)
    producer.start_from(metadata, topics)
    try:
        await producer.start()
        yield producer
    except BaseException as error:
        await producer.abandon()
        if isinstance(error, Stuck) and isinstance(producer.cause(error), ProducerFenced):
            raise Fenced(f"{error}; another worker may have claimed the partition meanwhile") from error
        raise
    await stop(producer)


async def fence(transactional_id: str, connection: dict[str, Any]) -> None:
    """Abort the open transaction of an id and fence its producer. Both are done when this returns."""
    async with started(transactional_id, connection):
        pass


async def stop(producer: TurnProducer) -> None:
    """Stop a producer. Raises Stuck if it does not stop in time."""
    try:
        async with deadline(DEADLINE_S):
            await producer.stop()
    except TimeoutError as error:
        raise Stuck(f"the producer {producer.transactional_id} did not stop within {DEADLINE_S:.0f} s") from error


class _translated_errors:  # noqa: N801, used like a function
    """Raises the errors of aiokafka as errors of this service."""

    def __init__(self, producer: TurnProducer) -> None:
        self._producer = producer

    def __enter__(self) -> None:
        pass

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if not isinstance(error, KafkaError | IllegalOperation):
            return
        producer = self._producer
        name = producer.transactional_id
        if lanes := producer.refused_lanes():
            raise TurnRefused(f"Kafka refused a turn of {name}: {'; '.join(lanes.values())}", lanes) from error
        if suspects := producer.refused_lanes(UnknownError):
            reasons = "; ".join(suspects.values())
            raise TurnRefused(f"Kafka refused a turn of {name}: {reasons}", {}, suspects=suspects) from error
        cause = producer.cause(error)
        if isinstance(cause, InvalidProducerIdMapping):
            raise TurnRefused(
                f"Kafka no longer knows the transactional id {name}: it was idle for too long", {}
            ) from error
        if isinstance(cause, ProducerFenced) and producer.open_s() > TRANSACTION_TIMEOUT_S:
            raise Stuck(
                f"a transaction of {name} was open for {producer.open_s():.0f} s: Kafka aborts it after "
                f"{TRANSACTION_TIMEOUT_S:.0f} s"
            ) from error
        if isinstance(cause, ProducerFenced):
            raise Fenced(f"another worker has fenced {name}") from error
        raise Stuck(f"a transaction of {name} failed: {cause!r}") from error
