"""What a claim checks before it writes its owner: whether the other topics of its partition match the position.

Each check raises LaneParked for a state in which a worker would decide a command twice, or skip one.
"""

from collections.abc import Collection
from typing import Final

import structlog
from aiokafka import ConsumerRecord, TopicPartition

from order_service.domain.messages import Event
from order_service.errors import DecodeError, LaneParked, ParkingReason
from order_service.kafka.topics import TopicNames
from order_service.wire import avro
from order_service.wire.changelog import REBUILDING, Ends, Position
from order_service.wire.headers import command_offset_of
from order_service.worker import metrics
from order_service.worker.claims.changelog_reader import RESTORE, Changelogs
from order_service.worker.claims.clients import ClaimClients

log = structlog.get_logger()

TAIL: Final = 2_000
"""Offsets at the end of an outcome topic that are compared if the position, of an earlier version, has no ends."""


class Checks:
    """The checks of one partition: its topics are compared with its changelogs."""

    def __init__(self, partition: int, names: TopicNames, clients: ClaimClients, logs: Changelogs) -> None:
        self._partition = partition
        self._names = names
        self._clients = clients
        self._logs = logs
        self._commands = TopicPartition(names.commands, partition)
        outcomes = (names.events, names.rejections, names.dead_letters)
        self._outcomes = [TopicPartition(topic, partition) for topic in outcomes]
        self._waiting_log = TopicPartition(names.waiting, partition)
        self._ends: dict[TopicPartition, int] = {}
        self._waits: set[int] = set()
        self._unknown = 0
        self._never_read = 0

    async def take_ends(self) -> dict[TopicPartition, int]:
        """Read the end offsets of all topics, uncommitted records included, and return those of the changelogs.

        Call this after the fence. Raises LaneParked if one ends before its recorded end: it has lost records.
        """
        self._ends = await self._clients.ends([self._commands, *self._outcomes, *self._logs.partitions])
        self._check_ends()
        return {partition: self._ends[partition] for partition in self._logs.partitions}

    def _check_ends(self) -> None:
        position = self._logs.position
        if position is None:
            return
        if self._ends[self._waiting_log] == 0:
            raise LaneParked(
                ParkingReason.WAITING_LOST,
                f"the changelog of the waiting room is lost: the commands that waited in {self._names.waiting}"
                f" partition {self._partition} have no outcome",
            )
        for partition, known in self._known_ends(position.ends or Ends()).items():
            if self._ends[partition] < known:
                is_waiting = partition == self._waiting_log
                raise LaneParked(
                    ParkingReason.WAITING_LOST_TAIL if is_waiting else ParkingReason.OUTCOMES_LOST_TAIL,
                    f"{partition.topic} partition {partition.partition} ends at {self._ends[partition]}, it ended at"
                    f" {known}: its last records are lost. {RESTORE}",
                )

    async def position(self, owner: str, waiting_count: int) -> Position:
        """Return the position from which `owner` continues.

        A partition without a position is new, unless it has outcomes: then its changelog is lost.
        Raises LaneParked if the commands do not match the last position.
        """
        start = await self._start()
        end = self._ends[self._commands]
        ends = Ends(*(self._ends[partition] for partition in (*self._outcomes, self._waiting_log)))
        last = self._logs.position
        if last is None:
            self._check_first(start)
            return Position(start, owner, end, None, start, ends, waiting_count)
        if last.waiting_count == REBUILDING:
            raise LaneParked(ParkingReason.REBUILD_UNFINISHED, unfinished_rebuild(self._partition))
        if last.resume_at < start:
            raise LaneParked(
                ParkingReason.COMMANDS_DELETED,
                f"commands from {last.resume_at} to {start - 1} are deleted and were never decided, in"
                f" {self._names.commands} partition {self._partition}. Their senders must send them again.",
            )
        if max(last.resume_at, last.end_offset) > end:
            raise LaneParked(
                ParkingReason.COMMANDS_TRUNCATED,
                f"the commands end at {end}, they ended at {max(last.resume_at, last.end_offset)}:"
                f" {self._names.commands} partition {self._partition} was truncated or recreated",
            )
        if start < last.next_offset and not await self._is_same_topic(last) and await self._start() < last.next_offset:
            raise LaneParked(
                ParkingReason.COMMANDS_RECREATED,
                f"command {last.next_offset - 1} of {self._names.commands} partition {self._partition} has a different"
                " timestamp than the decided one: the topic was recreated or restored. The position is"
                f" {last.resume_at}: continue there if the topic was restored.",
            )
        return Position(last.next_offset, owner, end, last.last_timestamp_ms, last.read_to, ends, waiting_count)

    def count_never_read(self) -> None:
        """Count the commands that the position skips, once it is written: a claim that fails before is tried again."""
        if self._never_read:
            metrics.NEVER_READ.labels(self._partition).inc(self._never_read)

    async def _start(self) -> int:
        return (await self._clients.starts([self._commands]))[self._commands]

    async def outcomes(self, *, without: Collection[str] = ()) -> None:
        """Read the outcomes since the ends that the position has, `without` some topics.

        Raises LaneParked if one is not in the changelogs. They have then lost their last records, and a decided command
        would be decided again.
        """
        position = self._logs.position
        if position is None:
            return
        await self._read_outcomes(position, without)
        expected = position.waiting_count
        if expected is not None and expected != len(self._logs.waiting):
            raise LaneParked(
                ParkingReason.WAITING_DIFFERS,
                f"{self._names.waiting} partition {self._partition} holds {len(self._logs.waiting)} waiting commands,"
                f" the position in {self._names.table} counts {expected}: one of the two has lost its last records.",
            )

    async def _read_outcomes(self, position: Position, without: Collection[str]) -> None:
        starts = await self._clients.starts(self._outcomes)
        known = self._known_ends(position.ends) if position.ends is not None else {}
        unread = {
            partition: max(starts[partition], known.get(partition, self._ends[partition] - TAIL), 0)
            for partition in self._outcomes
            if starts[partition] < self._ends[partition] and partition.topic not in without
        }
        unread = {partition: offset for partition, offset in unread.items() if offset < self._ends[partition]}
        if not unread:
            return
        self._waits = {waiting.offset for waiting in self._logs.waiting.values()}
        self._logs.reader.read_from(unread)
        await self._logs.reader.read_past(
            {partition: self._ends[partition] - 1 for partition in unread}, self._check_outcome
        )
        if self._unknown:
            log.warning(
                "Foreign records in the outcome topics were ignored.",
                partition=self._partition,
                count=self._unknown,
            )

    def _known_ends(self, ends: Ends) -> dict[TopicPartition, int]:
        known = (ends.events, ends.rejections, ends.dead_letters, ends.waiting)
        return dict(zip((*self._outcomes, self._waiting_log), known, strict=True))

    def _check_first(self, start: int) -> None:
        """Check a partition that does not have a position yet: it must have no outcomes either."""
        if self._logs.waiting or any(self._ends[partition] > 0 for partition in self._outcomes):
            raise LaneParked(
                ParkingReason.TABLE_LOST,
                f"there are outcomes but no position: the changelog {self._names.table} partition {self._partition} is"
                f" lost. {RESTORE}",
            )
        if start > 0:
            self._never_read = start
            log.warning(
                "Commands were deleted before any worker read this partition; they have no outcome.",
                topic=self._names.commands,
                partition=self._partition,
                offsets=start,
            )

    async def _is_same_topic(self, last: Position) -> bool:
        """Return whether the last decided command is still in its topic, with the same timestamp."""
        if last.last_timestamp_ms is None:
            return True
        offset = last.next_offset - 1
        timestamps: list[tuple[int, int]] = []
        self._logs.reader.read_from({self._commands: offset})
        await self._logs.reader.read_past(
            {self._commands: offset}, lambda record: timestamps.append((record.offset, record.timestamp))
        )
        return (offset, last.last_timestamp_ms) in timestamps

    def _check_outcome(self, record: "ConsumerRecord[bytes, bytes]") -> None:
        names = self._names
        if record.topic == names.dead_letters:
            headers = dict(record.headers)
            origin = (headers.get("dl_topic"), headers.get("dl_partition"))
            is_ours = origin == (names.commands.encode(), b"%d" % self._partition)
        else:
            is_ours = self._is_decoded(record)
        if not is_ours:
            self._unknown += 1
            return
        offset = command_offset_of(record.headers)
        if offset is not None and (position := self._logs.position) is not None:
            if offset >= position.next_offset:
                raise self._lost(record, f"command {offset} has an outcome, the position is {position.next_offset}")
            if offset in self._waits:
                raise self._lost(record, f"command {offset} has an outcome, and it waits in {names.waiting}")

    def _is_decoded(self, record: "ConsumerRecord[bytes, bytes]") -> bool:
        """Return whether a record is an event or a rejection. An event is compared with the table."""
        value = record.value or b""
        try:
            if record.topic == self._names.rejections:
                avro.decode_rejection(value)
            else:
                self._compare(record, avro.decode_event(value))
        except DecodeError:
            return False
        return True

    def _compare(self, record: "ConsumerRecord[bytes, bytes]", event: Event) -> None:
        entry = self._logs.table.get(event.order_id)
        version = 0 if entry is None else entry.version
        if entry is None or version < event.version:
            raise self._lost(
                record, f"it is version {event.version} of an order that the table has at version {version}"
            )
        if version == event.version and entry.head != avro.digest(record.value or b""):
            raise self._lost(record, f"it is version {version} of an order, and the table has a different event")

    def _lost(self, record: "ConsumerRecord[bytes, bytes]", why: str) -> LaneParked:
        return LaneParked(
            ParkingReason.TABLE_LOST_TAIL,
            f"the changelog {self._names.table} partition {self._partition} has lost its last records: {record.topic}"
            f" offset {record.offset}: {why}. {RESTORE}",
        )


def unfinished_rebuild(partition: int) -> str:
    """Return what to do about a partition whose rebuild was interrupted."""
    return f"a rebuild was interrupted: run `order-service rebuild {partition} --yes` again"
