"""Standbys: of two workers with large tables, one is killed for good; once with standbys and once without."""

import re
import signal
import time
from typing import Final

from bench.large import Asking, failures_of
from bench.latency import under_way
from bench.load import Pace, Shop
from bench.sizes import scaled
from bench.table import Row, Target
from bench.takeover import after_s
from bench.watching import WrongResult
from bench.world import SESSION_TIMEOUT_S, World
from chaos.run import fill_tables
from tests.support.service import WorkerProcess, until

PARTITIONS: Final = 4
ORDERS_PER_LANE: Final = scaled(1_000_000)
PER_S: Final = 100
CALM_S: Final = 10.0
SECONDS: Final = 90.0
PATIENCE_S: Final = 900.0
TARGET_S: Final = float(SESSION_TIMEOUT_S) + 1

HOW = f"""\
Two workers, {PARTITIONS} partitions with {ORDERS_PER_LANE:,} orders each, {PER_S} commands/s. One worker is killed \
(kill -9) and not started again, {CALM_S:g} s after the commands began. From the kill until each of its partitions had \
an event that the other worker decided, as a committed consumer gets it; the session timeout of {SESSION_TIMEOUT_S} s \
is part of it. Once with ORDERS_STANDBYS=1, when each worker follows the partitions of the other to their ends, and \
once without. All events are counted, and the other worker must never end or log that a claim failed."""


def measure(world: World) -> list[Row]:
    """Kill a worker once with standbys and once without: what it shows is a maximum."""
    rows = []
    for standbys in ("1", "0"):
        rows += _measure(world, standbys, "with standbys" if standbys == "1" else "without")
    return rows


def _measure(world: World, standbys: str, name: str) -> list[Row]:
    with world.service(partitions=PARTITIONS, ORDERS_STANDBYS=standbys) as service:
        fill_tables(world.servers, service.names.table, PARTITIONS * ORDERS_PER_LANE)
        began_at = time.monotonic()
        killed, heir = (service.start_worker() for _ in range(2))
        until(lambda: killed.lanes() == heir.lanes() == PARTITIONS // 2, "each worker runs half", within_s=PATIENCE_S)
        world.say(f"standby, {name}: each worker runs half after {time.monotonic() - began_at:.0f} s")
        if standbys == "1":
            is_followed = lambda: all(_follows(worker) for worker in (killed, heir))  # noqa: E731
            until(is_followed, "each worker follows the other to its end", within_s=PATIENCE_S)
            world.say(f"standby, {name}: each follows the other after {time.monotonic() - began_at:.0f} s")
        lost = killed.lines("Partitions assigned.")[-1]["partitions"]
        memory_gb = heir.resident_bytes() / 1e9
        pace = Pace(service.bootstrap_servers, service.names.commands, Shop("standby"), PER_S, SECONDS)
        with under_way(service, pace) as all_seen:
            time.sleep(CALM_S)
            kill = time.monotonic_ns(), time.time()
            killed.send(signal.SIGKILL)
            killed.wait_ended()
            with Asking(heir) as asking:
                until(lambda: heir.lanes() == PARTITIONS, "one worker runs all", within_s=PATIENCE_S)
            seen, _ = all_seen()
        if heir.process.poll() is not None or failures_of(heir):
            raise WrongResult(f"the other worker ended ({heir.process.returncode}) or failed: {failures_of(heir)}")
        read = [line["read_records"] for line in heir.lines("Lane started.") if line["partition"] in lost]
    takeover_s = after_s(seen, kill, lost, all_of_them=True)
    return [
        Row(
            f"standby: kill -9 until all lost partitions decide, {name}",
            "s",
            [takeover_s],
            Target("<=", TARGET_S) if standbys == "1" else None,
        ),
        Row(f"standby: changelog records read by a claim, at most, {name}", "", [max(read)]),
        Row(f"standby: slowest health answer meanwhile, {name}", "s", [asking.slowest_s], Target("<=", 1)),
        Row(f"standby: memory of a worker before the kill, {name}", "GB", [memory_gb]),
    ]


def _follows(worker: WorkerProcess) -> bool:
    """Return whether it has read the partitions of the other worker up to their ends."""
    lags = re.findall(
        r"^orders_standby_lag_offsets{.*} (\S+)", worker.admin("/metrics", within_s=60.0)[1], re.MULTILINE
    )
    return len(lags) == PARTITIONS // 2 and not any(map(float, lags))
