"""The claim: how a worker takes over a partition from its previous owner, alive, dead or only thought dead.

1. Lock:    start the claim's own producer; from here, Kafka refuses any unfinished claim of the partition.
2. Read:    read and decode the changelogs; the position record names the owner, the last worker's transactional id.
            This takes most of the time; no transaction is open meanwhile. If a rebalance interrupts it and gives the
            partition to this worker again, the next claim continues; see `ChangelogState` for when it starts over.
            An owner that is still a member of the group releases the partition: wait for that, so that the lanes that
            it keeps run on. A released partition needs no fence.
3. Fence:   commit a record to the table's changelog, which Kafka refuses if a newer claim has the lock; then start a
            producer under the owner's id: its open transaction is aborted, its later ones are refused. Claims of
            several partitions that name the same owner share one fence.
4. Catch up: read both changelogs up to their ends, uncommitted records included. A read_committed reader gets the last
            stable offset as the end: a foreign open transaction hides records after it, and the claim waits for them.
            If another owner appears, fence it too and repeat.
5. Check:   compare the position with the commands, and the table with the outcomes that were written last.
6. Name:    write the position record that names this worker, and a record to the other changelog, in one transaction.
            It is committed only if both stand directly after what was read. From here the lane runs.

Only the newest claim of a partition can write an owner, and every worker decides under an id that a claim has named.
So the records before the new position are all that any earlier worker has written or will ever write.
"""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Final

import structlog
from aiokafka import TopicPartition
from aiokafka.cluster import ClusterMetadata
from aiokafka.errors import KafkaError, TopicAuthorizationFailedError
from msgspec import Struct

from order_service.errors import LaneParked, StoreError, Stuck, TurnRefused
from order_service.kafka.connection import missing_right
from order_service.kafka.topics import TopicNames
from order_service.runtime.deadline import deadline
from order_service.wire import changelog
from order_service.wire.changelog import BARRIER_KEY, POSITION_KEY, Position, WaitingCommand
from order_service.worker.claims.changelog_reader import Changelogs, ChangelogState
from order_service.worker.claims.checks import Checks
from order_service.worker.claims.clients import ClaimClients
from order_service.worker.claims.progress import Progress
from order_service.worker.store import Stores
from order_service.worker.table import Table
from order_service.worker.transactions import DEADLINE_S, Sent, TurnProducer, claiming

log = structlog.get_logger()

WARN_AFTER_S: Final = 10.0
RELEASE_WITHIN_S: Final = 10.0
"""How long a claim waits for a release, unless another claim has fenced the owner. A turn may take as long."""
RELEASE_POLL_S: Final = 0.2
_BARRIER: Final = BARRIER_KEY, b""
"""A record without a meaning: that it can be written, or where, is what a claim wants to know."""


class Claimed(Struct, frozen=True):
    """The result of a claim: the position to continue from, and the table and waiting commands of the partition.

    `record_count` is the number of changelog records that this claim has read, without those of an interrupted claim or
    of a standby, from which it has continued.
    """

    position: Position
    table: Table
    waiting: list[WaitingCommand]
    record_count: int = 0


