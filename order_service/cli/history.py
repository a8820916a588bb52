"""The history of one order as Kafka has it: events and rejections in the order of their decisions, and its proof."""

from collections import deque
from collections.abc import Iterable, Iterator
from datetime import datetime

from msgspec import Struct

from order_service.domain.messages import Event, Rejection
from order_service.domain.order import ABSENT, Order, evolve
from order_service.errors import HistoryError
from order_service.kafka.reader import OutcomeRecord


class Step(Struct, frozen=True):
    """An event or a rejection and the order before it; `fault` says why an event cannot stand there."""

    seen: OutcomeRecord
    before: Order
    fault: str = ""


class Chain:
    """Folds the events of one order and checks each against the one before it: version, digest, and the rules."""

    def __init__(self) -> None:
        self.order: Order = ABSENT
        self.version = 0
        self._head: bytes | None = None

    def add(self, seen: OutcomeRecord, event: Event) -> Step:
        """Take the next event; after a fault the chain goes on from it."""
        before, fault = self.order, self._fault(event)
        try:
            self.order = evolve(before, event.fact)
        except HistoryError as error:
            fault = fault or str(error)
        self.version, self._head = event.version, seen.digest
        return Step(seen, before, fault)

    def _fault(self, event: Event) -> str:
        if event.version != self.version + 1:
            return f"version {event.version} follows on version {self.version}"
        if event.previous_digest != self._head:
            return f"version {event.version} does not name the digest of version {self.version} as it is in Kafka"
        return ""


def steps(outcomes: Iterable[OutcomeRecord], chain: Chain) -> list[Step]:
    """Put the outcomes of one order into the order of their decisions, and check the events."""
    found = []
    for seen in interleaved(outcomes):
        if isinstance(seen.message, Event):
            found.append(chain.add(seen, seen.message))
        else:
            found.append(Step(seen, chain.order))
    return found


def interleaved(outcomes: Iterable[OutcomeRecord]) -> Iterator[OutcomeRecord]:
    """Merge events and rejections; each kind keeps the order that it has in its topic."""
    outcomes = list(outcomes)
    rejections = deque(seen for seen in outcomes if isinstance(seen.message, Rejection))
    for seen in outcomes:
        if isinstance(seen.message, Rejection):
            continue
        while rejections and _is_before(rejections[0], seen):
            yield rejections.popleft()
        yield seen
    yield from rejections


def _is_before(rejection: OutcomeRecord, event: OutcomeRecord) -> bool:
    """Compare the commands that they answer; an event that answers none is placed by its time."""
    if rejection.command_offset is not None and event.command_offset is not None:
        return rejection.command_offset < event.command_offset
    return time_of(rejection) < time_of(event)


def moment_of(seen: OutcomeRecord) -> datetime:
    """Give the time of a decision."""
    message = seen.message
    return message.occurred_at if isinstance(message, Event) else message.rejected_at


def time_of(seen: OutcomeRecord) -> str:
    """Give it as RFC 3339 in UTC."""
    return moment_of(seen).isoformat(timespec="milliseconds").replace("+00:00", "Z")
