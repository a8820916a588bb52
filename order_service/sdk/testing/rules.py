"""The rules of an order as sentences: given what happened, when this is wished, then this happens, or why not."""

from collections.abc import Iterable
from datetime import datetime, timedelta

from msgspec import Struct, structs

from order_service.domain.decision import Answer, Entry, UserCheck, after_event, answer
from order_service.domain.messages import Command, Event, Fact, Rejection
from order_service.domain.refusals import Reason
from order_service.sdk.testing.samples import BEGIN, ORDER_ID, event_of, head_of


class Answered(Struct, frozen=True):
    """What the rules said: an Event, a Rejection, or a Repeat of a command that the order remembers."""

    answer: Answer

    @property
    def outcome(self) -> Fact | Reason | None:
        """The fact that happened, the reason of a refusal, or None where nothing new comes of it."""
        match self.answer:
            case Event():
                return self.answer.fact
            case Rejection():
                return Reason(self.answer.reason)
            case _:
                return None

    def then(self, *expected: Fact | Reason) -> None:
        """Check that this fact happened, that it was refused for this reason, or, given neither, that nothing new came.

        Raises AssertionError with what was expected and what came.
        """
        actual = () if self.outcome is None else (self.outcome,)
        if actual != expected:
            raise AssertionError(f"expected {_shown(expected)}, got {_shown(actual)}")


class Given(Struct, frozen=True):
    """An order after its history; `entry` is what the service keeps of it, None where nothing happened."""

    entry: Entry | None

    def when(self, command: Command, *, at: datetime | None = None, user: UserCheck = UserCheck.ACTIVE) -> Answered:
        """Decide a command, an hour after the history or at a time of yours, for a user of whom this is known."""
        now = at or (BEGIN if self.entry is None else self.entry.changed_at + timedelta(hours=1))
        return Answered(answer(command, self.entry, now, user))


def given(*history: Event | Fact) -> Given:
    """Take what happened to an order, oldest first: events, or their facts alone.

    Raises HistoryError for a history that cannot be. Versions, times and digests of events are made to follow.
    """
    entry: Entry | None = None
    for event in _following(history):
        chained = structs.replace(event, previous_digest=None if entry is None else entry.head)
        entry = after_event(entry, chained, head_of(chained))
    return Given(entry)


def _following(history: Iterable[Event | Fact]) -> Iterable[Event]:
    for version, happened in enumerate(history, 1):
        if isinstance(happened, Event):
            yield structs.replace(happened, version=version)
        else:
            yield event_of(happened, ORDER_ID, version, {})


def _shown(outcomes: tuple[Fact | Reason, ...]) -> str:
    return ", ".join(repr(outcome) for outcome in outcomes) or "nothing new"
