"""Given/when/then for the rules of an order: a history, a command, and the expected fact or reason."""

from collections.abc import Iterable
from datetime import datetime, timedelta

from msgspec import Struct, structs

from order_service.domain.decision import Answer, UserCheck, answer
from order_service.domain.entry import Entry, after_event
from order_service.domain.messages import Command, Event, Fact, Rejection
from order_service.domain.refusals import Reason
from order_service.sdk.testing.samples import BEGIN, ORDER_ID, event_of, head_of


class Answered(Struct, frozen=True):
    """The decision: an Event, a Rejection, or a Repeat of a command that the order remembers."""

    answer: Answer

    @property
    def outcome(self) -> Fact | Reason | None:
        """The fact of the event, the reason of the rejection, or None for a repeat."""
        match self.answer:
            case Event():
                return self.answer.fact
            case Rejection():
                return Reason(self.answer.reason)
            case _:
                return None

    def then(self, *expected: Fact | Reason) -> None:
        """Check that the command led to this fact or was refused for this reason.

        Without an argument, check that the command is a repeat. Raises AssertionError with the expected and the actual
        outcome.
        """
        actual = () if self.outcome is None else (self.outcome,)
        if actual != expected:
            raise AssertionError(f"expected {_shown(expected)}, got {_shown(actual)}")


class Given(Struct, frozen=True):
    """An order after its history. `entry` is the state that the service stores, or None for an empty history."""

    entry: Entry | None

    def when(self, command: Command, *, at: datetime | None = None, user: UserCheck = UserCheck.ACTIVE) -> Answered:
        """Decide a command at a time (default: one hour after the history). `user` is the result of the user check."""
        now = at or (BEGIN if self.entry is None else self.entry.changed_at + timedelta(hours=1))
        return Answered(answer(command, self.entry, now, user))


def given(*history: Event | Fact) -> Given:
    """Return an order with this history, oldest first: events, or only their facts.

    Versions and digests are set to form a chain, and facts get times. Raises HistoryError for an impossible history.
    """
    entry: Entry | None = None
    for event in _following(history):
        chained = structs.replace(event, previous_digest=None if entry is None else entry.head)
        entry = after_event(entry, chained, head_of(chained))
    return Given(entry)


def _following(history: Iterable[Event | Fact]) -> Iterable[Event]:
    for version, item in enumerate(history, 1):
        if isinstance(item, Event):
            yield structs.replace(item, version=version)
        else:
            yield event_of(item, ORDER_ID, version, {})


def _shown(outcomes: tuple[Fact | Reason, ...]) -> str:
    return ", ".join(repr(outcome) for outcome in outcomes) or "nothing new"
