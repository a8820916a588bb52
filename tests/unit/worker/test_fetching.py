"""What a worker asks Kafka beside its fetching."""

import asyncio
import gc
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka.errors import KafkaConnectionError
from mode.utils.queues import FlowControlEvent

from order_service.local.broker import free_port
from order_service.worker.faust.app import FaustFetching


async def test_asking_for_an_end_while_kafka_is_away_leaves_no_consumer_open():
    app: Any = SimpleNamespace(connection={"bootstrap_servers": f"127.0.0.1:{free_port()}"})
    fetching = FaustFetching(app, "orders.commands.v1")
    with pytest.raises(KafkaConnectionError):
        await fetching.end(0)
    gc.collect()  # an unclosed consumer would warn, and a warning is an error here


@pytest.mark.parametrize("is_resumed_last", [True, False])
async def test_a_partition_is_fetched_only_when_faust_delivers_records_again(is_resumed_last):
    """Before the end of a rebalance Faust drops the first run of a lane that runs on."""
    opened = []

    async def open_at(_partition, offset, _seek):
        opened.append(offset)

    async def run(work):
        await work

    class Fetching(FaustFetching):
        _consumer: Any = SimpleNamespace(run_in_fetch_thread=run, thread=SimpleNamespace(open=open_at))

    app: Any = SimpleNamespace(delivers=asyncio.Event(), flow_control=FlowControlEvent())
    first, last = (app.delivers.set, app.flow_control.resume)[:: 1 if is_resumed_last else -1]
    first()
    opening = asyncio.create_task(Fetching(app, "orders.commands.v1").open(0, 7, 1))
    await asyncio.wait({opening}, timeout=0.05)
    assert opened == []
    last()
    await asyncio.wait_for(opening, 30)
    assert opened == [7]
