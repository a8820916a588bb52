"""What the changelogs of a partition must hold, derived from its other topics; and what they hold instead. No I/O.

The records come topic by topic: operations, events, rejections, dead letters, table, waiting room, and commands if
needed. Events are read once, so that their fold continues; all others are read from their start each time.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from enum import Enum
from typing import Final, TypeVar

from aiokafka.structs import ConsumerRecord
from msgspec import Struct, field, structs

from order_service.domain.entry import MAX_REFUSED, Entry, Known, ShortEntry, after_event, after_rejection, short_entry
from order_service.domain.messages import CreateOrder
from order_service.errors import DecodeError, HistoryError, OperationRefused
from order_service.kafka.topics import TopicNames
from order_service.operations.verify.command_outcomes import DEAD_LETTER, EVENT, REJECTION, CommandOutcomes
from order_service.wire import avro, changelog, operations
from order_service.wire.changelog import (
    BARRIER_KEY,
    POSITION_KEY,
    RELEASE_KEY,
    Ends,
    Position,
    WaitingCommand,
    waiting_command,
)
from order_service.wire.commands import check_key
from order_service.wire.headers import command_offset_of
from order_service.wire.operations import LaneResumed, PartitionRebuilt
from order_service.wire.trace_context import trace_context_of
from order_service.worker.inbox import decode_record
from order_service.worker.records import dead_letter_parts

_EPOCH: Final = 2**63
_CONTROL: Final = frozenset({POSITION_KEY, BARRIER_KEY, RELEASE_KEY})
_WRITTEN_BY_WORKERS: Final = "ce_type"
"""A header of every event and rejection that a worker writes."""
_T = TypeVar("_T")
RESTORE: Final = "Restore this topic from a mirror or a backup: a rebuild cannot."


class Fault(Enum):
    """How the entry of an existing order can differ: its version is too low, or it differs otherwise."""

    BEHIND = "behind"
    CHANGED = "changed"


class Difference(Struct):
    """The orders whose entries differ from their events, each in one set.

    `ahead` has a text for each entry that is newer than the events, which have then lost records.
    """

    missing: set[str] = field(default_factory=set)
    behind: set[str] = field(default_factory=set)
    changed: set[str] = field(default_factory=set)
    superfluous: set[str] = field(default_factory=set)
    ahead: list[str] = field(default_factory=list)

    def written(self) -> Iterator[str]:
        """Yield the orders whose entries must be written."""
        yield from self.missing
        yield from self.behind
        yield from self.changed

    def __bool__(self) -> bool:
        return bool(self.missing or self.behind or self.changed or self.superfluous)


class Moves:
    """The moves of a position that operators made: which commands they skipped, and which outcomes no longer count.

    A position that moved back decides commands again. Outcomes from before that are of other commands, or are void.
    """

    def __init__(self, records: Iterable[ConsumerRecord]) -> None:
        """Raise OperationRefused for a record that this version cannot decode."""
        self._skipped: list[tuple[int, int, int]] = []
        self._back: list[tuple[int, int]] = []
        self.position = 0
        """The position that the newest operation set, 0 without one."""
        for record in records:
            try:
                operation = operations.decode(record.value)
            except DecodeError as error:
                text = f"{_name(record)} cannot be decoded: {error}. Run the version of this service that wrote it."
                raise OperationRefused(text) from error
            if isinstance(operation, PartitionRebuilt):
                self.position = operation.position
            elif isinstance(operation, LaneResumed) and operation.position is not None:
                self._add(operation.previous_position or 0, operation.position, record.timestamp)

    def _add(self, previous: int, position: int, timestamp: int) -> None:
        self.position = position
        if position > previous:
            self._skipped.append((previous, position, timestamp))
        elif position < previous:
            self._back.append((position, timestamp))

    def has_skipped(self, command: ConsumerRecord) -> bool:
        """Return whether an operator skipped this command."""
        return any(
            first <= command.offset < end and command.timestamp <= timestamp for first, end, timestamp in self._skipped
        )

    def is_void(self, offset: int, timestamp: int) -> bool:
        """Return whether the position moved back to or before this command offset after this time."""
        return any(position <= offset and timestamp <= moved_at for position, moved_at in self._back)

    def sequence(self, offset: int, timestamp: int) -> int:
        """Return the number of a decision: later decisions of an order have larger ones."""
        return sum(moved_at < timestamp for _, moved_at in self._back) * _EPOCH + offset


class LastOutcome(Struct, frozen=True):
    """What an outcome shows of its command: its offset, its key, its id (empty if unknown), and its bytes.

    `dead_letter` has the key and the value of the command, as a dead letter has them.
    """

    offset: int = -1
    key: bytes | None = None
    command_id: str = ""
    dead_letter: tuple[bytes | None, bytes | None] | None = None

    def is_of(self, command: ConsumerRecord) -> bool:
        """Return whether the record at the offset is the command that was decided. Its timestamp may be another one."""
        if self.dead_letter is not None:
            return self.dead_letter == dead_letter_parts(command)
        _, decoded = decode_record(command, is_past=True)
        if isinstance(decoded, DecodeError) or not self.command_id:
            return bool(command.key == self.key)
        return decoded.command_id == self.command_id


class Outcomes:
    """The orders of a partition, folded from its events and rejections, and the commands that have an outcome."""

    def __init__(self, names: TopicNames, partition: int) -> None:
        self.entries: dict[str, Entry] = {}
        self.foreign = 0
        """The records in the outcome topics that no worker has written."""
        self.moves = Moves(())
        self.are_rejections_complete = True
        self.touched: set[str] = set()
        """The orders with an outcome after the offsets `since`."""
        self._names = names
        self._partition = partition
        self._answered = CommandOutcomes(names, lambda *_: None)
        self.newest = LastOutcome()
        """The outcome of the last command that has one and that the commands topic can still have."""
        self._commands_end = 0
        self._created: dict[str, int] = {}
        self._with_refused: set[str] = set()
        self._since: Mapping[str, int] = {}

    def begin(
        self, moves: Moves, *, are_rejections_complete: bool, since: Mapping[str, int], commands_end: int
    ) -> None:
        """Begin to read again: events where they ended, the others from their start."""
        self.moves = moves
        self._commands_end = commands_end
        self.are_rejections_complete = are_rejections_complete
        self.touched, self._since, self.foreign = set(), since, 0
        for order_id in self._with_refused:
            self.entries[order_id] = structs.replace(self.entries[order_id], refused=())
        self._with_refused = set()

    def __contains__(self, command_offset: int) -> bool:
        return command_offset in self._answered

    @property
    def next_offset(self) -> int:
        """The offset after the last command that has an outcome."""
        return max((highest for highest, _ in self._answered.highest.values()), default=-1) + 1

    def valid(self, last: Position | None, timestamp: int) -> Position | None:
        """Return a position with this record timestamp, or None if an operator has moved the position back since."""
        return None if last is None or self.moves.is_void(last.next_offset - 1, timestamp) else last

    def take_event(self, record: ConsumerRecord) -> None:
        """Fold one event. Raises OperationRefused if it cannot follow the one before it."""
        value = record.value or b""
        try:
            event = avro.decode_event(value)
        except DecodeError as error:
            if _is_of_a_worker(record):
                why = f"cannot be decoded ({error}). Set SCHEMA_REGISTRY_URL if a registry has its schema"
                raise _refused(record, why) from error
            self.foreign += 1
            return
        before = self.entries.get(event.order_id)
        try:
            after = after_event(before, event, avro.digest(value))
        except HistoryError as error:
            raise _refused(record, f"does not follow the events before it: {error}, {event.order_id}") from error
        if record.key != event.order_id.encode():
            raise _refused(record, "has a key that is not its order id")
        self.entries[event.order_id] = after
        offset = self._note(record, EVENT, event.command_id)
        if before is None:
            self._created[event.order_id] = -1 if offset is None else self.moves.sequence(offset, record.timestamp)
        if record.offset >= self._since[record.topic]:
            self.touched.add(event.order_id)

    def take_rejection(self, record: ConsumerRecord) -> None:
        """Remember one refused command, if it came when its order existed."""
        try:
            rejection = avro.decode_rejection(record.value or b"")
        except DecodeError:
            if _is_of_a_worker(record):
                self.are_rejections_complete = False
                self._note(record, REJECTION)
            else:
                self.foreign += 1
            return
        offset = self._note(record, REJECTION, rejection.command_id)
        order_id = rejection.order_id
        created, entry = self._created.get(order_id), self.entries.get(order_id)
        if offset is None or created is None or self.moves.sequence(offset, record.timestamp) < created:
            return
        after = after_rejection(entry, rejection)
        if after is not None and after is not entry:
            self.entries[order_id] = after
            self._with_refused.add(order_id)
        if record.offset >= self._since[record.topic]:
            self.touched.add(order_id)

    def take_dead_letter(self, record: ConsumerRecord) -> None:
        """Note that a command has a dead letter, if it is of this partition."""
        headers = dict(record.headers)
        origin = (headers.get("dl_topic"), headers.get("dl_partition"))
        if origin == (self._names.commands.encode(), b"%d" % self._partition):
            self._note(record, DEAD_LETTER, dead_letter=(record.key, record.value))
        else:
            self.foreign += 1

    def _note(
        self,
        record: ConsumerRecord,
        outcome: int,
        command_id: str = "",
        dead_letter: tuple[bytes | None, bytes | None] | None = None,
    ) -> int | None:
        offset = command_offset_of(record.headers)
        if offset is not None and not self.moves.is_void(offset, record.timestamp):
            self._answered.add(record, offset, outcome)
            if self.newest.offset < offset < self._commands_end:
                self.newest = LastOutcome(offset, record.key, command_id, dead_letter)
        return offset


class Changelogs:
    """What the two changelogs of a partition hold, compared with the outcomes that were read before."""

    def __init__(self, names: TopicNames, outcomes: Outcomes, *, since: int) -> None:
        """Compare with these outcomes. Orders with a record at or after the offset `since` are not compared."""
        self.position: Position | None = None
        """The newest position; None without one, or if it cannot be read."""
        self.position_ms = 0
        self.waiting: dict[bytes, tuple[WaitingCommand, int]] = {}
        """The newest record of each waiting command, with its timestamp."""
        self.unreadable: dict[str, str] = {}
        """By topic, the first record that this version cannot read, or that is no record of a changelog."""
        self._ahead: dict[str, str] = {}
        self._names = names
        self._outcomes = outcomes
        self._since = since
        self._touched: set[str] = set()
        self._seen: set[str] = set()
        self._different: dict[str, Fault] = {}
        self._refused: dict[str, tuple[Known, ...]] = {}

    def take_table(self, record: ConsumerRecord) -> None:
        """Compare a record of the table with the fold."""
        key = record.key
        if key == POSITION_KEY:
            self.position = None if record.value is None else self._decoded(record, changelog.decode_position)
            self.position_ms = record.timestamp
        if key in _CONTROL:
            return
        order_id = _text(key)
        if order_id is None:
            self._note_unreadable(record, f"its key {key!r} is not an order id")
            return
        self._forget(order_id)
        if record.offset >= self._since:
            self._touched.add(order_id)
        if record.value is None:
            return
        self._seen.add(order_id)
        entry = self._decoded(record, changelog.decode_entry)
        if entry is None:
            self._different[order_id] = Fault.CHANGED
        else:
            self._compare(order_id, entry)

    def _forget(self, order_id: str) -> None:
        self._seen.discard(order_id)
        self._different.pop(order_id, None)
        self._refused.pop(order_id, None)
        self._ahead.pop(order_id, None)

    def _compare(self, order_id: str, entry: Entry) -> None:
        fold = self._outcomes.entries.get(order_id)
        version = 0 if fold is None else fold.version
        if not self._outcomes.are_rejections_complete and entry.refused:
            self._refused[order_id] = entry.refused
        if entry.version > version:
            self._ahead[order_id] = (
                f"order {order_id} is at version {entry.version}, its newest event is version {version}"
            )
        if entry.version < version:
            self._different[order_id] = Fault.BEHIND
        elif entry != _in_form_of(entry, self.expected(order_id)):
            self._different[order_id] = Fault.CHANGED

    def take_waiting(self, record: ConsumerRecord) -> None:
        """Take a record of the waiting room."""
        key = record.key
        if key == BARRIER_KEY:
            return
        if key is None or key.startswith(b"\0"):
            self._note_unreadable(record, f"its key {key!r} is that of no waiting command")
            return
        self.waiting.pop(key, None)
        if record.value is None:
            return
        waiting = self._decoded(record, changelog.decode_waiting)
        if waiting is not None and waiting.key != key:
            self._note_unreadable(record, "its key is not that of its order and offset")
        elif waiting is not None:
            self.waiting[key] = waiting, record.timestamp

    def expected(self, order_id: str) -> Entry | None:
        """Return the entry that the table must have for an order, or None if the order does not exist.

        Refused commands whose rejections were deleted after their retention are those of the entry in the table.
        """
        fold = self._outcomes.entries.get(order_id)
        older = [known for known in self._refused.get(order_id, ()) if fold is not None and known not in fold.refused]
        if fold is None or not older:
            return fold
        return structs.replace(fold, refused=(*older, *fold.refused)[-MAX_REFUSED:])

    def difference(self) -> Difference:
        """Return the entries that differ, without the orders that changed meanwhile."""
        orders = self._outcomes.entries
        difference = Difference(missing=orders.keys() - self._seen, superfluous=self._seen - orders.keys())
        for order_id, fault in self._different.items():
            if order_id in orders:
                (difference.behind if fault is Fault.BEHIND else difference.changed).add(order_id)
        touched = self._touched | self._outcomes.touched
        for order_ids in (difference.missing, difference.behind, difference.changed, difference.superfluous):
            order_ids.difference_update(touched)
        difference.ahead = [text for order_id, text in self._ahead.items() if order_id not in touched]
        return difference

    def _decoded(self, record: ConsumerRecord, decode: Callable[[bytes], _T]) -> _T | None:
        try:
            return decode(record.value or b"")
        except HistoryError as error:
            self._note_unreadable(record, str(error))
            return None

    def _note_unreadable(self, record: ConsumerRecord, why: str) -> None:
        self.unreadable.setdefault(record.topic, f"{_name(record)} cannot be read: {why}")


class WaitingRoomFold:
    """The commands that must wait: those of the changelog that have no outcome, and those that it has lost.

    A command can wait only if its order does not exist, and only behind a create.
    """

    def __init__(
        self,
        outcomes: Outcomes,
        kept: Iterable[tuple[WaitingCommand, int]],
        *,
        next_offset: int,
        decided_before_ms: int,
        partition: int,
        partition_count: int,
    ) -> None:
        self.notes: list[str] = []
        """What is left without an outcome, one line each."""
        self._outcomes = outcomes
        self._next_offset = next_offset
        self._decided_before_ms = decided_before_ms
        self._partition = partition
        self._partition_count = partition_count
        self._queues: defaultdict[str, dict[int, WaitingCommand]] = defaultdict(dict)
        for waiting, timestamp in kept:
            if not outcomes.moves.is_void(waiting.offset, timestamp) and waiting.offset not in outcomes:
                self._add(waiting)

    def is_unanswered(self, record: ConsumerRecord) -> bool:
        """Return whether a command is before the position, has no outcome, and was not skipped."""
        offset = record.offset
        return (
            offset < self._next_offset and offset not in self._outcomes and not self._outcomes.moves.has_skipped(record)
        )

    def take_command(self, record: ConsumerRecord) -> None:
        """Take a command for which `is_unanswered`. One of an existing order is a repeat, or `verify` reports it."""
        _, command = decode_record(record, is_past=True)
        try:
            if isinstance(command, DecodeError):
                raise command
            check_key(record.key, command.order_id, self._partition, self._partition_count)
        except DecodeError as error:
            self.notes.append(f"{_name(record)} has no outcome, and cannot be decoded: {error}")
            return
        if command.order_id in self._outcomes.entries or record.offset in self._queues[command.order_id]:
            return
        if record.timestamp < self._decided_before_ms:
            self.notes.append(f"{_name(record)} has no outcome. It may have been refused: old rejections are deleted")
            return
        queued_at = datetime.fromtimestamp(record.timestamp / 1000, UTC)
        trace = trace_context_of(record.headers)
        self._add(waiting_command(command, record.offset, queued_at, trace, record.timestamp))

    def _add(self, waiting: WaitingCommand) -> None:
        if waiting.command.order_id not in self._outcomes.entries:
            self._queues[waiting.command.order_id][waiting.offset] = waiting

    def commands(self) -> dict[bytes, WaitingCommand]:
        """Return the commands that must wait, by key. Those before the first create of their order cannot wait."""
        waiting = {}
        for queue in self._queues.values():
            has_create = False
            for _, command in sorted(queue.items()):
                has_create |= isinstance(command.command, CreateOrder)
                if has_create:
                    waiting[command.key] = command
                else:
                    text = f"The command at offset {command.offset} has no outcome, and its order does not exist"
                    self.notes.append(f"{text}: send it again if it is still needed.")
        return waiting


def lost_tails(ends: Ends | None, actual: Mapping[str, int], names: TopicNames) -> Iterator[str]:
    """Yield the outcome topics that end before the end that the position recorded."""
    recorded = ends or Ends()
    for topic, end in (
        (names.events, recorded.events),
        (names.rejections, recorded.rejections),
        (names.dead_letters, recorded.dead_letters),
    ):
        if actual[topic] < end:
            yield f"{topic} ends at offset {actual[topic]}, it ended at {end}"


def is_consistent(
    outcomes: Outcomes, last: Position | None, waiting: Iterable[WaitingCommand], next_offset: int
) -> bool:
    """Return whether the waiting room is as complete as the position says, and none of its commands is decided."""
    waiting = list(waiting)
    if last is None or last.next_offset != next_offset or last.waiting_count not in {None, len(waiting)}:
        return False
    return all(each.offset not in outcomes and each.offset < next_offset for each in waiting)


def position_of(
    outcomes: Outcomes, last: Position | None, waiting: Iterable[tuple[WaitingCommand, int]], start: int
) -> int:
    """Return the offset of the next command to decide. The commands begin at the offset `start`.

    A command that waits was taken, so the position is after it. Without any evidence nothing was decided yet.
    """
    taken = [each.offset + 1 for each, timestamp in waiting if not outcomes.moves.is_void(each.offset, timestamp)]
    known = max([outcomes.next_offset, outcomes.moves.position, *taken, 0 if last is None else last.next_offset])
    return start if known == 0 and last is None else known


def _in_form_of(entry: Entry, expected: Entry | None) -> Entry | None:
    """Return the short form of what is expected if the entry is a short one."""
    return short_entry(expected) if type(entry) is ShortEntry and expected is not None else expected


def _is_of_a_worker(record: ConsumerRecord) -> bool:
    return any(name == _WRITTEN_BY_WORKERS for name, _ in record.headers)


def _text(key: bytes | None) -> str | None:
    if not key or key.startswith(b"\0"):
        return None
    try:
        return key.decode()
    except UnicodeDecodeError:
        return None


def _name(record: ConsumerRecord) -> str:
    return f"{record.topic} partition {record.partition} offset {record.offset}"


def _refused(record: ConsumerRecord, why: str) -> OperationRefused:
    return OperationRefused(f"{_name(record)} {why}. {RESTORE}")
