"""What a worker asks Kafka beside its fetching."""

import gc
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka.errors import KafkaConnectionError

from order_service.local.broker import free_port
from order_service.worker.faust.app import FaustFetching


async def test_asking_for_an_end_while_kafka_is_away_leaves_no_consumer_open():
    app: Any = SimpleNamespace(connection={"bootstrap_servers": f"127.0.0.1:{free_port()}"})
    fetching = FaustFetching(app, "orders.commands.v1")
    with pytest.raises(KafkaConnectionError):
        await fetching.end(0)
    gc.collect()  # an unclosed consumer would warn, and a warning is an error here
