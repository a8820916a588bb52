"""What becomes of the commands that callers send: each goes into Kafka once, and all who ask for it wait together."""

import asyncio
from collections import Counter, OrderedDict, deque
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any, Final

import structlog
from msgspec import Struct, structs
from sqlalchemy.exc import SQLAlchemyError

from order_service.domain.decision import command_digest
from order_service.domain.messages import Command, Event, Rejection
from order_service.domain.refusals import NEVER_REMEMBERED, Reason
from order_service.kafka.command_producer import CommandsTopic
from order_service.views.queries import StoredEvent, StoredRejection, ViewChanges, Views
from order_service.web.http.problems import Problem, Trouble
from order_service.web.live.view_poller import EAGER_S, ViewPoller
from order_service.wire.headers import Headers

log = structlog.get_logger()

KNOWN_MAX: Final = 10_000
"""How many undecided commands a process remembers. Of those that it forgets it says what the views say."""
PATIENT_S: Final = 0.25
ACTORS_MIN: Final = 4
"""How many actors it takes to hold all places: one whose commands hang leaves room for others."""
EARLY_MAX: Final = 16
"""How many outcomes are kept of a command whose own offset is not known yet."""
GRACE_S: Final = 0.5
"""How long a refused earlier copy waits for what else becomes of ours, as `sdk.outcomes.GRACE_S`."""


class CommandResult(Struct, frozen=True):
    """What became of a command, None while it is undecided; `is_replayed` if it was answered to an earlier request.

    `offset` is where the copy of an undecided command lies in the partition of its order, if this server knows it.
    """

    decided: Event | Rejection | None
    is_replayed: bool = False
    offset: int | None = None


class PendingCommand:
    """A command of which this process awaits the outcome: `sent` once it is in Kafka, then `decided`."""

    def __init__(self, command: Command, digest: bytes) -> None:
        self.key = command.order_id, command.command_id
        self.digest = digest
        self.actor = command.actor
        self.decide_by = command.decide_by
        """The time that our copy carries."""
        self.waiting = 0
        self.offset: int | None = None
        """The offset of our copy in the partition of its order. Other copies may lie before and behind it."""
        self.offset_before: int | None = None
        """The offset of our copy before, while a new one is being sent, and `decide_by_before` its time."""
        self.decide_by_before = command.decide_by
        self.early: deque[StoredEvent | StoredRejection] = deque(maxlen=EARLY_MAX)
        """Outcomes of the command that came before our offset did."""
        self.later_event: StoredEvent | None = None
        """The event of a copy behind ours, while nothing is known of ours."""
        self.is_being_sent = False
        self.is_settling = False
        self.has_news = False
        """Whether the order had an outcome since the views were last asked whether an earlier refusal is ours."""
        self.sent: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.decided: asyncio.Future[CommandResult] = asyncio.get_running_loop().create_future()

    @property
    def last_offset(self) -> int | None:
        """The offset of the newest copy of ours that is known to be in Kafka."""
        return self.offset_before if self.offset is None else self.offset

    def decide(self, outcome: CommandResult) -> None:
        """Set the outcome for all who wait."""
        if not self.sent.done():
            self.sent.set_result(None)
        if not self.decided.done():
            self.decided.set_result(outcome)

    def fail(self, error: Exception) -> None:
        """Raise `error` for all who wait: the command may not be in Kafka, or must not be."""
        if not self.sent.done():
            self.sent.set_exception(error)
            self.sent.exception()


