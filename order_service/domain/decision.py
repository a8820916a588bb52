"""The answer to a command: the checks that the rules of an order do not contain.

They are the actor, the deadline, the expected version, the user, and whether the command is a repeat. `answer` is as
pure as `decide`: the time and the result of the user check are arguments.
"""

from datetime import datetime, timedelta
from enum import StrEnum
from functools import lru_cache
from hashlib import blake2b, sha1
from typing import Final, final
from uuid import UUID

import msgspec
from msgspec import Struct, structs

from order_service.domain import validation
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
from order_service.domain.order import ABSENT, Order, decide, evolve
from order_service.domain.refusals import MEANINGS, NEVER_REMEMBERED, Reason, Refusal, Status
from order_service.errors import HistoryError

MAX_AMENDMENTS: Final = 50
MAX_REFUSED: Final = 16
SERVICE_ACTOR: Final = "service:order-service"
_NAMESPACE: Final = sha1(UUID("6d3a1f0e-6f2b-5d7e-9f5a-0f3c5f1d2b4a").bytes, usedforsecurity=False)

Known = tuple[str, bytes]
"""The id and the digest of a remembered command."""


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


class Entry(Struct, frozen=True, gc=False, array_like=True):
    """One order in the table: its state, the head of its history, and the commands it remembers.

    Every accepted command produced one event, so the n-th of `accepted` produced version n.
    """

    order: Order
    created_at: datetime
    changed_at: datetime
    head: bytes
    accepted: tuple[Known, ...]
    refused: tuple[Known, ...] = ()

    @property
    def version(self) -> int:
        """The version of the newest event."""
        return len(self.accepted)


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
        return reject(command, entry, now, outcome)
    return _event(command, digest, entry, now, outcome)


def reject(command: Command, entry: Entry | None, now: datetime, refusal: Refusal) -> Rejection:
    """Return the rejection of `command`. For an actor who may not see the order, it does not exist."""
    seen = entry if entry is not None and _may_see(command.actor, entry.order) else None
    digest = command_digest(command)
    return Rejection(
        rejection_id=_uuid(command.order_id, command.command_id, digest.hex()),
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
    )


def after_event(entry: Entry | None, event: Event, head: bytes) -> Entry:
    """Return the table's entry after an event; `head` is the digest of the event's encoded value.

    Raises HistoryError if the event cannot follow: its version is not the next one, or its previous digest differs.
    """
    version, previous_digest = _next(entry)
    if event.version != version or event.previous_digest != previous_digest:
        raise HistoryError(f"version {event.version} of an order cannot follow version {version - 1}")
    known = (event.command_id, event.command_digest)
    if entry is None:
        return Entry(evolve(ABSENT, event.fact), event.occurred_at, event.occurred_at, head, (known,))
    order, accepted = evolve(entry.order, event.fact), (*entry.accepted, known)
    return Entry(order, entry.created_at, event.occurred_at, head, accepted, entry.refused)


def after_rejection(entry: Entry | None, rejection: Rejection) -> Entry | None:
    """Return the entry with the refused command remembered, None if there is no order; the newest 16 are kept."""
    if entry is None or rejection.reason in NEVER_REMEMBERED:
        return entry
    known = (rejection.command_id, rejection.command_digest)
    return structs.replace(entry, refused=(*entry.refused, known)[-MAX_REFUSED:])


def payment_timeout(order_id: str) -> CancelOrder:
    """Return the command that cancels an order that was not paid in time; it is the same on every call."""
    command_id = _uuid(order_id, "payment_timeout")
    return CancelOrder(command_id=command_id, order_id=order_id, actor=SERVICE_ACTOR, reason="payment_timeout")


def payment_due_at(entry: Entry, payment_due_s: float) -> datetime | None:
    """Return when the payment of an unpaid order is due, or None if no payment is due."""
    return entry.created_at + timedelta(seconds=payment_due_s) if entry.order.status is Status.CREATED else None


def blake2b_128(data: bytes) -> bytes:
    """Return the BLAKE2b-128 digest. Copying an empty hash is faster than creating one; each command needs two."""
    hashed = _BLANK.copy()
    hashed.update(data)
    return hashed.digest()


_BLANK: Final = blake2b(digest_size=16)
_encode_deterministic: Final = msgspec.msgpack.Encoder(order="deterministic").encode


def command_digest(command: Command) -> bytes:
    """Return the digest of a command: the same for JSON and Avro, and for a retry with another deadline.

    Shape: BLAKE2b-128 of the MessagePack map of `type` and the command's fields, in the order of `messages`, without
           `decide_by`, `correlation_id` and fields at their default; the keys of `metadata` sorted.
    """
    if command.decide_by is not None or command.correlation_id is not None:
        command = structs.replace(command, decide_by=None, correlation_id=None)
    return blake2b_128(_encode_deterministic(command))


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
    """Split `user:<id>` or `service:<id>` into kind and id; both are empty if the id is invalid."""
    kind, _, actor_id = actor.partition(":")
    return (kind, actor_id) if validation.is_id(actor_id) else ("", "")


def _may(command: Command) -> bool:
    """Return whether the actor may send this command: a service any, a user to create (for itself), amend and cancel.

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
    version, previous_digest = _next(entry)
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


def _next(entry: Entry | None) -> tuple[int, bytes | None]:
    """Return the version and the previous digest of the next event."""
    return (1, None) if entry is None else (entry.version + 1, entry.head)


def event_id(order_id: str, version: int) -> str:
    """Return the id of an event: the uuid5 of its order and version, so the same event has the same id in every run."""
    return _uuid(order_id, str(version))


_VARIANTS: Final = dict(zip("0123456789abcdef", "89ab" * 4, strict=True))


def _uuid(*names: str) -> str:
    """Return the uuid5 of `names` joined by NUL: the result of `uuid.uuid5` in a fifth of the time."""
    hashed = _NAMESPACE.copy()
    hashed.update("\0".join(names).encode())
    digest = hashed.hexdigest()
    return f"{digest[:8]}-{digest[8:12]}-5{digest[13:16]}-{_VARIANTS[digest[16]]}{digest[17:20]}-{digest[20:32]}"
