"""The claim: how a worker takes over a partition from whoever had it, alive, dead or only thought dead.

1. Lock:    start the claim's own producer; any unfinished claim of the partition is dead from here.
2. Read:    read the changelogs; the position record names the owner, the last worker's transactional id.
3. Fence:   start a producer under the owner's id; its open transaction is aborted, its later ones are refused.
4. Barrier: commit a record to both changelogs and read until past it. The end that a committed reader is told is the
            last stable offset: behind a foreign open transaction it hides records, and the barrier waits for them.
            Should another owner appear, fence it too and repeat.
5. Name:    write the position record that names ourselves. From here the lane runs.

Only the newest claim of a partition can write an owner, and every worker writes under an id that a claim has named;
so what was read up to the barrier is all that any earlier worker has done or will ever do.
"""

import asyncio
from collections.abc import Callable
from types import TracebackType
from typing import Any, Final, Self
from uuid import uuid4

import structlog
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError, KafkaTimeoutError
from msgspec import Struct

from order_service.domain.answer import Entry
from order_service.errors import DecodeError, HistoryError, LaneParked
from order_service.stream.lane import Record, traceparent_of
from order_service.stream.producer import TurnProducer, fence, started
from order_service.stream.topics import TopicNames
from order_service.stream.waiting import Waiting
from order_service.wire import changelog
from order_service.wire.changelog import BARRIER_KEY, POSITION_KEY, Position
from order_service.wire.commands import decode_command

log = structlog.get_logger()

FETCH_BYTES: Final = 8 * 1024 * 1024
COMPLAIN_AFTER_S: Final = 10.0


class Kept(Struct, frozen=True):
    """What a worker still holds of a partition: where its changelog was written last, under which id, how far."""

    owner: str
    log_offset: int
    next_offset: int


class Claimed(Struct, frozen=True):
    """What a claim found: where to go on, and the state, or None where the state in memory is the newest."""

    position: Position
    log_offset: int
    state: tuple[dict[str, Entry], list[Waiting]] | None


class Claimer(Struct, frozen=True):
    """Claims partitions for one owner id. `step` is told each step done: tests stop or kill the process there."""

    app_id: str
    owner: str
    names: TopicNames
    connection: dict[str, Any]
    step: Callable[[str], None]

    async def claim(self, partition: int, kept: Kept | None) -> Claimed:
        """Take over a partition; LaneParked if the log does not allow to go on, Fenced if another claim is newer."""
        async with started(f"{self.app_id}-claim-{partition}", self.connection) as lock:
            self.step("claim.locked")
            if kept is not None:
                claimed = await self._take_over(partition, lock, kept)
                if claimed is not None:
                    return claimed
            claimed = await self._take_over(partition, lock, None)
            if claimed is None:
                raise HistoryError(f"the changelog of partition {partition} was read from its start and is not current")
            return claimed

    async def _take_over(self, partition: int, lock: TurnProducer, kept: Kept | None) -> Claimed | None:
        """Do steps 2 to 5; None if what is kept in memory is not what the log says."""
        async with Changelogs(partition, self.names, self.connection, kept) as logs:
            await logs.read_to_end()
            self.step("claim.read")
            await logs.check_waiting_room()
            await self._fence_owners(lock, logs)
            if kept is not None and not logs.is_still(kept):
                return None
            state = None if kept is not None else logs.state()
            position = await logs.place(self.owner)
            self.step("claim.barrier")
            log_offset = await self._name_ourselves(partition, lock, position)
            self.step("claim.named")
            return Claimed(position, log_offset, state)

    async def _fence_owners(self, lock: TurnProducer, logs: "Changelogs") -> None:
        """Fence the owner, and whoever turns up as owner before the barrier."""
        fenced = None
        while True:
            owner = logs.owner()
            if owner is not None and owner != fenced:
                await fence(owner, self.connection)
                self.step("claim.fenced")
            fenced = owner
            await logs.read_past(await self._barrier(lock, logs.partitions))
            if logs.owner() == fenced:
                return

    async def _barrier(self, lock: TurnProducer, partitions: list[TopicPartition]) -> dict[TopicPartition, int]:
        nonce = uuid4().bytes
        await lock.begin()
        sent = []
        for place in partitions:
            sent += await lock.send_all(place.topic, place.partition, [(BARRIER_KEY, nonce, None, [])])
        arrived = await lock.commit(sent)
        return {place: metadata.offset for place, metadata in zip(partitions, arrived, strict=True)}

    async def _name_ourselves(self, partition: int, lock: TurnProducer, position: Position) -> int:
        await lock.begin()
        records: list[Record] = [(POSITION_KEY, changelog.encode(position), None, [])]
        arrived = await lock.commit(await lock.send_all(self.names.table, partition, records))
        return int(arrived[0].offset)


