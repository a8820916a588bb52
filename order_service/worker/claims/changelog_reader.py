"""What a claim reads: the two changelogs of a partition, and what lies in its other topics.

It never holds the event loop for more than some milliseconds at a time: other lanes run meanwhile.
"""

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from aiokafka import ConsumerRecord, TopicPartition
from aiokafka.errors import CorruptRecordException

from order_service.domain.decision import Entry
from order_service.errors import HistoryError, LaneParked
from order_service.kafka.connection import Consumer
from order_service.kafka.topics import TopicNames
from order_service.wire import changelog
from order_service.wire.changelog import BARRIER_KEY, POSITION_KEY, Position, WaitingCommand
from order_service.worker.claims.progress import Progress

LOOK_EVERY_S: Final = 1.0
FRESH_S: Final = 3.0
"""A reader that fetches nothing costs a hundredth of a processor, and hundreds may wait."""
READ_AT_A_TIME: Final = 500
DECODED_AT_A_TIME: Final = 500
"""Records, before the loop gets its turn: some 2 ms each."""
RESTORE: Final = "Restore what this partition has lost from a mirror or a backup before it goes on."

UNREADABLE: Final = f"Run the version of this service that wrote it. If it is damaged: {RESTORE}"

Apply = Callable[["ConsumerRecord[bytes, bytes]"], None]
Raw = dict[bytes, tuple[int, bytes | None]]
"""Offset and value of the newest record of each key."""


class Reading:
    """A committed reader on the topics of one partition. It remembers nothing; `apply` gets what it reads."""

    def __init__(self, reader: Consumer, places: list[TopicPartition], progress: Progress) -> None:
        self._reader = reader
        self._progress = progress
        reader.assign(places)
        for place in places:
            reader.seek(place, 0)  # where that is deleted, aiokafka begins at the start
        reader.pause(*places)

    async def end(self, place: TopicPartition) -> int:
        """Ask where what is committed ends."""
        return int((await self._reader.end_offsets([place]))[place])

    def begin(self, starts: dict[TopicPartition, int]) -> None:
        """Read these partitions from these offsets on, and no others."""
        self._reader.pause(*self._reader.assignment())
        for place, offset in starts.items():
            self._reader.seek(place, offset)
        self._reader.resume(*starts)

    async def past(self, last: dict[TopicPartition, int], apply: Apply) -> None:
        """Read until past these offsets, however long a foreign transaction keeps them from us.

        Raises LaneParked for a record that is damaged, KafkaError if Kafka is away.
        """
        places = list(last)
        while behind := [place for place, offset in last.items() if await self._reader.position(place) <= offset]:
            try:
                if not (await self._read_some(places, apply) or await self._wait_for_one(places, apply)):
                    self._progress.open_transactions = self._open_transactions(behind)
            except CorruptRecordException as error:
                at = [f"{place.topic} at {await self._reader.position(place)}" for place in last]
                raise LaneParked(f"a record cannot be read ({error}), in {' or '.join(at)}. {RESTORE}") from error

    async def _read_some(self, places: list[TopicPartition], apply: Apply) -> bool:
        """Handle what was fetched, up to a slice of it; False if there is nothing."""
        async with self._progress.slice():
            fetched = await self._reader.getmany(*places, timeout_ms=0, max_records=READ_AT_A_TIME)
            _apply_all(fetched, apply)
        if fetched:
            await self._progress.moved()
        return bool(fetched)

    async def _wait_for_one(self, places: list[TopicPartition], apply: Apply) -> bool:
        """Wait for a record, without a slice: others work meanwhile. After a long wait, look once a second only.

        Return whether one came.
        """
        if not self._progress.has_slot:
            self._reader.pause(*places)
            await asyncio.sleep(LOOK_EVERY_S)
            self._reader.resume(*places)
        fetched = await self._reader.getmany(*places, timeout_ms=200, max_records=1)
        _apply_all(fetched, apply)
        if fetched:
            await self._progress.moved()
        return bool(fetched)

    def _open_transactions(self, places: list[TopicPartition]) -> dict[TopicPartition, int]:
        """Return the partitions that end behind an open transaction, and where that begins.

        A broker that has not answered for a while is away: then it is not the transaction that is waited for.
        """
        found = {}
        for place in places:
            stable, end = self._reader.last_stable_offset(place), self._reader.highwater(place)
            fetched_ms = self._reader.last_poll_timestamp(place)
            if None not in {stable, end, fetched_ms} and stable < end and fetched_ms > (time.time() - FRESH_S) * 1000:
                found[place] = stable
        return found


def _apply_all(fetched: dict[TopicPartition, list["ConsumerRecord[bytes, bytes]"]], apply: Apply) -> None:
    for records in fetched.values():
        for record in records:
            apply(record)


class Changelogs:
    """The two changelogs of a partition: of a kept lane, only where its table's was written last."""

    def __init__(
        self, partition: int, names: TopicNames, reader: Consumer, kept_offset: int | None, progress: Progress
    ) -> None:
        self.position: Position | None = None
        self.entries: dict[str, Entry] = {}
        self.waiting: dict[bytes, WaitingCommand] = {}
        self._partition = partition
        self._names = names
        self._progress = progress
        self._is_kept = kept_offset is not None
        self._raw: dict[str, Raw] = {names.table: {}, names.waiting: {}}
        topics = (names.table, names.waiting, names.events, names.rejections, names.dead_letters, names.commands)
        self.reading = Reading(reader, [TopicPartition(topic, partition) for topic in topics], progress)
        logs = (names.table,) if self._is_kept else (names.table, names.waiting)
        self.places = [TopicPartition(topic, partition) for topic in logs]
        self.reading.begin(dict.fromkeys(self.places, kept_offset or 0))

    @property
    def owner(self) -> str | None:
        """Who may write, as far as was read."""
        return None if self.position is None else self.position.owner

    async def read_to_end(self) -> None:
        """Read up to the last stable offset, and decode what was read: most of the work of a claim."""
        await self.read_past({place: await self.reading.end(place) - 1 for place in self.places})

    async def read_past(self, last: dict[TopicPartition, int]) -> None:
        """Read until past these offsets, and decode what is new."""
        await self.reading.past(last, self._apply)
        while raw := self._raw[self._names.table]:
            async with self._progress.slice():
                for _ in range(min(len(raw), DECODED_AT_A_TIME)):
                    self._decode_entry(*raw.popitem())
            await self._progress.moved()
        while raw := self._raw[self._names.waiting]:
            async with self._progress.slice():
                for _ in range(min(len(raw), DECODED_AT_A_TIME // 10)):
                    self._decode_waiting(*raw.popitem())
            await self._progress.moved()

    def _apply(self, record: "ConsumerRecord[bytes, bytes]") -> None:
        if record.key == POSITION_KEY:
            with self._readable(record.topic, record.offset):
                self.position = None if record.value is None else changelog.decode_position(record.value)
        elif record.key != BARRIER_KEY and not self._is_kept:
            self._raw[record.topic][record.key] = (record.offset, record.value)

    def _decode_entry(self, key: bytes, newest: tuple[int, bytes | None]) -> None:
        offset, value = newest
        with self._readable(self._names.table, offset):
            if value is None:
                self.entries.pop(key.decode(), None)
            else:
                self.entries[key.decode()] = changelog.decode_entry(value)

    def _decode_waiting(self, key: bytes, newest: tuple[int, bytes | None]) -> None:
        offset, value = newest
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
            place = f"{topic} partition {self._partition} offset {offset}"
            raise LaneParked(f"{place} cannot be read: {error}. {UNREADABLE}") from error
