"""Checks of the clocks: this machine's against those of the services, of a worker and of the brokers.

They use what can be read without writing a record: the `Date` of HTTP responses, what a worker has measured, and the
times of records. A record only shows that the clock of its broker is not behind its time.
"""

import re
import time
from email.utils import parsedate_to_datetime
from typing import Any, Final

from aiokafka.structs import TopicPartition

from order_service.errors import NoResponse
from order_service.kafka.connection import Consumer, connection
from order_service.kafka.reader import Reader, kafka_answers
from order_service.operations.doctor.checks.check import Result, not_checked, ok, problem
from order_service.operations.doctor.checks.readiness import admin_address, get
from order_service.settings import Settings

SKEW_METRIC: Final = re.compile(r"^orders_clock_skew_seconds (-?[0-9]+(?:\.[0-9]+)?(?:e[+-]?[0-9]+)?)$", re.MULTILINE)
SET_CLOCK: Final = "Set the clock of this machine or of the other one; a time service such as chrony keeps it."


async def check_clock(settings: Settings) -> list[Result]:
    """Compare this machine's clock with those of the services, and read what a worker has measured."""
    urls = {"the User Service": settings.user_service_url}
    if settings.schema_registry_urls:
        urls["the schema registry"] = settings.schema_registry_urls[0]
    skews = {name: await _skew_of(url) for name, url in urls.items()}
    known = {name: skew_s for name, skew_s in skews.items() if skew_s is not None}
    return judge_clock(known, await _skew_of_worker(settings), settings.clock_skew_max_s)


def judge_clock(skews: dict[str, float], worker_skew_s: float | None, skew_max_s: float) -> list[Result]:
    """Return the differences from this machine's clock (positive: it is ahead), and that of a worker from Kafka's."""
    results = [
        problem(f"The clock of this machine is {abs(skew_s):.0f} s {_side(skew_s)} that of {name}.", SET_CLOCK)
        for name, skew_s in skews.items()
        if abs(skew_s) > skew_max_s
    ]
    if worker_skew_s is not None and abs(worker_skew_s) > skew_max_s:
        text = f"The clock of the worker's machine is {abs(worker_skew_s):.0f} s {_side(worker_skew_s)} Kafka's."
        results.append(problem(text, SET_CLOCK))
    if results:
        return results
    compared = [f"{abs(skew_s):.0f} s from {name}" for name, skew_s in skews.items()]
    if worker_skew_s is not None:
        compared.append(f"{abs(worker_skew_s):.1f} s from Kafka, as a worker measured")
    if not compared:
        return [not_checked("No service answers with a time to compare this machine's clock with.")]
    return [ok(f"This machine's clock differs by {', by '.join(compared)}.")]


def _side(skew_s: float) -> str:
    return "ahead of" if skew_s > 0 else "behind"


async def _skew_of(url: str) -> float | None:
    """Return by how many seconds this machine's clock is ahead of the `Date` of a response; None without one."""
    asked_at = time.time()
    try:
        reply = await get(url)
        served_at = parsedate_to_datetime(reply.date).timestamp()
    except (NoResponse, ValueError):
        return None
    return skew_from(served_at, asked_at, time.time())


def skew_from(served_at: float, asked_at: float, answered_at: float) -> float:
    """Return how far a clock is ahead of a `Date`, which has whole seconds: 0 if both can be the same moment."""
    if asked_at > served_at + 1:
        return asked_at - (served_at + 1)
    return min(0.0, answered_at - served_at)


async def _skew_of_worker(settings: Settings) -> float | None:
    try:
        reply = await get(f"{admin_address(settings)}/metrics")
    except NoResponse:
        return None
    return measured_skew(reply.body.decode(errors="replace"))


def measured_skew(metrics: str) -> float | None:
    """Return the skew in the metrics of a worker; None if it has not measured one."""
    match = SKEW_METRIC.search(metrics)
    return float(match[1]) if match else None


async def check_broker_clock(settings: Settings) -> list[Result]:
    """Check that no record has a time in the future: the brokers' clocks would be ahead of this machine's."""
    ahead_s = settings.clock_skew_max_s
    async with Reader(settings) as reader:
        partitions = await reader.led_partitions(*reader.names.written)
        future = await _topics_after(settings, partitions, time.time() + ahead_s)
    if future:
        text = f"Records of {', '.join(future)} have times over {ahead_s:g} s ahead of this machine's clock."
        return [problem(text, SET_CLOCK)]
    return [ok(f"No record has a time over {ahead_s:g} s ahead of this machine's clock.")]


async def _topics_after(settings: Settings, partitions: list[TopicPartition], time_s: float) -> list[str]:
    """Return the topics that have records after a time."""
    consumer = Consumer(**connection(settings), enable_auto_commit=False)
    try:
        with kafka_answers(connection(settings)["bootstrap_servers"]):
            await consumer.start()
            offsets: dict[TopicPartition, Any] = await consumer.offsets_for_times(
                dict.fromkeys(partitions, round(time_s * 1000))
            )
    finally:
        await consumer.stop()
    return sorted({partition.topic for partition, offset in offsets.items() if offset is not None})
