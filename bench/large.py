"""A large table: two workers restore it, one of them is killed, and the other takes over; all the time both answer."""

import re
import signal
import threading
import time
from contextlib import AbstractContextManager
from typing import Any, Self

from rich.markup import escape

from bench.latency import under_way
from bench.load import Pace, Shop
from bench.sizes import scaled
from bench.table import Row, Target
from bench.watching import WrongResult
from bench.worker import BEAT_S, LOOP_LATE
from bench.world import World
from chaos.run import fill_tables
from tests.support.service import WorkerProcess, until

ORDERS = scaled(4_000_000)
PER_S = 100
LOOK_EVERY_S = 0.05
PATIENCE_S = 300.0
SECONDS = 120.0
FAILURES = ("A claim failed; trying again.", "This worker ends.", "This process ends.")
"""What a worker logs for a missed deadline of a claim, of a turn, and for a loop that hangs; and for other failures."""

HOW = f"""\
{ORDERS:,} orders in the changelog of the table, 4 partitions, {PER_S} commands/s. Two workers start and restore half \
of it each; then one is killed (kill -9) and not started again, and the other restores that half. The slowest answer \
of a worker's GET /health/live, asked every {LOOK_EVERY_S * 1000:.0f} ms; the seconds until all partitions run. All \
events are counted, and the second worker must never end. The lines in which either worker logs that a claim failed or \
that it ends, as it does for a missed deadline (Stuck). The longest time by which a timer of a worker's event loop was \
late, of one timer every {BEAT_S * 1000:.0f} ms: the admin port has a loop of its own and does not show it."""


class Asking(AbstractContextManager["Asking"]):
    """Asks a worker for its health again and again, from a thread; keeps the slowest answer, in seconds."""

    def __init__(self, worker: WorkerProcess) -> None:
        self.slowest_s = 0.0
        self._worker = worker
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._ask)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    def _ask(self) -> None:
        has_answered = False
        while not self._end.wait(LOOK_EVERY_S):
            began_at = time.monotonic()
            status, _ = self._worker.admin("/health/live", within_s=60.0)
            has_answered = has_answered or status == 200
            if has_answered:
                self.slowest_s = max(self.slowest_s, time.monotonic() - began_at)


def measure(world: World) -> list[Row]:
    """Start two workers and kill one, once: what it shows is a maximum."""
    with world.service() as service:
        fill_tables(world.servers, service.names.table, ORDERS)
        world.say(f"large: {ORDERS:,} orders are in the changelog")
        began_at = time.monotonic()
        killed, heir = (service.start_worker(module=("bench.worker",)) for _ in range(2))
        with Asking(killed) as first, Asking(heir) as second:
            until(lambda: killed.lanes() == heir.lanes() == 2, "each worker runs half", within_s=PATIENCE_S)
            started_s = time.monotonic() - began_at
        restoring_s = max(first.slowest_s, second.slowest_s)
        loop_late_s = loop_late(killed)
        pace = Pace(service.bootstrap_servers, service.names.commands, Shop("large"), PER_S, SECONDS)
        with under_way(service, pace) as all_seen:
            killed.send(signal.SIGKILL)
            killed.wait_ended()
            killed_at = time.monotonic()
            with Asking(heir) as third:
                until(lambda: heir.lanes() == service.partitions, "one worker runs all", within_s=PATIENCE_S)
                taken_over_s = time.monotonic() - killed_at
            all_seen()
        if heir.process.poll() is not None:
            raise WrongResult(f"the other worker ended with {heir.process.returncode}")
        loop_late_s = max(loop_late_s, loop_late(heir))
        failures = [line for worker in (killed, heir) for line in failures_of(worker)]
        for line in failures:
            world.say(f"large: {escape(str(line))}")
        memory_gb = heir.resident_bytes() / 1e9
    return [
        Row("large: start of two workers until all partitions run", "s", [started_s]),
        Row("large: slowest health answer meanwhile", "s", [restoring_s], Target("<=", 1)),
        Row("large: kill -9 of one until the other runs all", "s", [taken_over_s]),
        Row("large: slowest health answer of the other", "s", [third.slowest_s], Target("<=", 1)),
        Row("large: log lines about a failed claim or a worker's end", "", [len(failures)], Target("<=", 0)),
        Row("large: longest silence of an event loop, of both workers", "s", [loop_late_s], Target("<=", 0.1)),
        Row("large: memory of the other, with all orders", "GB", [memory_gb]),
    ]


def failures_of(worker: WorkerProcess) -> list[dict[str, Any]]:
    """Return the lines in which it has logged a failure."""
    return [line for sentence in FAILURES for line in worker.lines(sentence)]


def loop_late(worker: WorkerProcess) -> float:
    """Return for how long its event loop has not answered, at most since its start, in seconds."""
    status, metrics = worker.admin("/metrics", within_s=60.0)
    late = re.search(rf"^{LOOP_LATE} (\S+)", metrics, re.MULTILINE)
    if late is None:
        raise WrongResult(f"{worker.name} does not say how late its event loop was: status {status}")
    return float(late[1])
