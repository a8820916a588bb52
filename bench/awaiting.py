"""Awaiting: what an SDK caller takes of a core, and how long it waits for outcomes, beside the load of others.

Not part of the whole bench: `python -m bench awaiting`.
"""

import asyncio
import gc
import time
from collections.abc import Iterator
from itertools import count, islice
from multiprocessing.connection import Connection
from typing import Any, Final

from confluent_kafka import Consumer, Producer, TopicPartition
from msgspec import Struct

from bench.load import Pace, Shop, create, in_rotation, send_evenly
from bench.processes import running
from bench.sizes import RUNS, scaled_s
from bench.table import Row, Target, percentile
from bench.watching import Ends, WrongResult
from bench.world import World
from order_service.domain.messages import Command
from order_service.kafka.topics import TopicNames
from order_service.sdk import Accepted, OrderCommands
from order_service.settings import Settings
from order_service.wire.commands import encode_json_command
from tests.support.service import Service, enqueue, until

PARTITIONS: Final = 12
PER_S: Final = 10
MEASURED_S: Final = scaled_s(20.0)
WARM_S: Final = 2.0
LOAD_PER_S: Final = 20_000
LOAD_S: Final = scaled_s(5.0)
DECIDED_WITHIN_S: Final = 120.0
COPIED: Final = 5_000
TRANSACTIONS_PER_S: Final = 10

HOW = f"""\
One process with the SDK sends {PER_S} creates/s to {PARTITIONS} partitions in turn, and awaits each outcome: its \
processor time and the time from the call to the outcome, over {MEASURED_S:g} s after {WARM_S:g} s. One worker. \
First alone, after {LOAD_PER_S:,} commands/s were sent to all partitions for {LOAD_S:g} s and decided. Then beside \
what {LOAD_PER_S:,} outcomes/s write to all partitions: copies of these events and table records, under the keys of \
other orders, {TRANSACTIONS_PER_S} transactions/s. So this figure does not depend on how fast a worker is here."""


class Cost(Struct, frozen=True):
    """What a caller took of a core in percent, and the latencies of its commands."""

    percent_of_a_core: float
    latencies_ms: list[float]


def measure(world: World) -> list[Row]:
    """Watch a caller after the load of others and beside it, once per run."""
    after: list[Cost] = []
    beside: list[Cost] = []
    for run in range(1, RUNS + 1):
        with world.service(partitions=PARTITIONS) as service:
            service.start_worker().wait_lanes(PARTITIONS)
            load(service)
            after.append(caller(service, f"after-{run}"))
            with running(copy_outcomes, service.bootstrap_servers, service.names, PARTITIONS) as copying:
                copying.recv()
                beside.append(caller(service, f"beside-{run}"))
                copying.send("end")
                copied_per_s = copying.recv()
        world.say(f"awaiting {run}: after {_text(after[-1])}; beside {copied_per_s:,.0f}/s {_text(beside[-1])}")
    return [*_rows(f"after {LOAD_PER_S:,}/s", after), *_rows(f"beside {LOAD_PER_S:,}/s", beside)]


def load(service: Service) -> None:
    """Send the load, and wait until the worker has decided it."""
    ends = Ends(service.bootstrap_servers, service.names.events, service.partitions)
    pace = Pace(service.bootstrap_servers, service.names.commands, Shop("load"), LOAD_PER_S, LOAD_S)
    with running(send_evenly, pace, encode_json_command) as sender:
        sender.recv()
        sender.send("go")
        sent = sender.recv()
    until(lambda: ends.sum() >= sent.count, "the load is decided", within_s=DECIDED_WITHIN_S)


