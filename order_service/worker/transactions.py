"""Transactional producers: one for the turns of a worker, one for each claim, one to fence whoever was before.

aiokafka 0.14 has two traps, both shown by experiment. A batch that failed for good does not fail its transaction, so
`send_all` waits for every batch before a commit. And an EndTxn whose answer is lost is sent again without end, and its
late first copy can end the *next* transaction: so after a resent EndTxn the id is not used again.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final

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
from order_service.runtime.deadline import deadline
from order_service.worker.lane import Record

MAX_REQUEST_BYTES: Final = 4 * 1024 * 1024
BATCH_BYTES: Final = 1024 * 1024
DEADLINE_S: Final = 10.0
"""For a commit, an abort, a start or a stop: past it the outcome is unknown, and the id is not used again."""
ABANDON_WITHIN_S: Final = 2.0
TRANSACTION_TIMEOUT_S: Final = 15.0
"""Past it the coordinator aborts a transaction on its own."""
METADATA_AGE_MS: Final = 1_000
"""How long the producer of turns takes at most to see that a partition has lost its leader, or too many replicas."""
CLAIM_METADATA_AGE_MS: Final = 300_000
"""A claim asks once; of hundreds of partitions, metadata is most of what it costs."""
REFUSALS: Final = (
    InvalidTimestampError,
    InvalidTopicError,
    MessageSizeTooLargeError,
    PolicyViolationError,
    RecordListTooLargeError,
    TopicAuthorizationFailedError,
    UnsupportedForMessageFormatError,
)
"""Answers to a batch that no retry mends."""


class Sent(Struct, frozen=True):
    """A batch on its way; the future has its metadata once the broker has it."""

    topic: str
    partition: int
    future: "asyncio.Future[RecordMetadata]"


class TurnProducer(Producer):
    """A transactional producer that commits only what has arrived, and knows when an end was sent twice."""

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
        self._ends = 0
        self._begun_at: float | None = None
        self._sent: list[Sent] = []
        self._followed: list[str] = []
        self._in_sync: Mapping[str, int] = {}
        self._metadata_seen: object = None
        self._unavailable: dict[int, str] = {}
        self._end_once = self._sender._do_txn_commit  # noqa: SLF001, the one place that sends EndTxn
        self._sender._do_txn_commit = self._end  # noqa: SLF001

    async def _end(self, result: object) -> None:
        self._ends += 1
        await self._end_once(result)

    async def start(self) -> None:
        """Start it; this ends every transaction of the same id that came before."""
        with _named(self):
            await super().start()

    async def follow(self, topics: Iterable[str], in_sync: Mapping[str, int]) -> None:
        """Learn who leads the partitions of these topics, and keep it as new as `metadata_age_ms`.

        `in_sync` has `min.insync.replicas` of each topic, and may change meanwhile.
        """
        self._in_sync = in_sync
        self._followed = list(topics)
        await self.client.set_topics(self._followed)

    async def begin(self) -> None:
        """Begin a transaction."""
        with _named(self):
            await self.begin_transaction()
        self._begun_at = time.monotonic()
        self._ends = 0
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
        with _named(self):
            if (refusal := self._error_of_transaction()) is not None:  # aiokafka would fail an assertion
                raise refusal
            try:
                future = await self.send_batch(batch, topic, partition=partition)
            except AssertionError as error:  # the refusal came while this batch waited for the one before
                raise self._error_of_transaction() or error from error
        self._sent.append(Sent(topic, partition, future))

    async def arrive(self, sent: list[Sent]) -> list[RecordMetadata]:
        """Wait until the broker has every batch. Raises TurnRefused, Fenced or Stuck if it never will."""
        if not sent:
            return []
        with _named(self):
            futures = [batch.future for batch in sent]
            await asyncio.wait(futures, return_when=asyncio.FIRST_EXCEPTION)
            if any(isinstance(_error_of(future), REFUSALS) for future in futures):
                await asyncio.wait(futures)  # so that all lanes that Kafka refuses are known at once
            errors = [error for future in futures if (error := _error_of(future)) is not None]
            if errors:
                raise next((error for error in errors if isinstance(error, REFUSALS)), errors[0])
            return [future.result() for future in futures]

    async def commit(self, sent: list[Sent]) -> list[RecordMetadata]:
        """Commit once the broker has every batch; after an error nothing more can be written under this id."""
        arrived = await self.arrive(sent)
        with _named(self):
            await self.commit_transaction()
        if self._ends > 1:
            raise Stuck(f"the end of a transaction of {self.transactional_id} was sent twice")
        self._begun_at = None
        return arrived

    async def abandon(self) -> None:
        """Close the connections at once; what is still unsent stays so, and its transaction open."""
        self._closed = True
        sending = self._sender.sender_task
        if sending is not None:
            sending.cancel()
        await self.client.close()  # so that nothing waits for an answer
        if sending is not None:
            await asyncio.wait({sending}, timeout=ABANDON_WITHIN_S)

    def cause(self, error: Exception) -> Exception:
        """Return why `error` was raised: once fenced, aiokafka says of each further call only that it is illegal."""
        first: Exception = self._message_accumulator._exception or error  # noqa: SLF001
        return first.__cause__ if isinstance(first.__cause__, InvalidProducerIdMapping) else first

    def refused_lanes(self, *errors: type[KafkaError]) -> dict[int, str]:
        """Return the partitions of this transaction's batches that Kafka refused, each with the reason.

        By default for what is in `REFUSALS`. UnknownError is -1 or a code that aiokafka lacks, as 87, INVALID_RECORD,
        and may pass.
        """
        errors = errors or REFUSALS
        topics = getattr(self._error_of_transaction(), "args", [()])[0]
        reasons = {}
        for batch in self._sent:
            error = _error_of(batch.future)
            if isinstance(error, errors) or batch.topic in topics:
                kind = type(error).__name__ if isinstance(error, errors) else TopicAuthorizationFailedError.__name__
                reasons[batch.partition] = f"Kafka refuses a record for {batch.topic}-{batch.partition}: {kind}"
        return reasons

    def unavailable(self) -> dict[int, str]:
        """Return the partitions of the followed topics that cannot be written to, by the newest metadata, and why."""
        metadata = self.client.cluster._partitions  # noqa: SLF001, replaced as a whole whenever it changes
        if metadata is not self._metadata_seen:
            self._metadata_seen = metadata
            self._unavailable = {
                partition: reason
                for topic in self._followed
                for partition, known in metadata.get(topic, {}).items()
                if (reason := _why_unwritable(known, self._in_sync[topic])) is not None
            }
        return self._unavailable

    def open_s(self) -> float:
        """Return for how long a transaction has been open, 0 if none is."""
        return 0.0 if self._begun_at is None else time.monotonic() - self._begun_at

    def _error_of_transaction(self) -> BaseException | None:
        """Return the error by which the coordinator refused a partition: TopicAuthorizationFailedError of topics."""
        if self._txn_manager.state is not TransactionState.ABORTABLE_ERROR:
            return None
        ended: asyncio.Future[None] = self._txn_manager.wait_for_transaction_end()
        return _error_of(ended)


def _why_unwritable(partition: PartitionMetadata, min_in_sync: int) -> str | None:
    needed = min(min_in_sync, len(partition.replicas))  # as the broker has it
    if partition.leader == NO_LEADER:
        return f"{partition.topic}-{partition.partition} has no leader"
    if len(partition.isr) < needed:
        return f"{partition.topic}-{partition.partition} has {len(partition.isr)} of {needed} in-sync replicas"
    return None


def _error_of(future: "asyncio.Future[Any]") -> BaseException | None:
    return future.exception() if future.done() and not future.cancelled() else None


@asynccontextmanager
async def started(transactional_id: str, connection: dict[str, Any]) -> AsyncIterator[TurnProducer]:
    """Start a producer and stop it."""
    producer = TurnProducer(transactional_id, connection, metadata_age_ms=CLAIM_METADATA_AGE_MS)
    try:
        await producer.start()
        yield producer
    finally:
        await stop(producer)


@asynccontextmanager
async def claiming(transactional_id: str, connection: dict[str, Any], topics: list[str]) -> AsyncIterator[TurnProducer]:
    """Start the producer of a claim and stop it; if the claim fails, without waiting for what was not sent.

    A claim has DEADLINE_S for a transaction. If Kafka refuses one after TRANSACTION_TIMEOUT_S, this process was
    stopped, and another may have the partition. A second attempt would fence that one, so Fenced is raised.

    The next claim starts the same id again, and that aborts what this one has begun. The metadata of the topics that it
    will write to is asked for at once; of hundreds of partitions that is most of what a claim costs.
    """
    producer = TurnProducer(transactional_id, connection, metadata_age_ms=CLAIM_METADATA_AGE_MS)
    producer.client.set_topics(topics)
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
    """Abort the open transaction of an id and refuse its later ones: that is done when this returns."""
    async with started(transactional_id, connection):
        pass


async def stop(producer: TurnProducer) -> None:
    """Stop a producer; Stuck if it does not end in time."""
    try:
        async with deadline(DEADLINE_S):
            await producer.stop()
    except TimeoutError as error:
        raise Stuck(f"the producer {producer.transactional_id} does not stop") from error


class _named:  # noqa: N801, used like a function
    """Raise what aiokafka raises as an error of ours."""

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
                f"Kafka has forgotten the transactional id {name}, which was idle for long", {}
            ) from error
        if isinstance(cause, ProducerFenced) and producer.open_s() > TRANSACTION_TIMEOUT_S:
            raise Stuck(
                f"a transaction of {name} was open for {producer.open_s():.0f} s: Kafka aborts it after "
                f"{TRANSACTION_TIMEOUT_S:.0f} s"
            ) from error
        if isinstance(cause, ProducerFenced):
            raise Fenced(f"another worker has fenced {name}") from error
        raise Stuck(f"a transaction of {name} failed: {cause!r}") from error
