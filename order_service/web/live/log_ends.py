"""The ends of the events topic in Kafka: whether the log reaches a position that the views have not reached."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Final

import structlog

from order_service.errors import KafkaAwayError, TopicsError
from order_service.kafka.reader import Reader
from order_service.settings import Settings
from order_service.views.queries import Offsets

log = structlog.get_logger()

ASK_WITHIN_S: Final = 5.0
ASK_EVERY_S: Final = 0.5


class LogEnds:
    """The ends of the log as of the last request to Kafka. Callers that wait at the same time share a request."""

    def __init__(self, ask: Callable[[], Awaitable[Offsets]], ask_every_s: float = ASK_EVERY_S) -> None:
        self._ask = ask
        self._ask_every_s = ask_every_s
        self._ends: Offsets = {}
        self._asked_at = -ask_every_s
        self._is_known = False
        self._asking = asyncio.Lock()

    async def reach(self, offsets: Offsets) -> bool:
        """Return whether the log reaches these offsets, or True if Kafka does not answer: they may be valid."""
        arrived_at = time.monotonic()
        async with self._asking:
            if self._asked_at < arrived_at and not self._cover(offsets):
                await asyncio.sleep(self._asked_at + self._ask_every_s - time.monotonic())
                self._is_known = await self._update()
            return not self._is_known or self._cover(offsets)

    async def _update(self) -> bool:
        """Ask for the ends; return whether Kafka has answered."""
        self._asked_at = time.monotonic()
        try:
            async with asyncio.timeout(ASK_WITHIN_S):
                self._ends = await self._ask()
        except (KafkaAwayError, TopicsError, TimeoutError) as error:
            log.warning("The ends of the events are unknown; a stream waits.", error=type(error).__name__)
            return False
        return True

    def _cover(self, offsets: Offsets) -> bool:
        return all(offset <= self._ends.get(partition, 0) for partition, offset in offsets.items())


def ends_of_events(settings: Settings) -> Callable[[], Awaitable[Offsets]]:
    """Return a function that asks Kafka for the ends of the events topic."""

    async def ask() -> Offsets:
        async with Reader(settings) as reader:
            ends = await reader.ends(await reader.partitions(reader.names.events))
        return {(partition.topic, partition.partition): end for partition, end in ends.items()}

    return ask
