"""Which commands of a partition have an outcome, by the command offsets in the headers of the outcomes."""

from array import array
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Final

from aiokafka.structs import ConsumerRecord
from msgspec import Struct

from order_service.domain.entry import Entry, Known, ShortEntry
from order_service.domain.identity import command_digest
from order_service.domain.messages import Command
from order_service.domain.refusals import NEVER_REMEMBERED
from order_service.errors import DecodeError, HistoryError
from order_service.kafka.topics import TopicNames
from order_service.operations.verify.findings import Kind
from order_service.wire import avro, changelog
from order_service.wire.changelog import Position
from order_service.wire.commands import decode_command

Find = Callable[[Kind, str, int, str], None]
"""Called with the kind, the topic, the offset and the text of each finding."""

Sent = tuple[str, str, bytes]
"""A command by its order id, its own id and its digest."""

OUTCOMES: Final = ("no outcome", "an event", "a rejection", "a dead letter")
EVENT, REJECTION, DEAD_LETTER = 1, 2, 3
_PAGE: Final = 4096


class KnownCommands(Struct, frozen=True):
    """Reads which commands an order remembers, from records that were checked before: a damaged one shows none.

    `accepted` returns those commands of an entry that have an event. The refused commands of an entry count only if
    rejections were deleted or are damaged: otherwise each has its record. What a short entry has forgotten is in the
    events and the rejections. If rejections are missing, any command may be one that it had refused.
    """

    accepted: Callable[[str, Entry], tuple[Known, ...]]
    has_all_rejections: bool

    def from_entry(self, record: ConsumerRecord) -> Iterator[Sent]:
        """Yield the commands of a record of the table."""
        order_id = record.key.decode()
        try:
            entry = changelog.decode_entry(record.value)
        except HistoryError:
            return
        refused = () if self.has_all_rejections else entry.refused
        for command_id, digest in self.accepted(order_id, entry) + refused:
            yield order_id, command_id, digest

    def may_have_refused(self, record: ConsumerRecord) -> bool:
        """Return whether the order of a record of the table has forgotten commands whose rejections are missing."""
        if self.has_all_rejections:
            return False
        try:
            return type(changelog.decode_entry(record.value)) is ShortEntry
        except HistoryError:
            return False

    def from_event(self, record: ConsumerRecord) -> Iterator[Sent]:
        """Yield the command of an event."""
        try:
            event = avro.decode_event(record.value)
        except DecodeError:
            return
        yield event.order_id, event.command_id, event.command_digest

    def from_rejection(self, record: ConsumerRecord) -> Iterator[Sent]:
        """Yield the command of a rejection, if its order remembers it."""
        try:
            rejection = avro.decode_rejection(record.value)
        except DecodeError:
            return
        if rejection.reason not in NEVER_REMEMBERED:
            yield rejection.order_id, rejection.command_id, rejection.command_digest


class CommandOutcomes:
    """The kind of outcome of each command, one byte each, and the commands that have none."""

    def __init__(self, names: TopicNames, find: Find) -> None:
        self.highest: dict[str, tuple[int, int]] = {}
        """For each topic, the highest command offset that an outcome has, and the offset of that outcome."""
        self.repeats = 0
        self._names = names
        self._find = find
        self._pages: defaultdict[int, bytearray] = defaultdict(lambda: bytearray(_PAGE))
        self._unanswered: dict[int, Sent | None] = {}
        """The commands before the position without an outcome; None for a record that is not a command."""
        self._undecided = array("q")
        self._undecided_ms = array("q")

    def __contains__(self, offset: int) -> bool:
        page = self._pages.get(offset // _PAGE)
        return page is not None and page[offset % _PAGE] != 0

    def add(self, record: ConsumerRecord, offset: int, outcome: int) -> None:
        """Note that `record` is the outcome of the command at `offset`."""
        page, index = self._pages[offset // _PAGE], offset % _PAGE
        if page[index]:
            text = (
                f"The command at offset {offset} has {OUTCOMES[outcome]} here, and {OUTCOMES[page[index]]} before it."
            )
            self._find(Kind.DUPLICATE, record.topic, record.offset, text)
        page[index] = outcome
        if offset > self.highest.get(record.topic, (-1, -1))[0]:
            self.highest[record.topic] = (offset, record.offset)

    def take_command(self, record: ConsumerRecord, position: Position | None, undecided_before_ms: int) -> None:
        """Take a record of the commands topic, after the outcomes."""
        if record.offset in self:
            return
        if position is not None and record.offset < position.next_offset:
            self._unanswered[record.offset] = _sent(record.value)
        elif record.timestamp < undecided_before_ms:
            self._undecided.append(record.offset)
            self._undecided_ms.append(record.timestamp)

    def unanswered(self) -> dict[int, Sent | None]:
        """Return the commands before the position that have no outcome, by offset; None is not a command."""
        self._unanswered = {offset: sent for offset, sent in self._unanswered.items() if offset not in self}
        return self._unanswered

    def settle_waiting(self, waiting: Mapping[int, Command]) -> None:
        """Note that these commands wait, and that copies of them are repeats."""
        sent = set(map(_sent_of, waiting.values()))
        for offset, command in list(self.unanswered().items()):
            if offset in waiting:
                del self._unanswered[offset]
            elif command in sent:
                self._add_repeat(offset)

    def settle_repeats(self, topic: str, records: Iterable[ConsumerRecord], known: KnownCommands) -> None:
        """Find out from records of the table, the rejections or the events which unanswered commands are repeats."""
        offsets = defaultdict(list)
        for offset, sent in self.unanswered().items():
            if sent is not None:
                offsets[sent].append(offset)
        keys = {order_id.encode() for order_id, _, _ in offsets}
        names = self._names
        read = {names.table: known.from_entry, names.rejections: known.from_rejection, names.events: known.from_event}
        for record in records:
            if record.key in keys and record.value is not None:
                repeated = list(read[topic](record))
                if topic == names.table and known.may_have_refused(record):
                    repeated += [sent for sent in offsets if sent[0].encode() == record.key]
                for sent in repeated:
                    for offset in offsets.pop(sent, ()):
                        self._add_repeat(offset)

    def _add_repeat(self, offset: int) -> None:
        del self._unanswered[offset]
        self.repeats += 1

    def undecided(self, position: Position | None) -> tuple[int, str] | None:
        """Return the offset and the text of the finding about commands that are too old, or None without any."""
        first = 0 if position is None else bisect_left(self._undecided, position.next_offset)
        count = len(self._undecided) - first
        if not count:
            return None
        since = datetime.fromtimestamp(self._undecided_ms[first] // 1000, UTC).isoformat()
        return (
            self._undecided[first],
            f"{count} commands from this offset on have no outcome yet; this one arrived at {since}.",
        )


def _sent(value: bytes | None) -> Sent | None:
    try:
        return _sent_of(decode_command(value, is_past=True))
    except DecodeError:
        return None


def _sent_of(command: Command) -> Sent:
    return command.order_id, command.command_id, command_digest(command)
