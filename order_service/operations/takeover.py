"""The takeover: how an operator's tool becomes the only writer of a partition, by the protocol of a claim.

1. Lock:    start the claim's producer of the partition. Kafka refuses any unfinished claim, and any other operator.
2. Fence:   commit a record to the table's changelog under the lock, then start a producer under the owner's id. A
            partition that its owner has released needs no fence.
3. Barrier: commit a record to both changelogs, and wait until it is visible: no open transaction hides records.
            If another owner appears, fence it too and repeat. A claim must be faster, and compares offsets instead.
            A waiting room that is empty or ends before its recorded end gets no record: its end shows the loss.

What the tool then writes is one transaction of the lock: see `Takeover.commit`. The position in it names an owner that
never writes, and releases it at once. So the next claim of a worker finds a partition without an owner.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from typing import Any, Final
from uuid import uuid4

from aiokafka.cluster import ClusterMetadata
from aiokafka.errors import KafkaError, TopicAuthorizationFailedError, TransactionalIdAuthorizationFailed
from aiokafka.structs import TopicPartition

from order_service.errors import Fenced, KafkaAwayError, OperationRefused, Stuck, TurnRefused
from order_service.kafka.connection import connection
from order_service.kafka.reader import Reader
from order_service.operations.operator_producer import START_WITHIN_S
from order_service.operations.positions import NewestPosition, newest_positions
from order_service.runtime.deadline import deadline
from order_service.settings import Settings
from order_service.wire import changelog, operations
from order_service.wire.changelog import BARRIER_KEY, POSITION_KEY, RELEASE_KEY, Position
from order_service.wire.operations import Operation
from order_service.worker.records import Record
from order_service.worker.transactions import DEADLINE_S, Sent, TurnProducer, claiming, fence

VISIBLE_WITHIN_S: Final = 30.0
"""How long a barrier may stay hidden behind an open transaction."""
LOOK_EVERY_S: Final = 0.1
UNCHANGED: Final = "nothing was changed"
KEPT: Final = "what was written is kept, possibly with the last transaction: look, then run this again"
_MISSING: Final = (TopicAuthorizationFailedError, TransactionalIdAuthorizationFailed)


class Takeover:
    """A partition that this process has taken over. No worker writes to it until a claim has the lock.

    `owner` is the id for the next position. `newest` is the position that was found, with its owner fenced.
    `has_written` is whether `commit` may have written, or did in an earlier takeover of the same operation: a commit
    whose answer is lost counts.
    """

    def __init__(
        self,
        reader: Reader,
        partition: int,
        lock: TurnProducer,
        group_id: str,
        arguments: dict[str, Any],
        *,
        has_written: bool = False,
    ) -> None:
        self.owner = f"{group_id}-worker-operator-{uuid4().hex}"
        self.newest = NewestPosition()
        self.has_written = has_written
        self._reader = reader
        self._partition = partition
        self._lock = lock
        self._arguments = arguments

    def position_records(self, position: Position) -> list[Record]:
        """Return the records of the table that set the position and release it. `position.owner` must be `owner`."""
        return [(POSITION_KEY, changelog.encode(position), []), (RELEASE_KEY, position.owner.encode(), [])]

    def operation_record(self, operation: Operation) -> Record:
        """Return the record of the operations topic."""
        return operation.id.encode(), operations.encode(operation), []

    async def commit(self, records: Iterable[tuple[str, Sequence[Record]]]) -> dict[str, int]:
        """Write records, by topic, in one transaction. Return the offset of the last batch of each topic.

        Raises Fenced if a claim or another operator has taken the lock since, TurnRefused if Kafka refuses a record,
        and Stuck if the outcome is unknown.
        """
        return await self._commit(records, is_barrier=False)

    async def _commit(self, records: Iterable[tuple[str, Sequence[Record]]], *, is_barrier: bool) -> dict[str, int]:
        try:
            async with deadline(DEADLINE_S):
                await self._lock.begin()
                sent: list[Sent] = []
                for topic, topic_records in records:
                    sent += await self._lock.send_all(topic, self._partition, topic_records)
                await self._lock.wait_for_acks(sent)
                self.has_written = self.has_written or not is_barrier
                arrived = await self._lock.commit(sent)
        except TimeoutError as error:
            raise Stuck(f"a commit to partition {self._partition} takes longer than {DEADLINE_S:.0f} s") from error
        return {batch.topic: int(metadata.offset) for batch, metadata in zip(sent, arrived, strict=True)}

    async def fence_owners(self, *, is_unknown_owner_dead: bool) -> None:
        """Do steps 2 and 3."""
        table = self._reader.names.table
        fenced = None
        while True:
            newest = await self._read_newest(is_unknown_owner_dead=is_unknown_owner_dead)
            if newest.owner is not None and newest.owner != fenced:
                await self._write_barriers([table])  # refused if a newer claim has the lock
                async with starting(newest.owner):
                    await fence(newest.owner, self._arguments)
            await self.until_visible(await self._write_barriers([table, *await self._intact_waiting_room(newest)]))
            self.newest = await self._read_newest(is_unknown_owner_dead=is_unknown_owner_dead)
            if self.newest.owner == newest.owner:
                return
            fenced = newest.owner

    async def _read_newest(self, *, is_unknown_owner_dead: bool) -> NewestPosition:
        newest = (await newest_positions(self._reader, [self._partition]))[self._partition]
        if newest.fault and not is_unknown_owner_dead:
            raise OperationRefused(f"the owner of partition {self._partition} is unknown: {newest.fault}")
        return newest

    async def _intact_waiting_room(self, newest: NewestPosition) -> list[str]:
        """Return the changelog of the waiting room if its end does not show a loss."""
        waiting = TopicPartition(self._reader.names.waiting, self._partition)
        recorded = None if newest.position is None else newest.position.ends
        end = (await self._reader.ends([waiting]))[waiting]
        return [waiting.topic] if end > 0 and (recorded is None or end >= recorded.waiting) else []

    async def _write_barriers(self, topics: list[str]) -> dict[TopicPartition, int]:
        """Commit a record without a meaning to each topic, and return its offset."""
        barrier: list[Record] = [(BARRIER_KEY, b"", [])]
        offsets = await self._commit([(topic, barrier) for topic in topics], is_barrier=True)
        return {TopicPartition(topic, self._partition): offset for topic, offset in offsets.items()}

    async def until_visible(self, offsets: dict[TopicPartition, int]) -> None:
        """Wait until no open transaction hides the records up to these offsets. Raises KafkaAwayError in time."""
        loop = asyncio.get_running_loop()
        give_up_at = loop.time() + VISIBLE_WITHIN_S
        while hidden := _hidden(offsets, await self._reader.ends(list(offsets))):
            if loop.time() > give_up_at:
                raise KafkaAwayError(
                    f"a transaction of another program is open on {hidden}: see docs/operations/hanging-transactions.md"
                )
            await asyncio.sleep(LOOK_EVERY_S)


def _hidden(offsets: dict[TopicPartition, int], stable_ends: dict[TopicPartition, int]) -> str:
    return " and ".join(
        f"{topic_partition.topic} partition {topic_partition.partition} from offset {stable_ends[topic_partition]}"
        for topic_partition, offset in offsets.items()
        if stable_ends[topic_partition] <= offset
    )


@asynccontextmanager
async def taken_over(
    settings: Settings,
    reader: Reader,
    partition: int,
    *,
    is_unknown_owner_dead: bool = False,
    has_written: bool = False,
    failpoint: Callable[[str], None] = lambda _: None,
) -> AsyncIterator[Takeover]:
    """Take over a partition while the block runs.

    If the position cannot be read, its owner cannot be fenced. Then this is refused, unless the caller knows that no
    worker runs. `has_written` is whether an earlier takeover of this operation has written. `failpoint` is called after
    step 1: tests stop Kafka there.

    Raises OperationRefused if another claim or operator has the lock, or if a right is missing; KafkaAwayError if Kafka
    does not answer. Nothing is changed then, unless `commit` has written before; the text of a refusal has which.
    """
    names, arguments = reader.names, connection(settings)
    lock_id = f"{settings.group_id}-claim-{partition}"
    topics = [names.table, names.waiting, names.operations]
    takeover: Takeover | None = None
    with explained(partition, lambda: has_written if takeover is None else takeover.has_written):
        async with AsyncExitStack() as stack:
            async with starting(lock_id):
                lock = await stack.enter_async_context(claiming(lock_id, arguments, ClusterMetadata(), topics))
            takeover = Takeover(reader, partition, lock, settings.group_id, arguments, has_written=has_written)
            failpoint("takeover.locked")
            await takeover.fence_owners(is_unknown_owner_dead=is_unknown_owner_dead)
            yield takeover


@asynccontextmanager
async def starting(transactional_id: str) -> AsyncIterator[None]:
    """Raise Stuck if the block, which starts a producer, takes longer than `START_WITHIN_S`: aiokafka has no limit."""
    try:
        async with deadline(START_WITHIN_S):
            yield
    except TimeoutError as error:
        raise Stuck(f"the producer {transactional_id} did not start within {START_WITHIN_S:g} s") from error


@contextmanager
def explained(partition: int, has_written: Callable[[], bool] = lambda: False) -> Iterator[None]:
    """Raise the errors of Kafka in this block as one line: which right is missing, or who was faster.

    Raises OperationRefused, which says whether something was written, or KafkaAwayError if Kafka does not answer as
    expected.
    """
    try:
        yield
    except Fenced as error:
        raise OperationRefused(
            f"a worker or another operator has taken over partition {partition} meanwhile; {_outcome(has_written())}"
        ) from error
    except (KafkaAwayError, KafkaError, Stuck, TurnRefused) as error:
        if right := _missing_right(error):
            raise OperationRefused(f"{right}; {_outcome(has_written())}") from error
        if isinstance(error, TurnRefused):
            raise OperationRefused(f"{error}; {_outcome(has_written())}") from error
        if isinstance(error, KafkaAwayError):
            raise
        reason = str(error).strip() or type(error).__name__
        raise KafkaAwayError(f"Kafka does not answer as expected for partition {partition}: {reason}") from error


def _outcome(has_written: bool) -> str:
    return KEPT if has_written else UNCHANGED


def _missing_right(error: Exception) -> str:
    """Return the right that this principal lacks, from the causes of an error, or an empty string."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, _MISSING):
        cause = cause.__cause__
    if cause is None:
        return ""
    if isinstance(cause, TopicAuthorizationFailedError):
        right = "Write" if isinstance(error, TurnRefused) else "Read"
        return f"Kafka does not allow it ({error}): grant this principal {right} on that topic"
    return f"Kafka does not allow it ({error}): grant this principal Write and Describe on that transactional id"
