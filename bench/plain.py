"""The peer: a plain aiokafka loop that promises nothing. Same commands, no transactions, no changelog, small events.

A crash between its sends and its commit doubles events, and a restart begins with an empty dict.
"""

import asyncio
from multiprocessing.connection import Connection
from typing import Any

import msgspec
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer

Order = dict[str, Any]


def consume(pipe: "Connection[Any, Any]", servers: str, source: str, target: str) -> None:
    """Run the loop until killed."""
    asyncio.run(_loop(pipe, servers, source, target))


async def _loop(pipe: "Connection[Any, Any]", servers: str, source: str, target: str) -> None:
    consumer = AIOKafkaConsumer(
        source, bootstrap_servers=servers, group_id=target, enable_auto_commit=False, auto_offset_reset="earliest"
    )
    producer = AIOKafkaProducer(bootstrap_servers=servers, linger_ms=5)
    await consumer.start()
    await producer.start()
    pipe.send("ready")
    orders: dict[str, Order] = {}
    while True:
        fetched = await consumer.getmany(timeout_ms=100, max_records=2_000)
        arrivals = []
        for records in fetched.values():
            for record in records:
                command = msgspec.json.decode(record.value)
                order = _fold(orders, command)
                event = {"type": command["type"], "order_id": command["order_id"], "version": order["version"]}
                arrivals.append(await producer.send(target, msgspec.json.encode(event), key=record.key))
        await asyncio.gather(*arrivals)
        if fetched:
            await consumer.commit()


def _fold(orders: dict[str, Order], command: dict[str, Any]) -> Order:
    order = orders.setdefault(command["order_id"], {"version": 0})
    order.update(command)
    order["version"] += 1
    return order