class Changelogs:
    """A committed reader of the two changelogs of a partition."""

    def __init__(self, partition: int, names: TopicNames, connection: dict[str, Any], kept: Kept | None) -> None:
        self._names = names
        self._table_log = TopicPartition(names.table, partition)
        self._waiting_log = TopicPartition(names.waiting, partition)
        self._commands = TopicPartition(names.commands, partition)
        self._outcomes = [
            TopicPartition(topic, partition) for topic in (names.events, names.rejections, names.dead_letters)
        ]
        self._kept = kept
        self._table: dict[bytes, bytes] = {}
        self._waiting: dict[bytes, bytes] = {}
        self._position: Position | None = None
        self.partitions = [self._table_log] if kept is not None else [self._table_log, self._waiting_log]
        shared = {"enable_auto_commit": False, "auto_offset_reset": "earliest", "fetch_max_wait_ms": 100}
        self._reader = AIOKafkaConsumer(
            **connection, **shared, isolation_level="read_committed", max_partition_fetch_bytes=FETCH_BYTES
        )
        self._offsets = AIOKafkaConsumer(**connection, **shared)

    async def __aenter__(self) -> Self:
        try:
            await self._reader.start()
            await self._offsets.start()
        except BaseException:
            await self.__aexit__(None, None, None)
            raise
        self._reader.assign(self.partitions)
        if self._kept is not None:
            self._reader.seek(self._table_log, self._kept.log_offset)
        else:
            await self._reader.seek_to_beginning(*self.partitions)
        return self

    async def __aexit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        await self._reader.stop()
        await self._offsets.stop()

    def owner(self) -> str | None:
        """Tell who may write, as far as was read."""
        return None if self._position is None else self._position.owner

    def is_still(self, kept: Kept) -> bool:
        """Tell whether nobody has written since `kept`: its owner is the owner, at the same position."""
        position = self._position
        return position is not None and (position.owner, position.next_offset) == (kept.owner, kept.next_offset)

    async def read_to_end(self) -> None:
        """Read up to the last stable offset, enough to learn the owner."""
        await self.read_past(
            {place: end - 1 for place, end in (await self._reader.end_offsets(self.partitions)).items()}
        )

    async def check_waiting_room(self) -> None:
        """Raise LaneParked if what waited is lost: every position was written after a barrier in this changelog too."""
        ends = await self._offsets.end_offsets([self._waiting_log])
        if self._position is not None and ends[self._waiting_log] == 0:
            raise LaneParked("the changelog of the waiting room is lost: what waited there has no outcome")

    async def read_past(self, last: dict[TopicPartition, int]) -> None:
        """Read until past these offsets, however long a foreign transaction keeps them from us."""
        while await self._behind(last):
            for place, records in (await self._reader.getmany(timeout_ms=200)).items():
                for record in records:
                    self._apply(place, record.key, record.value)

    def state(self) -> tuple[dict[str, Entry], list[Waiting]]:
        """Decode what was read: the entries of the orders, and the commands that wait."""
        entries = {key.decode(): changelog.decode_entry(value) for key, value in self._table.items()}
        return entries, [_waiting(value) for value in self._waiting.values()]

    async def place(self, owner: str) -> Position:
        """Make the position from which `owner` goes on; LaneParked if the commands are not those of the last position.

        A partition without a position is new, unless something came of its commands: then its changelog is lost.
        """
        commands = self._commands
        start = (await self._offsets.beginning_offsets([commands]))[commands]
        ends = await self._offsets.end_offsets([commands, *self._outcomes])
        end = ends[commands]
        last = self._position
        if last is None:
            if self._waiting or any(ends[place] > 0 for place in self._outcomes):
                raise LaneParked("there are outcomes but no position: the changelog is lost and must be rebuilt")
            return Position(start, owner, end, None)
        if last.next_offset < start:
            raise LaneParked(f"commands from {last.next_offset} to {start} are deleted and were never decided")
        if max(last.next_offset, last.end_offset) > end:
            raise LaneParked(
                f"the commands end at {end}, they ended at {last.end_offset}: the topic was cut or recreated"
            )
        if start < last.next_offset and not await self._is_same_topic(last):
            raise LaneParked(f"the command before {last.next_offset} is not the one that was decided: another topic?")
        return Position(last.next_offset, owner, end, last.last_timestamp_ms)

    async def _is_same_topic(self, last: Position) -> bool:
        """Look whether the last decided command is still there, by its time."""
        if last.last_timestamp_ms is None:
            return True
        self._offsets.assign([self._commands])
        self._offsets.seek(self._commands, last.next_offset - 1)
        found = await self._offsets.getmany(timeout_ms=10_000, max_records=1)
        if not found:
            raise KafkaTimeoutError("the last decided command cannot be read now")
        return any(
            (record.offset, record.timestamp) == (last.next_offset - 1, last.last_timestamp_ms)
            for records in found.values()
            for record in records
        )

    async def _behind(self, last: dict[TopicPartition, int]) -> bool:
        return any([await self._reader.position(place) <= offset for place, offset in last.items()])

    def _apply(self, place: TopicPartition, key: bytes, value: bytes | None) -> None:
        if key == POSITION_KEY and value is not None:
            self._position = changelog.decode_position(value)
        elif key != BARRIER_KEY and self._kept is None:
            records = self._table if place == self._table_log else self._waiting
            if value is None:
                records.pop(key, None)
            else:
                records[key] = value


