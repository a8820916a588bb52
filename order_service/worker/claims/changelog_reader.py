"""Reads the two changelogs of a partition for a claim, and records of its other topics.

It never holds the event loop for more than a few milliseconds at a time: other lanes run meanwhile.
"""

import asyncio
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Final

import structlog
from aiokafka import ConsumerRecord, TopicPartition
from aiokafka.errors import CorruptRecordException

from order_service.errors import HistoryError, LaneParked, ParkingReason, StoreDamaged, Stuck
from order_service.kafka.connection import Consumer
from order_service.kafka.record_batches import damaged_partition
from order_service.kafka.topics import TopicNames
from order_service.wire import changelog
from order_service.wire.changelog import BARRIER_KEY, POSITION_KEY, RELEASE_KEY, Position, WaitingCommand
from order_service.worker.claims.progress import Progress
from order_service.worker.store import Meta, TableStore
from order_service.worker.table import UNDECODED_BYTES, UNDECODED_MAX, Table

log = structlog.get_logger()

LOOK_EVERY_S: Final = 1.0
"""A reader that fetches nothing costs 1 % of a processor, and hundreds may wait."""
FRESH_S: Final = 3.0
WAIT_MS: Final = 50
"""The marker of a transaction does not end a wait for records."""
READ_AT_A_TIME: Final = 500
DECODED_AT_A_TIME: Final = 500
"""The number of records between two yields to the event loop: some 2 ms each time."""
DECODED_BYTES: Final = 1024 * 1024
"""The size after which a slice ends early. Orders may have 4 MB, and decoding 1 MB takes some 5 ms."""
REPORT_EVERY_S: Final = 10.0
CONTINUED_FOR_S: Final = 3600.0
"""How old a state may be that is continued: see `ChangelogState.as_of`. Kafka keeps tombstones for a day or more."""
RESTORE: Final = "Restore the lost records of this partition from a mirror or a backup before it continues."

UNREADABLE: Final = f"Run the version of this service that wrote it. If it is damaged: {RESTORE}"

Then = Callable[[], Awaitable[None]]
Apply = Callable[["ConsumerRecord[bytes, bytes]"], None]
Raw = dict[bytes, tuple[int, bytes | None]]
"""The offset and value of the newest record of each key."""


async def _nothing() -> None:
    """Do nothing."""


class PartitionReader:
    """A read_committed reader of the topics of one partition. It keeps no records; `apply` gets each of them."""

    def __init__(self, reader: Consumer, partitions: list[TopicPartition], progress: Progress) -> None:
        self._reader = reader
        self._progress = progress
        reader.assign(partitions)
        for partition in partitions:
            reader.seek(partition, 0)  # if offset 0 is deleted, aiokafka begins at the first one
        reader.pause(*partitions)

    async def end(self, partition: TopicPartition) -> int:
        """Return the last stable offset of a partition."""
        return int((await self._reader.end_offsets([partition]))[partition])

    def read_from(self, starts: dict[TopicPartition, int]) -> None:
        """Seek these partitions to these offsets, and pause all others."""
        self._reader.pause(*self._reader.assignment())
        for partition, offset in starts.items():
            self._reader.seek(partition, offset)
        self._reader.resume(*starts)

    async def read_past(self, last: dict[TopicPartition, int], apply: Apply, then: Then = _nothing) -> None:
        """Read until past these offsets, however long a foreign transaction hides them. Call `then` after each slice.

        Raises LaneParked for a damaged record, KafkaError if Kafka is unavailable.
        """
        partitions = list(last)
        while behind := await self._behind(last):
            try:
                if await self._read_fetched(partitions, apply) or await self._behind(last) != behind:
                    await then()
                    continue  # a marker at the end is no record
                if not await self._wait_for_record(partitions, apply):
                    self._progress.open_transactions = self._open_transactions(behind)
            except CorruptRecordException as error:
                damaged = damaged_partition(error)
                if damaged is not None and damaged in last:
                    partitions = [damaged]
                    await self._read_to_damage(damaged, last[damaged], apply)
                positions = [f"{each.topic} at {await self._reader.position(each)}" for each in partitions]
                raise LaneParked(
                    ParkingReason.DAMAGED_BATCH,
                    f"a record cannot be read ({error}), in {' or '.join(positions)}. {RESTORE}",
                ) from error

    async def _read_to_damage(self, partition: TopicPartition, last: int, apply: Apply) -> None:
        """Read the records before a damaged batch, one by one: aiokafka drops those that it drains together with it.

        Its position is at the damage when two fetches in a row fail at the same position.
        """
        failed_at = -1
        self._reader.seek(partition, await self._reader.position(partition))
        while await self._reader.position(partition) <= last:
            try:
                _apply_all(await self._reader.getmany(partition, timeout_ms=WAIT_MS, max_records=1), apply)
            except CorruptRecordException:
                if (offset := await self._reader.position(partition)) == failed_at:
                    return
                failed_at = offset

    async def _behind(self, last: dict[TopicPartition, int]) -> list[TopicPartition]:
        return [partition for partition, offset in last.items() if await self._reader.position(partition) <= offset]

    async def _read_fetched(self, partitions: list[TopicPartition], apply: Apply) -> bool:
        """Apply fetched records, at most `READ_AT_A_TIME`. Return whether there were any."""
        async with self._progress.slice():
            fetched = await self._reader.getmany(*partitions, timeout_ms=0, max_records=READ_AT_A_TIME)
            _apply_all(fetched, apply)
        if fetched:
            await self._progress.moved()
        return bool(fetched)

    async def _wait_for_record(self, partitions: list[TopicPartition], apply: Apply) -> bool:
        """Wait for a record, without a slice, and return whether one arrived. Other tasks run meanwhile.

        A claim that has lent its slot fetches only once a second.
        """
        if not self._progress.has_slot:
            self._reader.pause(*partitions)
            await asyncio.sleep(LOOK_EVERY_S)
            self._reader.resume(*partitions)
        fetched = await self._reader.getmany(*partitions, timeout_ms=WAIT_MS, max_records=1)
        _apply_all(fetched, apply)
        if fetched:
            await self._progress.moved()
        return bool(fetched)

    def _open_transactions(self, partitions: list[TopicPartition]) -> dict[TopicPartition, int]:
        """Return the partitions whose last stable offset is before their end, with that offset: a transaction is open.

        A broker that has not answered for `FRESH_S` is unavailable: the claim then waits for it, not for a transaction.
        """
        first_offsets = {}
        for partition in partitions:
            stable, end = self._reader.last_stable_offset(partition), self._reader.highwater(partition)
            fetched_ms = self._reader.last_poll_timestamp(partition)
            if None not in {stable, end, fetched_ms} and stable < end and fetched_ms > (time.time() - FRESH_S) * 1000:
                first_offsets[partition] = stable
        return first_offsets


