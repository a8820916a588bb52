"""The end offsets of the commands in our partitions, read from the broker: for the lag, and to find open transactions.

The last fetch also returns the ends, but only while the worker fetches.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Final, NoReturn

import structlog
from aiokafka.errors import KafkaError
from msgspec import Struct

from order_service.runtime.readiness import NotReady, ReadinessFault
from order_service.worker import metrics

log = structlog.get_logger()

LOOK_EVERY_S: Final = 0.5
ANSWER_WITHIN_S: Final = 10.0
OLD_AFTER_S: Final = 15.0
OPEN_AFTER_S: Final = 10.0
"""A transaction on the commands is reported when the last stable offset has not moved for so long, before the end."""


class End(Struct, frozen=True):
    """The end of a partition, and its last stable offset: records between the two wait for an open transaction."""

    end: int
    stable: int


class _LastEnd(Struct, frozen=True):
    """The last end that was read for a partition, when, and since when its last stable offset has not moved."""

    end: End
    at: float
    since: float

    @property
    def open_s(self) -> float:
        """How long an open transaction had blocked the partition at that time, 0 without one."""
        return self.at - self.since if self.end.stable < self.end.end else 0.0


class LogEnds:
    """The ends of the partitions that this worker holds, read periodically with one request per broker and kind.

    `read` returns them, and None for a partition without a leader: its last end is kept, and becomes out of date.
    """

    def __init__(
        self,
        topic: str,
        read: Callable[[], Awaitable[Mapping[int, End | None]]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._topic = topic
        self._read = read
        self._clock = clock
        self._seen: dict[int, _LastEnd] = {}
        self._read_at = clock()
        self._reported: set[int] = set()

    def end_of(self, partition: int) -> int:
        """Return the end of a partition as it was last read, 0 before that."""
        last = self._seen.get(partition)
        return 0 if last is None else last.end.end

    def stable_end_of(self, partition: int) -> int:
        """Return the last stable offset of a partition, 0 if the broker did not report it the last time."""
        last = self._seen.get(partition)
        return last.end.stable if last is not None and last.at == self._read_at else 0

    async def run(self) -> NoReturn:
        """Read the ends until cancelled; while a broker does not answer, the last ones stay."""
        while True:
            try:
                async with asyncio.timeout(ANSWER_WITHIN_S):
                    self.take(await self._read())
            except (KafkaError, TimeoutError) as error:
                log.debug("Reading the end offsets of the commands failed.", error=repr(error))
            await asyncio.sleep(LOOK_EVERY_S)

    def take(self, ends: Mapping[int, End | None]) -> None:
        """Record the ends that the broker returned, and report a transaction that opened or ended."""
        self._read_at = self._clock()
        self._seen = {partition: self._as_seen(partition, end) for partition, end in ends.items()}
        ages = _open_for(self._seen)
        for partition in ages.keys() - self._reported:
            log.error(
                "A transaction of another program is open; the commands behind it wait.",
                partition=partition,
                offset=self._seen[partition].end.stable,
                open_s=round(ages[partition]),
            )
        for partition in self._reported - ages.keys():
            log.info("The open transaction of another program has ended.", partition=partition)
        self._reported = set(ages)
        metrics.FOREIGN_TRANSACTION.remove_by_labels({"topic": self._topic})
        for partition in ends:
            metrics.FOREIGN_TRANSACTION.labels(self._topic, partition).set(ages.get(partition, 0.0))

    def faults(self) -> list[ReadinessFault]:
        """Return why commands wait, and which ends Kafka has stopped reporting; empty without a fault.

        The thread of the admin server calls this, while `take` may replace the recorded ends.
        """
        held = self._seen
        faults = [
            NotReady.OPEN_TRANSACTION.fault(
                partition=partition, topic=self._topic, offset=held[partition].end.stable, seconds=round(age_s)
            )
            for partition, age_s in sorted(_open_for(held).items())
        ]
        now = self._clock()
        if now - self._read_at > OLD_AFTER_S:
            faults.append(NotReady.ENDS_UNKNOWN.fault(topic=self._topic, seconds=round(now - self._read_at)))
            return faults
        return faults + [
            NotReady.END_UNKNOWN.fault(topic=self._topic, partition=partition, seconds=round(now - seen.at))
            for partition, seen in sorted(held.items())
            if now - seen.at > OLD_AFTER_S
        ]

    def _as_seen(self, partition: int, end: End | None) -> _LastEnd:
        now = self._read_at
        before = self._seen.get(partition, _LastEnd(End(0, 0), now, now))
        if end is None:
            return before
        is_held_on = before.end.stable < before.end.end and before.end.stable == end.stable
        return _LastEnd(end, now, before.since if is_held_on else now)


def _open_for(held: Mapping[int, _LastEnd]) -> dict[int, float]:
    """Return for how many seconds a transaction had blocked each blocked partition when its end was last read."""
    return {partition: seen.open_s for partition, seen in held.items() if seen.open_s >= OPEN_AFTER_S}
