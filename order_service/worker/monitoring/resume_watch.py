"""Watches the operations topic while lanes are parked: an operator resumes a lane by a record in its partition."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection, Mapping
from typing import Any, Final

import structlog
from aiokafka import TopicPartition
from aiokafka.errors import KafkaError

from order_service.errors import TopicsError
from order_service.kafka.connection import Consumer, knows_leader, leaderless

log = structlog.get_logger()

LOOK_EVERY_S: Final = 2.0
ANSWER_WITHIN_S: Final = 10.0
ENDS_READ_WITHIN_S: Final = 1.0
"""How long claims wait for the ends of the operations. No lane needs them to run."""

ReadEnds = Callable[[list[TopicPartition]], Awaitable[Mapping[TopicPartition, int]]]


class CommittedEnds:
    """Reads last stable offsets, with a client that starts when it is first needed.

    A worker that claimed a lane for a record that is not committed yet would fence the operator who writes it.
    """

    def __init__(self, connection: dict[str, Any]) -> None:
        self._connection = connection
        self._client: Consumer | None = None

    async def read(self, partitions: list[TopicPartition]) -> Mapping[TopicPartition, int]:
        """Return the last stable offsets of the partitions that have a leader: one without would delay all others.

        Raises KafkaError or TopicsError. After an error, the next call starts another client.
        """
        try:
            if self._client is None:
                self._client = Consumer(**self._connection, enable_auto_commit=False, isolation_level="read_committed")
                await self._client.start()
                topics = {topic for topic, _ in partitions}
                await self._client._client.set_topics(topics)  # noqa: SLF001, else the first request waits 100 ms
            if not all(knows_leader(self._client, partition) for partition in partitions):
                missing = await leaderless(self._client, partitions)
                partitions = [partition for partition in partitions if partition not in missing]
            return dict(await self._client.end_offsets(partitions)) if partitions else {}
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """Stop the client, if there is one."""
        client, self._client = self._client, None
        if client is not None:
            await client.stop()


class ResumeWatch:
    """Compares the ends of the operations topic with those before the claims of the lanes.

    A lane whose end was not read before its claim counts as resumed once: a superfluous claim is harmless, and a missed
    operation is not. `read_ends` asks the broker, once for all lanes. The first failure of several is logged.
    """

    def __init__(self, topic: str, read_ends: ReadEnds, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._topic = topic
        self._read_ends = read_ends
        self._clock = clock
        self._ends: dict[int, int] = {}
        self._look_at = 0.0
        self._is_readable = True
        self._lock = asyncio.Lock()

    async def read_before_claims(self, assigned: Collection[int]) -> None:
        """Read the ends of newly assigned partitions. After ENDS_READ_WITHIN_S they are dropped: the claims have begun.

        Ends that are known stay valid: an operation may be newer than what was claimed before.
        """
        began_at = self._clock()
        self._ends = {partition: end for partition, end in self._ends.items() if partition in assigned}
        ends = await self._read(set(assigned) - self._ends.keys())
        if self._clock() - began_at <= ENDS_READ_WITHIN_S:
            self._ends = ends | self._ends

    async def resumed(self, parked: Callable[[], Collection[int]]) -> list[int]:
        """Return the parked lanes for which an operation was recorded since they were claimed, each operation once.

        The broker is asked every `LOOK_EVERY_S`. A lane that is claimed again meanwhile is compared at a later call.
        """
        asked, now = set(parked()), self._clock()
        if not asked or now < self._look_at:
            return []
        self._look_at = now + LOOK_EVERY_S
        ends = await self._read(asked)
        grown = {each: ends[each] for each in ends.keys() & parked() if ends[each] > self._ends.get(each, -1)}
        self._ends |= grown
        return sorted(grown)

    async def _read(self, partitions: set[int]) -> dict[int, int]:
        """Return the ends of these partitions, without those that cannot be read."""
        if not partitions:
            return {}
        try:
            async with self._lock, asyncio.timeout(ANSWER_WITHIN_S):
                ends = await self._read_ends([TopicPartition(self._topic, each) for each in sorted(partitions)])
        except (KafkaError, TimeoutError, TopicsError) as error:
            if self._is_readable:
                log.warning("The operations topic cannot be read; resumed lanes are not detected.", why=repr(error))
            self._is_readable = False
            return {}
        self._is_readable = True
        return {partition: end for (_, partition), end in ends.items()}
