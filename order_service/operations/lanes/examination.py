"""The examination of one partition: what a claim would find there now. It only reads."""

import asyncio
from collections.abc import Awaitable
from typing import Final

from aiokafka.errors import CorruptRecordException
from aiokafka.structs import TopicPartition
from msgspec import Struct
from msgspec.structs import replace

from order_service.errors import KafkaAwayError, LaneParked, ParkingReason
from order_service.kafka.connection import connection
from order_service.kafka.record_batches import damaged_partition
from order_service.kafka.topics import TopicNames, topic_names
from order_service.operations.takeover import explained
from order_service.settings import Settings
from order_service.wire.changelog import REBUILDING, Ends, Position
from order_service.worker.claims.changelog_reader import Changelogs, ChangelogState
from order_service.worker.claims.checks import Checks, unfinished_rebuild
from order_service.worker.claims.clients import ClaimClients
from order_service.worker.claims.progress import ClaimSlots, Progress

STALLED_S: Final = 30.0
"""How long the examination may make no progress: an open transaction hides records, or a broker is away."""
WAITING_COUNT: Final = "waiting commands"
"""The name of the difference between the waiting commands and the count in the position."""


class Examination(Struct, frozen=True):
    """The state of a partition, and why a claim would park its lane: each fault is the text of a worker's own check.

    `changelog_fault` needs a rebuild. `loss_fault` is that outcomes or waiting commands are lost or damaged. `lost` has
    a range of offsets for each topic: from the first lost or unreadable record to before the recorded or actual end.
    `commands_fault`: commands were deleted, or their topic was cut, recreated or damaged.
    """

    position: Position | None
    position_offset: int
    owner: str | None
    waiting_count: int
    commands_start: int
    commands_end: int
    ends: Ends
    changelog_fault: str = ""
    loss_fault: str = ""
    commands_fault: str = ""
    lost: dict[str, tuple[int, int]] = {}
    damaged_topics: tuple[str, ...] = ()

    @property
    def resume_at(self) -> int | None:
        """The offset at which a claim would continue now."""
        return None if self.position is None else self.position.resume_at

    @property
    def faults(self) -> list[str]:
        """Why a claim would park the lane."""
        return [fault for fault in (self.changelog_fault, self.loss_fault, self.commands_fault) if fault]


async def examine(settings: Settings, partition: int) -> Examination:
    """Examine a partition with the checks of a claim. Raises KafkaAwayError after `STALLED_S` without progress."""
    clients = ClaimClients(connection(settings), set())
    progress = Progress(ClaimSlots(1))
    examining = asyncio.create_task(_examine(clients, topic_names(settings.topic_prefix), partition, progress))
    try:
        with explained(partition):
            while not (await asyncio.wait({examining}, timeout=1.0))[0]:
                if progress.waits_s() > STALLED_S:
                    raise KafkaAwayError(f"partition {partition} cannot be read: {progress.waits_for()}")
            return examining.result()
    finally:
        examining.cancel()
        await asyncio.wait({examining})
        await clients.close()


async def _examine(clients: ClaimClients, names: TopicNames, partition: int, progress: Progress) -> Examination:
    async with clients.reader() as reader:
        await progress.at(f"the brokers of partition {partition}")
        state = ChangelogState()
        logs = Changelogs(partition, names, reader, state, progress)
        checks = Checks(partition, names, clients, logs)
        changelog_fault = await _fault_of(logs.read_to_end())
        commands = TopicPartition(names.commands, partition)
        logged = [names.events, names.rejections, names.dead_letters, names.waiting]
        ends = await clients.ends([commands, *(TopicPartition(topic, partition) for topic in logged)])
        examination = Examination(
            position=state.position,
            position_offset=state.position_offset,
            owner=logs.owner,
            waiting_count=len(state.waiting),
            commands_start=(await clients.starts([commands]))[commands],
            commands_end=ends[commands],
            ends=Ends(*(ends[TopicPartition(topic, partition)] for topic in logged)),
            changelog_fault=changelog_fault,
        )
        if changelog_fault:
            return examination
        checked = await _checked(partition, examination, checks, names)
        damaged = [TopicPartition(topic, partition) for topic in checked.damaged_topics]
        unread = {each.topic: (await reader.position(each), ends[each]) for each in damaged}
        return replace(checked, lost=checked.lost | unread)


async def _checked(partition: int, examination: Examination, checks: Checks, names: TopicNames) -> Examination:
    """Add what the checks of a claim find."""
    position = examination.position
    if position is not None and position.waiting_count == REBUILDING:
        return replace(examination, changelog_fault=unfinished_rebuild(partition))
    lost = lost_tails(examination, names)
    ends_fault = await _fault_of(checks.take_ends())
    commands_fault = await _fault_of(checks.position("", examination.waiting_count))
    if position is None:
        return replace(examination, changelog_fault=commands_fault)
    damages, parked = await _check_outcomes(checks)
    outcome_fault = "" if parked is None else str(parked)
    is_loss = parked is not None and parked.reason is ParkingReason.WAITING_DIFFERS
    return replace(
        examination,
        changelog_fault="" if is_loss else outcome_fault,
        commands_fault=commands_fault,
        loss_fault=" ".join(filter(None, [ends_fault, *damages.values(), outcome_fault if is_loss else ""])),
        lost=lost,
        damaged_topics=tuple(damages),
    )


async def _check_outcomes(checks: Checks) -> tuple[dict[str, str], LaneParked | None]:
    """Return the fault of each damaged topic, and what the check finds in the others.

    A damage must not hide an outcome that the table has lost: its command would be decided again.
    """
    damages: dict[str, str] = {}
    while True:
        parked = await _parked_by(checks.outcomes(without=damages))
        damaged = _damaged_by(parked)
        if damaged is None:
            return damages, parked
        damages[damaged.topic] = str(parked)


def lost_tails(examination: Examination, names: TopicNames) -> dict[str, tuple[int, int]]:
    """Return the topics that end before their recorded end, with both; and the differing counts of waiting commands."""
    position = examination.position
    if position is None:
        return {}
    recorded, actual = position.ends or Ends(), examination.ends
    lost = {
        names.events: (actual.events, recorded.events),
        names.rejections: (actual.rejections, recorded.rejections),
        names.dead_letters: (actual.dead_letters, recorded.dead_letters),
        names.waiting: (actual.waiting, recorded.waiting),
    }
    lost = {topic: (end, known) for topic, (end, known) in lost.items() if end < known}
    if position.waiting_count not in {None, examination.waiting_count}:
        lost[WAITING_COUNT] = (examination.waiting_count, position.waiting_count or 0)
    return lost


def _damaged_by(parked: LaneParked | None) -> TopicPartition | None:
    cause = None if parked is None else parked.__cause__
    return damaged_partition(cause) if isinstance(cause, CorruptRecordException) else None


async def _fault_of(check: Awaitable[object]) -> str:
    parked = await _parked_by(check)
    return "" if parked is None else str(parked)


async def _parked_by(check: Awaitable[object]) -> LaneParked | None:
    try:
        await check
    except LaneParked as error:
        return error
    return None
