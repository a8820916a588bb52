"""What becomes of the commands that callers send: each goes into Kafka once, and all who ask for it wait together."""

import asyncio
from collections import Counter, OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from msgspec import Struct

from order_service.domain.answer import command_digest
from order_service.domain.messages import Command, Event, Rejection
from order_service.domain.reasons import NEVER_REMEMBERED, Reason
from order_service.sdk.producing import CommandsTopic
from order_service.views.queries import News, Views
from order_service.web.problems import Problem, Trouble
from order_service.web.pulse import EAGER_S, Pulse
from order_service.wire.headers import Headers

KNOWN_MAX: Final = 10_000
"""How many undecided commands a process remembers. Of those that it forgets it says what the views say."""
PATIENT_S: Final = 0.25
ACTORS_MIN: Final = 4
"""How many actors it takes to hold all places: one whose commands hang leaves room for others."""


class Outcome(Struct, frozen=True):
    """What became of a command, None while it is undecided; `is_replayed` if it was answered to an earlier request."""

    decided: Event | Rejection | None
    is_replayed: bool = False


UNDECIDED: Final = Outcome(None)


class Awaited:
    """A command of which this process awaits the outcome: `sent` once it is in Kafka, then `decided`."""

    def __init__(self, digest: bytes, actor: str) -> None:
        self.digest = digest
        self.actor = actor
        self.waiting = 0
        self.passed_over: Rejection | None = None
        """A refusal of the moment that an earlier copy met: it is no outcome of this one."""
        self.sent: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.decided: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()

    def decide(self, outcome: Outcome) -> None:
        """Tell all who wait."""
        if not self.sent.done():
            self.sent.set_result(None)
        if not self.decided.done():
            self.decided.set_result(outcome)

    def is_by(self, decided: Event | Rejection) -> bool:
        """Tell whether this is what became of it."""
        if decided.command_digest != self.digest:
            return False
        old = self.passed_over
        return old is None or isinstance(decided, Event) or decided.rejected_at > old.rejected_at

    def fail(self, error: Exception) -> None:
        """Tell all who wait that it may not be in Kafka, or must not be; they may all have gone."""
        if not self.sent.done():
            self.sent.set_exception(error)
            self.sent.exception()


