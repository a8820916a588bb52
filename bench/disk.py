"""A table on disk: a worker restores it, restarts with it, and decides on it, beside a worker with an empty memory."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from functools import partial
from random import Random
from typing import Final
from uuid import UUID

from confluent_kafka import Producer
from msgspec import structs

from bench.backlog import COMMANDS, load
from bench.large import Asking, loop_late
from bench.latency import MEASURED_S, paced
from bench.load import LIFE, Shop, amend_address, produce
from bench.sizes import RUNS, scaled
from bench.table import Row, Target, percentile
from bench.watching import Ends, WrongResult, growth_per_s
from bench.world import World
from order_service.domain.decision import UserCheck, answer
from order_service.domain.entry import Entry, after_event
from order_service.domain.messages import Event
from order_service.local.broker import free_port
from order_service.wire import avro
from order_service.wire.changelog import encode
from order_service.wire.commands import encode_json_command
from tests.support.samples import NOW
from tests.support.service import Service, WorkerProcess, enqueue, until

ORDERS: Final = scaled(10_000_000)
OPEN_EVERY: Final = 20
PER_S: Final = 500
PATIENCE_S: Final = 1800.0
CACHE_MB: Final = 256
SHOP: Final = Shop("disk")

HOW: Final = f"""\
{ORDERS:,} orders in the changelog of the table, 4 partitions, 95 % delivered, each with ids and digests of its own; \
one worker with ORDERS_TABLE=rocksdb and a cache of {CACHE_MB} MB. It starts on an empty disk: seconds until all \
partitions run, and the slowest answer of GET /health/live meanwhile. Then {RUNS} restarts each after SIGTERM and \
after kill -9: from the start of the process to the first committed event, for a command that was there before. Then \
the latency at {PER_S}/s and the backlog of {COMMANDS:,} commands, beside those of a worker with its table in memory \
and no older orders."""


def measure(world: World) -> list[Row]:
    """Fill one service and restart its worker; then compare speeds."""
    with world.service() as service, world.service() as beside:
        fill(service)
        world.say(f"disk: {ORDERS:,} orders are in the changelog")
        port, began_at = free_port(), time.monotonic()
        worker = start(service, port)
        with Asking(worker) as asking:
            until(lambda: worker.lanes() == service.partitions, "all partitions run", within_s=PATIENCE_S)
        restored_s = time.monotonic() - began_at
        late_s = loop_late(worker)
        world.say(f"disk: restored in {restored_s:.0f} s, {ORDERS / restored_s:,.0f} orders/s")
        memory_gb = [worker.resident_bytes() / 1e9]
        after_term, after_kill = [], []
        for run in range(RUNS):
            worker, taken_s = restart(service, worker, port, signal.SIGTERM, 2 * run)
            after_term.append(taken_s)
            worker, taken_s = restart(service, worker, port, signal.SIGKILL, 2 * run + 1)
            after_kill.append(taken_s)
            world.say(f"disk: restarts took {after_term[-1]:.2f} and {after_kill[-1]:.2f} s")
        p99_ms = [p99(service)]
        worker.end()
        per_s = [backlog_per_s(service, partial(start, port=port))]
        memory_gb.append(service.workers[-1].resident_bytes() / 1e9)
        size_gb = sum(path.stat().st_size for path in (service.directory / "tables").rglob("*.sst")) / 1e9
        service.workers[-1].end()
        beside_per_s = backlog_per_s(beside, lambda service: service.start_worker(module=("bench.worker",)))
        beside_p99_ms = p99(beside)
    return [
        Row("disk: start on an empty disk until all partitions run", "s", [restored_s]),
        Row("disk: restore", "orders/s", [ORDERS / restored_s]),
        Row("disk: slowest health answer meanwhile", "s", [asking.slowest_s], Target("<=", 1)),
        Row("disk: longest silence of the event loop meanwhile", "s", [late_s], Target("<=", 0.1)),
        Row("disk: memory, restored and after the backlog", "GB", memory_gb, Target("<=", 1.5)),
        Row("disk: size of the stores", "GB", [size_gb]),
        Row("disk: restart after SIGTERM to the first commit", "s", after_term, Target("<=", 5)),
        Row("disk: restart after kill -9 to the first commit", "s", after_kill, Target("<=", 5)),
        Row("disk: backlog", "/s", per_s),
        Row("memory, without older orders: backlog", "/s", [beside_per_s]),
        Row("disk: backlog relative to memory", "", [per_s[0] / beside_per_s], Target(">=", 0.7)),
        Row(f"disk: {PER_S}/s, p99", "ms", p99_ms),
        Row(f"memory, without older orders: {PER_S}/s, p99", "ms", [beside_p99_ms]),
        Row("disk: p99 relative to memory", "", [p99_ms[0] / beside_p99_ms], Target("<=", 1.5)),
    ]


def start(service: Service, port: int) -> WorkerProcess:
    """Start the worker whose table is on disk. With the same port it is the same member of the group."""
    return service.start_worker(
        module=("bench.worker",),
        ORDERS_TABLE="rocksdb",
        ORDERS_TABLE_DIR=str(service.directory / "tables"),
        ORDERS_TABLE_CACHE_MB=str(CACHE_MB),
        ORDERS_ADMIN_PORT=str(port),
    )


def restart(
    service: Service, worker: WorkerProcess, port: int, stop: signal.Signals, number: int
) -> tuple[WorkerProcess, float]:
    """End the worker, and return the next one, and the seconds from its start to its first commit."""
    ends = Ends(service.bootstrap_servers, service.names.events, service.partitions)
    worker.send(stop)
    worker.wait_ended()
    command = amend_address(SHOP, number * SHOP.user_count)  # an open order of the user with whose id they were made
    produce(service.bootstrap_servers, service.names.commands, [(command.order_id, encode_json_command(command))])
    began_at = time.monotonic()
    worker = start(service, port)
    taken_s = ends.until_first() - began_at
    return worker.wait_lanes(service.partitions), taken_s


def backlog_per_s(service: Service, start_worker: Callable[[Service], WorkerProcess]) -> float:
    """Return how many commands of a backlog a worker decides in a second."""
    ends = Ends(service.bootstrap_servers, service.names.events, service.partitions)
    before = ends.sum()
    load(service, encode_json_command)
    worker = start_worker(service)
    per_s = growth_per_s(Since(ends, before), COMMANDS, worker)
    if worker.process.poll() is not None:
        raise WrongResult(f"the worker ended with {worker.process.returncode}")
    return per_s


def p99(service: Service) -> float:
    """Return the latency in milliseconds that 99 of 100 commands do not exceed."""
    seen, _ = paced(service, Shop(f"p{time.time_ns()}"), PER_S, MEASURED_S)
    return percentile([event.latency_ms for event in seen], 99)


def fill(service: Service) -> None:
    """Write the orders into the changelog of the table."""
    arguments = {"bootstrap.servers": service.bootstrap_servers, "partitioner": "murmur2_random", "linger.ms": 5}
    producer = Producer(arguments | {"log_level": 0})
    for key, value in orders():
        enqueue(producer, service.names.table, key, value)
    if left := producer.flush(60):
        raise TimeoutError(f"{left} orders did not arrive in Kafka")


def orders() -> Iterator[tuple[bytes, bytes]]:
    """Make records of the table, one of twenty of an open order."""
    created, delivered = (entry_after(steps) for steps in (1, len(LIFE)))
    for number in range(ORDERS):
        template = created if number % OPEN_EVERY == 0 else delivered
        yield SHOP.order_id(number).encode(), encode(with_own_ids(template, number))


def entry_after(steps: int) -> Entry:
    """Return an order after so many of its commands."""
    entry: Entry | None = None
    for step in LIFE[:steps]:
        event = answer(step(SHOP, 0), entry, NOW, UserCheck.ACTIVE)
        if not isinstance(event, Event):
            raise WrongResult(f"a command was answered by {type(event).__name__}")
        entry = after_event(entry, event, avro.digest(avro.encode_event(event)))
    if entry is None:
        raise WrongResult("an order has no command")
    return entry


def with_own_ids(entry: Entry, number: int) -> Entry:
    """Return the order with other ids and digests: those of all orders differ, and do not compress."""
    random = Random(number)
    ids = (str(UUID(int=random.getrandbits(128))) for _ in entry.accepted)
    known = tuple((own, random.randbytes(len(digest))) for own, (_, digest) in zip(ids, entry.accepted, strict=True))
    return structs.replace(entry, head=os.urandom(len(entry.head)), accepted=known)


class Since:
    """What has come to a topic since its ends were so many."""

    def __init__(self, ends: Ends, before: int) -> None:
        self._ends, self._before = ends, before

    def sum(self) -> int:
        """Return how many have come."""
        return self._ends.sum() - self._before
