"""Where a command is now, and what is shown of an order and its commands. Pure.

Ids, states, reasons and offsets are shown, and no text that a sender can choose freely, such as names and notes.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from enum import StrEnum
from functools import partial
from typing import Final

from msgspec import Struct

from order_service.domain.entry import Known
from order_service.domain.refusals import Status
from order_service.wire.changelog import Position

DEAD_LETTER: Final = "DeadLetter"
UNREADABLE: Final = "unreadable"
"""The types of an outcome that is a dead letter, and of one that cannot be decoded."""


class CommandState(StrEnum):
    """Every state of a command."""

    ACCEPTED = "accepted"
    REJECTED = "rejected"
    DEAD_LETTER = "dead_letter"
    REPEAT = "repeat"
    WAITING = "waiting"
    UNDECIDED = "undecided"
    OUTCOME_DELETED = "outcome_deleted"
    SKIPPED = "skipped"
    NO_OUTCOME = "no_outcome"


STATES: Final[dict[CommandState, str]] = {
    CommandState.ACCEPTED: "The command produced an event.",
    CommandState.REJECTED: "The command was refused.",
    CommandState.DEAD_LETTER: "The record cannot be decoded, or has the wrong key or partition.",
    CommandState.REPEAT: "The order decided it before: nothing was written. The outcome is that of the earlier copy.",
    CommandState.WAITING: "The command waits for the User Service.",
    CommandState.UNDECIDED: "The command is at or after the position: no worker has decided it yet.",
    CommandState.OUTCOME_DELETED: "The order remembers that it refused the command, but the rejection was deleted.",
    CommandState.SKIPPED: "An operator has resumed the partition after this command: it is never decided.",
    CommandState.NO_OUTCOME: "The command is before the position, but nothing shows its outcome.",
}
"""The meaning of each state."""


class FoundRecord(Struct, frozen=True, kw_only=True):
    """A record, and the time when it arrived in Kafka."""

    topic: str
    partition: int
    offset: int
    at: datetime


class FoundCommand(FoundRecord, frozen=True, kw_only=True):
    """A record of the commands topic. Type, id and actor are null if it cannot be decoded."""

    type: str | None
    command_id: str | None
    actor: str | None


class FoundOutcome(FoundRecord, frozen=True, kw_only=True):
    """An event, a rejection or a dead letter.

    `command_offset` is the offset of the command that it answers; it is null for a decision of the service itself.
    `version` is that of the order after an event, or at the time of a rejection.
    """

    type: str
    command_offset: int | None
    command_id: str | None = None
    actor: str | None = None
    version: int | None = None
    reason: str | None = None


class FoundWaiting(FoundRecord, frozen=True, kw_only=True):
    """A record of the waiting room.

    `user_id` is the user whose lookup the order waits for; it is null if the first waiting command is missing.
    """

    type: str
    command_offset: int
    command_id: str
    actor: str
    since: datetime
    user_id: str | None


class FoundOperation(FoundRecord, frozen=True, kw_only=True):
    """What an operator did. The reason is not shown, because it is free text.

    `previous_position` and `position` are those before and after a resume, or null. A rebuild has `position` only.
    """

    kind: str
    actor: str
    operation_id: str
    previous_position: int | None
    position: int | None


class CommandStory(Struct, frozen=True, kw_only=True):
    """One command, and where it is now.

    `command` is null if its record was deleted, or if the service decided by itself. `repeat_of` is the offset of the
    earlier copy of a repeat. `offsets_before` is the number of offsets that are decided before an undecided command.
    """

    state: CommandState
    is_before_position: bool
    command: FoundCommand | None = None
    outcome: FoundOutcome | None = None
    waiting: FoundWaiting | None = None
    repeat_of: int | None = None
    offsets_before: int | None = None


class Lane(Struct, frozen=True, kw_only=True):
    """The progress of a partition.

    `position` is the offset of the next command to decide, and `position_offset` that of its record in the table. Both
    are null if no worker has ever had the partition. The commands that are kept begin at `start` and end before `end`.
    """

    partition: int
    position: int | None
    position_offset: int | None
    start: int
    end: int
    lag: int


class OrderStory(Struct, frozen=True, kw_only=True):
    """Everything that is known about an order. `order_id` is the key of the records, which may be no valid id.

    Status and version are those after the newest event; `table` is the newest entry of the table, `table_version` its
    version. `operations` are those that name the order or one of its dead letters. It also has resumes that skipped its
    commands, or were recorded while they were undecided, and rebuilds and accepted losses of its partition.
    `omitted` is the number of older records that are not shown.
    """

    order_id: str
    status: Status
    version: int
    table: FoundRecord | None
    table_version: int | None
    lane: Lane
    commands: list[CommandStory]
    operations: list[FoundOperation]
    omitted: int


class Evidence(Struct, frozen=True):
    """What shows the state of a command.

    `outcomes` and `waiting` are by command offset. The others are by the id and the digest of a command: `answered` and
    `waiting_copies` show which commands are repeats, `refused_before` those whose rejection was deleted.
    `skipped` are the offsets of commands that operators have skipped.
    """

    resume_at: int
    outcomes: Mapping[int, FoundOutcome] = {}
    waiting: Mapping[int, FoundWaiting] = {}
    answered: Mapping[Known, FoundOutcome] = {}
    waiting_copies: Mapping[Known, FoundWaiting] = {}
    refused_before: frozenset[Known] = frozenset()
    skipped: Sequence[range] = ()


def story_of(command: FoundCommand, known: Known | None, evidence: Evidence) -> CommandStory:
    """Return where a command is now; `known` is its id and digest, or None if it cannot be decoded."""
    story = partial(CommandStory, command=command, is_before_position=command.offset < evidence.resume_at)
    if (outcome := evidence.outcomes.get(command.offset)) is not None:
        return story(state=_state(outcome), outcome=outcome)
    if (waiting := evidence.waiting.get(command.offset)) is not None:
        return story(state=CommandState.WAITING, waiting=waiting)
    if command.offset >= evidence.resume_at:
        return story(state=CommandState.UNDECIDED, offsets_before=command.offset - evidence.resume_at)
    if any(command.offset in skipped for skipped in evidence.skipped):
        return story(state=CommandState.SKIPPED)
    if known is None:
        return story(state=CommandState.NO_OUTCOME)
    if (outcome := evidence.answered.get(known)) is not None:
        return story(state=CommandState.REPEAT, outcome=outcome, repeat_of=outcome.command_offset)
    if (waiting := evidence.waiting_copies.get(known)) is not None:
        return story(state=CommandState.REPEAT, waiting=waiting, repeat_of=waiting.command_offset)
    is_deleted = known in evidence.refused_before
    return story(state=CommandState.OUTCOME_DELETED if is_deleted else CommandState.NO_OUTCOME)


def without_command(evidence: Evidence, outcome: FoundOutcome | FoundWaiting) -> CommandStory:
    """Return the story of a command whose record was deleted, from its outcome or from the waiting room."""
    offset = outcome.command_offset
    is_before = offset is None or offset < evidence.resume_at
    if isinstance(outcome, FoundWaiting):
        return CommandStory(state=CommandState.WAITING, is_before_position=is_before, waiting=outcome)
    return CommandStory(state=_state(outcome), is_before_position=is_before, outcome=outcome)


def _state(outcome: FoundOutcome) -> CommandState:
    if outcome.type == DEAD_LETTER:
        return CommandState.DEAD_LETTER
    return CommandState.ACCEPTED if outcome.reason is None else CommandState.REJECTED


def lane_of(partition: int, position: tuple[int, Position] | None, start: int, end: int) -> Lane:
    """Return the progress of a partition; `position` is the newest one, after the offset of its record."""
    resume_at = start if position is None else position[1].resume_at
    return Lane(
        partition=partition,
        position=None if position is None else resume_at,
        position_offset=None if position is None else position[0],
        start=start,
        end=end,
        lag=max(0, end - resume_at),
    )
