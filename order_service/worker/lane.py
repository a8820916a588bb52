"""The lane: what a worker holds of one partition, and how it decides what comes in. No I/O: it fills `Changes`."""

import heapq
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Final, assert_never

import structlog
from aiokafka import ConsumerRecord
from msgspec import Struct, field

from order_service.domain.decision import (
    AskUser,
    Entry,
    Repeat,
    UserCheck,
    after_event,
    after_rejection,
    answer,
    payment_due_at,
    payment_timeout,
    reject,
)
from order_service.domain.messages import Command, CreateOrder, Event, Rejection
from order_service.domain.refusals import Reason, Refusal
from order_service.errors import DecodeError, RunLost
from order_service.wire import avro, changelog
from order_service.wire.changelog import Ends, Position, WaitingCommand
from order_service.wire.commands import check_key
from order_service.wire.headers import (
    Headers,
    ReadHeaders,
    dead_letter_headers,
    dead_letter_part,
    event_headers,
    rejection_headers,
)
from order_service.worker.inbox import Received, Run
from order_service.worker.table import Table
from order_service.worker.waiting_room import WaitingRoom

log = structlog.get_logger()

Record = tuple[bytes | None, bytes | None, Headers]
"""Key, value and headers of a record to write."""

Outcome = tuple[str, str, str]
"""Command type, outcome and reason, as counted by `orders_commands_total`."""


MAX_DEAD_KEY: Final = 64 * 1024
MAX_DEAD_VALUE: Final = 2 * 1024 * 1024
"""With 1 MiB of headers it fits the 4 MiB of a record, and no record that was not compressed is cut."""
MAX_TRACEPARENT: Final = 256
RESTORED_AT_A_TIME: Final = 500
"""Orders or waiting commands put into a lane before the loop gets its turn: some 2 ms."""
MOST_DUE: Final = 1_000
"""Unpaid orders cancelled in one turn; a worker that was away for long, or is told for the first time, finds many."""


class Changes(Struct):
    """What one turn writes for one partition."""

    events: list[Record] = field(default_factory=list)
    rejections: list[Record] = field(default_factory=list)
    dead_letters: list[Record] = field(default_factory=list)
    table: dict[str, Entry] = field(default_factory=dict)
    waiting: dict[bytes, bytes | None] = field(default_factory=dict)
    outcomes: Counter[Outcome] = field(default_factory=Counter)
    dead_reasons: Counter[str] = field(default_factory=Counter)
    next_offset: int = 0
    last_timestamp_ms: int | None = None
    read_to: int = 0
    waiting_count: int = 0
    moved: bool = False
    size: int = 0

    @property
    def decided(self) -> int:
        """How many commands got their outcome."""
        return sum(self.outcomes.values()) + len(self.dead_letters)

    @property
    def kept(self) -> int:
        """How many commands went into the waiting room."""
        return sum(value is not None for value in self.waiting.values())

    def __bool__(self) -> bool:
        return self.moved or bool(self.waiting or self.table or self.rejections)


class LanePolicy(Struct, frozen=True):
    """What a lane must know of the settings. Times are seconds."""

    partition_count: int
    commands_topic: str
    user_deadline_s: float = 3600.0
    waiting_max: int = 20_000
    payment_due_s: float | None = None


