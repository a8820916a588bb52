"""The history of one order in Kafka: events and rejections in the order of their decisions, and the digest chain."""

from collections import deque
from collections.abc import Iterable, Iterator
from datetime import datetime

from msgspec import Struct

from order_service.domain.messages import Event, Rejection
from order_service.domain.order import ABSENT, Order, evolve
from order_service.errors import HistoryError
from order_service.kafka.reader import OutcomeRecord


class Step(Struct, frozen=True):
    """An event or a rejection, and the order before it; `fault` says why an event cannot follow there."""

    outcome: OutcomeRecord
    before: Order
    fault: str = ""


class Chain:
    """The fold of one order, which checks each event against the one before it: version, digest and rules."""

    def __init__(self) -> None:
        self.order: Order = ABSENT
        self.version = 0
        self._digest: bytes | None = None

    def add(self, outcome: OutcomeRecord, event: Event) -> Step:
        """Fold the next event and return its step; after a fault the chain continues from it."""
        before, fault = self.order, self._fault(event)
        try:
            self.order = evolve(before, event.fact)
        except HistoryError as error:
            fault = fault or str(error)
        self.version, self._digest = event.version, outcome.digest
        return Step(outcome, before, fault)

    def _fault(self, event: Event) -> str:
        if event.version != self.version + 1:
            return f"version {event.version} follows version {self.version}"
        if event.previous_digest != self._digest:
            return (
                f"previous_digest of version {event.version} differs from the digest of version {self.version} in Kafka"
            )
        return ""


def steps(outcomes: Iterable[OutcomeRecord], chain: Chain) -> list[Step]:
    """Return the outcomes of one order in the order of their decisions, with the events checked."""
    history = []
    for outcome in interleaved(outcomes):
        if isinstance(outcome.message, Event):
            history.append(chain.add(outcome, outcome.message))
        else:
            history.append(Step(outcome, chain.order))
    return history


def interleaved(outcomes: Iterable[OutcomeRecord]) -> Iterator[OutcomeRecord]:
    """Merge events and rejections; each kind keeps the order of its topic."""
    outcomes = list(outcomes)
    rejections = deque(outcome for outcome in outcomes if isinstance(outcome.message, Rejection))
    for outcome in outcomes:
        if isinstance(outcome.message, Rejection):
            continue
        while rejections and _is_before(rejections[0], outcome):
            yield rejections.popleft()
        yield outcome
    yield from rejections


def _is_before(rejection: OutcomeRecord, event: OutcomeRecord) -> bool:
    """Return whether the rejection was decided first: by command offset, or by time for an event without a command."""
    if rejection.command_offset is not None and event.command_offset is not None:
        return rejection.command_offset < event.command_offset
    return time_of(rejection) < time_of(event)


def moment_of(outcome: OutcomeRecord) -> datetime:
    """Return the time of a decision."""
    message = outcome.message
    return message.occurred_at if isinstance(message, Event) else message.rejected_at


def time_of(outcome: OutcomeRecord) -> str:
    """Return the time of a decision as RFC 3339 in UTC."""
    return moment_of(outcome).isoformat(timespec="milliseconds").replace("+00:00", "Z")
