"""The check for open transactions: records behind them are invisible, and claims wait for them."""

import asyncio
import time
from collections.abc import Mapping, Sequence
from typing import Final

from aiokafka.structs import TopicPartition

from order_service.kafka.connection import Consumer, connection
from order_service.kafka.reader import Reader, kafka_answers
from order_service.kafka.topics import topic_configs
from order_service.operations.doctor.checks.brokers import RUNBOOK
from order_service.operations.doctor.checks.check import Result, ok, problem
from order_service.settings import Settings
from order_service.worker.monitoring.end_offsets import End

OPEN_AFTER_S: Final = 5.0
"""A transaction that is open for so long is reported. A turn of a busy worker takes less than a second."""
LOOK_EVERY_S: Final = 0.5


async def check_transactions(settings: Settings) -> list[Result]:
    """Check that no last stable offset stays before the end of its partition."""
    servers = connection(settings)["bootstrap_servers"]
    async with Reader(settings) as reader:
        uncommitted = Consumer(**connection(settings), enable_auto_commit=False)
        try:
            with kafka_answers(servers):
                await uncommitted.start()
                partitions = await reader.led_partitions(*topic_configs(reader.names))
                return judge_transactions(await _open_for(reader, uncommitted, partitions))
        finally:
            await uncommitted.stop()


async def _open_for(
    reader: Reader, uncommitted: Consumer, partitions: Sequence[TopicPartition]
) -> dict[TopicPartition, int]:
    """Return where transactions were open during all of `OPEN_AFTER_S`, or nothing as soon as all have ended."""

    async def read() -> dict[TopicPartition, End]:
        stable, ends = await reader.ends(partitions), await uncommitted.end_offsets(partitions)
        return {partition: End(ends[partition], stable[partition]) for partition in partitions}

    give_up_at = time.monotonic() + OPEN_AFTER_S
    first = await read()
    open_from = still_open(first, first)
    while open_from and time.monotonic() < give_up_at:
        await asyncio.sleep(LOOK_EVERY_S)
        open_from = still_open(first, await read())
    return open_from


def still_open(before: Mapping[TopicPartition, End], now: Mapping[TopicPartition, End]) -> dict[TopicPartition, int]:
    """Return the first offset of each transaction that was open before, and still is."""
    return {
        partition: first.stable
        for partition, first in before.items()
        if first.stable < first.end and now[partition].stable == first.stable
    }


def judge_transactions(open_from: Mapping[TopicPartition, int]) -> list[Result]:
    """Return where transactions are open, with their first offsets."""
    return [
        problem(
            f"A transaction is open on partition {partition} of {topic} from offset {offset}; what follows it waits.",
            f"Find its owner, and follow {RUNBOOK}: the topic decides whether it may be aborted.",
        )
        for (topic, partition), offset in sorted(open_from.items())
    ] or [ok(f"No transaction stays open for {OPEN_AFTER_S:.0f} s.")]
