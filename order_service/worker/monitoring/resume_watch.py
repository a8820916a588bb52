"""Watches the operations topic while lanes are parked: an operator resumes a lane by a record in its partition."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection, Mapping
from typing import Final

import structlog
from aiokafka import TopicPartition
from aiokafka.errors import KafkaError

log = structlog.get_logger()

LOOK_EVERY_S: Final = 2.0
ANSWER_WITHIN_S: Final = 10.0

ReadEnds = Callable[[list[TopicPartition]], Awaitable[Mapping[TopicPartition, int]]]


class ResumeWatch:
    """Compares the ends of the operations topic with those at the time when lanes were parked.

    `read_ends` asks the broker, with one request for all lanes. The first failure of several is logged.
    """

    def __init__(self, topic: str, read_ends: ReadEnds, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._topic = topic
        self._read_ends = read_ends
        self._clock = clock
        self._ends: dict[int, int] = {}
        self._look_at = 0.0
        self._is_readable = True

    async def resumed(self, parked: Collection[int], claiming: Collection[int]) -> list[int]:
        """Return the parked lanes for which an operation was recorded since they were parked.

        A lane that was just parked is looked at immediately, the others every `LOOK_EVERY_S`. The end that is known for
        a lane stays valid while it is claimed again, because the claim may park it again.
        """
        self._ends = {partition: end for partition, end in self._ends.items() if partition in {*parked, *claiming}}
        now = self._clock()
        if not parked or (now < self._look_at and self._ends.keys() >= set(parked)):
            return []
        self._look_at = now + LOOK_EVERY_S
        partitions = [TopicPartition(self._topic, partition) for partition in sorted(parked)]
        try:
            async with asyncio.timeout(ANSWER_WITHIN_S):
                ends = await self._read_ends(partitions)
        except (KafkaError, TimeoutError) as error:
            if self._is_readable:
                log.warning("Resumed lanes are not noticed: the operations cannot be read.", why=repr(error))
            self._is_readable = False
            return []
        self._is_readable = True
        before, self._ends = self._ends, self._ends | {partition: end for (_, partition), end in ends.items()}
        return [partition for _, partition in partitions if self._ends[partition] > before.get(partition, 2**63)]
