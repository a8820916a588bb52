"""The partitions that a reader of outcomes reads: those in which a command is awaited, and no others.

A partition is read from the ends that its topics had before the command is sent, so no outcome of it is missed, however
late the reading begins. It is paused when nothing in it is awaited any more.
"""

import asyncio
from collections import Counter
from collections.abc import Sequence
from typing import Final

from aiokafka.structs import TopicPartition

from order_service.errors import KafkaAwayError
from order_service.kafka.reader import Reader
from order_service.kafka.topics import TopicNames

READ_ON_S: Final = 0.2
"""How long a paused partition can be read on from where it stopped. Later, reading what was missed would cost more than
a lookup of the ends."""
ASSIGNED_MAX: Final = 64
"""How many partitions stay assigned: aiokafka looks at each of them before each fetch."""
ASSIGN_EVERY_S: Final = 0.05
"""The least time between two assignments: aiokafka drops the fetches under way at each."""


class FollowedPartitions:
    """Reads partitions while commands in them are awaited.

    Ends are looked up on another connection, because Kafka holds a fetch, and what follows it, until there is news.
    Each partition has its own lookup: one without a leader delays only its own commands.
    """

    def __init__(self, names: TopicNames, reader: Reader, lookups: Reader) -> None:
        self._topics = (names.events, names.rejections, names.dead_letters, names.table, names.waiting)
        self._reader = reader
        self._lookup_reader = lookups
        self._awaiting: Counter[int] = Counter()
        self._read: set[int] = set()
        self._stopped_at: dict[int, float] = {}
        self._lookups: dict[int, asyncio.Task[None]] = {}
        self._assigned: set[int] = set()
        self._starts: dict[int, dict[TopicPartition, int]] = {}
        """The start offsets of partitions that are read with the next assignment."""
        self._assigned_at = -ASSIGN_EVERY_S
        self._assigning: asyncio.TimerHandle | None = None
        self._is_read = asyncio.Event()

    async def follow(self, partition: int) -> None:
        """Read a partition from now on, until `release`. Raises LeaderAwayError, KafkaAwayError without its ends."""
        self._awaiting[partition] += 1
        try:
            while partition not in self._read:  # again if the reading has failed meanwhile
                await self._begin(partition)
        except BaseException:
            self.release(partition)
            raise

    def release(self, partition: int) -> None:
        """Pause a partition, unless another command in it is awaited. Call it once for each `follow` that returned."""
        self._awaiting[partition] -= 1
        if not self._awaiting[partition]:
            del self._awaiting[partition]
            self._stop(partition)

    async def until_read(self) -> None:
        """Wait until a partition is read."""
        await self._is_read.wait()

    def forget(self) -> None:
        """Stop reading all partitions, because the reading has failed. Each begins again from new ends."""
        self._reader.pause(self._of(*self._assigned))
        self._reader.discard()
        self._read.clear()
        self._stopped_at.clear()
        self._starts.clear()
        self._is_read.clear()

    async def close(self) -> None:
        """End the lookups."""
        if self._assigning is not None:
            self._assigning.cancel()
        for lookup in (lookups := list(self._lookups.values())):
            lookup.cancel()
        if lookups:
            await asyncio.wait(lookups)

    async def _begin(self, partition: int) -> None:
        stopped_at = self._stopped_at.pop(partition, None)
        if stopped_at is not None and asyncio.get_running_loop().time() < stopped_at + READ_ON_S:
            self._reader.resume(self._of(partition))
            self._set_read(partition)
            return
        lookup = self._lookups.get(partition)
        if lookup is None:
            lookup = self._lookups[partition] = asyncio.create_task(self._look_up(partition))
            lookup.add_done_callback(_retrieve_error)
        await asyncio.wait([lookup])  # unlike `await lookup`, it goes on for other callers if this one is cancelled
        if lookup.cancelled():
            raise KafkaAwayError("the reader of outcomes was stopped")
        lookup.result()

    async def _look_up(self, partition: int) -> None:
        """Look up the ends of a partition, and read from there if it is still awaited."""
        try:
            starts = await self._lookup_reader.ends(self._of(partition))
        finally:
            del self._lookups[partition]
        if self._awaiting[partition]:
            self._set_read(partition)
            if partition in self._assigned:
                self._reader.read_also(starts)
            else:
                self._starts[partition] = starts
                self._assign_soon()

    def _set_read(self, partition: int) -> None:
        self._read.add(partition)
        self._is_read.set()

    def _stop(self, partition: int) -> None:
        """Pause a partition. It stays assigned: it may be read again soon, and an assignment ends fetches under way."""
        if partition not in self._read:
            return
        self._read.discard(partition)
        if not self._read:
            self._is_read.clear()
        if self._starts.pop(partition, None) is None:
            self._reader.pause(self._of(partition))
            self._stopped_at[partition] = asyncio.get_running_loop().time()

    @property
    def _is_alone(self) -> bool:
        """Whether no other partition is read than those that wait for an assignment, so that no fetch is lost."""
        return self._read <= self._starts.keys()

    def _assign_soon(self) -> None:
        loop = asyncio.get_running_loop()
        if self._is_alone:
            self._assign()
        elif self._assigning is None:
            self._assigning = loop.call_at(max(loop.time(), self._assigned_at + ASSIGN_EVERY_S), self._assign)

    def _assign(self) -> None:
        """Read the partitions that wait for an assignment.

        Drop those that are not read now if there are more than ASSIGNED_MAX, or if no fetch of others is under way.
        """
        if self._assigning is not None:
            self._assigning.cancel()
        self._assigning, self._assigned_at = None, asyncio.get_running_loop().time()
        if not self._starts:
            return
        is_alone = self._is_alone
        starts = {topic_partition: start for each in self._starts.values() for topic_partition, start in each.items()}
        self._assigned |= self._starts.keys()
        self._starts.clear()
        dropped: set[int] = set()
        if is_alone or len(self._assigned) > ASSIGNED_MAX:
            dropped = self._assigned - self._read
            self._assigned -= dropped
            for partition in dropped:
                self._stopped_at.pop(partition, None)
        self._reader.read_also(starts, without=self._of(*dropped))

    def _of(self, *partitions: int) -> Sequence[TopicPartition]:
        return [TopicPartition(topic, partition) for partition in partitions for topic in self._topics]


def _retrieve_error(lookup: "asyncio.Task[None]") -> None:
    """Mark the error of a lookup as retrieved: its callers may have gone."""
    if not lookup.cancelled():
        lookup.exception()
