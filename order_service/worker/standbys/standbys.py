"""Follows the changelogs of partitions that other workers own, so that a claim of this worker reads their ends only.

A standby only reads. It keeps the `ChangelogState` of a partition near the ends of its changelogs. When this worker
gets the partition, its claim begins with that state, as it would with one that an interrupted claim has left.

In each round, one request reads the last stable offsets of all followed changelogs. The partitions that have more are
read one after the other. Of those that were never read up to their ends, one is read at a time, in steps.

**When a state starts over.** Three things could make it differ from what a claim reads from the start:
- A deletion (tombstone) that Kafka removed before it was read. Kafka removes a tombstone `delete.retention.ms` (25 h or
  more) after its log cleaner has first met it, which is after it was written and after the removal of the value. It
  cleans nothing at or after the last stable offset. So all tombstones that were not read up to an end are still there
  for a day after this end was returned. `ChangelogState.as_of` is the time before that request. Each complete round
  moves it on, and a state whose `as_of` is older than an hour starts over. What counts is the time between two ends
  that were reached, not the age of the state.
- A log that lost its end and grew again, or was replaced. It is shorter than before, or the last record of the state
  is not at its offset with its timestamp. Each reading begins with that record, so a gap between two is noticed.
- Records of an open or aborted transaction. Like a claim, a standby reads committed records, up to the last stable
  offset.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from typing import Final

import structlog
from aiokafka import TopicPartition
from aiokafka.errors import KafkaError

from order_service.errors import LaneParked
from order_service.kafka.connection import knows_leader
from order_service.kafka.topics import TopicNames
from order_service.worker import metrics
from order_service.worker.claims.changelog_reader import Changelogs, ChangelogState
from order_service.worker.claims.clients import ClaimClients
from order_service.worker.claims.progress import ClaimSlots, Progress

log = structlog.get_logger()

ROUND_EVERY_S: Final = 1.0
REST: Final = 3.0
"""A standby rests three times as long as it has worked: lanes and claims have the rest of the event loop."""
STEP_OFFSETS: Final = 20_000
"""The offsets of a changelog that are read before it is the turn of the next partition."""
READ_WITHIN_S: Final = 20.0
RETRY_S: Final = 10.0
RETRY_MAX_S: Final = 30.0
UNREADABLE_RETRY_S: Final = 300.0
FETCH_WAIT_MS: Final = 20
"""A fetch that waits for records of one partition holds up the fetch of the next one."""

Ends = dict[TopicPartition, int]


class _Slot(ClaimSlots):
    """The slot of the standbys. After each slice it leaves the event loop to others."""

    def __init__(self) -> None:
        super().__init__(1)

    @asynccontextmanager
    async def slice(self) -> AsyncIterator[None]:
        """Hold the event loop for a few milliseconds of work, then rest."""
        loop = asyncio.get_running_loop()
        began_at = loop.time()
        async with super().slice():
            yield
        await asyncio.sleep(REST * (loop.time() - began_at))


class Standbys:
    """The partitions of other workers that this worker follows, with what was read of each."""

    def __init__(self, names: TopicNames, clients: ClaimClients) -> None:
        self._topics = (names.table, names.waiting)
        self._names = names
        self._clients = clients
        self._partitions: frozenset[int] = frozenset()
        self._states: dict[int, ChangelogState] = {}
        self._complete: set[int] = set()
        """The partitions that were read up to their ends once."""
        self._retry_at: dict[int, float] = {}
        self._reading: tuple[int, asyncio.Task[bool]] | None = None
        self._slot = _Slot()

    def follow(self, partitions: Collection[int]) -> None:
        """Stand by for these partitions, and for no others."""
        for partition in self._partitions - set(partitions):
            self._forget(partition)
            self._retry_at.pop(partition, None)
            metrics.STANDBY_LAG.remove_by_labels({"partition": str(partition)})
        self._partitions = frozenset(partitions)

    def take(self, partitions: Collection[int]) -> dict[int, ChangelogState]:
        """Return the states of these partitions, which this worker is about to claim, and follow them no longer."""
        taken = {partition: self._states[partition] for partition in self._states.keys() & set(partitions)}
        self.follow(self._partitions - set(partitions))
        return taken

    def _forget(self, partition: int) -> None:
        """Forget a state. It may belong to a claim now, so a read that is under way adds nothing to it."""
        if self._reading is not None and self._reading[0] == partition:
            self._reading[1].cancel()
        self._states.pop(partition, None)
        self._complete.discard(partition)

    async def run(self) -> None:
        """Follow the changelogs until this is cancelled, also while Kafka is unavailable."""
        pause_s = ROUND_EVERY_S
        while True:
            is_filling = False
            try:
                is_filling = await self._round()
                pause_s = ROUND_EVERY_S
            except (KafkaError, OSError, TimeoutError) as error:
                pause_s = min(pause_s * 2, RETRY_MAX_S)
                log.warning("The ends of standby changelogs cannot be read.", error=repr(error), again_in_s=pause_s)
            await asyncio.sleep(0 if is_filling else pause_s)

    async def close(self) -> None:
        """Close the clients; `run` must have ended."""
        await self._clients.close()

    async def _round(self) -> bool:
        """Read what is new in each partition. Return whether there is a partition with more to read at once."""
        if not self._partitions:
            return False
        as_of = time.time()
        all_ends = await self._all_ends()
        complete = [partition for partition in all_ends if partition in self._complete]
        incomplete = [partition for partition in all_ends if self._is_incomplete(partition)]
        for partition in [*complete, *incomplete[:1]]:
            if self._is_readable(partition):
                await self._read(partition, all_ends[partition], as_of)
        return any(map(self._is_incomplete, incomplete))

    def _is_incomplete(self, partition: int) -> bool:
        return partition not in self._complete and self._is_readable(partition)

    def _is_readable(self, partition: int) -> bool:
        """Return whether a partition is still followed, and did not fail a moment ago."""
        return partition in self._partitions and time.monotonic() >= self._retry_at.get(partition, 0.0)

    async def _all_ends(self) -> dict[int, Ends]:
        """Return the last stable offsets of the changelogs, without partitions that have no leader.

        aiokafka would wait for a leader before it returns any of them.
        """
        changelogs = {
            partition: [TopicPartition(topic, partition) for topic in self._topics]
            for partition in sorted(self._partitions)
        }
        async with asyncio.timeout(READ_WITHIN_S), self._clients.reader() as reader:
            if not reader.assignment():  # a new reader: it reads the leaders in the background
                reader.assign([each for pair in changelogs.values() for each in pair])
                reader.pause(*reader.assignment())
            led = {
                partition: pair
                for partition, pair in changelogs.items()
                if all(knows_leader(reader, each) for each in pair)
            }
            if not led:
                return {}
            ends = await reader.end_offsets([each for pair in led.values() for each in pair])
        return {partition: {each: ends[each] for each in pair} for partition, pair in led.items()}

    async def _read(self, partition: int, ends: Ends, as_of: float) -> None:
        """Read a partition up to these ends, or a step of it. A failure concerns this partition only."""
        state = self._states.setdefault(partition, ChangelogState(is_followed=True))
        lag = sum(max(0, end - _read_to(state, topic)) for (topic, _), end in ends.items())
        metrics.STANDBY_LAG.labels(partition).set(lag)
        if any(end != _read_to(state, topic) for (topic, _), end in ends.items()):
            if state.is_too_old():
                self._start_over(partition, state)
            task = asyncio.create_task(self._read_step(partition, ends, state), name=f"standby of {partition}")
            self._reading = partition, task
            try:
                await asyncio.wait({task})
            finally:
                task.cancel()
                await asyncio.wait({task})
                self._reading = None
            if task.cancelled() or self._states.get(partition) is not state:
                return
            if (error := task.exception()) is not None:
                self._failed(partition, error)
                return
            if not task.result():
                return
        self._complete.add(partition)
        metrics.STANDBY_LAG.labels(partition).set(0)
        state.as_of = as_of

    async def _read_step(self, partition: int, ends: Ends, state: ChangelogState) -> bool:
        """Read at most `STEP_OFFSETS` of each changelog, and return whether these were all."""
        step = {each: min(end, _read_to(state, each.topic) + STEP_OFFSETS) for each, end in ends.items()}
        progress = Progress(self._slot)
        try:
            async with asyncio.timeout(READ_WITHIN_S), self._clients.reader() as reader:
                await Changelogs(partition, self._names, reader, state, progress).continue_to(step)
        finally:
            progress.leave()
        state.ends = {topic: end for (topic, _), end in step.items()}
        if state.is_too_old():  # the machine was suspended meanwhile
            self._start_over(partition, state)
            return False
        return step == ends

    def _start_over(self, partition: int, state: ChangelogState) -> None:
        """Forget what was read of a partition. If that happens every hour, its standby is of no use."""
        log.warning(
            "A standby has reached no end for an hour and starts over.", partition=partition, orders=len(state.table)
        )
        state.clear()

    def _failed(self, partition: int, error: BaseException) -> None:
        """Try a partition again later. If a record cannot be read, forget the state: the next claim parks the lane."""
        self._complete.discard(partition)
        if isinstance(error, KafkaError | OSError | TimeoutError):
            state = self._states[partition]
            state.ends = dict(state.next_offsets)  # not up to where it was to read
            self._retry_at[partition] = time.monotonic() + RETRY_S
            log.warning("A standby cannot read its changelogs.", partition=partition, error=repr(error))
            return
        self._forget(partition)
        self._retry_at[partition] = time.monotonic() + UNREADABLE_RETRY_S
        bug = None if isinstance(error, LaneParked) else error
        log.error("A standby cannot use its changelogs.", partition=partition, reason=str(error), exc_info=bug)


def _read_to(state: ChangelogState, topic: str) -> int:
    return max(state.ends.get(topic, 0), state.next_offsets.get(topic, 0))
