"""Checks of the workers' consumer group: its members and their partitions, and how far they are behind."""

import asyncio
import time
from collections.abc import Callable, Iterable
from typing import Any, Final

from aiokafka.structs import TopicPartition

from order_service.errors import TopicsError
from order_service.kafka.connection import UNKNOWN_TOPIC, Admin, ask_admin, raise_for
from order_service.kafka.reader import Reader
from order_service.kafka.topics import topic_names
from order_service.operations.doctor.checks.backlog import Backlog, backlogs_of
from order_service.operations.doctor.checks.brokers import RETRY_S
from order_service.operations.doctor.checks.check import Result, counted, numbers, ok, problem, sentence, warning
from order_service.settings import Settings
from order_service.wire.changelog import POSITION_KEY, decode_position
from order_service.worker.membership import STRANGERS_FIX, Group, group_of, list_strangers, strangers_of

SETTLES_WITHIN_S: Final = 5.0
LOOK_EVERY_S: Final = 0.5
STABLE: Final = "Stable"
EMPTY: Final = frozenset({"Empty", "Dead"})
"""The states of a group without members. A group that never had one is reported as dead."""
TAIL_OFFSETS: Final = 5_000
"""How much of a changelog's end is read: a turn has up to 2,000 commands, each with one entry."""
START: Final = "Start a worker: `order-service worker`."
WORKER_READINESS: Final = (
    "Read /health/ready of the worker that holds the partition: it names a parked lane or a claim that waits."
    " docs/operations/reasons.md has what to do for each text."
)


async def check_group(settings: Settings) -> list[Result]:
    """Check that workers share all partitions, and no other program is among them. Wait for a rebalance to end."""
    topic = topic_names(settings.topic_prefix).commands

    async def ask(admin: Admin) -> list[Result]:
        [described] = await admin.describe_topics([topic])
        if described["error_code"] == UNKNOWN_TOPIC:
            raise TopicsError(f"the topic {topic} is missing")
        raise_for(described["error_code"])
        count = len(described["partitions"])
        group = await _group_of(admin, settings.group_id)
        give_up_at = time.monotonic() + SETTLES_WITHIN_S
        while group.state not in {STABLE, *EMPTY} and time.monotonic() < give_up_at:
            await asyncio.sleep(LOOK_EVERY_S)
            group = await _group_of(admin, settings.group_id)
        return judge_group(settings.group_id, group, [TopicPartition(topic, partition) for partition in range(count)])

    return await ask_admin(settings, ask, patience_s=RETRY_S)


async def _group_of(admin: Admin, group_id: str) -> Group:
    coordinator = await admin.find_coordinator(group_id)

    async def send(request: Any) -> Any:
        return await admin._send_request(request, coordinator)  # noqa: SLF001, it has no method for one node

    return await group_of(group_id, send)


def judge_group(group_id: str, group: Group, partitions: Iterable[TopicPartition]) -> list[Result]:
    """Return strangers in a group, and the partitions that no member holds."""
    partitions = list(partitions)
    if not group.members:
        return [problem(f"No worker is in the group {group_id}: commands are not decided.", START)]
    results = []
    if strangers := strangers_of(group.members):
        results.append(problem(sentence(list_strangers(group_id, strangers)), sentence(STRANGERS_FIX)))
    held = {partition for member in group.members for partition in member.partitions()}
    if group.state != STABLE:
        results.append(warning(f"The group {group_id} rebalances ({group.state}).", "Run `doctor` again in a minute."))
    elif missing := [partition.partition for partition in partitions if partition not in held]:
        text = f"No member of the group {group_id} holds {numbers(missing)}."
        results.append(problem(text, "Restart the workers one after the other; their log has what they wait for."))
    workers = counted(len(group.members), "worker")
    return results or [ok(f"All {len(partitions)} partitions are held by {workers} of the group {group_id}.")]


async def check_lag(settings: Settings, now: Callable[[], float] = time.time) -> list[Result]:
    """Check that commands are decided: those behind the positions of the workers must be young.

    A worker commits its positions to the group every few seconds, and a killed one does not. So where they are late,
    the table's changelog has the position.
    """
    async with Reader(settings) as reader:
        led = await reader.led_partitions(reader.names.commands)
        committed = await ask_admin(
            settings, lambda admin: admin.list_consumer_group_offsets(settings.group_id), patience_s=RETRY_S
        )
        starts = await reader.starts(led)
        positions = {
            partition: max(starts[partition], committed[partition].offset if partition in committed else 0)
            for partition in led
        }
        backlogs = await backlogs_of(reader, positions, now())
        if late := [partition for partition, backlog in backlogs.items() if backlog.is_late]:
            written = await _written_positions(reader, [partition.partition for partition in late])
            positions |= {partition: written.get(partition.partition, positions[partition]) for partition in late}
            backlogs = await backlogs_of(reader, positions, now())
    return judge_lag({partition.partition: backlog for partition, backlog in backlogs.items()})


async def _written_positions(reader: Reader, partitions: Iterable[int]) -> dict[int, int]:
    """Return the positions at the end of the table's changelog. Each turn writes that of each of its partitions."""
    tables = [TopicPartition(reader.names.table, partition) for partition in partitions]
    starts, ends = await reader.starts(tables), await reader.ends(tables)
    tails = {table: max(starts[table], ends[table] - TAIL_OFFSETS) for table in tables}
    positions = {}
    async for records in reader.between(tails, ends):
        for record in records:
            if record.key == POSITION_KEY and record.value:
                positions[record.partition] = decode_position(record.value).resume_at
    return positions


def judge_lag(backlogs: dict[int, Backlog]) -> list[Result]:
    """Return the partitions whose commands are not decided in time."""
    results = [
        problem(
            f"Partition {partition} is {counted(backlog.offset_count, 'offset')} behind; its first undecided command is"
            f" {backlog.oldest_s:.0f} s old.",
            WORKER_READINESS,
        )
        for partition, backlog in backlogs.items()
        if backlog.is_late
    ]
    behind = sum(backlog.offset_count for backlog in backlogs.values())
    text = f"The workers are {counted(behind, 'offset')} behind." if behind else "All commands are decided."
    return results or [ok(text)]
