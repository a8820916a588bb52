"""The table's entry of an order: its state, the head of its history, and the commands that it remembers."""

from datetime import datetime
from typing import Final

from msgspec import Struct, structs

from order_service.domain.messages import Event, Rejection
from order_service.domain.order import ABSENT, Order, evolve
from order_service.domain.refusals import NEVER_REMEMBERED
from order_service.errors import HistoryError

MAX_REFUSED: Final = 16

Known = tuple[str, bytes]
"""The id and the digest of a remembered command."""


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


def after_event(entry: Entry | None, event: Event, head: bytes) -> Entry:
    """Return the table's entry after an event; `head` is the digest of the event's encoded value.

    Raises HistoryError if the event cannot follow: its version is not the next one, or its previous digest differs.
    """
    version, previous_digest = next_version(entry)
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


def next_version(entry: Entry | None) -> tuple[int, bytes | None]:
    """Return the version and the previous digest of the next event."""
    return (1, None) if entry is None else (entry.version + 1, entry.head)