class CommandResults:
    """Sends commands and awaits what becomes of them.

    At most `waiting_max` requests are held at a time, of one actor a quarter of that.
    """

    def __init__(self, views: Views, pulse: ViewPoller, topic: CommandsTopic, waiting_max: int) -> None:
        self._views = views
        self._pulse = pulse
        self._topic = topic
        self._waiting_max = waiting_max
        self._held: Counter[str] = Counter()
        self._awaited: OrderedDict[tuple[str, str], PendingCommand] = OrderedDict()
        self._in_doubt: dict[str, dict[str, PendingCommand]] = {}
        """By order and command: those of which another copy has an outcome, and nothing is known of ours."""
        self._sending: set[asyncio.Task[None]] = set()
        self._settling: set[asyncio.Task[None]] = set()
        self._ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        pulse.add(self)

    @property
    def every_s(self) -> float | None:
        """How often to look into the views."""
        if self._held:
            return EAGER_S
        return PATIENT_S if self._awaited else None

    def hear(self, news: ViewChanges) -> None:
        """Find the outcomes of awaited commands."""
        for recorded in news.events:
            self._happened(recorded)
            self._settle_order(recorded.event.order_id)
        for refused in news.refusals:
            self._refused(refused)
            self._settle_order(refused.rejection.order_id)

    def awaited(self, order_id: str, command_id: str, actor: str) -> PendingCommand | None:
        """Return a command of this actor that is on its way and, as far as this process knows, undecided."""
        awaited = self._awaited.get((order_id, command_id))
        return awaited if awaited is not None and awaited.actor == actor else None

    async def outcome(self, command: Command, headers: Headers, wait_s: float, *, is_new: bool) -> CommandResult:
        """Send a command, unless it was sent before, and wait for its outcome up to `wait_s` seconds.

        `is_new` says that nobody can have used its id before. Raises Problem if it was used with another content, too
        many requests wait, or this server ends; KafkaAwayError and SQLAlchemyError.
        """
        deadline = asyncio.get_running_loop().time() + wait_s
        with self.place(command.actor):
            awaited = await self._join(command, headers, is_new=is_new)
            awaited.waiting += 1
            try:
                await self._ask_again(awaited, command, headers)
                await asyncio.shield(awaited.sent)
                left = deadline - asyncio.get_running_loop().time()
                futures: set[asyncio.Future[Any]] = {awaited.decided, self._ended}
                await asyncio.wait(futures, timeout=max(0.0, left), return_when=asyncio.FIRST_COMPLETED)
                return (
                    awaited.decided.result()
                    if awaited.decided.done()
                    else CommandResult(None, offset=awaited.last_offset)
                )
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
        """End all waiting; commands on their way into Kafka get there."""
        self._ended.set_result(None)
        for settling in self._settling:
            settling.cancel()
        await asyncio.gather(*self._sending)

    def _happened(self, recorded: StoredEvent) -> None:
        """Decide by the event of our copy or an earlier one; before that of a later one, ours may have been refused."""
        event = recorded.event
        awaited = self._awaited.get((event.order_id, event.command_id))
        if awaited is None or awaited.digest != event.command_digest:
            return
        if awaited.is_being_sent:  # only its offset says whether it is the event of our copy
            awaited.early.append(recorded)
        elif _is_behind(recorded.command_offset, awaited.offset):
            awaited.later_event = recorded
            self._doubt(awaited)
        else:
            self._decide(awaited, event, is_replayed=recorded.command_offset != awaited.offset)

    def _refused(self, refused: StoredRejection) -> None:
        """Decide by a refusal, if it is the one of our copy. One of an earlier copy may stand for ours, or may not."""
        rejection = refused.rejection
        awaited = self._awaited.get((rejection.order_id, rejection.command_id))
        if awaited is None or awaited.digest != rejection.command_digest or refused.command_offset is None:
            return
        if awaited.offset is None:
            awaited.early.append(refused)
        elif refused.command_offset == awaited.offset:
            self._decide(awaited, rejection)
        elif refused.command_offset < awaited.offset:
            self._doubt(awaited)

    def _settle_order(self, order_id: str) -> None:
        """Ask the views again about the commands of an order that are in doubt: it has had an outcome."""
        for command_id, awaited in self._in_doubt.get(order_id, {}).items():
            awaited.has_news = True
            if not awaited.is_settling:
                awaited.is_settling = True
                self._start(self._settle(order_id, command_id, awaited), self._settling)

    async def _settle(self, order_id: str, command_id: str, awaited: PendingCommand) -> None:
        """Find out whether the outcome of another copy is also ours.

        The refusal of an earlier copy may be: nothing new comes of what is remembered. The event of a later one is ours
        once the views know that nothing refused our copy, which may take them some time.
        """
        try:
            while self._is_in_doubt(awaited) and (awaited.has_news or awaited.later_event is not None):
                awaited.has_news = False
                await asyncio.sleep(GRACE_S)
                await self._ask_views(order_id, command_id, awaited)
        except SQLAlchemyError as error:
            log.warning("The views cannot be read; a repeated command stays undecided.", error=type(error).__name__)
        finally:
            awaited.is_settling = False

    async def _ask_views(self, order_id: str, command_id: str, awaited: PendingCommand) -> None:
        """Decide by what the views hold of our copy. Raises SQLAlchemyError."""
        if (offset := awaited.offset) is None:
            return
        decided = await asyncio.to_thread(self._views.outcome, order_id, command_id, awaited.digest, offset)
        if decided is not None and awaited.offset == offset:
            self._decide(awaited, decided, is_replayed=True)

    async def _ask_again(self, awaited: PendingCommand, command: Command, headers: Headers) -> None:
        """Ask the views about a command that was sent before, and send it again if its copy may have been dropped.

        A worker drops a copy of a command that waits in a full waiting room. Where the waiting one is refused and its
        order remembers nothing, no record says so: then a new copy gets an outcome, and ours is that one's.
        """
        await self._ask_views(command.order_id, command.command_id, awaited)
        if self._is_in_doubt(awaited) and not awaited.is_settling and awaited.offset is not None:
            # Others may wait with a later time than this caller's.
            self._send_again(awaited, structs.replace(command, decide_by=awaited.decide_by), headers)

    def _send_again(self, awaited: PendingCommand, command: Command, headers: Headers) -> None:
        """Send a new copy of a command whose copy before is in Kafka; all who wait now wait for the new one."""
        self._no_doubt(awaited)
        awaited.decide_by_before, awaited.decide_by = awaited.decide_by, command.decide_by
        if awaited.later_event is not None:  # it is the event of a copy before the new one
            awaited.early.append(awaited.later_event)
            awaited.later_event = None
        # From now on, a refusal of the copy before is one of an earlier copy.
        awaited.offset_before, awaited.offset = awaited.offset, None
        awaited.sent = asyncio.get_running_loop().create_future()
        self._start(self._send(command, headers, awaited, is_new=True), self._sending)

    def _doubt(self, awaited: PendingCommand) -> None:
        order_id, command_id = awaited.key
        if self._awaited.get(awaited.key) is awaited:
            self._in_doubt.setdefault(order_id, {})[command_id] = awaited

    def _is_in_doubt(self, awaited: PendingCommand) -> bool:
        order_id, command_id = awaited.key
        return self._in_doubt.get(order_id, {}).get(command_id) is awaited

    def _no_doubt(self, awaited: PendingCommand) -> None:
        order_id, command_id = awaited.key
        of_order = self._in_doubt.get(order_id, {})
        of_order.pop(command_id, None)
        if not of_order:
            self._in_doubt.pop(order_id, None)

    def _forget(self, awaited: PendingCommand) -> None:
        """Forget a command, unless it was forgotten and another caller awaits the same one."""
        if self._awaited.get(awaited.key) is awaited:
            del self._awaited[awaited.key]
            self._no_doubt(awaited)

    @staticmethod
    def _start(work: Coroutine[Any, Any, None], tasks: set[asyncio.Task[None]]) -> None:
        task = asyncio.create_task(work)
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    def _decide(self, awaited: PendingCommand, decided: Event | Rejection, *, is_replayed: bool = False) -> None:
        self._forget(awaited)
        awaited.decide(CommandResult(decided, is_replayed=is_replayed))

    async def _join(self, command: Command, headers: Headers, *, is_new: bool) -> PendingCommand:
        """Wait with those who wait for this command already, else send it.

        With a later `decide_by` than theirs, or none, send a new copy: theirs may be refused in time for them only.
        """
        key, digest = (command.order_id, command.command_id), command_digest(command)
        while (awaited := self._awaited.get(key)) is not None:
            if awaited.digest != digest:
                raise _reused(command)
            if not _is_later(command.decide_by, awaited.decide_by):
                return awaited
            if awaited.sent.done():
                self._send_again(awaited, command, headers)
                return awaited
            await asyncio.shield(awaited.sent)
        if len(self._awaited) >= KNOWN_MAX:
            oldest = next((old for old in self._awaited.values() if not old.waiting), None)
            if oldest is not None:
                self._forget(oldest)
        awaited = self._awaited[key] = PendingCommand(command, digest)
        self._start(self._send(command, headers, awaited, is_new=is_new), self._sending)
        return awaited

    async def _send(self, command: Command, headers: Headers, awaited: PendingCommand, *, is_new: bool) -> None:
        """Send a command; it is a task of its own, for whoever asked for it may hang up."""
        try:
            await self._pulse.wake()
            first = None if is_new else await self._first_outcome(command, awaited)
            if first is not None:
                self._forget(awaited)
                awaited.decide(CommandResult(first, is_replayed=True))
            if not awaited.sent.done():  # the news may have been faster
                awaited.is_being_sent = True
                arrived = await self._topic.send(command, headers)
                self._arrived(awaited, arrived.offset)
        except Exception as error:  # noqa: BLE001 - whoever waits hears of it, whatever it is
            awaited.fail(error)
            if awaited.offset_before is None:
                self._forget(awaited)
            else:  # those who waited before wait on; a caller who asks again has a new copy sent
                awaited.decide_by = awaited.decide_by_before
                awaited.sent = asyncio.get_running_loop().create_future()
                self._doubt(awaited)
                self._arrived(awaited, awaited.offset_before)

    def _arrived(self, awaited: PendingCommand, offset: int) -> None:
        """Note the offset of our copy, and take up the outcomes that came before it was known."""
        awaited.offset, awaited.is_being_sent = offset, False
        if not awaited.sent.done():
            awaited.sent.set_result(None)
        early = ViewChanges(
            tuple(one for one in awaited.early if isinstance(one, StoredEvent)),
            tuple(one for one in awaited.early if isinstance(one, StoredRejection)),
            {},
        )
        awaited.early.clear()
        self.hear(early)

    async def _first_outcome(self, command: Command, awaited: PendingCommand) -> Event | Rejection | None:
        """Look what an earlier copy of a command came to; a refusal of the moment is none: it is tried again."""
        first = await asyncio.to_thread(self._views.command, command.order_id, command.command_id)
        if first is None:
            return None
        if first.command_digest != awaited.digest:
            raise _reused(command)
        is_tried_again = isinstance(first, Rejection) and first.reason in NEVER_REMEMBERED
        return None if is_tried_again else first


def _reused(command: Command) -> Problem:
    return Problem(Reason.COMMAND_ID_REUSED, order_id=command.order_id, command_id=command.command_id)


def _is_behind(command_offset: int | None, other: int | None) -> bool:
    return command_offset is not None and other is not None and command_offset > other


def _is_later(one: datetime | None, other: datetime | None) -> bool:
    """Return whether a `decide_by` gives more time than another one; None is no limit."""
    return other is not None and (one is None or one > other)
