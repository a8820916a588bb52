"""Sends the commands of callers to Kafka, each once, and returns their outcomes to every request that waits."""

import asyncio
from collections import Counter, OrderedDict, deque
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager, nullcontext
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

import structlog
from msgspec import Struct, structs
from sqlalchemy.exc import SQLAlchemyError

from order_service.domain.identity import command_digest
from order_service.domain.messages import Command, Event, Rejection
from order_service.domain.refusals import Reason
from order_service.kafka.command_producer import CommandsTopic
from order_service.sdk.outcomes import GRACE_S
from order_service.views.queries import StoredEvent, StoredRejection, ViewChanges, Views
from order_service.views.tables import describe
from order_service.web.http.problems import Problem, Trouble
from order_service.web.live.view_poller import EAGER_S, ViewPoller
from order_service.wire.headers import Headers
from order_service.wire.trace_context import trace_context_of

if TYPE_CHECKING:
    from order_service.runtime.spans import Spans

log = structlog.get_logger()

KNOWN_MAX: Final = 10_000
"""Maximum number of undecided commands that a process remembers. The views alone answer for those it forgets."""
PATIENT_S: Final = 0.25
"""Poll interval while commands are undecided but no request waits."""
ACTORS_MIN: Final = 4
"""Minimum number of actors that it takes to fill all slots: one whose commands hang leaves room for others."""
EARLY_MAX: Final = 16
"""Maximum number of outcomes kept for a command whose own offset is not known yet."""


class CommandResult(Struct, frozen=True):
    """The outcome of a command, None while it is undecided; `is_replayed` if an earlier request led to it.

    `offset` is the offset of an undecided command's copy in the partition of its order, if this server knows it.
    """

    decided: Event | Rejection | None
    is_replayed: bool = False
    offset: int | None = None


class PendingCommand:
    """A command whose outcome this process awaits: `sent` is done once it is in Kafka, then `decided`."""

    def __init__(self, command: Command, digest: bytes) -> None:
        self.order_id = command.order_id
        self.key = command.order_id, command.command_id
        self.digest = digest
        self.actor = command.actor
        self.decide_by = command.decide_by
        """The `decide_by` of our copy."""
        self.waiting = 0
        self.offset: int | None = None
        """The offset of our copy in the partition of its order. Other copies may lie before and behind it."""
        self.offset_before: int | None = None
        """The offset of our previous copy while a new one is being sent; `decide_by_before` is its time."""
        self.decide_by_before = command.decide_by
        self.early: deque[StoredEvent | StoredRejection] = deque(maxlen=EARLY_MAX)
        """Outcomes of the command that arrived before our offset was known."""
        self.later_event: StoredEvent | None = None
        """The event of a later copy, while the outcome of our copy is unknown."""
        self.is_being_sent = False
        self.is_settling = False
        self.has_changes = False
        """Whether the order had an outcome since the last query for an earlier rejection that is also ours."""
        self.sent: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.decided: asyncio.Future[CommandResult] = asyncio.get_running_loop().create_future()

    @property
    def last_offset(self) -> int | None:
        """The offset of our newest copy that is known to be in Kafka."""
        return self.offset_before if self.offset is None else self.offset

    def decide(self, outcome: CommandResult) -> None:
        """Set the outcome for all waiting requests."""
        if not self.sent.done():
            self.sent.set_result(None)
        if not self.decided.done():
            self.decided.set_result(outcome)

    def fail(self, error: Exception) -> None:
        """Raise `error` in all waiting requests: the command may not be in Kafka, or must not be."""
        if not self.sent.done():
            self.sent.set_exception(error)
            self.sent.exception()