def _waiting(value: bytes) -> Waiting:
    record = changelog.decode_waiting(value)
    try:
        command = decode_command(record.value)
    except DecodeError as error:
        raise HistoryError(f"the waiting command at offset {record.offset} cannot be read any more") from error
    return Waiting(command, record.offset, record.came_at, traceparent_of(record.headers))


async def claim_until_done(claimer: Claimer, partition: int, kept: Kept | None, *, pause_s: float = 1.0) -> Claimed:
    """Claim a partition, again while no broker can be read from, however long that takes."""
    while True:
        try:
            return await _claim_and_complain(claimer, partition, kept)
        except KafkaError as error:
            log.warning("A claim failed; trying again.", partition=partition, error=repr(error))
            await asyncio.sleep(pause_s)


async def _claim_and_complain(claimer: Claimer, partition: int, kept: Kept | None) -> Claimed:
    claiming = asyncio.create_task(claimer.claim(partition, kept), name=f"claim of {partition}")
    try:
        while not (await asyncio.wait({claiming}, timeout=COMPLAIN_AFTER_S))[0]:
            log.warning(
                "A claim takes long: its changelog is, or a broker is away, or a foreign transaction is open.",
                partition=partition,
            )
    except asyncio.CancelledError:
        claiming.cancel()
        await asyncio.gather(claiming, return_exceptions=True)
        raise
    return claiming.result()
