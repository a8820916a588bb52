"""Writes the changelogs of a partition again from its events, rejections, dead letters and commands.

1. Look:    read the topics and compare, without a lock. Differences of a running lane must last, as for `verify`. If
            there are none, nothing else happens; a dry run ends here.
2. Take over the partition by the protocol of a claim (`takeover.py`). If the changelog may not name its last owner,
            fence every worker id of the group that Kafka knows.
3. Look again. No process but this one can write now, so the comparison is exact, and a refusal has changed nothing.
            If another operator has repaired the partition meanwhile, this ends here.
4. Begin:   write a position that parks every claim. From here until the last step, no lane can start.
5. Write what differs, in transactions of bounded size. If a changelog has records that cannot be read, write it whole,
            and delete what is before the record of step 4.
6. End:     write the position, its release and the record of the operation in one transaction. The lane can start.

An interrupted rebuild leaves a lane that parks. The next one continues: what is already equal is not written again.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Final
from uuid import uuid4

from aiokafka.structs import TopicPartition
from msgspec import Struct, field, structs

from order_service.errors import DamagedError, Fenced, OperationRefused
from order_service.kafka.admin_requests import transactional_ids
from order_service.kafka.connection import ask_admin, connection
from order_service.kafka.reader import Reader
from order_service.operations.rebuild.changelog_fold import RESTORE
from order_service.operations.rebuild.log_deletion import delete_before, restore_policy
from order_service.operations.rebuild.needed_rights import check_rights
from order_service.operations.rebuild.rebuild_plan import Offsets, PartitionLook, Plan, Progress
from order_service.operations.takeover import KEPT, Takeover, starting, taken_over
from order_service.settings import Settings
from order_service.wire import changelog
from order_service.wire.changelog import BARRIER_KEY, REBUILDING
from order_service.wire.operations import PartitionRebuilt
from order_service.worker.claims.clients import ClaimClients
from order_service.worker.records import Record

SETTLED_S: Final = 3.0
"""The time after which a transaction that is visible in one topic is visible in all of them."""
LOOKS: Final = 5
"""How often a running lane is compared before a difference counts: a part of a transaction can be visible first."""
ATTEMPTS: Final = 3
"""How often a partition is taken over again after workers were fenced: they start again, and their claims take it."""
RECORDS_AT_ONCE: Final = 1_000
BYTES_AT_ONCE: Final = 2 * 1024 * 1024
"""The most that one transaction writes: it must be committed within seconds."""
LOSSES_MAX: Final = 1_000
"""How many accepted losses are recorded. The others are counted."""
Sleep = Callable[[float], Awaitable[object]]


class Wanted(Struct, frozen=True):
    """Who rebuilds, why, and whether it is more than a dry run.

    With `accept_loss`, outcome topics count as complete although the changelogs show that they lost records.
    """

    actor: str
    reason: str
    is_confirmed: bool = False
    accept_loss: bool = False


class Result(Struct):
    """What was found in a partition, and whether it was written.

    `unreadable` has the damage of each changelog that is written whole, by topic. `foreign` counts the records in the
    outcome topics that no worker wrote. `refusal` says why nothing was written.
    """

    partition: int
    orders: int = 0
    missing: int = 0
    different: int = 0
    superfluous: int = 0
    waiting: int = 0
    waiting_added: int = 0
    waiting_removed: int = 0
    position: int | None = None
    previous_position: int | None = None
    unreadable: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    foreign: int = 0
    is_intact: bool = False
    is_written: bool = False
    refusal: str = ""


def result_of(plan: Plan, partition: int) -> Result:
    """Return the numbers of a plan."""
    kept = plan.changelogs.waiting.keys()
    return Result(
        partition,
        orders=len(plan.outcomes.entries),
        missing=len(plan.difference.missing),
        different=len(plan.difference.behind) + len(plan.difference.changed),
        superfluous=len(plan.difference.superfluous),
        waiting=len(plan.waiting),
        waiting_added=len(plan.waiting.keys() - kept),
        waiting_removed=len(kept - plan.waiting.keys()),
        position=plan.position.next_offset,
        previous_position=None if plan.last is None else plan.last.next_offset,
        unreadable=plan.unreadable,
        notes=plan.notes,
        foreign=plan.outcomes.foreign,
        is_intact=plan.is_intact,
    )


async def rebuild(
    reader: Reader,
    settings: Settings,
    partitions: Sequence[int] | None,
    wanted: Wanted,
    progress: Progress,
    *,
    sleep: Sleep = asyncio.sleep,
    failpoint: Callable[[str], None] = lambda _: None,
) -> list[Result]:
    """Rebuild partitions one after the other, all of them for None; without `is_confirmed` only compare them.

    `failpoint` is called after each step: tests kill the process there.
    Raises KafkaAwayError if Kafka goes away: what was written stays, and another call continues. Raises TopicsError if
    a topic is missing, OperationRefused if a partition does not exist.
    """
    names = reader.names
    topics = await reader.partitions(*names.written, names.commands, names.operations)
    count = sum(topic == names.table for topic, _ in topics)
    partitions = range(count) if partitions is None else partitions
    if unknown := [partition for partition in partitions if not 0 <= partition < count]:
        raise OperationRefused(f"the topics have {count} partitions, from 0: there is no partition {unknown[0]}")
    restored = await restore_policy(settings, names) if wanted.is_confirmed else []
    ends, settled_at = await reader.ends(topics), time.monotonic() + SETTLED_S
    clients = ClaimClients(connection(settings), set())
    operation_id = str(uuid4())
    results = []
    try:
        for partition in partitions:
            look = PartitionLook(reader, partition, count, progress)
            rebuilding = _Rebuilding(reader, settings, look, partition, wanted, operation_id, clients, sleep, failpoint)
            of_partition = {topic: end for (topic, number), end in ends.items() if number == partition}
            results.append(await _run(rebuilding, of_partition, settled_at=settled_at))
    finally:
        await clients.close()
    for topic in restored:
        results[0].notes.append(
            f"{topic} has cleanup.policy=compact again: a rebuild had changed it, which was interrupted or still runs"
        )
    return results


async def _run(rebuilding: "_Rebuilding", ends: Offsets, *, settled_at: float) -> Result:
    try:
        await rebuilding.run(ends, settled_at=settled_at)
    except OperationRefused as error:
        rebuilding.result.refusal = str(error)
    except DamagedError as error:
        topic, partition = error.topic_partition
        damage = f"{topic} partition {partition} is damaged on the disk of the broker from offset {error.offset} on"
        rebuilding.result.refusal = f"{damage}. {RESTORE}"
    refusal = rebuilding.result.refusal
    if refusal and rebuilding.has_written and not refusal.endswith(KEPT):
        rebuilding.result.refusal = f"{refusal.rstrip('.')}; {KEPT}"
    return rebuilding.result


class _Rebuilding:
    """The rebuild of one partition."""

    def __init__(
        self,
        reader: Reader,
        settings: Settings,
        look: PartitionLook,
        partition: int,
        wanted: Wanted,
        operation_id: str,
        clients: ClaimClients,
        sleep: Sleep,
        failpoint: Callable[[str], None],
    ) -> None:
        self.result = Result(partition)
        self._reader = reader
        self._names = reader.names
        self._settings = settings
        self._look = look
        self._partition = partition
        self._wanted = wanted
        self._operation_id = operation_id
        self._clients = clients
        self._sleep = sleep
        self._failpoint = failpoint
        self.has_written = False
        """Whether a change may have been written, other than the records of the takeover."""
        self._are_all_fenced = False

    async def run(self, ends: Offsets, *, settled_at: float) -> None:
        """Compare, and write if that is wanted and needed."""
        plan = await self._lasting_plan(ends, settled_at=settled_at)
        self.result = result_of(plan, self._partition)
        if plan.is_intact:
            return
        self._check_losses(plan)
        if self._wanted.is_confirmed:
            await check_rights(self._settings, self._names, plan.unreadable)
            await self._write_until_done(plan)

    async def _write_until_done(self, plan: Plan) -> None:
        """Write again. If all workers had to be fenced, claims of those that start again may interrupt this.

        They are not fenced again: each worker that has claimed the partition since is named in its table. If another
        operator has rebuilt the partition meanwhile, nothing is left to do.
        """
        for attempt in range(1, ATTEMPTS + 1):
            try:
                await self._write_again(plan)
            except OperationRefused as error:
                is_owner_known = plan.is_owner_known and not self._are_all_fenced
                if is_owner_known or attempt == ATTEMPTS or not isinstance(error.__cause__, Fenced):
                    raise
            else:
                return
            ends = await self._look.stable_ends()
            plan = await self._lasting_plan(ends, settled_at=time.monotonic() + SETTLED_S)
            self.result = result_of(plan, self._partition)
            if plan.is_intact:
                return

    async def _lasting_plan(self, ends: Offsets, *, settled_at: float) -> Plan:
        """Compare until nothing differs, nothing was written meanwhile, or `LOOKS` times.

        After `settled_at`, all transactions before `ends` are visible in all topics.
        """
        plan = await self._look.plan(ends)
        for _ in range(LOOKS - 1):
            if plan.is_intact:
                break
            await self._sleep(max(0.0, settled_at - time.monotonic()))
            settled, ends, settled_at = ends, await self._look.stable_ends(), time.monotonic() + SETTLED_S
            if all(ends[topic] == settled[topic] for topic in self._names.written):
                break
            plan = await self._look.plan(ends, settled)
        return plan

    async def _write_again(self, plan: Plan) -> None:
        """Do steps 2 to 6."""
        async with taken_over(
            self._settings,
            self._reader,
            self._partition,
            is_unknown_owner_dead=True,
            has_written=self.has_written,
            failpoint=self._failpoint,
        ) as takeover:
            try:
                await self._write_alone(takeover, plan)
            finally:
                self.has_written = takeover.has_written

    async def _write_alone(self, takeover: Takeover, plan: Plan) -> None:
        self._failpoint("rebuild.locked")
        if takeover.newest.fault or not plan.is_owner_known:
            await self._fence_all(takeover)
        plan = await self._look.plan(await self._all_ends(takeover))
        if not (plan.is_owner_known or self._are_all_fenced):  # the table has lost records since
            await self._fence_all(takeover)
            plan = await self._look.plan(await self._all_ends(takeover))
        self.result = result_of(plan, self._partition)
        if plan.is_intact:
            return
        self._check_losses(plan)
        await check_rights(self._settings, self._names, plan.unreadable)
        begun = await self._begin(takeover, plan)
        self._failpoint("rebuild.begun")
        await self._write_table(takeover, plan)
        await self._write_waiting(takeover, plan)
        self._failpoint("rebuild.written")
        for topic in plan.unreadable:
            await delete_before(self._settings, TopicPartition(topic, self._partition), begun[topic])
        self._failpoint("rebuild.deleted")
        await self._end(takeover, plan)
        self.result.is_written = True

    def _check_losses(self, plan: Plan) -> None:
        if plan.losses and not self._wanted.accept_loss:
            first, others = plan.losses[0], len(plan.losses) - 1
            more = f", and {others} more" if others else ""
            raise OperationRefused(
                f"the outcomes of partition {self._partition} have lost records: {first}{more}. Restore them from a"
                " mirror or a backup: a rebuild cannot. To set the changelogs back to what is left, add --accept-loss."
            )

    async def _all_ends(self, takeover: Takeover) -> dict[str, int]:
        """Return the ends with the records of open transactions, once those of other programs hide no outcome."""
        ends = await self._clients.ends(self._look.partitions)
        await takeover.until_visible({each: end - 1 for each, end in ends.items() if each.topic in self._names.written})
        return {topic: end for (topic, _), end in ends.items()}

    async def _fence_all(self, takeover: Takeover) -> None:
        """Fence every worker id of the group that Kafka knows: one of them may be the owner, and it is unknown which.

        The first one is this operator's own: it shows whether this principal may use such ids, and so sees all of them.
        Each is fenced once: a worker that starts again later is named in the table.
        """
        if self._are_all_fenced:
            return
        await self._fence(takeover.owner)
        prefix = f"{self._settings.group_id}-worker-"
        for owner in await ask_admin(self._settings, lambda admin: transactional_ids(admin, prefix)):
            await self._fence(owner)
        self._are_all_fenced = True
        self._failpoint("rebuild.fenced")

    async def _fence(self, owner: str) -> None:
        async with starting(owner):
            await self._clients.fence(owner)

    async def _begin(self, takeover: Takeover, plan: Plan) -> dict[str, int]:
        """Write a position that parks every claim. Return the offset of the first new record of each changelog."""
        position = structs.replace(
            plan.position,
            owner=takeover.owner,
            waiting_count=REBUILDING,
            ends=None if plan.last is None else plan.last.ends,
        )
        records: list[tuple[str, list[Record]]] = [
            (self._names.table, takeover.position_records(position)),
            (self._names.waiting, [(BARRIER_KEY, b"", [])]),
        ]
        return await takeover.commit(records)

    async def _write_table(self, takeover: Takeover, plan: Plan) -> None:
        is_whole = self._names.table in plan.unreadable
        written = plan.outcomes.entries if is_whole else plan.difference.written()
        removed = () if is_whole else plan.difference.superfluous
        await self._write(takeover, self._names.table, _table_records(plan, written, removed))

    async def _write_waiting(self, takeover: Takeover, plan: Plan) -> None:
        kept = {} if self._names.waiting in plan.unreadable else plan.changelogs.waiting
        removed: list[Record] = [(key, None, []) for key in kept.keys() - plan.waiting.keys()]
        added: list[Record] = [
            (key, changelog.encode(command), []) for key, command in plan.waiting.items() if key not in kept
        ]
        await self._write(takeover, self._names.waiting, iter(removed + added))

    async def _write(self, takeover: Takeover, topic: str, records: Iterator[Record]) -> None:
        for batch in _batches(records):
            await takeover.commit([(topic, batch)])
            self._failpoint("rebuild.batch")

    async def _end(self, takeover: Takeover, plan: Plan) -> None:
        result = self.result
        rebuilt = PartitionRebuilt(
            id=self._operation_id,
            at=datetime.now(UTC),
            actor=self._wanted.actor,
            reason=self._wanted.reason,
            position=plan.position.next_offset,
            orders=result.orders,
            waiting=result.waiting,
            changed=result.missing + result.different + result.waiting_added,
            removed=result.superfluous + result.waiting_removed,
            lost=recorded_losses(plan.losses),
        )
        position = structs.replace(plan.position, owner=takeover.owner)
        await takeover.commit(
            [
                (self._names.table, takeover.position_records(position)),
                (self._names.operations, [takeover.operation_record(rebuilt)]),
            ]
        )


def recorded_losses(losses: Sequence[str]) -> tuple[str, ...]:
    """Return the first losses and the number of the others: one record must have them all."""
    more = len(losses) - LOSSES_MAX
    return (*losses[:LOSSES_MAX], *([f"{more} more"] if more > 0 else []))


def _table_records(plan: Plan, written: Iterable[str], removed: Iterable[str]) -> Iterator[Record]:
    for order_id in removed:
        yield order_id.encode(), None, []
    for order_id in written:
        entry = plan.changelogs.expected(order_id)
        if entry is not None:
            yield order_id.encode(), changelog.encode(entry), []


def _batches(records: Iterable[Record]) -> Iterator[list[Record]]:
    """Split records into lists that one transaction can write."""
    batch: list[Record] = []
    size = 0
    for record in records:
        batch.append(record)
        size += len(record[1] or b"")
        if len(batch) >= RECORDS_AT_ONCE or size >= BYTES_AT_ONCE:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
