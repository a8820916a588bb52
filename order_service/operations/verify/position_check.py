"""Compares the position of a partition, and its waiting room, with the other topics of the partition."""

from collections.abc import Iterator, Mapping

from msgspec import Struct

from order_service.domain.messages import Command
from order_service.errors import HistoryError
from order_service.kafka.topics import TopicNames
from order_service.operations.verify.command_outcomes import CommandOutcomes
from order_service.operations.verify.findings import Kind
from order_service.wire import changelog
from order_service.wire.changelog import Position, WaitingCommand

Difference = tuple[Kind, str, int, str]
"""The kind, topic, offset and text of a finding."""

WaitingRecords = dict[bytes, tuple[int, bytes]]
"""The offset and the value of the newest record of each waiting command, by key."""


class Bounds(Struct, frozen=True):
    """The first offset of each topic of a partition, and the offset up to which it was read."""

    starts: Mapping[str, int]
    ends: Mapping[str, int]


def bounds_findings(position: Position, bounds: Bounds, names: TopicNames) -> Iterator[Difference]:
    """Yield the topics that end before the position says, and commands that were deleted before they were decided."""
    start = bounds.starts[names.commands]
    if position.resume_at < start:
        text = f"The commands from offset {position.resume_at} up to this one were deleted before they were decided."
        yield Kind.POSITION, names.commands, start, text
    recorded = {names.commands: max(position.resume_at, position.end_offset)}
    if (ends := position.ends) is not None:
        recorded |= {names.events: ends.events, names.rejections: ends.rejections}
        recorded |= {names.dead_letters: ends.dead_letters, names.waiting: ends.waiting}
    for topic, end in recorded.items():
        if bounds.ends[topic] < end:
            text = f"The topic ends at offset {bounds.ends[topic]}, but the position recorded the end {end}."
            yield Kind.LOST_TAIL, topic, bounds.ends[topic], text


def outcome_findings(position: Position, outcomes: CommandOutcomes) -> Iterator[Difference]:
    """Yield the outcomes of commands that are not decided yet by the position: one of each topic."""
    for topic, (command_offset, offset) in outcomes.highest.items():
        if command_offset >= position.next_offset:
            text = f"The command at offset {command_offset} has an outcome, but the position is {position.next_offset}."
            yield Kind.POSITION, topic, offset, text


def waiting_findings(
    position: Position, position_offset: int, waiting: WaitingRecords, outcomes: CommandOutcomes, names: TopicNames
) -> Iterator[Difference]:
    """Yield the waiting commands that are decided, or do not match the position; the latter is at `position_offset`."""
    for key, (offset, value) in waiting.items():
        command = _decoded(value)
        if isinstance(command, HistoryError):
            yield Kind.UNREADABLE, names.waiting, offset, f"The record is damaged: {command}."
        elif command.key != key:
            text = f"The key of the waiting command at offset {command.offset} is not that of its order and offset."
            yield Kind.WRONG_KEY, names.waiting, offset, text
        elif command.offset in outcomes:
            text = f"The command at offset {command.offset} waits, but it has an outcome."
            yield Kind.WAITING, names.waiting, offset, text
        elif command.offset >= position.next_offset:
            text = f"The command at offset {command.offset} waits, but the position is {position.next_offset}."
            yield Kind.WAITING, names.waiting, offset, text
    if position.waiting_count is not None and position.waiting_count != len(waiting):
        text = f"The position counts {position.waiting_count} waiting commands, but {names.waiting} has {len(waiting)}."
        yield Kind.WAITING, names.table, position_offset, text


def waiting_commands(waiting: WaitingRecords) -> dict[int, Command]:
    """Return the waiting commands by their offset in the commands topic, without those that cannot be decoded."""
    decoded = [_decoded(value) for _, value in waiting.values()]
    return {command.offset: command.command for command in decoded if isinstance(command, WaitingCommand)}


def _decoded(value: bytes) -> WaitingCommand | HistoryError:
    try:
        return changelog.decode_waiting(value)
    except HistoryError as error:
        return error
