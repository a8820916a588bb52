"""The answer to a command: the checks that the rules of an order do not contain.

They are the actor, the deadline, the expected version, the user, and whether the command is a repeat. `answer` is as
pure as `decide`: the time and the result of the user check are arguments.
"""

from datetime import datetime, timedelta
from enum import StrEnum
from functools import lru_cache
from typing import Final, final

from msgspec import Struct

from order_service.domain import validation
from order_service.domain.entry import Entry, next_version
from order_service.domain.identity import command_digest, event_id, name_uuid
from order_service.domain.messages import (
    AmendOrder,
    CancelOrder,
    Command,
    CreateOrder,
    Event,
    Fact,
    OrderAmended,
    Rejection,
)
from order_service.domain.order import ABSENT, Order, decide
from order_service.domain.refusals import MEANINGS, Reason, Refusal, Status

MAX_AMENDMENTS: Final = 50
VERSION_MAX: Final = MAX_AMENDMENTS + 4
"""The highest version of an order: created, amended, paid, shipped, delivered."""
SERVICE_ACTOR: Final = "service:order-service"


class UserCheck(StrEnum):
    """The result of looking up the user of a `CreateOrder`."""

    ACTIVE = "active"
    NOT_FOUND = "not_found"
    NOT_ACTIVE = "not_active"
    TIMED_OUT = "timed_out"


@final
class AskUser(Struct, frozen=True):
    """An undecided command: the User Service must answer about this user first."""

    user_id: str


@final
class Repeat(Struct, frozen=True):
    """A command that the order remembers: its first answer stands, and nothing is written."""


Answer = Event | Rejection | Repeat | AskUser
REPEAT: Final = Repeat()


def answer(command: Command, entry: Entry | None, now: datetime, user: UserCheck | None = None) -> Answer:
    """Return the answer to `command`: an event, a rejection, `Repeat`, or `AskUser` if its user is not known yet.

    `entry` is None for an order that does not exist; `user` is None before the lookup; `now` is in whole milliseconds.
    """
    digest = command_digest(command)
    outcome = _remembered(command.command_id, digest, entry) or _outcome(command, entry, now, user)
    if type(outcome) is Repeat or type(outcome) is AskUser:
        return outcome
    if type(outcome) is Refusal:
        return reject(command, entry, now, outcome, digest)
    return _event(command, digest, entry, now, outcome)


def reject(
    command: Command, entry: Entry | None, now: datetime, refusal: Refusal, digest: bytes | None = None
) -> Rejection:
    """Return the rejection of `command`. For an actor who may not see the order, it does not exist.

    `digest` is the digest of the command, if it was computed already.
    """
    seen = entry if entry is not None and _may_see(command.actor, entry.order) else None
    digest = digest or command_digest(command)
    return Rejection(
        rejection_id=name_uuid(command.order_id, command.command_id, digest.hex()),
        command_id=command.command_id,
        command_digest=digest,
        command_type=type(command).__name__,
        order_id=command.order_id,
        reason=refusal.reason,
        detail=refusal.detail or MEANINGS[refusal.reason].cause,
        status=Status.ABSENT if seen is None else seen.order.status,
        version=0 if seen is None else seen.version,
        actor=command.actor,
        rejected_at=now,
        correlation_id=command.correlation_id,
        pointer=refusal.pointer,
    )


def payment_timeout(order_id: str) -> CancelOrder:
    """Return the command that cancels an order that was not paid in time; it is the same on every call."""
    command_id = name_uuid(order_id, "payment_timeout")
    return CancelOrder(command_id=command_id, order_id=order_id, actor=SERVICE_ACTOR, reason="payment_timeout")


def payment_due_at(entry: Entry, payment_due_s: float) -> datetime | None:
    """Return when the payment of an unpaid order is due, or None if no payment is due."""
    return entry.created_at + timedelta(seconds=payment_due_s) if entry.order.status is Status.CREATED else None


