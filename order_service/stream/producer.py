"""Transactional producers: one for the turns of a worker, one for each claim, one to fence whoever was before.

aiokafka 0.14 has two traps, both shown by experiment. A batch that failed for good does not fail its transaction, so
`send_all` waits for every batch before a commit. And an EndTxn whose answer is lost is sent again without end, and its
late first copy can end the *next* transaction: so after a resent EndTxn the id is not used again.
"""

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any, Final

from aiokafka import AIOKafkaProducer
from aiokafka.errors import IllegalOperation, KafkaError, ProducerFenced
from aiokafka.structs import RecordMetadata

from order_service.errors import Fenced, Stuck
from order_service.stream.lane import Record

MAX_REQUEST_BYTES: Final = 4 * 1024 * 1024
BATCH_BYTES: Final = 1024 * 1024
DEADLINE_S: Final = 10.0
"""For a commit, an abort, a start or a stop: past it the outcome is unknown, and the id is not used again."""


class TurnProducer(AIOKafkaProducer):  # type: ignore[misc]
    """A transactional producer that commits only what has arrived, and knows when an end was sent twice."""

    def __init__(self, transactional_id: str, connection: dict[str, Any]) -> None:
        super().__init__(
            **connection,
            transactional_id=transactional_id,
            transaction_timeout_ms=15_000,
            acks="all",
            linger_ms=0,
            retry_backoff_ms=5,
            max_batch_size=BATCH_BYTES,
            max_request_size=MAX_REQUEST_BYTES,
        )
        self.transactional_id = transactional_id
        self._ends = 0
        self._end_once = self._sender._do_txn_commit  # noqa: SLF001, the one place that sends EndTxn
        self._sender._do_txn_commit = self._end  # noqa: SLF001

    async def _end(self, result: object) -> None:
        self._ends += 1
        await self._end_once(result)

    async def start(self) -> None:
        """Start it; this ends every transaction of the same id that came before."""
        with _named(self):
            await super().start()

    async def begin(self) -> None:
        """Begin a transaction."""
        with _named(self):
            await self.begin_transaction()
        self._ends = 0

    async def send_all(
        self, topic: str, partition: int, records: Iterable[Record]
    ) -> list["asyncio.Future[RecordMetadata]"]:
        """Put records into as few batches as their sizes allow; the futures tell when each batch has arrived."""
        sent = []
        batch = self.create_batch()
        with _named(self):
            for key, value, timestamp_ms, headers in records:
                while batch.append(timestamp=timestamp_ms, key=key, value=value, headers=headers) is None:
                    sent.append(await self.send_batch(batch, topic, partition=partition))
                    batch = self.create_batch()
            if batch.record_count():
                sent.append(await self.send_batch(batch, topic, partition=partition))
        return sent

    async def arrive(self, sent: list["asyncio.Future[RecordMetadata]"]) -> list[RecordMetadata]:
        """Wait until every batch has arrived; Fenced or Stuck if one never will."""
        with _named(self):
            return await asyncio.gather(*sent)

    async def commit(self, sent: list["asyncio.Future[RecordMetadata]"]) -> list[RecordMetadata]:
        """Commit once every batch has arrived; raises Fenced or Stuck, and then the process must end."""
        arrived = await self.arrive(sent)
        with _named(self):
            await self.commit_transaction()
        if self._ends > 1:
            raise Stuck(f"the end of a transaction of {self.transactional_id} was sent twice")
        return arrived

    def cause(self, error: Exception) -> Exception:
        """Tell why `error` was raised: once fenced, aiokafka says of each further call only that it is illegal."""
        first: Exception | None = self._message_accumulator._exception  # noqa: SLF001
        return first or error


@asynccontextmanager
async def started(transactional_id: str, connection: dict[str, Any]) -> AsyncIterator[TurnProducer]:
    """Start a producer and stop it."""
    producer = TurnProducer(transactional_id, connection)
    try:
        await producer.start()
        yield producer
    finally:
        await stop(producer)


async def fence(transactional_id: str, connection: dict[str, Any]) -> None:
    """Abort the open transaction of an id and refuse its later ones: that is done when this returns."""
    async with started(transactional_id, connection):
        pass


async def stop(producer: TurnProducer) -> None:
    """Stop a producer; Stuck if it does not end in time."""
    try:
        async with asyncio.timeout(DEADLINE_S):
            await producer.stop()
    except TimeoutError as error:
        raise Stuck(f"the producer {producer.transactional_id} does not stop") from error


class _named:  # noqa: N801, used like a function
    """Name what aiokafka raises in our words."""

    def __init__(self, producer: TurnProducer) -> None:
        self._producer = producer

    def __enter__(self) -> None:
        pass

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if not isinstance(error, KafkaError | IllegalOperation):
            return
        cause = self._producer.cause(error)
        if isinstance(cause, ProducerFenced):
            raise Fenced(f"another worker has fenced {self._producer.transactional_id}") from error
        raise Stuck(f"a transaction of {self._producer.transactional_id} failed: {cause!r}") from error
