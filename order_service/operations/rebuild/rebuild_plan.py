"""Reads the topics of a partition, and plans what its changelogs must become."""

import time
from collections.abc import Callable, Mapping
from typing import Final

from aiokafka.structs import ConsumerRecord, TopicPartition
from msgspec import Struct

from order_service.errors import DamagedError
from order_service.kafka.reader import Reader
from order_service.kafka.topics import topic_configs
from order_service.operations.positions import newest_positions
from order_service.operations.rebuild.changelog_fold import (
    Changelogs,
    Difference,
    Moves,
    Outcomes,
    WaitingRoomFold,
    is_consistent,
    lost_tails,
    position_of,
)
from order_service.wire.changelog import POSITION_KEY, REBUILDING, Ends, Position, WaitingCommand

NEVER: Final = 2**63 - 1
MISSING_COMMAND: Final = 0
"""The timestamp for a last command that its topic no longer has. No command has it, so that a claim parks."""
NOT_RESTORED: Final = "commands that waited are not restored, unless the waiting room has them: send them again"
TRUNCATED: Final = (
    "commands that waited and are no longer in the topic are not restored, unless the waiting room has them: send them"
    " again"
)
Offsets = Mapping[str, int]
"""An offset of each topic of the partition."""


class Progress(Struct, frozen=True):
    """Called with the number of further offsets to read, and with each number of offsets that were read."""

    extend: Callable[[int], object]
    advance: Callable[[int], object]


class Plan(Struct):
    """What the changelogs of a partition hold, and what they must become.

    `last` is the newest position that counts, None without one. `unreadable` has the damage of each changelog that must
    be written whole, by topic. `losses` are what the outcome topics have lost according to the changelogs. Without
    `is_owner_known`, the last owner may be missing in the changelog.
    """

    outcomes: Outcomes
    changelogs: Changelogs
    difference: Difference
    waiting: dict[bytes, WaitingCommand]
    position: Position
    last: Position | None
    unreadable: dict[str, str]
    losses: list[str]
    notes: list[str]
    is_intact: bool
    is_owner_known: bool


