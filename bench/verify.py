"""Verify: how fast `order-service verify` checks all topics, on one core.

Not part of the whole bench: `python -m bench verify`. VERIFY_EVENTS sets the number of events, a million by default.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from bench.load import LIFE, Shop
from bench.restore import put
from bench.sizes import RUNS, scaled
from bench.table import Row, Target
from bench.watching import WrongResult
from bench.world import World
from tests.support.service import ROOT, Service

ORDERS: Final = int(os.environ.get("VERIFY_EVENTS", scaled(1_000_000))) // len(LIFE)
EVENTS: Final = ORDERS * len(LIFE)

HOW: Final = f"""\
{EVENTS:,} events of {ORDERS:,} orders (created to delivered), decided by a worker from as many commands, in 4 \
partitions; then the worker ends, and `order-service verify --json` runs as a process on one core. It reads all six \
topics: one command, one event and at most one table entry a step. The rate is all events by the time that `verify` \
reports; processor time and peak memory are the process's own, with its start."""

ON_ONE_CORE: Final = """\
import json, os, resource, sys
from pathlib import Path
from order_service.cli import main
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
try:
    main()
finally:
    usage, status = resource.getrusage(resource.RUSAGE_SELF), Path("/proc/self/status").read_text()
    peak_kib = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
    print(json.dumps([usage.ru_utime + usage.ru_stime, peak_kib / 1024]), file=sys.stderr)
"""
"""The peak is not `ru_maxrss`: Linux begins that with the memory of the process that started this one."""


class Usage(NamedTuple):
    """What a process has used: processor time in seconds, and the most memory in MiB."""

    processor_s: float
    peak_mib: float


def measure(world: World) -> list[Row]:
    """Verify the same topics once per run."""
    return measure_runs(world, "verify, all topics", verified, 30_000)


def measure_runs(
    world: World, what: str, run_once: Callable[[Service], tuple[float, Usage]], target: float
) -> list[Row]:
    """Have the orders decided, end the worker, and run a command several times: its seconds, and what it used."""
    per_s, processor_us, peak_mib = [], [], []
    with world.service() as service:
        worker = service.start_worker().wait_lanes(service.partitions)
        put(service, Shop("shop"), ORDERS)
        worker.end()
        for run in range(1, RUNS + 1):
            took_s, usage = run_once(service)
            per_s.append(EVENTS / took_s)
            processor_us.append(usage.processor_s / EVENTS * 1e6)
            peak_mib.append(usage.peak_mib)
            world.say(f"{what} {run}: {per_s[-1]:,.0f} events/s, {processor_us[-1]:.1f} us of processor time each")
    return [
        Row(what, "events/s", per_s, Target(">=", target)),
        Row("its processor time per event", "us", processor_us),
        Row("its peak memory", "MiB", peak_mib),
    ]


def verified(service: Service) -> tuple[float, Usage]:
    """Run `verify` on one core, check its totals, and return the seconds that it reports, and what the process used."""
    document, usage = on_one_core(service, "verify", "--json")
    totals = document["totals"]
    if not document["ok"] or (totals["events"], totals["orders"]) != (EVENTS, {"delivered": ORDERS}):
        raise WrongResult(f"verify: {document}")
    return document["took_s"], usage


def on_one_core(service: Service, *arguments: str) -> tuple[dict[str, Any], Usage]:
    """Run `order-service` on one core; return the document that it prints, and what the process used."""
    command = [sys.executable, "-c", ON_ONE_CORE, *arguments]
    ended = subprocess.run(command, check=False, cwd=ROOT, env=service.environment, capture_output=True, text=True)
    if ended.returncode != 0:
        raise WrongResult(f"{arguments[0]} ended with {ended.returncode}: {ended.stdout}{ended.stderr}")
    return json.loads(ended.stdout), Usage(*json.loads(ended.stderr.splitlines()[-1]))