class Claimer(Struct, frozen=True):
    """Claims partitions for one owner id.

    `named` gets each partition before its changelog may name this owner. `releasing_owners` are members of the group
    that release the partitions that they lose. `failpoint` is called after each step: tests stop or kill workers there.
    """

    group_id: str
    owner: str
    named: set[int]
    releasing_owners: frozenset[str]
    names: TopicNames
    connection: dict[str, Any]
    metadata: ClusterMetadata
    clients: ClaimClients
    failpoint: Callable[[str], None]
    stores: Stores | None = None

    async def claim(self, partition: int, state: ChangelogState, progress: Progress) -> Claimed:
        """Take over a partition. Continue from `state`, which an interrupted claim may have left.

        Raises LaneParked if the log does not allow the lane to continue, Fenced if another claim is newer.
        """
        lock_id = f"{self.group_id}-claim-{partition}"
        await progress.at(f"the coordinator of {lock_id}")
        async with claiming(lock_id, self.connection, self.metadata, [self.names.table, self.names.waiting]) as lock:
            self.failpoint("claim.locked")
            while (claimed := await self._take_over(partition, lock, state, progress)) is None:
                state.clear()  # it is empty at the second attempt, which therefore does not return None
            return claimed

    async def _take_over(
        self, partition: int, lock: TurnProducer, state: ChangelogState, progress: Progress
    ) -> Claimed | None:
        """Do steps 2 to 6. Return None if the state does not match the log."""
        await progress.at(f"the brokers of partition {partition}")
        await self._open_store(partition, state)
        async with self.clients.reader() as reader:
            logs = Changelogs(partition, self.names, reader, state, progress)
            await logs.read_to_end()
            await self._wait_for_release(logs, progress)
            self.failpoint("claim.read")
            checks = Checks(partition, self.names, self.clients, logs)
            await self._read_all(lock, logs, checks, progress)
            if logs.is_outdated():
                return None
            logs.check_store()
            await progress.at(f"the ends of the commands and outcomes of partition {partition}")
            position = await self._checked_position(lock, logs, checks)
            self.failpoint("claim.checked")
            await progress.at(f"a commit to the changelogs of partition {partition}")
            offset = await self._name_ourselves(lock, logs, position)
            logs.note_position(position, offset)
            await logs.table.save_claimed(position, offset, state.as_of)
        checks.count_never_read()
        self.failpoint("claim.named")
        return Claimed(position, logs.table, list(logs.waiting.values()), logs.record_count)

    async def _open_store(self, partition: int, state: ChangelogState) -> None:
        """Open the store of the table, unless the table is in memory, or an interrupted claim has opened it."""
        if state.is_too_old():
            state.clear()
        if self.stores is None or state.table.store is not None:
            return
        state.clear()  # nothing but a store has a part of the table
        table = TopicPartition(self.names.table, partition)
        starts, ends = await self.clients.starts([table]), await self.clients.ends([table])
        state.load(await self.stores.open(partition, starts[table], ends[table]))

    def drop_store(self, partition: int, state: ChangelogState, error: StoreError) -> None:
        """Close the store of a partition, so that its next claim opens it again; throw away a damaged one."""
        state.clear()
        if self.stores is not None:
            self.stores.drop(partition, error)

    async def _wait_for_release(self, logs: Changelogs, progress: Progress) -> None:
        """Wait until an owner that is a member of the group has released the partition, or `RELEASE_WITHIN_S`."""
        loop = asyncio.get_running_loop()
        give_up_at = loop.time() + RELEASE_WITHIN_S
        if logs.owner in self.releasing_owners:
            await progress.at(f"{logs.owner} to release partition {logs.partitions[0].partition}")
        while logs.owner in self.releasing_owners - self.clients.fenced and loop.time() < give_up_at:
            await asyncio.sleep(RELEASE_POLL_S)
            await logs.read_to_end()

    async def _read_all(self, lock: TurnProducer, logs: Changelogs, checks: Checks, progress: Progress) -> None:
        """Read the changelogs up to their ends. Fence each owner that they name, unless it has released the partition.

        This worker is already the owner if an earlier claim of it failed after step 6: the lane does not run yet.
        A claim that was stopped for long may read a changelog that already names the next owner, whose lanes run: Kafka
        refuses the record that comes before the fence, and that owner continues.
        """
        fenced = {self.owner}
        while True:
            owner = logs.owner
            if owner is not None and owner not in fenced:
                await progress.at(f"a commit to {self.names.table} partition {logs.partitions[0].partition}")
                await self._confirm_lock(lock, logs.partitions[0])
                await progress.at(f"the transactions of {owner} to end")
                await self.clients.fence(owner)
                fenced.add(owner)
                self.failpoint("claim.fenced")
            await progress.at(f"the brokers of the changelogs of partition {logs.partitions[0].partition}")
            ends = await checks.take_ends()
            if ends == logs.read_to:  # no record was hidden, and none has arrived since
                return
            await logs.read(ends)

    async def _checked_position(self, lock: TurnProducer, logs: Changelogs, checks: Checks) -> Position:
        """Return the position from which this worker continues. Raises LaneParked if a check fails.

        Only the newest claim parks the lane, and only if the changelogs were read completely: the next owner may have
        written to the topics meanwhile, or a broker may have returned an old end.
        """
        try:
            position = await checks.position(self.owner, len(logs.waiting))
            await checks.outcomes()
        except LaneParked:
            table, waiting = logs.partitions
            is_lost = logs.read_to[waiting] == 0  # an empty one stays empty, since that shows the loss
            await self._write_at_end(lock, logs, dict.fromkeys([table] if is_lost else [table, waiting], _BARRIER))
            raise
        return position

    async def _confirm_lock(self, lock: TurnProducer, table: TopicPartition) -> None:
        """Commit a record to the table's changelog: Kafka refuses it if a newer claim has the lock."""
        await _write(lock, {table: _BARRIER}, lambda _offsets: None)

    async def _name_ourselves(self, lock: TurnProducer, logs: Changelogs, position: Position) -> int:
        """Write the position to the table's changelog, and a record to the other one. Return the position's offset.

        So once a partition has a position, its other changelog is not empty: an empty one was lost.
        """
        table, waiting = logs.partitions
        self.named.add(table.partition)
        records = {table: (POSITION_KEY, changelog.encode(position)), waiting: _BARRIER}
        return (await self._write_at_end(lock, logs, records))[table]

    async def _write_at_end(
        self, lock: TurnProducer, logs: Changelogs, records: dict[TopicPartition, tuple[bytes, bytes]]
    ) -> dict[TopicPartition, int]:
        """Write a record to each changelog, directly after what was read. Return the offsets.

        Raises Stuck if other records come before one of them: another program has written there, such as a worker that
        compares its clock, or a broker that did not know its successor has returned an old end. The claim starts again.
        """
        return await _write(lock, records, logs.check_end)


