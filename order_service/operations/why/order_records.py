"""Collects the records of one order, or of any other key, from the topics of its partition."""

from collections import deque
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, Final

from aiokafka.structs import ConsumerRecord
from msgspec import structs

from order_service.domain.entry import Entry, Known
from order_service.domain.identity import command_digest
from order_service.domain.messages import (
    Command,
    CreateOrder,
    Event,
    Fact,
    OrderAmended,
    OrderCancelled,
    OrderCreated,
    OrderDelivered,
    OrderPaid,
    OrderShipped,
    Rejection,
)
from order_service.domain.refusals import NEVER_REMEMBERED, Status
from order_service.errors import DecodeError, HistoryError
from order_service.kafka.topics import TopicNames
from order_service.operations.recorded import RecordedOperations
from order_service.operations.why.order_story import (
    DEAD_LETTER,
    UNREADABLE,
    CommandStory,
    Evidence,
    FoundCommand,
    FoundOperation,
    FoundOutcome,
    FoundRecord,
    FoundWaiting,
    Lane,
    OrderStory,
    story_of,
    without_command,
)
from order_service.wire import avro, changelog
from order_service.wire.commands import decode_command
from order_service.wire.headers import command_offset_of
from order_service.wire.operations import (
    LaneResumed,
    Operation,
    PartitionRebuilt,
    letter_offsets_of,
    order_ids_of,
)

MAX_RECORDS: Final = 1_000
"""How many of the newest records of each topic are kept for one order."""
MAX_TEXT: Final = 300
"""How many characters are kept of a text that a sender has chosen: more than the longest valid actor has."""

STATUS_AFTER: Final[dict[type[Fact], Status]] = {
    OrderCreated: Status.CREATED,
    OrderAmended: Status.CREATED,
    OrderPaid: Status.PAID,
    OrderShipped: Status.SHIPPED,
    OrderDelivered: Status.DELIVERED,
    OrderCancelled: Status.CANCELLED,
}


