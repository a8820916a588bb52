"""Memory: how much a worker's process grows by orders in its table."""

from bench.load import LIFE, Shop
from bench.restore import put
from bench.sizes import RUNS, scaled
from bench.table import Row
from bench.world import World

FIRST = scaled(20_000)
ORDERS = scaled(200_000)

HOW = f"""\
Resident memory of the worker's process after {FIRST:,} orders (so that buffers are there), and after {ORDERS:,} more; \
the difference times {1_000_000 / ORDERS:g}. "Created" orders have seen one command, "delivered" ones all six."""


def measure(world: World) -> list[Row]:
    """Fill a worker once per run, with new orders and with finished ones."""
    return [
        Row("memory per million orders, created", "MB", [per_million_mb(world, 1) for _ in range(RUNS)]),
        Row("memory per million orders, delivered", "MB", [per_million_mb(world, len(LIFE)) for _ in range(RUNS)]),
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
