"""The lane: the state of one partition in a worker, and how it decides commands. No I/O: it fills `Changes`."""

import heapq
from collections import Counter
from collections.abc import Callable, Generator
from datetime import datetime
from typing import TYPE_CHECKING, Final, assert_never

import structlog
from aiokafka import ConsumerRecord
from msgspec import Struct, field

from order_service.domain.decision import AskUser, Repeat, UserCheck, answer, payment_due_at, payment_timeout, reject
from order_service.domain.entry import Entry, after_event, after_rejection, forgotten
from order_service.domain.messages import Command, CreateOrder, Event, Rejection
from order_service.domain.refusals import Reason, Refusal
from order_service.errors import DecodeError, RunLost
from order_service.wire import changelog
from order_service.wire.changelog import Ends, Position, WaitingCommand, waiting_command
from order_service.wire.commands import check_key
from order_service.wire.trace_context import TraceContext, trace_context_of
from order_service.worker.bounds import Bound
from order_service.worker.inbox import Received, Run
from order_service.worker.records import Origin, Record, dead_letter_record, event_record, rejection_record
from order_service.worker.table import Table
from order_service.worker.waiting_room import WaitingRoom

if TYPE_CHECKING:
    from order_service.worker.command_spans import CommandSpan, CommandSpans

log = structlog.get_logger()

OutcomeLabels = tuple[str, str, str]
"""Command type, outcome and reason, as counted by `orders_commands_total`."""

RESTORED_AT_A_TIME: Final = 500
"""Orders or waiting commands restored before control returns to the event loop: about 2 ms."""
WAITING_BYTES: Final = Bound(128 * 1024 * 1024, 256 * 1024 * 1024)
"""The size of waiting commands at which a lane accepts no more. 20,000 usual ones have a tenth of the first bound."""
DUE: Final = Bound(1_000, 4_000)
"""Unpaid orders cancelled at once. After a long outage, or when the timeout is new, many are due together."""


class Changes(Struct):
    """The records and counts that one turn writes for one partition."""

    events: list[Record] = field(default_factory=list)
    rejections: list[Record] = field(default_factory=list)
    dead_letters: list[Record] = field(default_factory=list)
    table: dict[str, bytes] = field(default_factory=dict)
    waiting: dict[bytes, bytes | None] = field(default_factory=dict)
    outcomes: Counter[OutcomeLabels] = field(default_factory=Counter)
    dead_reasons: Counter[str] = field(default_factory=Counter)
    decided_since_ms: list[float] = field(default_factory=list)
    """For each decided command, since when it was undecided, in milliseconds since 1970 UTC."""
    spans: list["CommandSpan"] = field(default_factory=list)
    next_offset: int = 0
    last_timestamp_ms: int | None = None
    read_to: int = 0
    waiting_count: int = 0
    shortened: int = 0
    moved: bool = False
    size: int = 0

    @property
    def decided(self) -> int:
        """The number of commands that were decided."""
        return sum(self.outcomes.values()) + len(self.dead_letters)

    @property
    def queued(self) -> int:
        """The number of commands that were added to the waiting room."""
        return sum(value is not None for value in self.waiting.values())

    def __bool__(self) -> bool:
        return self.moved or bool(self.waiting or self.table or self.rejections)


class LanePolicy(Struct, frozen=True):
    """The settings of a lane. Times are in seconds."""

    partition_count: int
    commands_topic: str
    user_deadline_s: float = 3600.0
    waiting_max: int = 20_000
    waiting_bytes: Bound = WAITING_BYTES
    payment_due_s: float | None = None
    remember_closed_s: float | None = None