class Lane:
    """Table, waiting room, timers and position of one partition.

    `known` tells what the user cache knows of a user; `ask` is called with a user that an order waits for now.
    """

    def __init__(
        self,
        partition: int,
        policy: LanePolicy,
        known: Callable[[str], UserCheck | None],
        ask: Callable[[str], None],
    ) -> None:
        self.partition = partition
        self.policy = policy
        self.table = Table()
        self.room = WaitingRoom(policy.user_deadline_s)
        self.next_offset = 0
        self.last_timestamp_ms: int | None = None
        self.log_offset = 0
        self.seek = 0
        self.next_run = 0
        self.read_to = 0
        self.ends = Ends()
        self.written: Position | None = None
        self._known = known
        self._ask = ask
        self._changes = Changes()
        self._timers: list[tuple[datetime, str]] = []
        self._due: set[str] = set()

    def restore(self, entries: dict[str, Entry], waiting: list[WaitingCommand], position: Position) -> None:
        """Begin with what the changelogs hold."""
        for _ in self.restoring(entries, waiting, position):
            pass

    def restoring(self, entries: dict[str, Entry], waiting: list[WaitingCommand], position: Position) -> Iterator[None]:
        """Begin with what the changelogs hold; pause now and then, so that the caller can do something else."""
        self.table = Table(entries)
        self.room = WaitingRoom(self.policy.user_deadline_s)
        self.next_offset, self.last_timestamp_ms = position.next_offset, position.last_timestamp_ms
        self.read_to = position.read_to
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

    def put_back_due(self) -> None:
        """Set the timers again of the orders that were due and are not cancelled yet."""
        due, self._due = self._due, set()
        for order_id in due:
            entry = self.table.get(order_id)
            if entry is not None:
                self._set_timer(order_id, entry)

    def follow(self, seek: int) -> None:
        """Expect the runs that follow this seek, and no others."""
        self.seek = seek
        self.next_run = 0

    @property
    def resume_at(self) -> int:
        """The offset from which this lane reads on."""
        return max(self.next_offset, self.read_to)

    def has_passed(self) -> bool:
        """Return whether the lane has read past records that are not commands since its last written position."""
        return self.written is not None and self.read_to > self.written.resume_at

    def has_news(self) -> bool:
        """Return whether the last written position could say more: how far was read, or where the outcomes end."""
        return self.has_passed() or (self.written is not None and self.ends != self.written.ends)

    def write_position(self) -> None:
        """Write the position with the next turn, even if it decides no command."""
        self._changes.moved = True

    def accept(self, run: Run) -> bool:
        """Tell whether a run is the next one; False for one from before the seek, RunLost where one is missing."""
        if run.seek != self.seek:
            return False
        if run.number != self.next_run:
            raise RunLost(f"partition {self.partition}: expected run {self.next_run} since the seek, got {run.number}")
        self.next_run += 1
        return True

    def is_full(self) -> bool:
        """Tell whether so many commands wait that no more are taken."""
        return len(self.room) >= self.policy.waiting_max

    def decide(self, received: list[Received], now: datetime) -> None:
        """Decide commands in the order of the log; those below the position were decided before."""
        for record, command in received:
            if record.offset < self.next_offset:
                continue
            self.next_offset = record.offset + 1
            self.last_timestamp_ms = record.timestamp
            self._changes.moved = True
            if isinstance(command, DecodeError):
                self._bury(record, command)
            else:
                self._take(record, command, now)

    def settle(self, now: datetime) -> bool:
        """Decide some of what waits and can be decided by now, in sequence per order; False if there was nothing."""
        released = self.room.take_released(now)
        for order_id, check in released:
            self._release(order_id, check, now)
        return bool(released)

    @property
    def change_bytes(self) -> int:
        """About how much the turn has to write for this lane so far."""
        return self._changes.size

    def due_orders(self, now: datetime, most: int = MOST_DUE) -> list[str]:
        """Take the orders whose payment is due by `now`; the caller sees to it that no payment is overtaken."""
        due: list[str] = []
        while self._timers and self._timers[0][0] <= now and len(due) < most:
            due.append(heapq.heappop(self._timers)[1])
        self._due.update(due)
        return due

    def cancel_unpaid(self, order_ids: list[str], now: datetime) -> None:
        """Cancel those of the orders that are still unpaid: the lane's own command, the same one every time."""
        self._due.difference_update(order_ids)
        for order_id in order_ids:
            entry = self.table.get(order_id)
            if entry is None or self._due_at(entry) is None:
                continue
            outcome = answer(payment_timeout(order_id), entry, now)
            if isinstance(outcome, Event):
                self._happened(outcome, entry, "CancelOrder", None, None)
            else:  # somebody else has used its command_id, which only a producer with bad intent would
                log.error("An unpaid order cannot be cancelled.", order_id=order_id, answer=type(outcome).__name__)

    def take_changes(self) -> Changes:
        """Take what was decided since the last call, for one transaction."""
        changes, self._changes = self._changes, Changes()
        changes.table = self.table.take_changes()
        changes.next_offset = self.next_offset
        changes.last_timestamp_ms = self.last_timestamp_ms
        changes.read_to = self.read_to
        changes.waiting_count = len(self.room)
        return changes

    def _take(self, record: "ConsumerRecord[bytes, bytes]", command: Command, now: datetime) -> None:
        order_id = command.order_id
        entry = self.table.get(order_id)
        waits = order_id in self.room
        if record.key != order_id.encode() or (entry is None and not waits):
            try:  # an order that is here already lies in the right partition: only its key is compared
                check_key(record.key, order_id, self.partition, self.policy.partition_count)
            except DecodeError as error:
                self._bury(record, error)
                return
        if waits:
            self._queue_up(record, command, now)
            return
        user = self._known(command.user_id) if type(command) is CreateOrder else None
        if self._answer(command, entry, record.offset, traceparent_of(record.headers), now, user) is not None:
            self._wait(record, command, now)

    def _queue_up(self, record: "ConsumerRecord[bytes, bytes]", command: Command, now: datetime) -> None:
        if not self.room.is_full(command.order_id):
            self._wait(record, command, now)
        elif self.room.holds(command):  # the outcome of the copy that waits is the answer to both
            self._repeated(command)
        else:
            entry = self.table.get(command.order_id)
            rejection = reject(command, entry, now, Refusal(Reason.TOO_MANY_WAITING))
            self._refused(rejection, record.offset, traceparent_of(record.headers))

    def _wait(self, record: "ConsumerRecord[bytes, bytes]", command: Command, now: datetime) -> None:
        """Keep a command in the waiting room, durably, with all that a restart needs to decide it."""
        waiting = WaitingCommand(command, record.offset, now, traceparent_of(record.headers))
        first = command.order_id not in self.room
        self.room.add(waiting)
        self._changes.waiting[waiting.key] = changelog.encode(waiting)
        if first and isinstance(command, CreateOrder):
            self._ask(command.user_id)

    def _release(self, order_id: str, check: UserCheck, now: datetime) -> None:
        """Decide an order's waiting commands until one of them needs another answer."""
        user: UserCheck | None = check
        while (head := self.room.head(order_id)) is not None:
            if user is None and isinstance(head.command, CreateOrder):
                user = self._known(head.command.user_id)
            ask = self._answer(head.command, self.table.get(order_id), head.offset, head.traceparent, now, user)
            if ask is not None:
                self.room.wait_again(order_id)
                self._ask(ask.user_id)
                return
            self.room.pop_head(order_id)
            self._changes.waiting[head.key] = None
            user = None

    def _answer(
        self,
        command: Command,
        entry: Entry | None,
        offset: int | None,
        traceparent: bytes | None,
        now: datetime,
        user: UserCheck | None,
    ) -> AskUser | None:
        """Answer one command and note what it changes; the question back if its user must be asked first."""
        outcome = answer(command, entry, now, user)
        if type(outcome) is Event:
            self._happened(outcome, entry, type(command).__name__, offset, traceparent)
        elif type(outcome) is Rejection:
            self._refused(outcome, offset, traceparent)
            remembered = after_rejection(entry, outcome)
            if remembered is not None and remembered is not entry:
                self.table.put(command.order_id, remembered)
        elif type(outcome) is AskUser:
            return outcome
        elif type(outcome) is Repeat:
            self._repeated(command)
        else:
            assert_never(outcome)
        return None

    def _repeated(self, command: Command) -> None:
        self._changes.outcomes[type(command).__name__, "repeated", ""] += 1

    def _happened(
        self, event: Event, entry: Entry | None, command_type: str, offset: int | None, traceparent: bytes | None
    ) -> None:
        value = avro.encode_event(event)
        after = after_event(entry, event, avro.digest(value))
        self.table.put(event.order_id, after)
        if entry is None:
            self._set_timer(event.order_id, after)
        headers = event_headers(event, traceparent, offset)
        changes = self._changes
        changes.size += len(value)
        changes.events.append((event.order_id.encode(), value, headers))
        changes.outcomes[command_type, "accepted", ""] += 1

    def _refused(self, rejection: Rejection, offset: int | None, traceparent: bytes | None) -> None:
        value = avro.encode_rejection(rejection)
        self._changes.size += len(value)
        headers = rejection_headers(rejection, traceparent, offset)
        self._changes.rejections.append((rejection.order_id.encode(), value, headers))
        self._changes.outcomes[rejection.command_type, "rejected", rejection.reason] += 1

    def _bury(self, record: "ConsumerRecord[bytes, bytes]", error: DecodeError) -> None:
        headers = dead_letter_headers(
            error, self.policy.commands_topic, record.partition, record.offset, record.timestamp, record.headers
        )
        key, key_cut = dead_letter_part(record.key, MAX_DEAD_KEY)
        value, value_cut = dead_letter_part(record.value, MAX_DEAD_VALUE)
        self._changes.dead_letters.append((key, value, headers + key_cut + value_cut))
        self._changes.dead_reasons[error.reason] += 1

    def _set_timer(self, order_id: str, entry: Entry) -> None:
        due_at = self._due_at(entry)
        if due_at is not None:
            heapq.heappush(self._timers, (due_at, order_id))

    def _due_at(self, entry: Entry) -> datetime | None:
        due_s = self.policy.payment_due_s
        return None if due_s is None else payment_due_at(entry, due_s)


def traceparent_of(headers: ReadHeaders) -> bytes | None:
    """Find the trace that a command belongs to, if it names one of a reasonable length."""
    for name, value in headers:
        if name == "traceparent" and value is not None and len(value) <= MAX_TRACEPARENT:
            return value
    return None
