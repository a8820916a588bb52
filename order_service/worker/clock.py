"""The time by which a worker decides, compared with Kafka's.

Two kinds of fault end or delay orders that are fine: a wall clock that steps while the worker runs, and one that is far
off. Against the first, `Clock` trusts the monotonic clock until Kafka agrees with the wall clock. Against the second it
compares itself with the append time of the worker's own records, which brokers stamp (`LogAppendTime`).
"""

import asyncio
import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from statistics import median
from typing import Any, Final

import structlog
from aiokafka.errors import KafkaError
from aiokafka.structs import RecordMetadata

from order_service.errors import ClockError
from order_service.kafka.connection import Producer, connection
from order_service.settings import Settings
from order_service.wire.changelog import BARRIER_KEY
from order_service.worker import metrics

log = structlog.get_logger()

STEP_S: Final = 1.0
"""A wall clock that moves by more at once has stepped; time services correct less by a slower or faster second."""
RECENT_S: Final = 60.0
LOG_APPEND_TIME: Final = 1
PROBES: Final = 5
"""Partitions that are written to for a first comparison: enough that one broker's clock does not decide."""
PROBE_AGAIN_S: Final = 5.0


class Clock:
    """Wall-clock time that no step of the wall clock moves.

    `wall` and `steady` return seconds: since 1970 UTC, and since any moment. `far_s` is the difference from Kafka's
    time at which the worker stops taking part.
    """

    def __init__(
        self,
        far_s: float,
        *,
        wall: Callable[[], float] = time.time,
        steady: Callable[[], float] = time.monotonic,
    ) -> None:
        self._far_s = far_s
        self._wall = wall
        self._steady = steady
        self._anchor = (wall(), steady())
        self._has_stepped = False
        self._kafka_s: dict[int, tuple[float, float]] = {}

    def now(self) -> datetime:
        """Return the time in whole milliseconds, as events carry it."""
        return datetime.fromtimestamp(int(self._now_s() * 1000) / 1000, UTC)

    def compare(self, written: Iterable[RecordMetadata]) -> None:
        """Compare with the time that brokers gave to records which were written just now.

        The median of the partitions that were written in the last minute counts, so one broker with a wrong clock
        decides nothing. Raises ClockError if the difference is over `far_s`.
        """
        at = self._steady()
        for record in written:
            if record.timestamp_type == LOG_APPEND_TIME:
                self._kafka_s[record.partition] = (record.timestamp / 1000 - at, at)
        recent = [kafka_s for kafka_s, seen_at in self._kafka_s.values() if at - seen_at < RECENT_S]
        if not recent:
            return
        kafka_s, wall = median(recent) + at, self._wall()
        if abs(wall - kafka_s) <= STEP_S:  # Kafka agrees with the wall clock: a step was right, or there was none
            self._anchor = (wall, at)
        skew_s = self._now_s() - kafka_s
        metrics.CLOCK_SKEW.set(skew_s)
        if abs(skew_s) > self._far_s:
            raise ClockError(far(skew_s, self._far_s))

    def _now_s(self) -> float:
        wall, steady = self._wall(), self._steady()
        expected = self._anchor[0] + steady - self._anchor[1]
        has_stepped = abs(wall - expected) > STEP_S
        if has_stepped != self._has_stepped:
            self._has_stepped = has_stepped
            if has_stepped:
                log.warning("The wall clock has stepped; the monotonic clock decides.", by_s=round(wall - expected, 1))
            else:
                log.info("The wall clock is trusted again.")
        if has_stepped:
            return expected
        self._anchor = (wall, steady)
        return wall


async def wait_until_near(clock: Clock, settings: Settings, topic: str, tell: Callable[[str], None]) -> None:
    """Wait until the clock is near Kafka's; `tell` each new reason to wait.

    A worker does this before it joins its group: with a clock that is far off it would take partitions from good
    workers and end at its first turn, again and again. Partitions that cannot be written to now are left out; the
    clock is compared again at every turn.
    """
    told = None
    while True:
        try:
            clock.compare(await _probe(connection(settings), topic, min(PROBES, settings.partitions)))
        except ClockError as error:
            if str(error) != told:
                told = str(error)
                tell(told)
        else:
            return
        await asyncio.sleep(PROBE_AGAIN_S)


async def _probe(arguments: dict[str, Any], topic: str, count: int) -> list[RecordMetadata]:
    """Write a record to some partitions of the table's changelog, under the key that all its readers pass over."""
    producer = Producer(**arguments, request_timeout_ms=5_000)
    try:
        await producer.start()
        written = [
            producer.send_and_wait(topic, value=b"", key=BARRIER_KEY, partition=partition) for partition in range(count)
        ]
        answers = await asyncio.gather(*written, return_exceptions=True)
    except KafkaError as error:
        log.warning("The clock cannot be compared with Kafka's now.", error=repr(error))
        return []
    finally:
        await producer.stop()
    return [answer for answer in answers if isinstance(answer, RecordMetadata)]


def far(skew_s: float, far_s: float) -> str:
    """Return what is wrong with a clock that differs from Kafka's by `skew_s`, and what to do."""
    side = "ahead of" if skew_s > 0 else "behind"
    return (
        f"the clock of this machine is {abs(skew_s):.0f} s {side} Kafka's, more than the {far_s:.0f} s of "
        "ORDERS_CLOCK_SKEW_MAX_S: set the clock of the machine or of the brokers"
    )