class Lane:
    """The table, waiting room, timers and position of one partition.

    `known` returns the cached check of a user, or None; `ask` gets the id of a user that an order now waits for. If
    tracing is on, `spans` records the commands.
    """

    def __init__(
        self,
        partition: int,
        policy: LanePolicy,
        known: Callable[[str], UserCheck | None],
        ask: Callable[[str], None],
        spans: "CommandSpans | None" = None,
    ) -> None:
        self.partition = partition
        self.policy = policy
        self.table = Table()
        self.room = WaitingRoom(policy.user_deadline_s)
        self.next_offset = 0
        self.last_timestamp_ms: int | None = None
        self.seek = 0
        self.next_run = 0
        self.read_to = 0
        self.ends = Ends()
        self.written: Position | None = None
        self.deciding: int | str | None = None
        """The offset of the new command that is being decided, or what else is, in words: named if that fails."""
        self._in_hand: ConsumerRecord[bytes, bytes] | WaitingCommand | None = None
        self.swept_at: datetime | None = None
        """When the last complete sweep for closed orders began."""
        self._known = known
        self._ask = ask
        self._spans = spans
        self._changes = Changes()
        self._timers: list[tuple[datetime, str]] = []
        self._due: dict[str, datetime] = {}

    def restore(self, table: Table, waiting: list[WaitingCommand], position: Position) -> None:
        """Restore the lane from the changelogs."""
        for _ in self.restoring(table, waiting, position):
            pass

    def restoring(self, table: Table, waiting: list[WaitingCommand], position: Position) -> Generator[None, None, None]:
        """Restore the lane from the changelogs. Yields every `RESTORED_AT_A_TIME` items, so that other work can run."""
        self.table = table
        self.room = WaitingRoom(self.policy.user_deadline_s)
        self.next_offset, self.last_timestamp_ms = position.next_offset, position.last_timestamp_ms
        self.read_to = position.read_to
        self.committed(position, position.ends or Ends())
        for number, command in enumerate(sorted(waiting, key=lambda command: command.offset), 1):
            self.room.add(command)
            if number % RESTORED_AT_A_TIME == 0:
                yield
        self._timers = []
        if self.policy.payment_due_s is not None:
            for number, (order_id, entry) in enumerate(self.table.items(), 1):
                self._set_timer(order_id, entry)
                if number % RESTORED_AT_A_TIME == 0:
                    yield

    @property
    def trace_id(self) -> str | None:
        """The trace id of the command that is being decided, or None without one."""
        in_hand = self._in_hand
        if in_hand is None:
            return None
        trace = in_hand.trace if isinstance(in_hand, WaitingCommand) else trace_context_of(in_hand.headers)
        return None if trace is None else trace.trace_id

    def restore_due_timers(self) -> None:
        """Set the timers again for orders that were due and are not cancelled yet."""
        due, self._due = self._due, {}
        for order_id, due_at in due.items():
            heapq.heappush(self._timers, (due_at, order_id))

    def follow(self, seek: int) -> None:
        """Accept only the runs that follow this seek."""
        self.seek = seek
        self.next_run = 0

    def committed(self, position: Position, ends: Ends) -> None:
        """Record the position that the last transaction wrote, and the topics' ends."""
        self.written, self.ends = position, ends

    def read_up_to(self, offset: int) -> None:
        """Record that nothing before `offset` is left to decide, also past records that are not commands."""
        self.read_to = offset

    @property
    def resume_at(self) -> int:
        """The next offset that this lane reads."""
        return max(self.next_offset, self.read_to)

    def has_read_ahead(self) -> bool:
        """Return whether the lane has read past records that are not commands since its last written position."""
        return self.written is not None and self.read_to > self.written.resume_at

    def is_position_stale(self) -> bool:
        """Return whether the last written position has an old read offset or old end offsets of the outcomes."""
        return self.has_read_ahead() or (self.written is not None and self.ends != self.written.ends)

    def write_position(self) -> None:
        """Write the position in the next turn, even if that turn decides no command."""
        self._changes.moved = True

    def accept(self, run: Run) -> bool:
        """Return whether a run is the next one, not one from before the seek. Raises RunLost if one is missing."""
        if run.seek != self.seek:
            return False
        if run.number != self.next_run:
            raise RunLost(f"partition {self.partition}: expected run {self.next_run} since the seek, got {run.number}")
        self.next_run += 1
        return True

    def is_full(self, waiting_bytes_of_all: int = 0, lane_count: int = 1) -> bool:
        """Return whether so many commands wait that the lane accepts no more. The worker has `lane_count` lanes."""
        return len(self.room) >= self.policy.waiting_max or self.policy.waiting_bytes.is_reached(
            self.room.size_bytes, waiting_bytes_of_all, lane_count
        )

    def decide(self, received: list[Received], now: datetime) -> None:
        """Decide commands in log order. Those below the position are skipped: they were decided before."""
        for record, command in received:
            if record.offset < self.next_offset:
                continue
            self.deciding, self._in_hand = record.offset, record
            if isinstance(command, DecodeError):
                origin = self._origin(record.offset, trace_context_of(record.headers), record.timestamp)
                self._add_dead_letter(record, command, origin)
                is_decided = True
            else:
                is_decided = self._take(record, command, now)
            if is_decided:
                self._changes.decided_since_ms.append(record.timestamp)
            self.next_offset = record.offset + 1
            self.last_timestamp_ms = record.timestamp
            self._changes.moved = True
        self.deciding = self._in_hand = None

    def settle(self, now: datetime) -> bool:
        """Decide waiting commands that are ready, in sequence per order. Return whether there were any."""
        released = self.room.take_released(now)
        for order_id, check in released:
            self._release(order_id, check, now)
        self.deciding = self._in_hand = None
        return bool(released)

    @property
    def change_bytes(self) -> int:
        """The approximate number of bytes that this turn writes for the lane so far."""
        return self._changes.size

    def due_orders(self, now: datetime, limit: int = DUE.of_lane) -> list[str]:
        """Take up to `limit` orders whose payment is due by `now`. The caller decides all earlier payments first."""
        due: list[str] = []
        while self._timers and self._timers[0][0] <= now and len(due) < limit:
            due_at, order_id = heapq.heappop(self._timers)
            due.append(order_id)
            self._due[order_id] = due_at
        return due

    def cancel_unpaid(self, order_ids: list[str], now: datetime) -> None:
        """Cancel the orders that are still unpaid. The lane's own command is always the same for an order."""
        for order_id in order_ids:
            self._due.pop(order_id, None)
        for order_id in order_ids:
            self.deciding = f"the cancellation of the unpaid order {order_id}"
            entry = self.table.get(order_id)
            if entry is None or self._due_at(entry) is None:
                continue
            outcome = answer(payment_timeout(order_id), entry, now)
            if isinstance(outcome, Event):
                self._add_event(outcome, entry, "CancelOrder", Origin())
            else:  # its command_id is already used, which only a malicious producer would do
                log.error("An unpaid order cannot be cancelled.", order_id=order_id, answer=type(outcome).__name__)
        self.deciding = None

    def shorten(self, order_ids: list[str], now: datetime) -> None:
        """Make these orders forget their commands, if they are closed for long enough."""
        if self.policy.remember_closed_s is None:
            return
        for order_id in order_ids:
            self.deciding = f"the short entry of order {order_id}"
            entry = self.table.get(order_id)
            short = None if entry is None else forgotten(entry, now, self.policy.remember_closed_s)
            if short is not None:
                self.table.put(order_id, short)
                self._changes.shortened += 1
        self.deciding = None

    def take_changes(self) -> Changes:
        """Take the changes since the last call, for one transaction."""
        changes, self._changes = self._changes, Changes()
        changes.table = self.table.take_changes()
        changes.next_offset = self.next_offset
        changes.last_timestamp_ms = self.last_timestamp_ms
        changes.read_to = self.read_to
        changes.waiting_count = len(self.room)
        return changes

    def _take(self, record: "ConsumerRecord[bytes, bytes]", command: Command, now: datetime) -> bool:
        """Decide a new command, or add it to the waiting room. Return whether it was decided."""
        order_id = command.order_id
        entry = self.table.get(order_id)
        waits = order_id in self.room
        origin = self._origin(record.offset, trace_context_of(record.headers), record.timestamp)
        if record.key != order_id.encode() or (entry is None and not waits):
            try:  # a known order is in the right partition: only its key is compared
                check_key(record.key, order_id, self.partition, self.policy.partition_count)
            except DecodeError as error:
                self._add_dead_letter(record, error, origin)
                return True
        if waits:
            return self._queue_up(record, command, origin, now)
        user = self._known(command.user_id) if type(command) is CreateOrder else None
        if self._decide_command(command, entry, origin, now, user) is not None:
            self._wait(record, command, origin, now)
            return False
        return True

    def _origin(self, offset: int, trace: TraceContext | None, since_ms: float) -> Origin:
        """Return the origin that a command gives its outcome, with the command's span if its trace is recorded."""
        span = None if self._spans is None else self._spans.begin(self.partition, offset, trace, since_ms)
        return Origin(offset, trace) if span is None else Origin(offset, span.trace, span)

    def _queue_up(
        self, record: "ConsumerRecord[bytes, bytes]", command: Command, origin: Origin, now: datetime
    ) -> bool:
        """Add a command behind the others of its order. Return whether it was decided instead."""
        if not self.room.is_full(command.order_id):
            self._wait(record, command, origin, now)
            return False
        if self.room.holds(command):  # the outcome of the waiting copy answers both
            self._count_repeat(command, origin)
        else:
            entry = self.table.get(command.order_id)
            rejection = reject(command, entry, now, Refusal(Reason.TOO_MANY_WAITING))
            self._add_rejection(rejection, origin)
        return True

    def _wait(self, record: "ConsumerRecord[bytes, bytes]", command: Command, origin: Origin, now: datetime) -> None:
        """Add a command to the waiting room and its changelog, with everything that a restart needs to decide it."""
        # A trace that begins here goes on after the wait. Of any other, the sender's context is kept: see CommandSpans.
        trace = trace_context_of(record.headers) or origin.trace
        waiting = waiting_command(command, record.offset, now, trace, record.timestamp)
        if origin.span is not None:
            self._note(origin.span, type(command).__name__, command.order_id, "waiting")
        is_head = command.order_id not in self.room
        self.room.add(waiting)
        self._changes.waiting[waiting.key] = changelog.encode(waiting)
        if is_head and isinstance(command, CreateOrder):
            self._ask(command.user_id)

    def _release(self, order_id: str, check: UserCheck, now: datetime) -> None:
        """Decide an order's waiting commands until one of them needs another user check."""
        user: UserCheck | None = check
        while (head := self.room.head(order_id)) is not None:
            self.deciding, self._in_hand = f"the waiting command at offset {head.offset}", head
            if user is None and isinstance(head.command, CreateOrder):
                user = self._known(head.command.user_id)
            since_ms = head.undecided_since_ms
            origin = self._origin(head.offset, head.trace, since_ms)
            ask_user = self._decide_command(head.command, self.table.get(order_id), origin, now, user)
            if ask_user is not None:
                self.room.wait_again(order_id)
                self._ask(ask_user.user_id)
                return
            if origin.span is not None:
                origin.span.waited(head, user, now)
            self.room.pop_head(order_id)
            self._changes.waiting[head.key] = None
            self._changes.decided_since_ms.append(since_ms)
            user = None

    def _decide_command(
        self, command: Command, entry: Entry | None, origin: Origin, now: datetime, user: UserCheck | None
    ) -> AskUser | None:
        """Decide one command and record its outcome. Return AskUser if its user must be checked first."""
        outcome = answer(command, entry, now, user)
        if type(outcome) is Event:
            self._add_event(outcome, entry, type(command).__name__, origin)
        elif type(outcome) is Rejection:
            self._add_rejection(outcome, origin)
            after = after_rejection(entry, outcome)
            if after is not None and after is not entry:
                self.table.put(command.order_id, after)
        elif type(outcome) is AskUser:
            return outcome
        elif type(outcome) is Repeat:
            self._count_repeat(command, origin)
        else:
            assert_never(outcome)
        return None

    def _count_repeat(self, command: Command, origin: Origin) -> None:
        self._changes.outcomes[type(command).__name__, "repeated", ""] += 1
        if origin.span is not None:
            self._note(origin.span, type(command).__name__, command.order_id, "repeated")

    def _note(self, span: "CommandSpan", command_type: str, order_id: str, outcome: str, reason: str = "") -> None:
        """Record the outcome in a command's span, which ends with the turn."""
        span.decided(command_type, order_id, outcome, reason)
        self._changes.spans.append(span)

    def _add_event(self, event: Event, entry: Entry | None, command_type: str, origin: Origin) -> None:
        record, digest = event_record(event, origin)
        after = after_event(entry, event, digest)
        self.table.put(event.order_id, after)
        if entry is None:
            self._set_timer(event.order_id, after)
        self._changes.events.append(record)
        self._changes.outcomes[command_type, "accepted", ""] += 1
        if origin.span is not None:
            self._note(origin.span, command_type, event.order_id, "accepted")
        self._changes.size += len(record[1] or b"")

    def _add_rejection(self, rejection: Rejection, origin: Origin) -> None:
        record = rejection_record(rejection, origin)
        self._changes.rejections.append(record)
        self._changes.outcomes[rejection.command_type, "rejected", rejection.reason] += 1
        if origin.span is not None:
            self._note(origin.span, rejection.command_type, rejection.order_id, "rejected", rejection.reason)
        self._changes.size += len(record[1] or b"")

    def _add_dead_letter(self, record: "ConsumerRecord[bytes, bytes]", error: DecodeError, origin: Origin) -> None:
        self._changes.dead_letters.append(dead_letter_record(record, error, self.policy.commands_topic))
        self._changes.dead_reasons[error.reason] += 1
        if origin.span is not None:
            origin.span.unreadable(error.reason)
            self._changes.spans.append(origin.span)

    def _set_timer(self, order_id: str, entry: Entry) -> None:
        due_at = self._due_at(entry)
        if due_at is not None:
            heapq.heappush(self._timers, (due_at, order_id))

    def _due_at(self, entry: Entry) -> datetime | None:
        due_s = self.policy.payment_due_s
        return None if due_s is None else payment_due_at(entry, due_s)
