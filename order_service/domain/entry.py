"""The table's entry of an order: its state, the head of its history, and the commands that it remembers."""

from datetime import datetime, timedelta
from typing import ClassVar, Final, final

from msgspec import Struct, structs

from order_service.domain.messages import Event, Rejection
from order_service.domain.order import ABSENT, Cancelled, Delivered, Order, evolve
from order_service.domain.refusals import NEVER_REMEMBERED
from order_service.errors import HistoryError

MAX_REFUSED: Final = 16

Known = tuple[str, bytes]
"""The id and the digest of a remembered command."""


@final
class FullEntry(Struct, frozen=True, gc=False, array_like=True):
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


@final
class ShortEntry(Struct, frozen=True, gc=False, array_like=True):
    """A closed order that has forgotten its commands: each one that comes is a new command.

    Its last fields are those of `FullEntry`; it remembers no later refusal either.
    """

    order: Delivered | Cancelled
    created_at: datetime
    changed_at: datetime
    head: bytes
    version: int
    accepted: ClassVar[tuple[Known, ...]] = ()
    refused: ClassVar[tuple[Known, ...]] = ()


Entry = FullEntry | ShortEntry


def short_entry(entry: Entry) -> ShortEntry | None:
    """Return the short form of an entry, or None if its order is open: an open order forgets nothing."""
    order = entry.order
    if type(order) is Delivered or type(order) is Cancelled:
        return ShortEntry(order, entry.created_at, entry.changed_at, entry.head, entry.version)
    return None


def forgotten(entry: Entry, now: datetime, remember_closed_s: float) -> ShortEntry | None:
    """Return the short form of a full entry whose order was closed so many seconds before `now`, or None."""
    is_due = type(entry) is FullEntry and now - entry.changed_at >= timedelta(seconds=remember_closed_s)
    return short_entry(entry) if is_due else None


def after_event(entry: Entry | None, event: Event, head: bytes) -> FullEntry:
    """Return the table's entry after an event; `head` is the digest of the event's encoded value.

    Raises HistoryError if the event cannot follow: its version is not the next one, or its previous digest differs.
    """
    version, previous_digest = next_version(entry)
    if event.version != version or event.previous_digest != previous_digest:
        raise HistoryError(f"version {event.version} of an order cannot follow version {version - 1}")
    known = (event.command_id, event.command_digest)
    if entry is None:
        return FullEntry(evolve(ABSENT, event.fact), event.occurred_at, event.occurred_at, head, (known,))
    order, accepted = evolve(entry.order, event.fact), (*entry.accepted, known)
    return FullEntry(order, entry.created_at, event.occurred_at, head, accepted, entry.refused)


def after_rejection(entry: Entry | None, rejection: Rejection) -> Entry | None:
    """Return the entry with the refused command remembered, None if there is no order; the newest 16 are kept.

    A short entry stays as it is: it remembers nothing.
    """
    if entry is None or type(entry) is ShortEntry or rejection.reason in NEVER_REMEMBERED:
        return entry
    known = (rejection.command_id, rejection.command_digest)
    return structs.replace(entry, refused=(*entry.refused, known)[-MAX_REFUSED:])


def next_version(entry: Entry | None) -> tuple[int, bytes | None]:
    """Return the version and the previous digest of the next event."""
    return (1, None) if entry is None else (entry.version + 1, entry.head)
