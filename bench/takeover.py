"""Takeover: a worker with a static member id is killed (kill -9) and started again at once; commands keep coming."""

import time
from collections.abc import Sequence

from bench.latency import under_way
from bench.load import Pace, Shop
from bench.restore import fill
from bench.sizes import RUNS, scaled
from bench.table import Row, Target
from bench.watching import Seen
from bench.world import World

ORDERS = scaled(20_000)
PER_S = 100
EVERY_S = 10.0
INSTANCE_ID = "bench-1"

HOW = f"""\
{ORDERS:,} orders in the table, {PER_S} commands/s keep coming, 4 partitions. From the kill to the first event that \
was decided after it, as a committed consumer gets it; and until every partition had one. All events are counted."""


def measure(world: World) -> list[Row]:
    """Kill once per run, in one service, every ten seconds."""
    kills: list[tuple[int, float]] = []
    with world.service() as service:
        worker = fill(service, ORDERS, steps=2, instance_id=INSTANCE_ID)
        commands = service.names.commands
        pace = Pace(service.bootstrap_servers, commands, Shop("later"), PER_S, EVERY_S * (RUNS + 1))
        with under_way(service, pace) as all_seen:
            for _ in range(RUNS):
                time.sleep(EVERY_S)
                kills.append((time.monotonic_ns(), time.time()))
                worker.process.kill()
                worker.process.wait()
                worker = service.start_worker(ORDERS_INSTANCE_ID=INSTANCE_ID)
            seen, _ = all_seen()
    first = [after_s(seen, kill, range(service.partitions), all_of_them=False) for kill in kills]
    every = [after_s(seen, kill, range(service.partitions), all_of_them=True) for kill in kills]
    return [
        Row("takeover: kill -9 to the next committed event", "s", first, Target("<=", 4)),
        Row("takeover: until every partition had one", "s", every),
    ]


def after_s(seen: list[Seen], kill: tuple[int, float], partitions: Sequence[int], *, all_of_them: bool) -> float:
    """Return the seconds from a kill to the first event decided after it, in any partition or in all."""
    killed_ns, killed_at = kill
    firsts = [
        min(event.seen_ns for event in seen if event.partition == partition and event.occurred_at > killed_at)
        for partition in partitions
    ]
    return ((max if all_of_them else min)(firsts) - killed_ns) / 1e9