def _apply_all(fetched: dict[TopicPartition, list["ConsumerRecord[bytes, bytes]"]], apply: Apply) -> None:
    for records in fetched.values():
        for record in records:
            apply(record)


class ChangelogState:
    """What was read of the two changelogs of a partition: all, or a part if the claim was interrupted.

    The next claim continues from it. It starts over if another process has written a position since, if a changelog has
    become shorter, or after `CONTINUED_FOR_S`.

    A standby follows what other workers write. So a state that `is_followed` does not start over when another process
    has written. Instead, each reading begins with the last record of the state, and starts over if that is not there.
    """

    def __init__(self, *, is_followed: bool = False) -> None:
        self.is_followed = is_followed
        self.clear()

    def clear(self) -> None:
        """Forget everything that was read."""
        self.position: Position | None = None
        self.position_offset = -1
        self.is_released = False
        self.table = Table()
        self.loaded: Meta | None = None
        """What the store of the table was a copy of when the first claim opened it."""
        self.waiting: dict[bytes, WaitingCommand] = {}
        self.undecoded: defaultdict[str, Raw] = defaultdict(dict)
        self.next_offsets: dict[str, int] = {}
        self.timestamps: dict[str, int] = {}
        """The timestamp of the last record of each topic."""
        self.ends: dict[str, int] = {}
        """The last stable offset of each topic when the first claim began to read, or after the position it wrote.

        Of a standby, the offset of each topic up to which it has read."""
        self.as_of = time.time()
        """Everything committed before this time was read. At first, it is the time at which the reading began."""

    def load(self, store: TableStore) -> None:
        """Begin with a store. Its newest position is read again, to see that the changelog is the one of the store."""
        self.table, self.loaded = Table(store), store.meta
        if store.meta.position_offset >= 0:
            self.next_offsets[store.meta.topic] = store.meta.position_offset

    def is_too_old(self) -> bool:
        """Return whether Kafka may have removed tombstones that were not read."""
        return not 0 <= time.time() - self.as_of < CONTINUED_FOR_S


