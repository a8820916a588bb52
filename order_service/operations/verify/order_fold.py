"""Folds the events of one partition, and checks each against the one before it.

Per order it keeps a small state of fixed size: the contents of an unpaid order and the commands of an order are kept
as hashes only.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from datetime import datetime
from functools import reduce
from typing import Final

import msgspec
from msgspec import Struct, structs

from order_service.domain.decision import SERVICE_ACTOR
from order_service.domain.entry import Entry, FullEntry, Known
from order_service.domain.messages import Event, Fact, OrderAmended, OrderCancelled, OrderCreated, OrderPaid
from order_service.domain.order import ABSENT, Created, Order, Paid, evolve
from order_service.errors import HistoryError
from order_service.operations.verify.findings import Kind

Found = Callable[[Kind, int, str], None]
"""Called with the kind, the offset in the events topic and the text of each finding."""

MANY: Final = 10
"""If more orders of a partition lack their first events, or all of them, one finding reports them together."""
HEAD: Final = "the digest of the newest event"
"""The part of an entry that differs if the bytes of that event were changed."""

_encode: Final = msgspec.msgpack.Encoder(order="deterministic").encode
_NO_METADATA: Final[dict[str, str]] = {}
_NO_COMMANDS: Final = 0


class Fold(Struct, gc=False):
    """The state of one order after the events so far. None means unknown: an earlier event is missing or unreadable.

    `contents` is the hash of the contents of an unpaid order, `accepted` that of the accepted commands, `offset` that
    of the newest event, and `unread` the number of unreadable records after it. `entry_offset` and `entry_version` are
    those of the newest entry in the table (-1 without one), and `entry_faults` are the parts of it that differ.
    """

    version: int
    offset: int
    order: Order | None = None
    head: bytes | None = None
    contents: int | None = None
    accepted: int | None = None
    currency: str | None = None
    created_at: datetime | None = None
    changed_at: datetime | None = None
    unread: int = 0
    entry_offset: int = -1
    entry_version: int = -1
    entry_faults: tuple[str, ...] = ()


class OrderFolds:
    """The orders of one partition, by id, and the money that their events record, in minor units by currency."""

    def __init__(self, found: Found) -> None:
        self.orders: dict[str, Fold] = {}
        self.paid: Counter[str] = Counter()
        self.refunds_due: Counter[str] = Counter()
        self._found = found
        self._lost_heads: list[tuple[int, str]] = []
        self._lost_head_count = 0

    def add(self, event: Event, digest: bytes, offset: int) -> None:
        """Fold one event; `digest` is that of its value."""
        fold = self.orders.get(event.order_id)
        if fold is None:
            fold = self.orders[event.order_id] = self._begin(event, offset)
        elif event.version <= fold.version:
            text = f"{_name(event)} was there before: version {fold.version} is at offset {fold.offset}."
            self._found(Kind.DUPLICATE, offset, text)
            return
        else:
            self._check_sequence(fold, event, offset)
        self._count_money(fold, event.fact)
        self._evolve(fold, event, offset)
        fold.version, fold.offset, fold.head, fold.unread = event.version, offset, digest, 0
        if fold.accepted is not None:
            fold.accepted = _with_known(fold.accepted, (event.command_id, event.command_digest))

    def add_unreadable(self, order_id: str, offset: int) -> None:
        """Note a record under the key of an order that cannot be read: perhaps its next event."""
        fold = self.orders.get(order_id)
        if fold is None:
            fold = self.orders[order_id] = Fold(0, offset, ABSENT, accepted=_NO_COMMANDS)
        fold.unread += 1

    def accepted_of(self, order_id: str, entry: Entry) -> tuple[Known, ...]:
        """Return the accepted commands of an entry that have an event, readable or not.

        If an order is incomplete, which is reported, it is unknown which have: then all count.
        """
        fold = self.orders.get(order_id)
        if fold is None or fold.accepted is None:
            return entry.accepted
        return entry.accepted[: fold.version + fold.unread]

    def lost_heads(self, start: int) -> Iterator[tuple[int, str]]:
        """Yield the offset and the text of the findings about missing first events.

        Many orders are one finding: the topic, which starts at `start`, then begins too late, like that of a mirror.
        """
        if self._lost_head_count > MANY or (start > 0 and self._lost_heads):
            offset, first = self._lost_heads[0]
            text = f"The topic starts at offset {start}, and {self._lost_head_count} orders lack their first events"
            yield offset, f"{text}: {first}."
            return
        for offset, text in self._lost_heads:
            yield offset, f"The first events of an order are missing: {text}."

    def _begin(self, event: Event, offset: int) -> Fold:
        if event.version == 1:
            if event.previous_digest is not None:
                self._found(Kind.CHAIN, offset, f"{_name(event)} has the digest of an event before it.")
            return Fold(0, offset, ABSENT, accepted=_NO_COMMANDS, created_at=event.occurred_at)
        self._lost_head_count += 1
        if len(self._lost_heads) < MANY:
            self._lost_heads.append((offset, f"{_name(event)} is the first one here"))
        return Fold(0, offset)

    def _check_sequence(self, fold: Fold, event: Event, offset: int) -> None:
        """Check version and digest of a later event. After a gap, the state of the order is unknown."""
        if event.version == fold.version + 1:
            if fold.version == 0:
                fold.created_at = event.occurred_at
            elif event.previous_digest != fold.head:
                text = f"Version {fold.version} of order {event.order_id} differs from the digest that"
                text += f" version {event.version}, at offset {offset}, has for it."
                self._found(Kind.CHAIN, fold.offset, text)
            return
        if event.version > fold.version + 1 + fold.unread:
            text = f"{_name(event)} follows version {fold.version}, at offset {fold.offset}: events are missing."
            self._found(Kind.VERSION, offset, text)
        fold.order = fold.accepted = None

    def _count_money(self, fold: Fold, fact: Fact) -> None:
        if type(fact) is OrderCreated or type(fact) is OrderAmended:
            fold.currency = fact.currency
        elif type(fact) is OrderPaid:
            fold.currency = fact.currency
            self.paid[fact.currency] += fact.amount
        elif type(fact) is OrderCancelled and fact.refund_due:
            self.refunds_due[fold.currency or "unknown"] += fact.refund_due

    def _evolve(self, fold: Fold, event: Event, offset: int) -> None:
        """Apply the fact of an event, and check what the rules of an order guarantee."""
        fact, before = event.fact, fold.order
        if fold.changed_at is not None and event.occurred_at < fold.changed_at:
            self._found(Kind.TRANSITION, offset, f"{_name(event)} is earlier than the version before it.")
        fold.changed_at = event.occurred_at
        if before is None:
            if type(fact) is OrderAmended:
                fold.order, fold.contents = _condensed(Created(*structs.astuple(fact)))
            return
        if fault := _wrong_amount(before, fact):
            self._found(Kind.TRANSITION, offset, f"{_name(event)} {fault}.")
        try:
            fold.order, fold.contents = _condensed(evolve(before, fact))
        except HistoryError as error:
            self._found(Kind.TRANSITION, offset, f"{_name(event)} is against the rules: {error}.")
            fold.order = fold.contents = None


def entry_faults(fold: Fold, entry: Entry) -> Iterator[str]:
    """Yield the parts of an entry that differ from the fold of the same version. A short one has no commands."""
    if fold.head not in {None, entry.head}:
        yield HEAD
    if fold.order is not None:
        yield from _order_faults(fold.order, fold.contents, entry.order)
    if fold.created_at not in {None, entry.created_at}:
        yield "the time of the first event"
    if fold.changed_at != entry.changed_at:
        yield "the time of the newest event"
    if type(entry) is FullEntry and fold.accepted not in {None, reduce(_with_known, entry.accepted, _NO_COMMANDS)}:
        yield "the accepted commands"


def _order_faults(order: Order, contents: int | None, in_table: Order) -> Iterator[str]:
    slim, contents_in_table = _condensed(in_table)
    if slim.status is not order.status:
        yield f"the status ({slim.status}, not {order.status})"
    elif slim != order:
        yield "the user or the amount"
    elif contents_in_table != contents:
        yield "the contents"


def is_own_cancellation(event: Event) -> bool:
    """Return whether the service itself cancelled an order that was not paid in time: this event answers no command."""
    fact = event.fact
    return type(fact) is OrderCancelled and fact.reason == "payment_timeout" and event.actor == SERVICE_ACTOR


def _name(event: Event) -> str:
    return f"{type(event.fact).__name__}, version {event.version} of order {event.order_id},"


def _wrong_amount(order: Order, fact: Fact) -> str:
    if (
        type(fact) is OrderPaid
        and type(order) is Created
        and (fact.amount, fact.currency) != (order.total, order.currency)
    ):
        return f"pays {fact.amount} {fact.currency}, the total is {order.total} {order.currency}"
    if type(fact) is OrderCancelled:
        paid = order.total if type(order) is Paid else 0
        if fact.refund_due != paid:
            return f"has a refund of {fact.refund_due}, but {paid} was paid"
    return ""


def _condensed(order: Order) -> tuple[Order, int | None]:
    """Return an order without the contents of an unpaid one, and their hash."""
    if type(order) is not Created:
        return order, None
    slim = Created(order.user_id, order.currency, (), 0, 0, 0, order.total, None, _NO_METADATA)
    return slim, hash(_encode(order))


def _with_known(accepted: int, known: Known) -> int:
    """Return the hash of a sequence of commands with one more. Python's own hash takes a tenth of a digest's time."""
    return hash((accepted, known))
