"""The limit: the same fetches, turns, transactions and sizes, but the records are made beforehand; nothing is decided.

What lies between this and the service is the price of deciding; what lies above it is the clients' and the broker's.
"""

import asyncio
from itertools import islice
from multiprocessing.connection import Connection
from typing import Any
from uuid import uuid4

from aiokafka import AIOKafkaConsumer

from bench.load import LIFE, Shop
from order_service.domain.decision import UserCheck, answer
from order_service.domain.entry import Entry, after_event
from order_service.domain.messages import Event
from order_service.wire import avro, changelog
from order_service.wire.headers import event_headers
from order_service.worker.records import Record
from order_service.worker.transactions import TurnProducer
from order_service.worker.turn import MAX_COMMANDS
from tests.support.samples import NOW


def consume(pipe: "Connection[Any, Any]", servers: str, source: str, events: str, table: str) -> None:
    """Run the loop until killed."""
    asyncio.run(_loop(pipe, servers, source, events, table))


async def _loop(pipe: "Connection[Any, Any]", servers: str, source: str, events: str, table: str) -> None:
    consumer = AIOKafkaConsumer(
        source,
        bootstrap_servers=servers,
        group_id=events,
        enable_auto_commit=False,
        auto_offset_reset="earliest",
        isolation_level="read_committed",
    )
    producer = TurnProducer(f"limit-{uuid4().hex}", {"bootstrap_servers": servers})
    await consumer.start()
    await producer.start()
    written = _life()
    pipe.send("ready")
    commit: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    commit.set_result(None)
    while True:
        fetched = await consumer.getmany(timeout_ms=100, max_records=MAX_COMMANDS)
        if not fetched:
            continue
        await commit
        await producer.begin()
        sent = []
        for place, records in fetched.items():
            for topic, made in zip((table, events), written, strict=True):
                sent += await producer.send_all(topic, place.partition, islice(made, len(records)))
        commit = asyncio.create_task(producer.commit(sent))  # meanwhile the next is fetched, as the service does


def _life() -> tuple[list[Record], list[Record]]:
    """Make what the service writes for whole lives of orders, as much as a turn can need: table records and events."""
    table: list[Record] = []
    events: list[Record] = []
    for number in range(MAX_COMMANDS // len(LIFE) + 1):
        entry: Entry | None = None
        for step in LIFE:
            event = answer(step(Shop("limit"), number), entry, NOW, UserCheck.ACTIVE)
            if not isinstance(event, Event):
                raise TypeError(f"the life of an order has an event for every step, not {event}")
            value, key = avro.encode_event(event), event.order_id.encode()
            entry = after_event(entry, event, avro.digest(value))
            table.append((key, changelog.encode(entry), []))
            events.append((key, value, event_headers(event, None, number)))
    return table, events