class Changelogs:
    """The two changelogs of a partition, read from where `state` ends."""

    def __init__(
        self, partition: int, names: TopicNames, reader: Consumer, state: ChangelogState, progress: Progress
    ) -> None:
        self.state = state
        self._partition = partition
        self._names = names
        self._progress = progress
        topics = (names.table, names.waiting, names.events, names.rejections, names.dead_letters, names.commands)
        self.reader = PartitionReader(reader, [TopicPartition(topic, partition) for topic in topics], progress)
        self.partitions = [TopicPartition(topic, partition) for topic in (names.table, names.waiting)]
        if state.table.store is None and state.is_too_old():
            state.clear()
        self.read_to: dict[TopicPartition, int] = {}
        """The offsets up to which everything was read."""
        self.record_count = 0
        """The number of records that were added to the state."""
        self._is_continued = bool(state.ends)
        self._unconfirmed = set(state.next_offsets if state.is_followed else ())
        """The topics whose last record has to be read once more."""
        self.reader.read_from(
            {
                partition: state.next_offsets.get(partition.topic, 0) - (partition.topic in self._unconfirmed)
                for partition in self.partitions
            }
        )
        self._undecoded_bytes = 0
        self._began_at = self._reported_at = time.monotonic()
        self._first_offset = state.next_offsets.get(names.table, 0)

    @property
    def position(self) -> Position | None:
        """The newest position that was read, or None without one."""
        return self.state.position

    @property
    def table(self) -> Table:
        """The table that was read."""
        return self.state.table

    @property
    def waiting(self) -> dict[bytes, WaitingCommand]:
        """The waiting commands that were read."""
        return self.state.waiting

    @property
    def owner(self) -> str | None:
        """The owner by the newest position that was read. None without one, or if that owner has released it."""
        return None if self.position is None or self.state.is_released else self.position.owner

    def is_outdated(self) -> bool:
        """Return whether another process may have written since an earlier claim began to read.

        Not so for a standby: it has read what others wrote, and its last record was found again.
        """
        is_continued = self._is_continued and not self.state.is_followed
        return is_continued and self.state.position_offset >= self.state.ends.get(self._names.table, 0)

    def note_position(self, position: Position, offset: int) -> None:
        """Record the position that this claim wrote."""
        self.state.position, self.state.position_offset, self.state.is_released = position, offset, False
        self.state.next_offsets[self._names.table] = self.state.ends[self._names.table] = offset + 1
        self.state.is_followed = False  # no other process may write from here on

    async def read_to_end(self) -> None:
        """Read up to the last stable offset, and decode the records: most of the work of a claim."""
        await self.continue_to({partition: await self.reader.end(partition) for partition in self.partitions})

    async def continue_to(self, ends: dict[TopicPartition, int]) -> None:
        """Read from where the state ends up to these ends, and decode the records.

        A log is read from its start again if it has become shorter than an earlier claim or a standby found it, or if
        the last record of a standby is not there.
        """
        is_replaced = self._is_continued and any(end < self._known_end(each.topic) for each, end in ends.items())
        if not is_replaced:
            await self._read_on(ends)
        if is_replaced or self._unconfirmed:
            if self.state.table.store is not None:
                raise StoreDamaged(f"{self._names.table} partition {self._partition} has become shorter")
            self.state.clear()
            self._is_continued = False
            self._unconfirmed.clear()
            self.reader.read_from(dict.fromkeys(self.partitions, 0))
            await self._read_on(ends)

    async def _read_on(self, ends: dict[TopicPartition, int]) -> None:
        for partition, end in ends.items():
            self.state.ends.setdefault(partition.topic, end)
        await self.read(ends)

    def _known_end(self, topic: str) -> int:
        return max(self.state.next_offsets.get(topic, 0), self.state.ends.get(topic, 0))

    def check_end(self, offsets: dict[TopicPartition, int]) -> None:
        """Check that new records have these offsets: that nothing is between them and what was read.

        Raises Stuck otherwise.
        """
        for (topic, partition), offset in offsets.items():
            if offset != (end := self.read_to[TopicPartition(topic, partition)]):
                raise Stuck(
                    f"{topic} partition {partition} was read up to {end}, and a new record is at {offset}: another"
                    " program has written there, or a broker has returned an old end"
                )

    async def read(self, ends: dict[TopicPartition, int]) -> None:
        """Read everything before these ends, and decode the new records."""
        last = {partition: end - 1 for partition, end in ends.items()}

        async def decode_many() -> None:
            self._report(ends.get(self.partitions[0], 0))
            is_full = (
                len(self.state.undecoded[self._names.table]) >= UNDECODED_MAX
                or self._undecoded_bytes >= UNDECODED_BYTES
            )
            if self.table.store is not None and is_full:
                await self._decode_entries()

        await self.reader.read_past(last, self._apply, decode_many)
        await self._decode_entries()
        while raw := self.state.undecoded[self._names.waiting]:
            async with self._progress.slice():
                self._decode_some(raw, DECODED_AT_A_TIME // 10, self._decode_waiting)
            await self._progress.moved()
        self.read_to = ends
        self._progress.reading = ""

    async def _decode_entries(self) -> None:
        self._undecoded_bytes = 0
        while raw := self.state.undecoded[self._names.table]:
            async with self._progress.slice():
                self._decode_some(raw, DECODED_AT_A_TIME, self._decode_entry)
            await self._progress.moved()
            await self.table.save_restored()

    def _report(self, end: int) -> None:
        """Report how far the table is restored: in readiness, and every `REPORT_EVERY_S` in the log."""
        now, offset = time.monotonic(), self.state.next_offsets.get(self._names.table, 0)
        per_s = round((offset - self._first_offset) / max(now - self._began_at, 0.001))
        self._progress.reading = f"{offset} of {end} offsets are restored, {per_s}/s"
        if now - self._reported_at >= REPORT_EVERY_S:
            self._reported_at = now
            log.info("Table is being restored.", partition=self._partition, offset=offset, end=end, offsets_per_s=per_s)

    def check_store(self) -> None:
        """Check, once all is read, that the changelog has the position of the store or a newer one.

        Raises StoreDamaged otherwise: the store is a copy of another changelog.
        """
        loaded = self.state.loaded
        if loaded is not None and self.state.position_offset < loaded.position_offset:
            raise StoreDamaged(
                f"its position at offset {loaded.position_offset} is missing in {loaded.topic} partition"
                f" {self._partition}"
            )

    def _apply(self, record: "ConsumerRecord[bytes, bytes]") -> None:
        self._compare_with_store(record)
        if record.topic in self._unconfirmed:
            self._confirm(record)
            return
        self.record_count += 1
        if record.key == POSITION_KEY:
            with self._readable(record.topic, record.offset):
                self.state.position = None if record.value is None else changelog.decode_position(record.value)
            self.state.position_offset, self.state.is_released = record.offset, False
        elif record.key == RELEASE_KEY:
            self.state.is_released |= record.value == (self.owner or "").encode()
        elif record.key != BARRIER_KEY:
            self.state.undecoded[record.topic][record.key] = (record.offset, record.value)
            self._undecoded_bytes += len(record.value or b"")
        self.state.next_offsets[record.topic] = record.offset + 1
        self.state.timestamps[record.topic] = record.timestamp

    def _confirm(self, record: "ConsumerRecord[bytes, bytes]") -> None:
        """Note whether a record is the last one of the state. If not, the topic was replaced: add none of its records.

        Kafka sets the timestamp when it appends a record.
        """
        last = (self.state.next_offsets[record.topic] - 1, self.state.timestamps[record.topic])
        if (record.offset, record.timestamp) == last:
            self._unconfirmed.remove(record.topic)

    def _compare_with_store(self, record: "ConsumerRecord[bytes, bytes]") -> None:
        """Raise StoreDamaged if the changelog has another record where the store has its position."""
        loaded = self.state.loaded
        if loaded is None or (record.topic, record.offset) != (loaded.topic, loaded.position_offset):
            return
        if (record.key, record.value) != (POSITION_KEY, loaded.position):
            raise StoreDamaged(f"{record.topic} partition {self._partition} has another record at {record.offset}")

    def _decode_some(self, raw: Raw, count: int, decode: Callable[[bytes, int, bytes | None], None]) -> None:
        """Decode up to `count` records, and fewer if they are large."""
        size_bytes = 0
        while raw and count > 0 and size_bytes < DECODED_BYTES:
            key, (offset, value) = raw.popitem()
            decode(key, offset, value)
            count -= 1
            size_bytes += len(value or b"")

    def _decode_entry(self, key: bytes, offset: int, value: bytes | None) -> None:
        with self._readable(self._names.table, offset):
            self.table.restore(key.decode(), value)

    def _decode_waiting(self, key: bytes, offset: int, value: bytes | None) -> None:
        with self._readable(self._names.waiting, offset):
            if value is None:
                self.waiting.pop(key, None)
            else:
                self.waiting[key] = changelog.decode_waiting(value)

    @contextmanager
    def _readable(self, topic: str, offset: int) -> Iterator[None]:
        """Raise LaneParked, with the offset, for a record that this version cannot read."""
        try:
            yield
        except (HistoryError, UnicodeDecodeError) as error:
            record = f"{topic} partition {self._partition} offset {offset}"
            raise LaneParked(
                ParkingReason.CHANGELOG_UNREADABLE, f"{record} cannot be read: {error}. {UNREADABLE}"
            ) from error