class PartitionLook:
    """Reads one partition, once or several times."""

    def __init__(self, reader: Reader, partition: int, partition_count: int, progress: Progress) -> None:
        names = reader.names
        self.partitions = [
            TopicPartition(topic, partition) for topic in (*names.written, names.commands, names.operations)
        ]
        self._reader = reader
        self._names = names
        self._partition = partition
        self._partition_count = partition_count
        self._progress = progress
        self._outcomes = Outcomes(names, partition)
        self._events_read = 0
        self._operations_read = 0

    async def stable_ends(self) -> dict[str, int]:
        """Return the last stable offsets."""
        return {topic: end for (topic, _), end in (await self._reader.ends(self.partitions)).items()}

    async def plan(self, ends: Offsets, settled: Offsets | None = None) -> Plan:
        """Read up to these ends, and compare.

        Orders that have changed since the ends `settled` are not compared: perhaps only a part of their transaction is
        visible. Raises OperationRefused if events do not follow each other, and DamagedError if a topic other than the
        changelogs cannot be read.
        """
        names = self._names
        starts = {topic: start for (topic, _), start in (await self._reader.starts(self.partitions)).items()}
        settled = settled or dict.fromkeys(ends, NEVER)
        unread = dict(starts) | {names.events: max(starts[names.events], self._events_read)}
        self._progress.extend(sum(max(0, ends[topic] - unread[topic]) for topic in names.written))
        outcomes = await self._read_outcomes(starts, ends, settled)
        logs = Changelogs(names, outcomes, since=settled[names.table])
        damage = await self._read_changelog(names.table, starts, ends, logs.take_table)
        damage |= await self._read_changelog(names.waiting, starts, ends, logs.take_waiting)
        if names.table in damage:
            await self._read_position(logs)
        last = outcomes.valid(logs.position, logs.position_ms)
        next_offset = position_of(outcomes, last, logs.waiting.values(), starts[names.commands])
        unreadable = damage | logs.unreadable
        waiting = {key: command for key, (command, _) in logs.waiting.items()}
        is_room_kept = (
            is_consistent(outcomes, last, waiting.values(), next_offset)
            and names.waiting not in unreadable
            and ends[names.waiting] > 0
            and ends[names.waiting] >= _recorded(last).waiting
        ) or _is_new(outcomes, logs)
        is_position_kept = last is not None and last.next_offset == next_offset
        is_same_topic = None if is_room_kept and is_position_kept else await self._is_same_topic(starts)
        are_commands_kept = is_same_topic or (is_same_topic is None and next_offset <= ends[names.commands])
        notes = self._notes(next_offset, starts, ends, is_same_topic=is_same_topic)
        if not is_room_kept:
            if notes and next_offset >= starts[names.commands]:
                restored = TRUNCATED if are_commands_kept else NOT_RESTORED
                notes.append(f"{names.commands} partition {self._partition}: {restored}")
            stop = min(next_offset, ends[names.commands]) if are_commands_kept else 0
            waiting, left = await self._waiting(logs, next_offset, range(starts[names.commands], stop), starts)
            notes += left
        difference = logs.difference()
        losses = [*lost_tails(None if last is None else last.ends, ends, names), *difference.ahead]
        return Plan(
            outcomes,
            logs,
            difference,
            waiting,
            await self._position(next_offset, last, len(waiting), starts, ends, is_same_topic=is_same_topic),
            last,
            unreadable,
            losses,
            notes,
            is_intact=is_room_kept and not (unreadable or difference or losses),
            is_owner_known=_is_owner_known(logs, last, next_offset, difference, is_damaged=names.table in damage),
        )

    async def _read_outcomes(self, starts: Offsets, ends: Offsets, settled: Offsets) -> Outcomes:
        """Read the operations, events, rejections and dead letters. A new operation changes which outcomes count."""
        names = self._names
        if ends[names.operations] != self._operations_read:
            self._outcomes, self._events_read = Outcomes(names, self._partition), 0
            self._operations_read = ends[names.operations]
        operations: list[ConsumerRecord] = []
        await self._read(names.operations, starts[names.operations], ends, operations.append)
        outcomes = self._outcomes
        outcomes.begin(
            Moves(operations),
            are_rejections_complete=starts[names.rejections] == 0,
            since=settled,
            commands_end=ends[names.commands],
        )
        await self._read(names.events, max(starts[names.events], self._events_read), ends, outcomes.take_event)
        self._events_read = ends[names.events]
        await self._read(names.rejections, starts[names.rejections], ends, outcomes.take_rejection)
        await self._read(names.dead_letters, starts[names.dead_letters], ends, outcomes.take_dead_letter)
        return outcomes

    async def _read_changelog(
        self, topic: str, starts: Offsets, ends: Offsets, take: Callable[[ConsumerRecord], None]
    ) -> dict[str, str]:
        """Read a changelog up to its end or its first damaged batch. Return what is damaged, by topic."""
        try:
            await self._read(topic, starts[topic], ends, take, is_compacted=True)
        except DamagedError as error:
            return {topic: f"{topic} partition {self._partition} is damaged on the disk from offset {error.offset} on"}
        return {}

    async def _read_position(self, logs: Changelogs) -> None:
        """Read the newest position from the end of a table that is damaged before it."""
        newest = (await newest_positions(self._reader, [self._partition]))[self._partition]
        if newest.position is not None:
            table = self._names.table
            await self._read(table, newest.offset, {table: newest.offset + 1}, logs.take_table)
        elif newest.fault:
            logs.position = None

    async def _waiting(
        self, logs: Changelogs, next_offset: int, unanswered: range, starts: Offsets
    ) -> tuple[dict[bytes, WaitingCommand], list[str]]:
        """Return the commands that must wait, and what is left without an outcome.

        `unanswered` has the offsets of the commands that may have no outcome.
        """
        names, outcomes = self._names, self._outcomes
        decided_before_ms = 0
        if starts[names.rejections] > 0 or starts[names.dead_letters] > 0:
            retention_ms = int(topic_configs(names)[names.rejections]["retention.ms"])
            decided_before_ms = round(time.time() * 1000) - retention_ms
        room = WaitingRoomFold(
            outcomes,
            logs.waiting.values(),
            next_offset=next_offset,
            decided_before_ms=decided_before_ms,
            partition=self._partition,
            partition_count=self._partition_count,
        )
        self._progress.extend(len(unanswered))
        commands = TopicPartition(names.commands, self._partition)
        position = unanswered.start
        async for records in self._reader.between({commands: unanswered.start}, {commands: unanswered.stop}):
            without_outcome = [record for record in records if room.is_unanswered(record)]
            await self._reader.learn(without_outcome)
            for record in without_outcome:
                room.take_command(record)
            position = self._advance(position, records)
        self._progress.advance(max(0, unanswered.stop - position))
        return room.commands(), room.notes

    async def _position(
        self,
        next_offset: int,
        last: Position | None,
        waiting_count: int,
        starts: Offsets,
        ends: Offsets,
        *,
        is_same_topic: bool | None,
    ) -> Position:
        """Return the new position; its owner is set when it is written."""
        names = self._names
        timestamp = last.last_timestamp_ms if last is not None and last.next_offset == next_offset else None
        if timestamp == MISSING_COMMAND and is_same_topic:  # the commands were restored since
            timestamp = None
        if is_same_topic is False or (timestamp is None and next_offset > ends[names.commands]):
            timestamp = MISSING_COMMAND
        elif timestamp is None:
            timestamp = await self._timestamp(next_offset - 1, starts)
        return Position(
            next_offset,
            "",
            max(ends[names.commands], next_offset),
            timestamp,
            next_offset if last is None else last.read_to,
            Ends(ends[names.events], ends[names.rejections], ends[names.dead_letters], ends[names.waiting]),
            waiting_count,
        )

    async def _timestamp(self, offset: int, starts: Offsets) -> int | None:
        """Return the timestamp of the last decided command, or None if it is deleted."""
        command = await self._command(offset, starts)
        return None if command is None else int(command.timestamp)

    async def _is_same_topic(self, starts: Offsets) -> bool | None:
        """Return whether the last command with an outcome is still in its topic, or another record has its offset.

        None: there is no such command, or Kafka has deleted it. Then nothing shows whether the topic was recreated.
        """
        commands = TopicPartition(self._names.commands, self._partition)
        newest = self._outcomes.newest
        command = await self._command(newest.offset, starts)
        if command is None:
            return None if newest.offset < (await self._reader.starts([commands]))[commands] else False
        await self._reader.learn([command])
        return newest.is_of(command)

    async def _command(self, offset: int, starts: Offsets) -> ConsumerRecord | None:
        """Return the command at this offset, or None if it is deleted."""
        commands = self._names.commands
        found: list[ConsumerRecord] = []
        if starts[commands] <= offset:
            await self._read(commands, offset, {commands: offset + 1}, found.append)
        return found[0] if found else None

    def _notes(self, next_offset: int, starts: Offsets, ends: Offsets, *, is_same_topic: bool | None) -> list[str]:
        """Return why the lane will park."""
        commands = f"{self._names.commands} partition {self._partition}"
        start, end = starts[self._names.commands], ends[self._names.commands]
        if next_offset < start:
            return [f"{commands} begins at offset {start}, after the position {next_offset}: the lane will park"]
        if is_same_topic is False:
            why = f"offset {self._outcomes.newest.offset} is not the command that was decided"
            resume = f"`order-service lanes resume {self._partition} --from OFFSET`"
            return [
                f"{commands} was recreated, or restored with other records: {why}. The lane will park until {resume}"
            ]
        if next_offset > end:
            return [f"{commands} ends at offset {end}, before the position {next_offset}: the lane will park"]
        return []

    async def _read(
        self,
        topic: str,
        start: int,
        ends: Offsets,
        take: Callable[[ConsumerRecord], None],
        *,
        is_compacted: bool = False,
    ) -> None:
        """Take the records of a topic; of a compacted one that are fetched together, only the newest of each key."""
        partition, position = TopicPartition(topic, self._partition), start
        async for records in self._reader.between({partition: start}, {partition: ends[topic]}):
            newest = _newest(records) if is_compacted else records
            for record in newest:
                take(record)
            position = self._advance(position, records)
        if topic in self._names.written:
            self._progress.advance(max(0, ends[topic] - position))

    def _advance(self, position: int, records: list[ConsumerRecord]) -> int:
        if not records:
            return position
        reached = int(records[-1].offset) + 1
        self._progress.advance(reached - position)
        return reached


def _newest(records: list[ConsumerRecord]) -> list[ConsumerRecord]:
    """Return the newest record of each key, and all positions: a claim decodes each of these."""
    newest = {(record.key, record.offset if record.key == POSITION_KEY else None): record for record in records}
    return list(newest.values())


def _recorded(last: Position | None) -> Ends:
    """Return the ends that a position recorded, zeros without one."""
    return (last.ends if last is not None else None) or Ends()


def _is_new(outcomes: Outcomes, logs: Changelogs) -> bool:
    """Return whether nothing was decided in this partition yet."""
    return not (outcomes.entries or outcomes.next_offset or outcomes.moves.position or logs.waiting or logs.position)


def _is_owner_known(
    logs: Changelogs, last: Position | None, next_offset: int, difference: Difference, *, is_damaged: bool
) -> bool:
    """Return whether the newest position of the table is the last one that was written, as far as the topics show.

    A position that a rebuild has begun with has no owner that writes.
    """
    if logs.position is not None and logs.position.waiting_count == REBUILDING:
        return True
    is_newest = last is not None and last.next_offset == next_offset
    return is_newest and (is_damaged or not (difference.missing or difference.behind))
