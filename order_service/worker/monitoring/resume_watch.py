"""Watches the operations topic while lanes are parked: an operator resumes a lane by a record in its partition."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection, Mapping
from typing import Any, Final

import structlog
from aiokafka import TopicPartition
from aiokafka.errors import KafkaError

from order_service.kafka.connection import Consumer

log = structlog.get_logger()

LOOK_EVERY_S: Final = 2.0
ANSWER_WITHIN_S: Final = 10.0

ReadEnds = Callable[[list[TopicPartition]], Awaitable[Mapping[TopicPartition, int]]]


class CommittedEnds:
    """Reads last stable offsets, with a client that starts when it is first needed.

    A worker that claimed a lane for a record that is not committed yet would fence the operator who writes it.
    """

    def __init__(self, connection: dict[str, Any]) -> None:
        self._connection = connection
        self._client: Consumer | None = None

    async def read(self, partitions: list[TopicPartition]) -> Mapping[TopicPartition, int]:
        """Return the last stable offsets. Raises KafkaError. After an error, the next call starts another client."""
        try:
            if self._client is None:
                self._client = Consumer(**self._connection, enable_auto_commit=False, isolation_level="read_committed")
                await self._client.start()
                topics = {topic for topic, _ in partitions}
                await self._client._client.set_topics(topics)  # noqa: SLF001, else the first request waits 100 ms
            return dict(await self._client.end_offsets(partitions))
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """Stop the client, if there is one."""
        client, self._client = self._client, None
        if client is not None:
            await client.stop()


class ResumeWatch:
    """Compares the ends of the operations topic with those at the time when lanes were parked, or first claimed.

    `read_ends` asks the broker, with one request for all lanes. The first failure of several is logged.
    """

    def __init__(self, topic: str, read_ends: ReadEnds, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._topic = topic
        self._read_ends = read_ends
        self._clock = clock
        self._ends: dict[int, int] = {}
        self._look_at = 0.0
        self._is_readable = True
        self._lock = asyncio.Lock()

    async def note(self, partitions: Collection[int]) -> None:
        """Read the ends of lanes that are to be claimed. An operation that comes after that counts if the claim parks.

        Ends that are known stay valid: an operation may be newer than what was claimed before.
        """
        async with self._lock:
            self._ends = await self._read(set(partitions) - self._ends.keys()) | self._ends

    async def resumed(self, parked: Collection[int], claiming: Collection[int]) -> list[int]:
        """Return the parked lanes for which an operation was recorded since they were parked, or claimed.

        A lane that was just parked is looked at immediately, the others every `LOOK_EVERY_S`. If the end of a lane that
        is claimed could not be read before, it is read now.
        """
        parked, claiming = set(parked), set(claiming)  # both may change while the broker is asked
        async with self._lock:
            self._ends = {partition: end for partition, end in self._ends.items() if partition in parked | claiming}
            now = self._clock()
            asked = parked | (claiming - self._ends.keys())
            if not asked or (now < self._look_at and self._ends.keys() >= asked):
                return []
            self._look_at = now + LOOK_EVERY_S
            before, self._ends = self._ends, self._ends | await self._read(asked)
            return [each for each in sorted(parked) if self._ends.get(each, 0) > before.get(each, 2**63)]

    async def _read(self, partitions: set[int]) -> dict[int, int]:
        """Return the ends of these partitions, or nothing if they cannot be read."""
        if not partitions:
            return {}
        try:
            async with asyncio.timeout(ANSWER_WITHIN_S):
                ends = await self._read_ends([TopicPartition(self._topic, each) for each in sorted(partitions)])
        except (KafkaError, TimeoutError) as error:
            if self._is_readable:
                log.warning("Resumed lanes are not noticed: the operations cannot be read.", why=repr(error))
            self._is_readable = False
            return {}
        self._is_readable = True
        return {partition: end for (_, partition), end in ends.items()}
