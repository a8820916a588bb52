"""Memory: how much a worker's process grows by orders in its table, and what an order takes that has forgotten."""

import tracemalloc
from collections.abc import Callable

from bench.disk import entry_after, with_own_ids
from bench.load import LIFE, Shop
from bench.restore import put
from bench.sizes import RUNS, scaled
from bench.table import Row
from bench.world import World
from order_service.domain.entry import Entry
from order_service.wire.changelog import encode
from order_service.worker.table import Table
from tests.support.samples import short_of

FIRST = scaled(20_000)
ORDERS = scaled(200_000)
IN_TABLE = scaled(100_000)

HOW = f"""\
Resident memory of the worker's process after {FIRST:,} orders (so that buffers are there), and after {ORDERS:,} more; \
the difference times {1_000_000 / ORDERS:g}. "Created" orders have seen one command, "delivered" ones all six. In the \
table: what Python allocates (tracemalloc) for a table of {IN_TABLE:,} delivered orders with random ids of commands, \
before and after they have forgotten them (`ORDERS_REMEMBER_CLOSED_DAYS`), per order; and the value of such a record \
of the changelog."""


def measure(world: World) -> list[Row]:
    """Fill a worker once per run, with new orders and with finished ones; and a table, without a worker."""
    return [
        Row("memory per million orders, created", "MB", [per_million_mb(world, 1) for _ in range(RUNS)]),
        Row("memory per million orders, delivered", "MB", [per_million_mb(world, len(LIFE)) for _ in range(RUNS)]),
        Row("in the table, per delivered order", "bytes", [in_table_bytes(lambda entry: entry)]),
        Row("the same, after it has forgotten its commands", "bytes", [in_table_bytes(short_of)]),
        Row("its value in the changelog", "bytes", [in_changelog_bytes(lambda entry: entry)]),
        Row("the same, after it has forgotten its commands", "bytes", [in_changelog_bytes(short_of)]),
    ]


def per_million_mb(world: World, steps: int) -> float:
    """Return the growth of one worker, in MB (10^6 bytes) for a million orders."""
    with world.service() as service:
        worker = service.start_worker().wait_lanes(service.partitions)
        put(service, Shop("first"), FIRST, steps=steps)
        before = worker.resident_bytes()
        put(service, Shop("more"), ORDERS, steps=steps)
        grown = worker.resident_bytes() - before
        world.say(f"memory: {grown / 1e6:.0f} MB for {ORDERS:,} orders after {steps} commands each")
        return grown / ORDERS


def in_changelog_bytes(form_of: Callable[[Entry], Entry]) -> int:
    """Return the size of the value that the changelog has of a delivered order, in this form of its entry."""
    return len(encode(form_of(with_own_ids(entry_after(len(LIFE)), 0))))


def in_table_bytes(form_of: Callable[[Entry], Entry]) -> float:
    """Return what a delivered order takes in a table in memory, in this form of its entry."""
    shop, delivered, table = Shop("table"), entry_after(len(LIFE)), Table()
    tracemalloc.start()
    for number in range(IN_TABLE):
        table.restore(shop.order_id(number), encode(form_of(with_own_ids(delivered, number))))
    taken, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return taken / len(table)
