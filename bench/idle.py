"""Idle: what a worker with nothing to do takes of a core."""

import os
import time
from pathlib import Path

from bench.load import Shop
from bench.restore import put
from bench.sizes import RUNS, scaled_s
from bench.table import Row, Target
from bench.world import World

MEASURED_S = scaled_s(20.0)
SETTLE_S = 3.0

HOW = f"""\
Processor time (user and system, /proc) of a worker over {MEASURED_S:g} s, {SETTLE_S:g} s after it has decided its \
last command; no process calls its admin port meanwhile."""


def measure(world: World) -> list[Row]:
    """Watch one worker with 4 partitions and one with 12."""
    return [
        Row(f"idle worker, {partitions} partitions", "% of a core", percents(world, partitions), Target("<=", 3))
        for partitions in (4, 12)
    ]


def percents(world: World, partitions: int) -> list[float]:
    """Watch it once per run."""
    with world.service(partitions=partitions) as service:
        worker = service.start_worker().wait_lanes(partitions)
        put(service, Shop("shop"), 1_000)
        time.sleep(SETTLE_S)
        return [_percent(worker.process.pid) for _ in range(RUNS)]


def _percent(pid: int) -> float:
    before, began_at = processor_s(pid), time.monotonic()
    time.sleep(MEASURED_S)
    return 100 * (processor_s(pid) - before) / (time.monotonic() - began_at)


def processor_s(pid: int) -> float:
    """Read the processor time that a process has taken."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