class OrderRecords:
    """Collects the records of one key from the topics of a partition. Take them topic by topic, in any sequence.

    Records without a key belong to no order: then only those of the command at `command_offset` count.
    """

    def __init__(self, names: TopicNames, key: bytes | None, command_offset: int | None = None) -> None:
        self._names = names
        self._key = key
        self._command_offset = command_offset
        self._commands: deque[tuple[FoundCommand, Known | None]] = deque(maxlen=MAX_RECORDS)
        self._outcomes: dict[str, deque[tuple[FoundOutcome, Known | None]]] = {
            topic: deque(maxlen=MAX_RECORDS) for topic in (names.events, names.rejections, names.dead_letters)
        }
        self._command_count = self._outcome_count = 0
        self._newest_fact: type[Fact] | None = None
        self._version = 0
        self._waiting: dict[int, tuple[FoundWaiting, Known]] = {}
        self._table: FoundRecord | None = None
        self._entry: Entry | None = None
        self._recorded = RecordedOperations()
        self._operations: deque[FoundOperation] = deque(maxlen=MAX_RECORDS)

    def take(self, record: ConsumerRecord) -> None:
        """Take a record of this key; a waiting command has its offset after the key."""
        names, topic = self._names, record.topic
        if topic == names.table:
            self._take_entry(record)
        elif topic == names.waiting:
            self._take_waiting(record)
        elif self._key is None and command_offset_in(record, names) != self._command_offset:
            return
        elif topic == names.commands:
            self._take_command(record)
        else:
            self._take_outcome(record)

    def take_operation(self, record: ConsumerRecord, operation: Operation) -> None:
        """Take an operation on the partition. It is compared with the records that were taken before."""
        self._recorded.add(operation, record.timestamp, record.partition)
        origin = _origin(record)
        if not self._is_concerned_by(operation, origin["at"]):
            return
        found_operation = FoundOperation(
            **origin,
            kind=str(operation.__struct_config__.tag),
            actor=_short(operation.actor),
            operation_id=_short(operation.id),
            previous_position=operation.previous_position if isinstance(operation, LaneResumed) else None,
            position=operation.position if isinstance(operation, LaneResumed | PartitionRebuilt) else None,
        )
        self._operations.append(found_operation)

    def _is_concerned_by(self, operation: Operation, at: datetime) -> bool:
        if key_text(self._key) in order_ids_of(operation):
            return True
        if isinstance(operation, PartitionRebuilt) or (isinstance(operation, LaneResumed) and operation.lost):
            outcomes = (outcome for each in self._outcomes.values() for outcome, _ in each)
            return any(each.at <= at for each in (*outcomes, *(command for command, _ in self._commands)))
        if isinstance(operation, LaneResumed):  # commands that it skipped, or that were undecided
            positions = [each for each in (operation.previous_position, operation.position) if each is not None]
            undecided = [command for command, _ in self._commands if command.offset >= min(positions, default=0)]
            return any(command.offset < (operation.position or 0) or command.at <= at for command in undecided)
        letters = {letter.offset for letter, _ in self._outcomes[self._names.dead_letters]}
        return not letters.isdisjoint(letter_offsets_of(operation))

    @property
    def operations(self) -> list[FoundOperation]:
        """The operations on the order."""
        return list(self._operations)

    @property
    def is_empty(self) -> bool:
        """Whether nothing is known under this key."""
        return not (self._command_count or self._outcome_count or self._waiting or self._table or self._operations)

    def story(self, lane: Lane, *, has_all_rejections: bool) -> OrderStory:
        """Return what is known at this progress of the partition, and whether all of its rejections are kept."""
        resume_at = lane.start if lane.position is None else lane.position
        evidence = self._evidence(resume_at, has_all_rejections=has_all_rejections)
        kept = len(self._commands) + sum(map(len, self._outcomes.values()))
        return OrderStory(
            order_id=key_text(self._key),
            status=Status.ABSENT if self._newest_fact is None else STATUS_AFTER[self._newest_fact],
            version=self._version,
            table=self._table,
            table_version=None if self._entry is None else self._entry.version,
            lane=lane,
            commands=self._stories(evidence),
            operations=self.operations,
            omitted=self._command_count + self._outcome_count - kept,
        )

    def _stories(self, evidence: Evidence) -> list[CommandStory]:
        """Return the commands by offset; a decision of the service itself follows the outcomes before it."""
        stories = {command.offset: story_of(command, known, evidence) for command, known in self._commands}
        oldest = min(stories, default=0) if self._command_count > len(stories) else 0
        known: list[tuple[int, FoundOutcome | FoundWaiting]] = [*evidence.outcomes.items(), *evidence.waiting.items()]
        for offset, each in known:
            if offset not in stories and offset >= oldest:
                stories[offset] = without_command(evidence, each)
        sequence = [(offset, 0, story) for offset, story in stories.items()]
        for own in self._own_decisions():
            after = max([offset for offset, each in evidence.outcomes.items() if each.at <= own.at], default=-1)
            sequence.append((after, 1, without_command(evidence, own)))
        return [story for _, _, story in sorted(sequence, key=lambda item: item[:2])]

    def _own_decisions(self) -> Iterator[FoundOutcome]:
        """Yield the outcomes that answer no command of the topic."""
        for outcomes in self._outcomes.values():
            yield from (outcome for outcome, _ in outcomes if outcome.command_offset is None)

    def _evidence(self, resume_at: int, *, has_all_rejections: bool) -> Evidence:
        names = self._names
        events, rejections = self._outcomes[names.events], self._outcomes[names.rejections]
        by_offset = {
            outcome.command_offset: outcome
            for outcomes in self._outcomes.values()
            for outcome, _ in outcomes
            if outcome.command_offset is not None
        }
        refused = ((outcome, known) for outcome, known in rejections if outcome.reason not in NEVER_REMEMBERED)
        waiting = sorted(self._waiting.items())
        user_id = waiting[0][1][0].user_id if waiting else None  # only the lookup for the first one is under way
        in_sequence = [(structs.replace(each, user_id=user_id), known) for _, (each, known) in waiting]
        refused_before = () if self._entry is None or has_all_rejections else self._entry.refused
        return Evidence(
            resume_at=resume_at,
            outcomes=by_offset,
            waiting={each.command_offset: each for each, _ in in_sequence},
            answered={known: outcome for outcome, known in (*refused, *events) if known is not None},
            waiting_copies={known: each for each, known in reversed(in_sequence)},
            refused_before=frozenset(refused_before),
            skipped=self._recorded.skipped,
        )

    def _take_command(self, record: ConsumerRecord) -> None:
        self._command_count += 1
        command = message_in(record, self._names)
        if command is None or isinstance(command, Event | Rejection):
            self._commands.append((FoundCommand(**_origin(record), type=None, command_id=None, actor=None), None))
            return
        name, actor = type(command).__name__, _short(command.actor)
        found_command = FoundCommand(**_origin(record), type=name, command_id=command.command_id, actor=actor)
        self._commands.append((found_command, _known(command)))

    def _take_outcome(self, record: ConsumerRecord) -> None:
        self._outcome_count += 1
        self._outcomes[record.topic].append(self._outcome(record))

    def _outcome(self, record: ConsumerRecord) -> tuple[FoundOutcome, Known | None]:
        head = {**_origin(record), "command_offset": command_offset_of(record.headers)}
        if record.topic == self._names.dead_letters:
            reason = (dict(record.headers).get("dl_reason") or b"").decode(errors="backslashreplace")
            return FoundOutcome(**head, type=DEAD_LETTER, reason=_short(reason)), None
        message = message_in(record, self._names)
        if isinstance(message, Event):
            self._newest_fact, self._version = type(message.fact), message.version
            name, reason = type(message.fact).__name__, None
        elif isinstance(message, Rejection):
            name, reason = type(message).__name__, message.reason
        else:
            is_event = record.topic == self._names.events
            return FoundOutcome(**head, type=UNREADABLE, reason=None if is_event else UNREADABLE), None
        found_outcome = FoundOutcome(
            **head,
            type=name,
            command_id=message.command_id,
            actor=_short(message.actor),
            version=message.version,
            reason=reason,
        )
        return found_outcome, (message.command_id, message.command_digest)

    def _take_waiting(self, record: ConsumerRecord) -> None:
        offset = command_offset_in(record, self._names)
        if offset is None:
            return
        self._waiting.pop(offset, None)
        if record.value is None:
            return
        try:
            waiting = changelog.decode_waiting(record.value)
        except HistoryError:  # `verify` reports it; the command then shows no outcome
            return
        command = waiting.command
        found_waiting = FoundWaiting(
            **_origin(record),
            type=type(command).__name__,
            command_offset=offset,
            command_id=command.command_id,
            actor=_short(command.actor),
            since=waiting.queued_at,
            user_id=_short(command.user_id) if isinstance(command, CreateOrder) else None,
        )
        self._waiting[offset] = (found_waiting, _known(command))

    def _take_entry(self, record: ConsumerRecord) -> None:
        self._table = self._entry = None
        if record.value is None:
            return
        self._table = found_record(record)
        try:
            self._entry = changelog.decode_entry(record.value)
        except HistoryError:  # `verify` reports it; the entry is shown without a version
            return


