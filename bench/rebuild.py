"""Rebuild: how fast `order-service rebuild` writes lost tables again, on one core.

Not part of the whole bench: `python -m bench rebuild`. VERIFY_EVENTS sets the number of events, a million by default.
"""

import resource
from typing import Final

from bench.load import Shop
from bench.restore import put
from bench.sizes import RUNS
from bench.table import Row, Target
from bench.verify import EVENTS, ORDERS, on_one_core
from bench.watching import WrongResult
from bench.world import World
from tests.support.damaged_topics import recreate
from tests.support.service import Service

HOW: Final = f"""\
{EVENTS:,} events of {ORDERS:,} orders (created to delivered) in 4 partitions, as for `verify`. The worker ends, \
and the topic of the table is deleted and created again. `order-service rebuild --all --yes --json` runs as a process \
on one core. It reads all topics, waits until 3 s after its start, takes over each partition, reads its rejections, \
waiting room and table again, and writes all entries. The rate is all events by the time that it reports."""


def measure(world: World) -> list[Row]:
    """Lose the table and rebuild it, once per run."""
    per_s, processor_us, peak_mib = [], [], []
    with world.service() as service:
        worker = service.start_worker().wait_lanes(service.partitions)
        put(service, Shop("shop"), ORDERS)
        worker.end()
        for run in range(1, RUNS + 1):
            recreate(service, service.names.table)
            took_s, usage = rebuilt(service)
            per_s.append(EVENTS / took_s)
            processor_us.append((usage.ru_utime + usage.ru_stime) / EVENTS * 1e6)
            peak_mib.append(usage.ru_maxrss / 1024)
            world.say(f"rebuild {run}: {per_s[-1]:,.0f} events/s, {processor_us[-1]:.1f} us of processor time each")
    return [
        Row("rebuild, lost tables", "events/s", per_s, Target(">=", 10_000)),
        Row("its processor time per event", "us", processor_us),
        Row("its peak memory", "MiB", peak_mib),
    ]


def rebuilt(service: Service) -> tuple[float, resource.struct_rusage]:
    """Rebuild all partitions on one core, and return the seconds that it reports, and what the process used."""
    document, usage = on_one_core(service, "rebuild", "--all", "--reason", "bench", "--yes", "--json")
    if not document["ok"] or sum(found["missing"] for found in document["partitions"]) != ORDERS:
        raise WrongResult(f"rebuild: {document}")
    return document["took_s"], usage
