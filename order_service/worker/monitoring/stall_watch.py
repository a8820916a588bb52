"""Detects lanes whose commands are not fetched although the broker reports some. No other check detects this."""

import time
from collections.abc import Callable
from typing import Final

import structlog
from msgspec import Struct

from order_service.runtime.readiness import NotReady, ReadinessFault
from order_service.worker import metrics

log = structlog.get_logger()

STALLED_AFTER_S: Final = 15.0


class _LastMove(Struct, frozen=True):
    """The position of a lane and since when it has not moved, by the clock of the watch."""

    offset: int
    since_s: float


class StallWatch:
    """The position of each running lane over time. A stalled lane is reported but not parked: fetching may resume."""

    def __init__(self, topic: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._topic = topic
        self._clock = clock
        self._seen: dict[int, _LastMove] = {}
        self._stalled: set[int] = set()

    def note(self, partition: int, offset: int, *, has_more: bool) -> None:
        """Record the position of a lane, and whether the broker has more commands for it that were not fetched yet."""
        now = self._clock()
        seen = self._seen.get(partition)
        if seen is None or seen.offset != offset or not has_more:
            seen = self._seen[partition] = _LastMove(offset, now)
        is_stalled = now - seen.since_s > STALLED_AFTER_S
        if is_stalled and partition not in self._stalled:
            log.error("Commands are not fetched.", partition=partition, offset=offset)
        elif not is_stalled and partition in self._stalled:
            log.info("Commands are fetched again.", partition=partition)
        (self._stalled.add if is_stalled else self._stalled.discard)(partition)

    def keep(self, partitions: set[int]) -> None:
        """Keep these lanes and forget all others."""
        self._seen = {partition: seen for partition, seen in self._seen.items() if partition in partitions}
        self._stalled &= partitions
        metrics.LANES.labels("stalled").set(len(self._stalled))

    def faults(self) -> list[ReadinessFault]:
        """Return which lanes are stalled. The thread of the admin server calls this."""
        now, seen = self._clock(), self._seen
        return [
            NotReady.NOT_FETCHED.fault(
                partition=partition,
                topic=self._topic,
                offset=seen[partition].offset,
                seconds=round(now - seen[partition].since_s),
            )
            for partition in sorted(self._stalled)
            if partition in seen
        ]
