"""A large table: two workers restore it, one of them is killed, and the other takes over; all the time both answer."""

import signal
import threading
import time
from contextlib import AbstractContextManager
from typing import Self

from bench.latency import under_way
from bench.load import Pace, Shop
from bench.sizes import scaled
from bench.table import Row, Target
from bench.watching import WrongResult
from bench.world import World
from tests.faults.run import fill_tables
from tests.service import WorkerProcess, until

ORDERS = scaled(4_000_000)
PER_S = 100
LOOK_EVERY_S = 0.05
PATIENCE_S = 300.0
SECONDS = 120.0

HOW = f"""\
{ORDERS:,} orders in the changelog of the table, 4 partitions, {PER_S} commands/s. Two workers start and restore half \
of it each; then one is killed (kill -9) and not started again, and the other restores that half. The slowest answer \
of a worker's GET /health/live, asked every {LOOK_EVERY_S * 1000:.0f} ms; the seconds until all partitions run. All \
events are counted, and the second worker must never end."""


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
        killed, heir = service.start_worker(), service.start_worker()
        with Asking(killed) as first, Asking(heir) as second:
            until(lambda: killed.lanes() == heir.lanes() == 2, "each worker runs half", within_s=PATIENCE_S)
            started_s = time.monotonic() - began_at
        restoring_s = max(first.slowest_s, second.slowest_s)
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
        memory_gb = heir.resident_bytes() / 1e9
    return [
        Row("large: start of two workers until all partitions run", "s", [started_s]),
        Row("large: slowest health answer meanwhile", "s", [restoring_s], Target("<=", 1)),
        Row("large: kill -9 of one until the other runs all", "s", [taken_over_s]),
        Row("large: slowest health answer of the other", "s", [third.slowest_s], Target("<=", 1)),
        Row("large: memory of the other, with all orders", "GB", [memory_gb]),
    ]
