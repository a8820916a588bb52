"""Checks the topics of one partition against each other, from their records alone.

The records come in lists, topic by topic: first what operators did, then the events, rejections, dead letters, waiting
room, table and commands. On a live cluster the records that were written meanwhile follow, in the same sequence without
the commands.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from aiokafka.structs import ConsumerRecord
from msgspec import Struct

from order_service.domain.entry import ShortEntry
from order_service.domain.identity import name_uuid
from order_service.errors import DecodeError, HistoryError
from order_service.kafka.topics import TopicNames
from order_service.operations.recorded import RecordedOperations
from order_service.operations.verify.command_outcomes import (
    DEAD_LETTER,
    EVENT,
    REJECTION,
    CommandOutcomes,
    KnownCommands,
)
from order_service.operations.verify.findings import Finding, Kind, Report
from order_service.operations.verify.order_fold import HEAD, MANY, Fold, OrderFolds, entry_faults, is_own_cancellation
from order_service.operations.verify.position_check import (
    Bounds,
    Difference,
    WaitingRecords,
    bounds_findings,
    outcome_findings,
    waiting_commands,
    waiting_findings,
)
from order_service.wire import avro, changelog, operations
from order_service.wire.changelog import POSITION_KEY, Position
from order_service.wire.headers import command_offset_of

FOREVER: Final = 2**63
NO_ENTRY: Final = -1
UNREADABLE_ENTRY: Final = -2
"""The `entry_version` of a fold without an entry, or with one that cannot be decoded."""
_CONTROL: Final = b"\0"
"""The first byte of the keys of control records in the changelogs, such as positions and barriers."""


class Terms(Struct, frozen=True):
    """What to compare. Commands that are older than `undecided_before_ms` must have been decided.

    In a mirror, the offsets of the commands and the ends of the topics are not those that the records contain.
    """

    undecided_before_ms: int
    is_mirror: bool = False


class PartitionCheck:
    """The state of the check of one partition. Its size depends on the number of orders, not of events."""

    def __init__(self, partition: int, names: TopicNames, report: Report, terms: Terms) -> None:
        self._partition = partition
        self._names = names
        self._report = report
        self._terms = terms
        self._folds = OrderFolds(lambda kind, offset, text: self._find(kind, names.events, offset, text))
        self._outcomes = CommandOutcomes(names, self._find)
        self._waiting: WaitingRecords = {}
        self._has_damaged_rejections = False
        self.has_short_entries = False
        """Whether orders have forgotten their commands: then only the events show which commands are repeats."""
        self._position: ConsumerRecord | None = None
        self._decoded: tuple[ConsumerRecord | None, Position | None] = (None, None)
        self._unknown_entries: dict[str, int] = {}
        """The offset of each entry whose order has no event."""
        self._operations = RecordedOperations()
        self._take = {
            names.operations: self._take_operation,
            names.events: self._take_event,
            names.rejections: self._take_rejection,
            names.dead_letters: self._take_dead_letter,
            names.waiting: self._take_waiting,
            names.table: self._take_table,
            names.commands: self._take_command,
        }

    def take(self, topic: str, records: list[ConsumerRecord]) -> None:
        """Take the next records of a topic."""
        take, changelogs = self._take[topic], (self._names.table, self._names.waiting)
        newest = {record.key: record for record in records}.values() if topic in changelogs else records
        for record in newest:
            take(record)
        self._count(topic, len(records))

    def _count(self, topic: str, count: int) -> None:
        names, totals = self._names, self._report.totals
        if topic == names.commands:
            totals.commands += count
        elif topic == names.events:
            totals.events += count
        elif topic == names.rejections:
            totals.rejections += count
        elif topic == names.dead_letters:
            totals.dead_letters += count

    def take_again(self, topic: str, records: list[ConsumerRecord], *, are_old_deleted: bool) -> None:
        """Take records of the table, rejections or events again, to find out which unanswered commands are repeats.

        `are_old_deleted` is whether the oldest rejections were deleted.
        """
        has_all_rejections = not (are_old_deleted or self._has_damaged_rejections)
        self._outcomes.settle_repeats(topic, records, KnownCommands(self._folds.accepted_of, has_all_rejections))

    def without_outcome(self, records: Iterable[ConsumerRecord]) -> list[ConsumerRecord]:
        """Return the commands that have no outcome among the records that were taken."""
        return [record for record in records if record.offset not in self._outcomes]

    def has_unanswered(self) -> bool:
        """Return whether commands before the position have no outcome, and do not wait."""
        self._outcomes.settle_waiting(waiting_commands(self._waiting))
        return bool(self._outcomes.unanswered())

    def differences(self, bounds: Bounds) -> list[Difference]:
        """Return what the position and the waiting room differ in from the other topics."""
        names, position, record = self._names, self._newest_position(), self._position
        if record is None:
            text = "The partition has outcomes, but the table has no position."
            has_outcomes = self._folds.orders or self._outcomes.highest
            return [(Kind.POSITION, names.table, bounds.ends[names.table], text)] if has_outcomes else []
        if position is None:
            return [(Kind.UNREADABLE, names.table, record.offset, "The position cannot be decoded.")]
        return [
            *(() if self._terms.is_mirror else bounds_findings(position, bounds, names)),
            *outcome_findings(position, self._outcomes),
            *waiting_findings(position, record.offset, self._waiting, self._outcomes, names),
        ]

    def has_different_orders(self) -> bool:
        """Return whether the events and the entry of any order differ."""
        folds = self._folds.orders
        return any(order_id not in folds for order_id in self._unknown_entries) or any(map(_differs, folds.values()))

    def report(self, differences: Iterable[Difference], starts: Mapping[str, int], settled: Mapping[str, int]) -> None:
        """Report these differences, those of the orders, and the commands without an outcome; and add the totals.

        Orders that have changed since the offsets `settled` are not compared: perhaps only a part of their transaction
        was visible.
        """
        names = self._names
        for difference in differences:
            self._find(*difference)
        for offset, text in self._folds.lost_heads(starts[names.events]):
            self._find(Kind.LOST_HEAD, names.events, offset, text)
        events_end, table_end = settled.get(names.events, FOREVER), settled.get(names.table, FOREVER)
        for order_id, fold in self._folds.orders.items():
            if fold.offset < events_end and fold.entry_offset < table_end and _differs(fold):
                self._report_entry(order_id, fold)
        self._report_unknown_entries(table_end)
        for offset in self._outcomes.unanswered():
            text = "The command is before the position, but it has no outcome."
            self._find(Kind.NO_OUTCOME, names.commands, offset, text)
        if undecided := self._outcomes.undecided(self._newest_position()):
            self._find(Kind.UNDECIDED, names.commands, *undecided)
        self._report.operations += self._operations.lines
        self._add_totals()

    def _take_operation(self, record: ConsumerRecord) -> None:
        try:
            self._operations.add(operations.decode(record.value), record.timestamp, self._partition)
        except DecodeError as error:
            self._damaged(record, str(error))

    def _take_event(self, record: ConsumerRecord) -> None:
        value, command_offset = record.value or b"", command_offset_of(record.headers)
        try:
            event = avro.decode_event(value)
        except DecodeError as error:
            self._damaged(record, str(error))
            self._folds.add_unreadable(_text(record.key), record.offset)
        else:
            if not self._has_key(record, event.order_id):
                self._folds.add_unreadable(_text(record.key), record.offset)
                return
            self._folds.add(event, avro.digest(value), record.offset)
            if command_offset is None and is_own_cancellation(event):
                return
        self._add_outcome(record, command_offset, EVENT)

    def _take_rejection(self, record: ConsumerRecord) -> None:
        if not self._is_intact_rejection(record):
            self._has_damaged_rejections = True
        self._add_outcome(record, command_offset_of(record.headers), REJECTION)

    def _is_intact_rejection(self, record: ConsumerRecord) -> bool:
        """Return whether a rejection, its id and its key are intact; report it if not."""
        try:
            rejection = avro.decode_rejection(record.value or b"")
        except DecodeError as error:
            self._damaged(record, str(error))
            return False
        names = (rejection.order_id, rejection.command_id, rejection.command_digest.hex())
        if rejection.rejection_id != name_uuid(*names):
            self._damaged(record, "its rejection_id is not that of its order and command")
            return False
        return self._has_key(record, rejection.order_id)

    def _take_dead_letter(self, record: ConsumerRecord) -> None:
        self._add_outcome(record, command_offset_of(record.headers), DEAD_LETTER)

    def _add_outcome(self, record: ConsumerRecord, command_offset: int | None, outcome: int) -> None:
        if command_offset is None:
            text = "The header command_offset is missing, or is not an offset."
            self._find(Kind.NO_COMMAND, record.topic, record.offset, text)
        elif record.timestamp > self._operations.moved_back_ms:  # else the offset is of the previous topic
            self._outcomes.add(record, command_offset, outcome)

    def _take_waiting(self, record: ConsumerRecord) -> None:
        key = record.key or b""
        if record.value is None:
            self._waiting.pop(key, None)
        elif not key.startswith(_CONTROL):
            self._waiting[key] = (record.offset, record.value)

    def _take_table(self, record: ConsumerRecord) -> None:
        key = record.key or b""
        if key == POSITION_KEY:
            self._position = None if record.value is None else record
        elif not key.startswith(_CONTROL):
            self._take_entry(record, _text(key))

    def _take_entry(self, record: ConsumerRecord, order_id: str) -> None:
        fold = self._folds.orders.get(order_id)
        if fold is None:
            self._unknown_entries[order_id] = record.offset
            if record.value is None:
                del self._unknown_entries[order_id]
            return
        fold.entry_offset, fold.entry_version, fold.entry_faults = record.offset, NO_ENTRY, ()
        if record.value is None:
            return
        try:
            entry = changelog.decode_entry(record.value)
        except HistoryError as error:
            fold.entry_version, fold.entry_faults = UNREADABLE_ENTRY, (str(error),)
            return
        self.has_short_entries |= type(entry) is ShortEntry
        fold.entry_version = entry.version
        if entry.version == fold.version:
            fold.entry_faults = tuple(entry_faults(fold, entry))

    def _take_command(self, record: ConsumerRecord) -> None:
        if not self._terms.is_mirror and not self._operations.has_skipped(record.offset):
            self._outcomes.take_command(record, self._newest_position(), self._terms.undecided_before_ms)

    def _newest_position(self) -> Position | None:
        """Return the newest position that was read, or None if it is missing or cannot be decoded."""
        record = self._position
        if record is not self._decoded[0]:
            try:
                self._decoded = (record, None if record is None else changelog.decode_position(record.value))
            except HistoryError:
                self._decoded = (record, None)
        return self._decoded[1]

    def _report_entry(self, order_id: str, fold: Fold) -> None:
        events, table, version = self._names.events, self._names.table, fold.entry_version
        if version == NO_ENTRY:
            text = f"Order {order_id} has no entry in {table}; its newest event is version {fold.version}."
            self._find(Kind.TABLE, events, fold.offset, text)
        elif version == UNREADABLE_ENTRY:
            text = f"The entry of order {order_id} is damaged: {fold.entry_faults[0]}."
            self._find(Kind.UNREADABLE, table, fold.entry_offset, text)
        elif version != fold.version:
            text = (
                f"The entry of order {order_id} has version {version}, but its newest event is version {fold.version}"
            )
            self._find(Kind.TABLE, table, fold.entry_offset, f"{text}, at offset {fold.offset}.")
        elif HEAD in fold.entry_faults:
            text = f"Version {version} of order {order_id} differs from the digest that {table} has for it"
            self._find(Kind.CHAIN, events, fold.offset, f"{text}, at offset {fold.entry_offset}.")
        else:
            text = f"The entry of order {order_id} differs from its events in {' and '.join(fold.entry_faults)}."
            self._find(Kind.TABLE, table, fold.entry_offset, text)

    def _report_unknown_entries(self, table_end: int) -> None:
        """Report the entries of orders without an event; more than `MANY` are one finding."""
        folds, table = self._folds.orders, self._names.table
        unknown = {
            order_id: offset
            for order_id, offset in self._unknown_entries.items()
            if offset < table_end and order_id not in folds
        }
        if len(unknown) > MANY:
            order_id, offset = next(iter(unknown.items()))
            text = f"{len(unknown)} orders of the table have no event; the first is order {order_id}."
            self._find(Kind.TABLE, table, offset, text)
            return
        for order_id, offset in unknown.items():
            self._find(Kind.TABLE, table, offset, f"Order {order_id} of the table has no event.")

    def _add_totals(self) -> None:
        totals = self._report.totals
        totals.repeats += self._outcomes.repeats
        totals.waiting += len(self._waiting)
        totals.paid.update(self._folds.paid)
        totals.refunds_due.update(self._folds.refunds_due)
        totals.orders.update(_statuses(self._folds.orders.values()))

    def _has_key(self, record: ConsumerRecord, order_id: str) -> bool:
        """Return whether the key of an outcome is its order id; report it if not."""
        if record.key == order_id.encode():
            return True
        text = f"The key is {_text(record.key)!r}, but the order is {order_id!r}."
        self._find(Kind.WRONG_KEY, record.topic, record.offset, text)
        return False

    def _damaged(self, record: ConsumerRecord, why: str) -> None:
        self._find(Kind.UNREADABLE, record.topic, record.offset, f"The record is damaged: {why}.")

    def _find(self, kind: Kind, topic: str, offset: int, text: str) -> None:
        self._report.add(Finding(kind, topic, self._partition, offset, text))


def _statuses(folds: Iterable[Fold]) -> Iterator[str]:
    for fold in folds:
        if fold.version > 0:
            yield "unknown" if fold.order is None else fold.order.status.value


def _differs(fold: Fold) -> bool:
    """Return whether the table's entry is missing, damaged, of another version, or different.

    A record that cannot be read may be the newest event. If no other exists, the order may not exist either.
    """
    if fold.version == 0 and fold.entry_version == NO_ENTRY:
        return False
    return bool(fold.entry_faults) or not fold.version <= fold.entry_version <= fold.version + fold.unread


def _text(key: bytes | None) -> str:
    return (key or b"").decode(errors="backslashreplace")
