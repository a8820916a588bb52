"""Run the bench, or the parts of it that are named."""

import os
import platform
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from msgspec import Struct
from rich.console import Console

from bench import (
    awaiting,
    backlog,
    cores,
    disk,
    fleet,
    http,
    idle,
    large,
    latency,
    memory,
    modes,
    order_size,
    polls,
    rebuild,
    restore,
    soak,
    standby,
    streams,
    takeover,
    tracing,
    turn,
    users,
    verify,
    views,
)
from bench.others import Others
from bench.sizes import RUNS, SCALE
from bench.table import Row, show
from bench.watching import WrongResult
from bench.world import World, warm_up
from tests.support.kafka import running_kafka


class Part(Struct, frozen=True):
    """A part of the bench: how it measures, in words and in code."""

    how: str
    measure: Callable[[World], list[Row]]


PARTS = {
    "backlog": Part(backlog.HOW, backlog.measure),
    "latency": Part(latency.HOW, latency.measure),
    "users": Part(users.HOW, users.measure),
    "restore": Part(restore.HOW, restore.measure),
    "takeover": Part(takeover.HOW, takeover.measure),
    "memory": Part(memory.HOW, memory.measure),
    "idle": Part(idle.HOW, idle.measure),
}
LONG = {
    "cores": Part(cores.HOW, cores.measure),
    "turn": Part(turn.HOW, turn.measure),
    "http": Part(http.HOW, http.measure),
    "views": Part(views.HOW, views.measure),
    "polls": Part(polls.HOW, polls.measure),
    "streams": Part(streams.HOW, streams.measure),
    "verify": Part(verify.HOW, verify.measure),
    "rebuild": Part(rebuild.HOW, rebuild.measure),
    "size": Part(order_size.HOW, order_size.measure),
    "modes": Part(modes.HOW, modes.measure),
    "tracing": Part(tracing.HOW, tracing.measure),
    "awaiting": Part(awaiting.HOW, awaiting.measure),
    "disk": Part(disk.HOW, disk.measure),
    "large": Part(large.HOW, large.measure),
    "standby": Part(standby.HOW, standby.measure),
    "fleet": Part(fleet.HOW, fleet.measure),
    "soak": Part(soak.HOW, soak.measure),
}
"""Measured only when they are named."""


def main(names: list[str]) -> int:
    """Measure; 0 whatever the figures are, 1 if an event was wrong, 2 for an unknown name."""
    console = Console(width=None if sys.stdout.isatty() else 120)
    if unknown := [name for name in names if name not in PARTS | LONG]:
        console.print(f"no such part: {', '.join(unknown)}; there are: {', '.join(PARTS | LONG)}")
        return 2
    signal.signal(signal.SIGTERM, _end)
    console.print(machine(), highlight=False)
    all_rows: list[Row] = []
    with TemporaryDirectory(prefix="orders-bench-") as place, running_kafka(Path(place) / "kafka") as servers:
        world = World(servers, Path(place), console, Others())
        try:
            world.say(f"warm-up: {warm_up(servers):,} records in transactions written and read; now the service")
            latency.warm_up(world)
            for name in names or PARTS:
                rows = measured(world, name)
                all_rows += rows
        except WrongResult as error:
            console.print(f"[red]A wrong result:[/] {error}")
            return 1
    if len(names) != 1:
        show(console, "All", all_rows)
    return 0


def measured(world: World, name: str) -> list[Row]:
    """Measure one part and print it."""
    part = (PARTS | LONG)[name]
    began_at, others = time.monotonic(), Others()
    rows = part.measure(world)
    world.console.print(f"\n[bold]{name}[/] {part.how}", highlight=False)
    took = f"{time.monotonic() - began_at:.0f} s, of which others took {others.percent():.0f} % of the machine"
    show(world.console, f"{name}: {took}", rows)
    return rows


def machine(runs: int = RUNS) -> str:
    """Return what this runs on, and how often each figure is taken."""
    scale = "" if SCALE == 1 else f", sizes x {SCALE:g}: a quick look"
    return (
        f"{_processor()}, {os.cpu_count()} cores shared with the broker; {platform.system()} {platform.release()}; "
        f"Python {platform.python_version()}; {_load()}; medians of {runs} runs{scale}"
    )


def _load() -> str:
    return f"load of the machine (1, 5 min) {' '.join(f'{load:.1f}' for load in os.getloadavg()[:2])}"


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def _end(*_: Any) -> None:
    raise SystemExit(143)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