def copy_outcomes(pipe: "Connection[Any, Any]", servers: str, names: TopicNames, partitions: int) -> None:
    """Write copies of the first events and table records at the rate of the load, until told; tell their rate."""
    gc.disable()
    values = {topic: _values(servers, topic, partitions) for topic in (names.events, names.table)}
    producer = Producer(
        {"bootstrap.servers": servers, "transactional.id": f"{names.events}-copies", "linger.ms": 5, "log_level": 3}
    )
    producer.init_transactions(30)
    size = LOAD_PER_S // TRANSACTIONS_PER_S
    numbers = count()
    began_at = time.monotonic()
    for transaction in count():
        producer.begin_transaction()
        for number in islice(numbers, size):
            for topic, copied in values.items():
                key, value = f"copy-{number}", copied[number % len(copied)]
                enqueue(producer, topic, key, value, partition=number % partitions)
        producer.commit_transaction(30)
        if transaction == 0:
            pipe.send("begun")
        if pipe.poll(max(0.0, began_at + (transaction + 1) / TRANSACTIONS_PER_S - time.monotonic())):
            pipe.send((transaction + 1) * size / (time.monotonic() - began_at))
            return


def _values(servers: str, topic: str, partitions: int) -> list[bytes]:
    """Return the first values of a topic."""
    consumer = Consumer({"bootstrap.servers": servers, "group.id": "none", "isolation.level": "read_committed"})
    consumer.assign([TopicPartition(topic, partition, 0) for partition in range(partitions)])
    values: list[bytes] = []
    try:
        while len(values) < COPIED:
            messages = consumer.consume(COPIED - len(values), 30)
            if not messages:
                raise WrongResult(f"{topic} has {len(values)} records, not {COPIED}")
            values += [value for message in messages if (value := message.value())]
    finally:
        consumer.close()
    return values


def caller(service: Service, name: str) -> Cost:
    """Run a caller in a process of its own."""
    with running(await_evenly, service.settings(), Shop(name)) as pipe:
        cost: Cost | WrongResult = pipe.recv()
    if isinstance(cost, WrongResult):
        raise cost
    return cost


def await_evenly(pipe: "Connection[Any, Any]", settings: Settings, shop: Shop) -> None:
    """Send creates at a pace and await each outcome: an open loop."""
    gc.disable()
    try:
        pipe.send(asyncio.run(_await_evenly(settings, shop)))
    except WrongResult as error:
        pipe.send(error)


async def _await_evenly(settings: Settings, shop: Shop) -> Cost:
    async with OrderCommands(actor="service:bench", settings=settings) as orders:
        commands = (create(shop, number) for number in in_rotation(shop, settings.partitions))
        await _sent_evenly(orders, islice(commands, round(PER_S * WARM_S)))
        processor_s, began_at = time.process_time(), time.monotonic()
        latencies_ms = await _sent_evenly(orders, islice(commands, round(PER_S * MEASURED_S)))
        percent = 100 * (time.process_time() - processor_s) / (time.monotonic() - began_at)
    return Cost(percent, latencies_ms)


async def _sent_evenly(orders: OrderCommands, commands: Iterator[Command]) -> list[float]:
    start = time.monotonic()
    begun: list[asyncio.Task[float]] = []
    for number, command in enumerate(commands):
        await asyncio.sleep(start + number / PER_S - time.monotonic())
        begun.append(asyncio.create_task(_latency_ms(orders, command)))
    return await asyncio.gather(*begun)


async def _latency_ms(orders: OrderCommands, command: Command) -> float:
    began_at = time.monotonic()
    outcome = await orders.send(command, wait_s=30.0)
    if not isinstance(outcome, Accepted):
        raise WrongResult(f"{command.order_id}: {outcome}")
    return (time.monotonic() - began_at) * 1000


def _rows(when: str, costs: list[Cost]) -> list[Row]:
    percents = [cost.percent_of_a_core for cost in costs]
    return [
        Row(f"caller that awaits {PER_S}/s, {when}", "% of a core", percents, Target("<=", 5.0)),
        Row(f"its outcomes, {when}, p50", "ms", [percentile(cost.latencies_ms, 50) for cost in costs]),
        Row(f"its outcomes, {when}, p99", "ms", [percentile(cost.latencies_ms, 99) for cost in costs]),
    ]


def _text(cost: Cost) -> str:
    middle, last = percentile(cost.latencies_ms, 50), percentile(cost.latencies_ms, 99)
    return f"{cost.percent_of_a_core:.1f} % of a core, p50 {middle:.0f} ms, p99 {last:.0f} ms"