class CommandResults:
    """Sends commands and awaits their outcomes.

    At most `waiting_max` requests wait at a time, at most a quarter of them from one actor. If tracing is on, `spans`
    records what is sent and awaited.
    """

    def __init__(
        self,
        views: Views,
        poller: ViewPoller,
        topic: CommandsTopic,
        waiting_max: int,
        spans: "Spans | None" = None,
    ) -> None:
        self._views = views
        self._poller = poller
        self._topic = topic
        self._waiting_max = waiting_max
        self._spans = spans
        self._held: Counter[str] = Counter()
        self._pending: OrderedDict[tuple[str, str], PendingCommand] = OrderedDict()
        self._in_doubt: dict[str, set[PendingCommand]] = {}
        """By order: another copy has an outcome, and the outcome of our copy is unknown."""
        self._sending: set[asyncio.Task[None]] = set()
        self._settling: set[asyncio.Task[None]] = set()
        self._ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        poller.add(self)

    @property
    def poll_interval_s(self) -> float | None:
        """The poll interval in seconds; None while no request waits and no command is undecided."""
        if self._held:
            return EAGER_S
        return PATIENT_S if self._pending else None

    def on_changes(self, changes: ViewChanges) -> None:
        """Match new events and rejections to pending commands."""
        for recorded in changes.events:
            self._on_event(recorded)
            self._settle_order(recorded.event.order_id)
        for refused in changes.refusals:
            self._on_rejection(refused)
            self._settle_order(refused.rejection.order_id)

    def pending(self, order_id: str, command_id: str, actor: str) -> PendingCommand | None:
        """Return a command that this actor has sent and that this process does not know to be decided, or None."""
        pending = self._pending.get((order_id, command_id))
        return pending if pending is not None and pending.actor == actor else None

    async def outcome(self, command: Command, headers: Headers, wait_s: float, *, is_new: bool) -> CommandResult:
        """Send a command, unless it was sent before, and wait for its outcome up to `wait_s` seconds.

        `is_new` means that its id cannot have been used before. Raises Problem if the id was used with other content,
        too many requests wait, or this server stops; KafkaAwayError and SQLAlchemyError.
        """
        deadline = asyncio.get_running_loop().time() + wait_s
        with self.slot(command.actor):
            pending = await self._join(command, headers, is_new=is_new)
            pending.waiting += 1
            try:
                await self._send_again_if_dropped(pending, command, headers)
                await asyncio.shield(pending.sent)
                left_s = deadline - asyncio.get_running_loop().time()
                await self._wait(pending, headers, max(0.0, left_s))
                return (
                    pending.decided.result()
                    if pending.decided.done()
                    else CommandResult(None, offset=pending.last_offset)
                )
            finally:
                pending.waiting -= 1

    async def _wait(self, pending: PendingCommand, headers: Headers, timeout_s: float) -> None:
        """Wait until a command that is in Kafka is decided, or the server stops."""
        futures: set[asyncio.Future[Any]] = {pending.decided, self._ended}
        waiting = nullcontext() if self._spans is None else self._spans.awaiting(trace_context_of(headers))
        with waiting as span:
            await asyncio.wait(futures, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
            if span is not None:
                span.ended("decided" if pending.decided.done() else "undecided")

    @contextmanager
    def slot(self, actor: str) -> Iterator[None]:
        """Reserve a slot for a waiting request, and poll often meanwhile. Raises Problem if no slot is free."""
        if self._ended.done():
            raise Problem(Trouble.SERVICE_UNAVAILABLE, "This server is shutting down.", headers={"Retry-After": "1"})
        if self._held.total() >= self._waiting_max or self._held[actor] * ACTORS_MIN >= self._waiting_max:
            raise Problem(Trouble.TOO_MANY_REQUESTS, "Too many requests are waiting.", headers={"Retry-After": "1"})
        self._held[actor] += 1
        try:
            yield
        finally:
            self._held[actor] -= 1
            if not self._held[actor]:
                del self._held[actor]

    async def stop(self) -> None:
        """End all waiting, then wait until the commands being sent have reached Kafka."""
        self._ended.set_result(None)
        for settling in self._settling:
            settling.cancel()
        await asyncio.gather(*self._sending)

    def _on_event(self, recorded: StoredEvent) -> None:
        """Decide by the event of our copy or an earlier one; if a later copy made it, ours may have been refused."""
        event = recorded.event
        pending = self._pending.get((event.order_id, event.command_id))
        if pending is None or pending.digest != event.command_digest:
            return
        if pending.is_being_sent:  # only our offset tells whether it is the event of our copy
            pending.early.append(recorded)
        elif _is_after(recorded.command_offset, pending.offset):
            pending.later_event = recorded
            self._mark_in_doubt(pending)
        else:
            self._decide(pending, event, is_replayed=recorded.command_offset != pending.offset)

    def _on_rejection(self, refused: StoredRejection) -> None:
        """Decide by the rejection of our copy. That of an earlier copy may or may not be its outcome."""
        rejection = refused.rejection
        pending = self._pending.get((rejection.order_id, rejection.command_id))
        if pending is None or pending.digest != rejection.command_digest or refused.command_offset is None:
            return
        if pending.offset is None:
            pending.early.append(refused)
        elif refused.command_offset == pending.offset:
            self._decide(pending, rejection)
        elif refused.command_offset < pending.offset:
            self._mark_in_doubt(pending)

    def _settle_order(self, order_id: str) -> None:
        """Query the views again for the commands of an order that are in doubt: the order has a new outcome."""
        for pending in self._in_doubt.get(order_id, ()):
            pending.has_changes = True
            if not pending.is_settling:
                pending.is_settling = True
                self._start(self._settle(pending), self._settling)

    async def _settle(self, pending: PendingCommand) -> None:
        """Find out whether the outcome of another copy is also ours.

        The rejection of an earlier copy may be: a remembered command gets no new record. The event of a later copy is
        ours once the views show that our copy was not refused, which may take some time.
        """
        try:
            while self._is_in_doubt(pending) and (pending.has_changes or pending.later_event is not None):
                pending.has_changes = False
                await asyncio.sleep(GRACE_S)  # each partition gets the marker of one transaction separately
                await self._query_views(pending)
        except SQLAlchemyError as error:
            log.warning("Views cannot be read; a repeated command stays undecided.", why=describe(error))
        finally:
            pending.is_settling = False

    async def _query_views(self, pending: PendingCommand) -> None:
        """Decide by the outcome of our copy in the views, if it is there. Raises SQLAlchemyError."""
        if (offset := pending.offset) is None:
            return
        decided = await asyncio.to_thread(self._views.outcome, *pending.key, pending.digest, offset)
        if decided is not None and pending.offset == offset:
            self._decide(pending, decided, is_replayed=True)

    async def _send_again_if_dropped(self, pending: PendingCommand, command: Command, headers: Headers) -> None:
        """Query the views for a command that was sent before, and send it again if its copy may have been dropped.

        A worker drops a copy of a command that waits in a full waiting room. If the waiting command is refused and its
        order does not remember it, our copy has no record: then a new copy gets an outcome, which is ours as well.
        """
        await self._query_views(pending)
        if self._is_in_doubt(pending) and not pending.is_settling and pending.offset is not None:
            # Other requests may wait with a later `decide_by` than this one.
            self._send_again(pending, structs.replace(command, decide_by=pending.decide_by), headers)

    def _send_again(self, pending: PendingCommand, command: Command, headers: Headers) -> None:
        """Send a new copy of a command whose previous copy is in Kafka; all requests now wait for the new one."""
        self._clear_doubt(pending)
        pending.decide_by_before, pending.decide_by = pending.decide_by, command.decide_by
        if pending.later_event is not None:  # it is the event of a copy before the new one
            pending.early.append(pending.later_event)
            pending.later_event = None
        # From now on, a rejection of the previous copy is one of an earlier copy.
        pending.offset_before, pending.offset = pending.offset, None
        pending.sent = asyncio.get_running_loop().create_future()
        self._start(self._send(command, headers, pending, is_new=True), self._sending)

    def _mark_in_doubt(self, pending: PendingCommand) -> None:
        if self._pending.get(pending.key) is pending:
            self._in_doubt.setdefault(pending.order_id, set()).add(pending)

    def _is_in_doubt(self, pending: PendingCommand) -> bool:
        return pending in self._in_doubt.get(pending.order_id, ())

    def _clear_doubt(self, pending: PendingCommand) -> None:
        of_order = self._in_doubt.get(pending.order_id, set())
        of_order.discard(pending)
        if not of_order:
            self._in_doubt.pop(pending.order_id, None)

    def _forget(self, pending: PendingCommand) -> None:
        """Forget a command, unless it was forgotten and another caller awaits the same one."""
        if self._pending.get(pending.key) is pending:
            del self._pending[pending.key]
            self._clear_doubt(pending)

    @staticmethod
    def _start(work: Coroutine[Any, Any, None], tasks: set[asyncio.Task[None]]) -> None:
        task = asyncio.create_task(work)
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    def _decide(self, pending: PendingCommand, decided: Event | Rejection, *, is_replayed: bool = False) -> None:
        self._forget(pending)
        pending.decide(CommandResult(decided, is_replayed=is_replayed))

    async def _join(self, command: Command, headers: Headers, *, is_new: bool) -> PendingCommand:
        """Return the pending command that other requests wait for, or send it.

        If this `decide_by` is later than theirs, or None, send a new copy: theirs may be refused too early for it.
        """
        key, digest = (command.order_id, command.command_id), command_digest(command)
        while (pending := self._pending.get(key)) is not None:
            if pending.digest != digest:
                raise _reused(command)
            if not _is_later(command.decide_by, pending.decide_by):
                return pending
            if pending.sent.done():
                self._send_again(pending, command, headers)
                return pending
            await asyncio.shield(pending.sent)
        if len(self._pending) >= KNOWN_MAX:
            oldest = next((known for known in self._pending.values() if not known.waiting), None)
            if oldest is not None:
                self._forget(oldest)
        pending = self._pending[key] = PendingCommand(command, digest)
        self._start(self._send(command, headers, pending, is_new=is_new), self._sending)
        return pending

    async def _send(self, command: Command, headers: Headers, pending: PendingCommand, *, is_new: bool) -> None:
        """Send a command. Runs as a separate task, because the caller may hang up."""
        try:
            await self._poller.wake()
            first = None if is_new else await self._first_outcome(command, pending)
            if first is not None:
                self._forget(pending)
                pending.decide(CommandResult(first, is_replayed=True))
            if not pending.sent.done():  # the poller may have been faster
                pending.is_being_sent = True
                self._on_sent(pending, await self._produce(command, headers))
        except Exception as error:  # noqa: BLE001 - every waiting request gets the error, of any kind
            pending.fail(error)
            if pending.offset_before is None:
                self._forget(pending)
            else:  # earlier requests wait on; the next request for it sends a new copy
                pending.decide_by = pending.decide_by_before
                pending.sent = asyncio.get_running_loop().create_future()
                self._mark_in_doubt(pending)
                self._on_sent(pending, pending.offset_before)

    async def _produce(self, command: Command, headers: Headers) -> int:
        """Produce a command and return its offset. If tracing is on, its headers are those of the span of that."""
        if self._spans is None:
            return int((await self._topic.send(command, headers)).offset)
        with self._spans.sending(self._topic.name, command.order_id, trace_context_of(headers)) as span:
            arrived = await self._topic.send(command, [] if span.trace is None else span.trace.headers())
            span.arrived(arrived.partition, arrived.offset)
            return int(arrived.offset)

    def _on_sent(self, pending: PendingCommand, offset: int) -> None:
        """Set the offset of our copy, and handle the outcomes that arrived before it was known."""
        pending.offset, pending.is_being_sent = offset, False
        if not pending.sent.done():
            pending.sent.set_result(None)
        early = ViewChanges(
            tuple(outcome for outcome in pending.early if isinstance(outcome, StoredEvent)),
            tuple(outcome for outcome in pending.early if isinstance(outcome, StoredRejection)),
            {},
        )
        pending.early.clear()
        self.on_changes(early)

    async def _first_outcome(self, command: Command, pending: PendingCommand) -> Event | Rejection | None:
        """Return the outcome that the order remembers of an earlier copy, or None: then a copy is decided again.

        So a create that was refused is decided again, on every server, until it is accepted.
        """
        earlier = await asyncio.to_thread(self._views.remembered, command.order_id, command.command_id)
        for outcome in earlier:
            if outcome.command_digest == pending.digest:
                return outcome
        if earlier:
            raise _reused(command)
        return None


def _reused(command: Command) -> Problem:
    return Problem(Reason.COMMAND_ID_REUSED, order_id=command.order_id, command_id=command.command_id)


def _is_after(command_offset: int | None, other: int | None) -> bool:
    return command_offset is not None and other is not None and command_offset > other


def _is_later(decide_by: datetime | None, other: datetime | None) -> bool:
    """Return whether `decide_by` allows more time than `other`; None means without limit."""
    return other is not None and (decide_by is None or decide_by > other)