def message_in(record: ConsumerRecord, names: TopicNames) -> Command | Event | Rejection | None:
    """Return the message of a record, or None if it cannot be decoded. A dead letter can contain a command."""
    value = record.value or b""
    try:
        if record.topic == names.events:
            return avro.decode_event(value)
        if record.topic == names.rejections:
            return avro.decode_rejection(value)
        if record.topic == names.waiting:
            return changelog.decode_waiting(value).command
        return decode_command(value, is_past=True)
    except (DecodeError, HistoryError):
        return None


def order_key_in(record: ConsumerRecord, names: TopicNames) -> bytes | None:
    """Return the key of the order that a record is about; a waiting command has its offset behind it."""
    key: bytes | None = record.key
    return key.partition(b"\0")[0] if key is not None and record.topic == names.waiting else key


def key_text(key: bytes | None) -> str:
    """Return a key for people, or an empty text for a record without a key."""
    return _short((key or b"").decode(errors="backslashreplace"))


def command_offset_in(record: ConsumerRecord, names: TopicNames) -> int | None:
    """Return the offset of the command that a record is, answers or keeps waiting; None if it is about none."""
    if record.topic == names.commands:
        offset: int = record.offset
        return offset
    if record.topic == names.waiting:
        digits = (record.key or b"").rpartition(b"\0")[2]
        return int(digits) if digits.isdigit() and len(digits) < 20 else None
    return command_offset_of(record.headers)


def _known(command: Command) -> Known:
    return command.command_id, command_digest(command)


def found_record(record: ConsumerRecord) -> FoundRecord:
    """Return where a record is, without what it contains."""
    return FoundRecord(**_origin(record))


def _origin(record: ConsumerRecord) -> dict[str, Any]:
    return {
        "topic": record.topic,
        "partition": record.partition,
        "offset": record.offset,
        "at": datetime.fromtimestamp(record.timestamp / 1000, UTC),
    }


def _short(text: str) -> str:
    return text if len(text) <= MAX_TEXT else f"{text[:MAX_TEXT]}…"
