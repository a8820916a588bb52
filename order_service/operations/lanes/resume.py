"""Resumes a parked lane: what an operator may accept, the new position, and the record of who accepted it.

A plain resume changes no changelog. It records the operation, and the worker that has the lane claims it again. To move
the position, or to accept lost records, the tool takes over the partition first.
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Final
from uuid import uuid4

from aiokafka.structs import TopicPartition
from msgspec import Struct
from msgspec.structs import replace

from order_service.errors import DamagedError, DecodeError, OperationRefused
from order_service.kafka.connection import Producer, connection
from order_service.kafka.reader import Reader
from order_service.kafka.topics import TopicNames
from order_service.operations.lanes.examination import WAITING_COUNT, Examination, examine
from order_service.operations.takeover import explained, taken_over
from order_service.settings import Settings
from order_service.wire import operations
from order_service.wire.changelog import Position
from order_service.wire.commands import decode_command
from order_service.wire.operations import LaneResumed

ORDER_IDS_MAX: Final = 1_000
"""How many order ids of skipped commands are recorded. The others are counted."""


class Wanted(Struct, frozen=True):
    """What the operator wants: the offset to continue at (None: where the lane is), and whether to accept losses."""

    from_offset: int | None = None
    accepts_loss: bool = False


class Plan(Struct, frozen=True):
    """What a resume changes. Without `position` only the operation is recorded."""

    previous_position: int | None
    position: int | None = None
    lost: dict[str, tuple[int, int]] = {}

    @property
    def skipped(self) -> range:
        """The offsets that are not decided."""
        return range(self.previous_position or 0, self.position or 0)

    @property
    def repeated(self) -> range:
        """The offsets that are decided again: other records have them now."""
        return range(0) if self.position is None else range(self.position, self.previous_position or 0)


class Skipped(Struct, frozen=True):
    """The commands that a resume skips: their orders, how many more there are, and what could not be read."""

    order_ids: tuple[str, ...] = ()
    more: int = 0
    unreadable: str = ""


class Preview(Struct, frozen=True):
    """What the topics hold now, and what a resume changes."""

    examination: Examination
    plan: Plan
    skipped: Skipped


def plan_of(partition: int, examination: Examination, wanted: Wanted, names: TopicNames) -> Plan:
    """Return what to change. Raises OperationRefused if that cannot help, or is more than the lane needs."""
    if examination.changelog_fault:
        raise OperationRefused(
            f"{examination.changelog_fault} Only new changelogs help: see `order-service rebuild {partition}`."
        )
    if examination.loss_fault:
        _check_loss(partition, examination, wanted, names)
    if wanted.accepts_loss and not examination.loss_fault:
        raise OperationRefused(
            "there is no loss to accept: no topic ends before its recorded end, and no batch of rejections or dead"
            " letters is damaged; omit --accept-loss"
        )
    if examination.commands_fault and wanted.from_offset is None:
        raise OperationRefused(
            f"{examination.commands_fault} Choose with --from where to continue: valid offsets are"
            f" {examination.commands_start} to {examination.commands_end}."
        )
    if examination.resume_at is None or (wanted.from_offset is None and not wanted.accepts_loss):
        if wanted.from_offset is not None:
            raise OperationRefused("the partition has no position yet: its first claim sets one; omit --from")
        return Plan(examination.resume_at)
    target = examination.resume_at if wanted.from_offset is None else wanted.from_offset
    _check_target(examination, examination.resume_at, target)
    return Plan(examination.resume_at, target, examination.lost)


def _check_loss(partition: int, examination: Examination, wanted: Wanted, names: TopicNames) -> None:
    rebuild = f"`order-service rebuild {partition}`"
    if names.events in examination.damaged_topics:
        raise OperationRefused(
            f"{examination.loss_fault} Neither a resume nor a rebuild can go on without these events."
        )
    if names.events in examination.lost:
        raise OperationRefused(
            f"{examination.loss_fault} Lost events cannot be accepted here: they would leave a hole in the versions, at"
            f" which consumers and the projector stop. Restore the events, or run {rebuild} with --accept-loss."
        )
    if not examination.lost or examination.lost.keys() & {names.waiting, WAITING_COUNT}:
        raise OperationRefused(
            f"{examination.loss_fault} Run {rebuild}, which derives the waiting commands from the commands."
        )
    if not wanted.accepts_loss:
        raise OperationRefused(
            f"{examination.loss_fault} If they cannot be restored, accept the loss with --accept-loss."
        )


def _check_target(examination: Examination, resume_at: int, target: int) -> None:
    if not examination.commands_start <= target <= examination.commands_end:
        raise OperationRefused(
            f"--from must be from {examination.commands_start} to {examination.commands_end}, where the commands begin"
            " and end"
        )
    if target >= resume_at:
        return
    if not examination.commands_fault:
        raise OperationRefused(
            f"the commands from {target} to {resume_at} are decided already: --from moves back only after the topic was"
            " cut or recreated"
        )
    if examination.waiting_count:
        wait = "" if resume_at <= examination.commands_end else f"wait until the topic ends at {resume_at}, then "
        raise OperationRefused(
            f"{examination.waiting_count} commands wait with offsets of the previous topic: restore the commands, or"
            f" {wait}name an offset from {resume_at} on, and let senders send again what is before it"
        )


async def preview(settings: Settings, reader: Reader, partition: int, wanted: Wanted) -> Preview:
    """Return what a resume would change. It only reads. Raises OperationRefused for a resume that is not possible."""
    examination = await examine(settings, partition)
    plan = plan_of(partition, examination, wanted, reader.names)
    return Preview(examination, plan, await _read_skipped(reader, partition, plan.skipped))


async def _read_skipped(reader: Reader, partition: int, skipped: Sequence[int]) -> Skipped:
    """Read the order ids of the commands that can be decoded."""
    if not skipped:
        return Skipped()
    commands = TopicPartition(reader.names.commands, partition)
    start = max(skipped[0], (await reader.starts([commands]))[commands])
    end = min(skipped[-1] + 1, (await reader.ends([commands]))[commands])
    order_ids: dict[str, None] = {}
    unreadable = "" if start == skipped[0] else f"the offsets before {start} are deleted"
    try:
        async for records in reader.between({commands: start}, {commands: end}):
            for record in records:
                try:
                    order_ids[decode_command(record.value).order_id] = None
                except DecodeError:
                    continue
                except Exception as error:  # noqa: BLE001, it may be the bug for which the lane has parked
                    unreadable = f"the command at offset {record.offset} cannot be decoded: {type(error).__name__}"
    except DamagedError as error:
        unreadable = f"the offsets from {error.offset} on cannot be read"
    kept = tuple(order_ids)[:ORDER_IDS_MAX]
    return Skipped(kept, len(order_ids) - len(kept), unreadable)


async def resume(
    settings: Settings, reader: Reader, partition: int, previewed: Preview, actor: str, reason: str
) -> LaneResumed:
    """Do what was previewed, in one transaction, and return what was recorded.

    Raises OperationRefused if the partition has changed since, or if another process is taking it over.
    """
    plan = previewed.plan
    operation = LaneResumed(
        id=str(uuid4()),
        at=datetime.now(UTC),
        actor=actor,
        reason=reason,
        previous_position=plan.previous_position,
        position=plan.position,
        skipped_order_ids=previewed.skipped.order_ids,
        lost=plan.lost,
    )
    if plan.position is None:
        with explained(partition):
            await _record(settings, reader.names.operations, partition, operation)
        return operation
    examination = previewed.examination
    async with taken_over(settings, reader, partition) as takeover:
        if takeover.newest.offset != examination.position_offset:
            raise OperationRefused(
                f"partition {partition} has moved since the checks: its position was not changed. A worker that held it"
                " may be fenced: it then ends with 10 and must be restarted. Run this again"
            )
        position = position_of(plan.position, examination, takeover.owner)
        await takeover.commit(
            [
                (reader.names.table, takeover.position_records(position)),
                (reader.names.operations, [takeover.operation_record(operation)]),
            ]
        )
    return operation


def position_of(next_offset: int, examination: Examination, owner: str) -> Position:
    """Return the position to write. The command before a new one is not compared by the next claim."""
    last = examination.position
    position = Position(
        next_offset, owner, examination.commands_end, None, next_offset, examination.ends, examination.waiting_count
    )
    if last is None or last.resume_at != next_offset or examination.commands_fault:
        return position
    return replace(position, next_offset=last.next_offset, last_timestamp_ms=last.last_timestamp_ms)


async def _record(settings: Settings, topic: str, partition: int, operation: LaneResumed) -> None:
    producer = Producer(**connection(settings), acks="all", request_timeout_ms=10_000)
    try:
        await producer.start()
        key, value = operation.id.encode(), operations.encode(operation)
        await producer.send_and_wait(topic, key=key, value=value, partition=partition)
    finally:
        await producer.stop()
