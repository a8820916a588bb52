"""Rebuild: how fast `order-service rebuild` writes lost tables again, on one core.

Not part of the whole bench: `python -m bench rebuild`. VERIFY_EVENTS sets the number of events, a million by default.
"""

from typing import Final

from bench.table import Row
from bench.verify import EVENTS, ORDERS, Usage, measure_runs, on_one_core
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
    return measure_runs(world, "rebuild, lost tables", rebuilt, 10_000)


def rebuilt(service: Service) -> tuple[float, Usage]:
    """Lose the table, rebuild it on one core, and return the seconds that it reports, and what the process used."""
    recreate(service, service.names.table)
    document, usage = on_one_core(service, "rebuild", "--all", "--reason", "bench", "--yes", "--json")
    if not document["ok"] or sum(found["missing"] for found in document["partitions"]) != ORDERS:
        raise WrongResult(f"rebuild: {document}")
    return document["took_s"], usage