class Outcomes:
    """Sends commands and awaits what becomes of them.

    At most `waiting_max` requests are held at a time, of one actor a quarter of that.
    """

    def __init__(self, views: Views, pulse: Pulse, topic: CommandsTopic, waiting_max: int) -> None:
        self._views = views
        self._pulse = pulse
        self._topic = topic
        self._waiting_max = waiting_max
        self._held: Counter[str] = Counter()
        self._awaited: OrderedDict[tuple[str, str], Awaited] = OrderedDict()
        self._sending: set[asyncio.Task[None]] = set()
        self._ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        pulse.add(self)

    @property
    def every_s(self) -> float | None:
        """How often to look into the views."""
        if self._held:
            return EAGER_S
        return PATIENT_S if self._awaited else None

    def hear(self, news: News) -> None:
        """Find the outcomes of awaited commands."""
        for recorded in news.events:
            self._decide(recorded.event)
        for rejection in news.rejections:
            self._decide(rejection)

    def awaits(self, order_id: str, command_id: str, actor: str) -> bool:
        """Tell whether a command of this actor is on its way and not decided, as far as this process knows."""
        awaited = self._awaited.get((order_id, command_id))
        return awaited is not None and awaited.actor == actor

    async def outcome(self, command: Command, headers: Headers, wait_s: float, *, is_new: bool) -> Outcome:
        """Send a command, unless it was sent before, and wait for its outcome up to `wait_s` seconds.

        `is_new` says that nobody can have used its id before. Raises Problem if it was used with another content, too
        many requests wait, or this server ends; KafkaAwayError and SQLAlchemyError.
        """
        deadline = asyncio.get_running_loop().time() + wait_s
        with self.place(command.actor):
            awaited = self._join(command, headers, is_new=is_new)
            awaited.waiting += 1
            try:
                await asyncio.shield(awaited.sent)
                left = deadline - asyncio.get_running_loop().time()
                futures: set[asyncio.Future[Any]] = {awaited.decided, self._ended}
                await asyncio.wait(futures, timeout=max(0.0, left), return_when=asyncio.FIRST_COMPLETED)
                return awaited.decided.result() if awaited.decided.done() else UNDECIDED
            finally:
                awaited.waiting -= 1

    @contextmanager
    def place(self, actor: str) -> Iterator[None]:
        """Hold a request of an actor, and look often meanwhile; Problem if there is no place for it."""
        if self._ended.done():
            raise Problem(Trouble.NOT_YET, "This server is about to end.", headers={"Retry-After": "1"})
        if self._held.total() >= self._waiting_max or self._held[actor] * ACTORS_MIN >= self._waiting_max:
            raise Problem(Trouble.TOO_MANY_REQUESTS, "Too many requests wait already.", headers={"Retry-After": "1"})
        self._held[actor] += 1
        try:
            yield
        finally:
            self._held[actor] -= 1
            if not self._held[actor]:
                del self._held[actor]

    async def stop(self) -> None:
        """Let nobody wait any longer; what is on its way into Kafka gets there."""
        self._ended.set_result(None)
        await asyncio.gather(*self._sending)

    def _decide(self, decided: Event | Rejection) -> None:
        key = decided.order_id, decided.command_id
        awaited = self._awaited.get(key)
        if awaited is not None and awaited.is_by(decided):
            del self._awaited[key]
            awaited.decide(Outcome(decided))

    def _join(self, command: Command, headers: Headers, *, is_new: bool) -> Awaited:
        """Wait with those who wait for this command already, else send it."""
        key, digest = (command.order_id, command.command_id), command_digest(command)
        awaited = self._awaited.get(key)
        if awaited is not None:
            if awaited.digest != digest:
                raise _reused(command)
            return awaited
        if len(self._awaited) >= KNOWN_MAX:
            self._awaited.pop(next((old for old, one in self._awaited.items() if not one.waiting), key), None)
        awaited = self._awaited[key] = Awaited(digest, command.actor)
        sending = asyncio.create_task(self._send(command, headers, awaited, is_new=is_new))
        self._sending.add(sending)
        sending.add_done_callback(self._sending.discard)
        return awaited

    async def _send(self, command: Command, headers: Headers, awaited: Awaited, *, is_new: bool) -> None:
        """Send a command; it is a task of its own, for whoever asked for it may hang up."""
        try:
            await self._pulse.wake()
            first = None if is_new else await self._first_outcome(command, awaited)
            if first is not None:
                self._awaited.pop((command.order_id, command.command_id), None)
                awaited.decide(Outcome(first, is_replayed=True))
            if not awaited.sent.done():  # the news may have been faster
                await self._topic.send(command, headers)
                if not awaited.sent.done():
                    awaited.sent.set_result(None)
        except Exception as error:  # noqa: BLE001 - whoever waits hears of it, whatever it is
            self._awaited.pop((command.order_id, command.command_id), None)
            awaited.fail(error)

    async def _first_outcome(self, command: Command, awaited: Awaited) -> Event | Rejection | None:
        """Look what an earlier copy of a command came to; a refusal of the moment is none: it is tried again."""
        first = await asyncio.to_thread(self._views.command, command.order_id, command.command_id)
        if first is None:
            return None
        if first.command_digest != awaited.digest:
            raise _reused(command)
        if isinstance(first, Rejection) and first.reason in NEVER_REMEMBERED:
            awaited.passed_over = first
            return None
        return first


def _reused(command: Command) -> Problem:
    return Problem(Reason.COMMAND_ID_REUSED, order_id=command.order_id, command_id=command.command_id)