async def _write(
    lock: TurnProducer,
    records: dict[TopicPartition, tuple[bytes, bytes]],
    check: Callable[[dict[TopicPartition, int]], None],
) -> dict[TopicPartition, int]:
    """Write a record to each partition in one transaction, and commit it if `check` accepts their offsets."""
    try:
        async with deadline(DEADLINE_S):
            await lock.begin()
            sent: list[Sent] = []
            for (topic, partition), (key, value) in records.items():
                sent += await lock.send_all(topic, partition, [(key, value, [])])
            acknowledged = await lock.wait_for_acks(sent)
            offsets = {at: metadata.offset for at, metadata in zip(records, acknowledged, strict=True)}
            check(offsets)
            await lock.commit(sent)
    except TimeoutError as error:
        raise Stuck(f"records to {list(records)} are not committed within {DEADLINE_S:.0f} s") from error
    return offsets


async def claim_until_done(
    claimer: Claimer, partition: int, state: ChangelogState, progress: Progress, *, pause_s: float = 1.0
) -> Claimed:
    """Claim a partition. Try again while Kafka cannot be read from or written to, however long that takes.

    The records of a failed claim do no harm: the next one starts a new lock and reads them. It continues from `state`.
    """
    while True:
        try:
            return await _claim_with_warnings(claimer.claim(partition, state, progress), partition, progress)
        except (KafkaError, StoreError, Stuck, TurnRefused) as error:
            if isinstance(error, TurnRefused) and error.lanes:
                raise
            if isinstance(error, StoreError):
                claimer.drop_store(partition, state, error)
            progress.failure = _reason(error)
            log.warning("A claim failed; trying again.", partition=partition, error=progress.failure)
            progress.leave()
            await asyncio.sleep(pause_s)


def _reason(error: Exception) -> str:
    if isinstance(error, TopicAuthorizationFailedError):
        return missing_right(error)
    return repr(error) if isinstance(error, KafkaError) else str(error)


async def _claim_with_warnings(claim: Coroutine[Any, Any, Claimed], partition: int, progress: Progress) -> Claimed:
    task = asyncio.create_task(claim, name=f"claim of {partition}")
    try:
        while not (await asyncio.wait({task}, timeout=WARN_AFTER_S))[0]:
            if progress.has_begun and (waits_for := progress.waits_for()):
                log.warning("A claim takes long.", partition=partition, waits_for=waits_for)
    except asyncio.CancelledError:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        raise
    return task.result()
