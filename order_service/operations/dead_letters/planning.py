"""What the commands of dead letters would result in now. Pure: the states, the users and the time are arguments.

A command without an `expected_version` gets one when it is sent again: the version that its order has in the plan. So
the worker itself refuses it, with `version_conflict`, if the order has changed after `apply` has checked it, also by
commands that are in the log and not decided yet. An amendment from last week then never replaces today's.

The price is another digest. A later repeat of the original record, by its producer, is refused with
`command_id_reused`, where it would else be a repeat: either way it has no effect.
"""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Final, TypeVar, assert_never

from msgspec import Struct, structs

from order_service.domain.decision import Answer, AskUser, Repeat, UserCheck, answer
from order_service.domain.entry import Entry, after_event, after_rejection
from order_service.domain.identity import command_digest
from order_service.domain.messages import Command, CreateOrder, Event, Rejection
from order_service.errors import DecodeError
from order_service.operations.dead_letters.letter import DeadLetter
from order_service.wire.commands import decode_command, encode_json_command
from order_service.wire.operations import PlannedCommand

REPEAT: Final = "repeat"
NO_DIGEST: Final = b""
"""The digest of planned events: they are not encoded, and only other planned events name them."""
_C = TypeVar("_C", bound=Command)


class Decision(Struct, frozen=True):
    """A dead letter of a plan: its command as it will be sent, or None with the reason why it cannot be."""

    letter: DeadLetter
    planned: PlannedCommand | None
    why_not: str = ""


def users_of(letters: Iterable[DeadLetter]) -> set[str]:
    """Return the users that must be checked to decide these dead letters."""
    return {letter.command.user_id for letter in letters if isinstance(letter.command, CreateOrder)}


def decide(
    letters: Sequence[DeadLetter], entries: Mapping[str, Entry], users: Mapping[str, UserCheck], now: datetime
) -> list[Decision]:
    """Decide the commands of dead letters in this sequence, each after the earlier ones of its order.

    `entries` has the orders that exist. A user who is not in `users` counts as active, and is checked by the worker.
    """
    planner = _Planner(dict(entries), users, now)
    return [planner.decide(letter) for letter in letters]


def command_to_send(command: _C, planned: PlannedCommand) -> _C:
    """Return the command of a dead letter with the `expected_version` that its plan has for it."""
    if planned.expected_version is None:
        return command
    return structs.replace(command, expected_version=planned.expected_version)


def result_of(outcome: Event | Rejection, *, is_repeated: bool = False) -> str:
    """Return an outcome in the words of a plan, by which both are compared."""
    if is_repeated:
        return REPEAT
    if isinstance(outcome, Event):
        return f"{type(outcome.fact).__name__} -> version {outcome.version}"
    return f"rejected: {outcome.reason}"


def _is_accepted(command: Command) -> bool:
    """Return whether workers can decode the command as it is sent again: with an expected version it is longer."""
    try:
        decode_command(encode_json_command(command))
    except DecodeError:
        return False
    return True


class _Planner:
    """The orders as the plan has changed them so far."""

    def __init__(self, entries: dict[str, Entry], users: Mapping[str, UserCheck], now: datetime) -> None:
        self._entries = entries
        self._users = users
        self._now = now
        self._versions: dict[tuple[str, str, bytes], int] = {}
        """The expected version that each command got: a copy of it gets the same, or it would not be a repeat."""
        self._unchecked: set[str] = set()
        """The orders whose user could not be checked."""

    def decide(self, letter: DeadLetter) -> Decision:
        command = letter.command
        if isinstance(command, DecodeError):
            return Decision(letter, None, f"still cannot be decoded ({command.reason}): discard it")
        entry = self._entries.get(command.order_id)
        version = 0 if entry is None else entry.version
        expected = self._expected_version(command, entry, version)
        sent = command if expected is None else structs.replace(command, expected_version=expected)
        if expected is not None and not _is_accepted(sent):
            return Decision(letter, None, "too large with an expected version: its sender must send it again")
        outcome = self._answer(sent, entry)
        return Decision(
            letter,
            PlannedCommand(
                offset=letter.id[1],
                order_id=command.order_id,
                command_id=command.command_id,
                version=version,
                expected_version=expected,
                result=REPEAT if isinstance(outcome, Repeat) else result_of(outcome),
                asks_user=command.order_id in self._unchecked,
            ),
        )

    def _expected_version(self, command: Command, entry: Entry | None, version: int) -> int | None:
        """Return the version to send with a command, or None if it has one, or is a repeat."""
        if command.expected_version is not None or isinstance(answer(command, entry, self._now), Repeat):
            return None
        return self._versions.setdefault((command.order_id, command.command_id, command_digest(command)), version)

    def _answer(self, command: Command, entry: Entry | None) -> Event | Rejection | Repeat:
        """Return the answer to a command, and change its order."""
        user = self._users.get(command.user_id) if isinstance(command, CreateOrder) else None
        outcome: Answer = answer(command, entry, self._now, user)
        if isinstance(outcome, AskUser):
            self._unchecked.add(command.order_id)
            outcome = answer(command, entry, self._now, UserCheck.ACTIVE)
        if isinstance(outcome, Event):
            self._entries[command.order_id] = after_event(entry, outcome, NO_DIGEST)
        elif isinstance(outcome, Rejection):
            after = after_rejection(entry, outcome)
            if after is not None:
                self._entries[command.order_id] = after
        elif isinstance(outcome, AskUser):
            raise TypeError("an active user is not checked again")
        elif not isinstance(outcome, Repeat):
            assert_never(outcome)
        return outcome
