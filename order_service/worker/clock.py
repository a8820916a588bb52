"""The worker's clock, and how it is compared with Kafka's.

Two faults cancel or delay valid orders: a wall clock that steps while the worker runs, and one that is far off.
After a step, `Clock` follows the monotonic clock until Kafka agrees with the wall clock. To detect a wrong clock, it
compares itself with the append time of the worker's own records. Brokers set that time (`LogAppendTime`).
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
"""A larger jump of the wall clock is a step. Time services correct smaller differences gradually."""
RECENT_S: Final = 60.0
LOG_APPEND_TIME: Final = 1
PROBES: Final = 5
"""Partitions written for the first comparison: enough that one broker's clock cannot dominate the median."""
PROBE_AGAIN_S: Final = 5.0


class Clock:
    """Wall-clock time that is not affected by steps of the wall clock.

    `wall` and `steady` return seconds: since 1970 UTC, and since an arbitrary moment. `skew_max_s` is the largest
    difference from Kafka's time that is allowed.
    """

    def __init__(
        self,
        skew_max_s: float,
        *,
        wall: Callable[[], float] = time.time,
        steady: Callable[[], float] = time.monotonic,
    ) -> None:
        self._skew_max_s = skew_max_s
        self._wall = wall
        self._steady = steady
        self._anchor = (wall(), steady())
        self._has_stepped = False
        self._kafka_s: dict[int, tuple[float, float]] = {}

    def now(self) -> datetime:
        """Return the time in whole milliseconds, the precision of events."""
        return datetime.fromtimestamp(int(self._now_s() * 1000) / 1000, UTC)

    def compare(self, written: Iterable[RecordMetadata]) -> None:
        """Compare the clock with the append times of records that were just written.

        The median over the partitions written in the last minute counts, so one broker with a wrong clock has no
        effect. Raises ClockError if the difference exceeds `skew_max_s`.
        """
        now_s = self._steady()
        for record in written:
            if record.timestamp_type == LOG_APPEND_TIME:
                self._kafka_s[record.partition] = (record.timestamp / 1000 - now_s, now_s)
        recent = [kafka_s for kafka_s, seen_at in self._kafka_s.values() if now_s - seen_at < RECENT_S]
        if not recent:
            return
        kafka_s, wall = median(recent) + now_s, self._wall()
        if abs(wall - kafka_s) <= STEP_S:  # Kafka agrees with the wall clock: a step, if any, was correct
            self._anchor = (wall, now_s)
        skew_s = self._now_s() - kafka_s
        metrics.CLOCK_SKEW.set(skew_s)
        if abs(skew_s) > self._skew_max_s:
            raise ClockError(describe_skew(skew_s, self._skew_max_s))

    def _now_s(self) -> float:
        wall, steady = self._wall(), self._steady()
        expected = self._anchor[0] + steady - self._anchor[1]
        has_stepped = abs(wall - expected) > STEP_S
        if has_stepped != self._has_stepped:
            self._has_stepped = has_stepped
            if has_stepped:
                log.warning("The wall clock has stepped; using the monotonic clock.", by_s=round(wall - expected, 1))
            else:
                log.info("Using the wall clock again.")
        if has_stepped:
            return expected
        self._anchor = (wall, steady)
        return wall


async def wait_until_near(clock: Clock, settings: Settings, topic: str, on_reason: Callable[[str], None]) -> None:
    """Wait until the clock is near Kafka's. `on_reason` gets each new reason to wait.

    A worker does this before it joins its group. Otherwise a worker with a wrong clock would repeatedly take partitions
    from healthy workers and end at its first turn. Partitions that cannot be written to now are skipped; every turn
    compares the clock again.
    """
    last_reason = None
    while True:
        try:
            clock.compare(await _probe(connection(settings), topic, min(PROBES, settings.partitions)))
        except ClockError as error:
            if str(error) != last_reason:
                last_reason = str(error)
                on_reason(last_reason)
        else:
            return
        await asyncio.sleep(PROBE_AGAIN_S)


async def _probe(arguments: dict[str, Any], topic: str, count: int) -> list[RecordMetadata]:
    """Write a record to `count` partitions of the table's changelog, under the key that all its readers skip."""
    producer = Producer(**arguments, request_timeout_ms=5_000)
    try:
        await producer.start()
        sends = [
            producer.send_and_wait(topic, value=b"", key=BARRIER_KEY, partition=partition) for partition in range(count)
        ]
        results = await asyncio.gather(*sends, return_exceptions=True)
    except KafkaError as error:
        log.warning("Clock comparison with Kafka failed.", error=repr(error))
        return []
    finally:
        await producer.stop()
    return [result for result in results if isinstance(result, RecordMetadata)]


def describe_skew(skew_s: float, skew_max_s: float) -> str:
    """Return the message for a clock that differs from Kafka's by `skew_s`: the fault and its remedy."""
    side = "ahead of" if skew_s > 0 else "behind"
    return (
        f"the clock of this machine is {abs(skew_s):.0f} s {side} Kafka's, more than the {skew_max_s:.0f} s of "
        "ORDERS_CLOCK_SKEW_MAX_S: set the clock of the machine or of the brokers"
    )