def _remembered(command_id: str, digest: bytes, entry: Entry | None) -> Repeat | Refusal | None:
    """Return `Repeat` if the order remembers the command, or a refusal if it remembers another one under its id."""
    refusal = None
    if entry is not None:
        for known_id, known_digest in entry.accepted + entry.refused:
            if known_id == command_id:
                if known_digest == digest:
                    return REPEAT
                refusal = Refusal(Reason.COMMAND_ID_REUSED)
    return refusal


def _outcome(command: Command, entry: Entry | None, now: datetime, user: UserCheck | None) -> Fact | Refusal | AskUser:
    """Check in this order: deadline, actor, presence, version, content, rules, user."""
    if command.decide_by is not None and now > command.decide_by:
        return Refusal(Reason.DEADLINE_PASSED)
    if not _may(command):
        return Refusal(Reason.NOT_ALLOWED)
    order = ABSENT if entry is None else entry.order
    refusal = _presence(command, order) or _version(command, entry) or validation.fault(command)
    if refusal is not None:
        return refusal
    outcome = decide(command, order)
    if type(outcome) is OrderAmended and entry is not None and entry.version > MAX_AMENDMENTS:
        return Refusal(Reason.TOO_MANY_CHANGES)
    if type(command) is CreateOrder and type(outcome) is not Refusal:
        return _user(command, user) or outcome
    return outcome


@lru_cache(maxsize=8192)
def _actor(actor: str) -> tuple[str, str]:
    """Split `user:<id>` or `service:<id>` at its first colon; both parts are empty if the id is invalid."""
    kind, _, actor_id = actor.partition(":")
    return (kind, actor_id) if validation.is_foreign_id(actor_id) else ("", "")


def _may(command: Command) -> bool:
    """Return whether the actor may send this command.

    A service may send any command; a user may create for itself, amend and cancel.
    That users amend and cancel their own orders only is checked in `_presence`.
    """
    kind, actor_id = _actor(command.actor)
    if kind == "service":
        return True
    if type(command) is CreateOrder:
        return kind == "user" and command.user_id == actor_id
    return kind == "user" and (type(command) is AmendOrder or type(command) is CancelOrder)


def _may_see(actor: str, order: Order) -> bool:
    return actor.startswith("service:") or actor == f"user:{order.user_id}"


def _presence(command: Command, order: Order) -> Refusal | None:
    if type(command) is CreateOrder:
        return None if order is ABSENT else Refusal(Reason.ORDER_EXISTS)
    if order is ABSENT or not _may_see(command.actor, order):
        return Refusal(Reason.ORDER_NOT_FOUND)
    return None


def _version(command: Command, entry: Entry | None) -> Refusal | None:
    if command.expected_version is None:
        return None
    actual = 0 if entry is None else entry.version
    if command.expected_version == actual:
        return None
    return Refusal(
        Reason.VERSION_CONFLICT, f"expected version {command.expected_version}, the order is at version {actual}"
    )


def _user(command: CreateOrder, user: UserCheck | None) -> Refusal | AskUser | None:
    match user:
        case None:
            return AskUser(command.user_id)
        case UserCheck.ACTIVE:
            return None
        case UserCheck.NOT_FOUND:
            return Refusal(Reason.USER_NOT_FOUND)
        case UserCheck.NOT_ACTIVE:
            return Refusal(Reason.USER_NOT_ACTIVE)
        case UserCheck.TIMED_OUT:
            return Refusal(Reason.USER_CHECK_TIMED_OUT)


def _event(command: Command, digest: bytes, entry: Entry | None, now: datetime, fact: Fact) -> Event:
    version, previous_digest = next_version(entry)
    return Event(
        event_id=event_id(command.order_id, version),
        order_id=command.order_id,
        version=version,
        command_id=command.command_id,
        command_digest=digest,
        correlation_id=command.correlation_id,
        actor=command.actor,
        occurred_at=now if entry is None else max(now, entry.changed_at),
        previous_digest=previous_digest,
        fact=fact,
    )
