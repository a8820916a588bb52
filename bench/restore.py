"""Restore: a worker starts on a table of 100,000 orders, and a command waits for it."""

import signal
import time

from bench.load import LIFE, Shop, amend_address, produce, waves
from bench.sizes import RUNS, scaled
from bench.table import Row, Target
from bench.watching import Ends
from bench.world import World
from order_service.wire.commands import encode_json_command
from tests.support.service import Service, WorkerProcess

ORDERS = scaled(100_000)
SHOP = Shop("shop")

HOW = f"""\
{ORDERS:,} orders (created and amended once) in 4 partitions; the worker is told to stop (SIGTERM), one command is put \
into Kafka, and a worker is started: from the start of its process to the first committed event (asked every 5 ms)."""


def measure(world: World) -> list[Row]:
    """Restart the worker once per run."""
    taken: list[float] = []
    with world.service() as service:
        worker = fill(service, ORDERS, steps=2)
        ends = Ends(service.bootstrap_servers, service.names.events, service.partitions)
        for run in range(RUNS):
            worker.send(signal.SIGTERM)
            worker.wait_ended()
            command = amend_address(SHOP, run)
            produce(
                service.bootstrap_servers, service.names.commands, [(command.order_id, encode_json_command(command))]
            )
            start = time.monotonic()
            worker = service.start_worker()
            taken.append(ends.until_first() - start)
            worker.wait_lanes(service.partitions)
            world.say(f"restore {run + 1}: {taken[-1]:.2f} s")
    return [Row(f"restore of {ORDERS:,} orders: process start to first commit", "s", taken, Target("<=", 4))]


def fill(service: Service, orders: int, *, steps: int = len(LIFE), instance_id: str = "") -> WorkerProcess:
    """Return a running worker whose table holds so many orders."""
    worker = service.start_worker(ORDERS_INSTANCE_ID=instance_id).wait_lanes(service.partitions)
    put(service, SHOP, orders, steps=steps)
    return worker


def put(service: Service, shop: Shop, orders: int, *, steps: int = len(LIFE)) -> None:
    """Send commands of so many orders, and wait until the running worker has decided them."""
    ends = Ends(service.bootstrap_servers, service.names.events, service.partitions)
    goal = ends.sum() + orders * steps
    commands = waves(shop, orders, steps=steps)
    records = ((command.order_id, encode_json_command(command)) for command in commands)
    produce(service.bootstrap_servers, service.names.commands, records)
    last, still_since = -1, time.monotonic()
    while last < goal or time.monotonic() - still_since < 2.0:
        end = ends.sum()
        if end != last:
            last, still_since = end, time.monotonic()
        time.sleep(0.1)
