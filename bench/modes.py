"""What each failure of the User Service costs the orders of users who are known already.

Not part of the whole bench: `python -m bench modes`.
"""

import json
import threading
import urllib.request
from typing import Final

from bench.latency import WARM_S, paced
from bench.load import Shop, create
from bench.sizes import RUNS, scaled_s
from bench.table import Row, Target, percentile
from bench.world import World
from order_service.users.stub import Mode
from tests.support.service import Service, WorkerProcess, until

PER_S: Final = 300
STRANGERS_PER_S: Final = 20
MEASURED_S: Final = scaled_s(8.0)
MODES: Final = tuple(mode for mode in Mode if mode is not Mode.OK)
SECONDS: Final = WARM_S + MEASURED_S

HOW = f"""\
{PER_S} commands/s of orders of 50 known users, and beside them {STRANGERS_PER_S} creates/s of unknown users. \
After {WARM_S:g} s the stub fails in one way for {MEASURED_S:g} s, then it heals, and all that waited is decided \
before the next. The p99 of the known users' commands, in each mode, over that of the same load without a failure."""


def measure(world: World) -> list[Row]:
    """Take one mode after the other, each beside a run without; all of them as often as there are runs."""
    ratios: dict[Mode, list[float]] = {mode: [] for mode in MODES}
    with world.service() as service:
        worker = service.start_worker().wait_lanes(service.partitions)
        for run in range(RUNS):
            for mode in MODES:
                sound = p99_ms(service, worker, Mode.OK, f"ok-{mode}-{run}")
                failing = p99_ms(service, worker, mode, f"mode-{mode}-{run}")
                world.say(f"modes: {mode}: p99 {failing:.1f} ms, without {sound:.1f} ms; all that waited is decided")
                ratios[mode].append(failing / sound)
    return [Row(f"User Service {mode}: p99 of known users", "x", ratios[mode], Target("<=", 2.0)) for mode in MODES]


def p99_ms(service: Service, worker: WorkerProcess, mode: Mode, name: str) -> float:
    """Send to known and unknown users while the stub is in a mode; ends when nothing waits any more."""
    elsewhere = Shop(f"strangers-{name}", user_count=0)
    strangers = [create(elsewhere, number) for number in range(int(SECONDS * STRANGERS_PER_S))]
    fails = threading.Timer(WARM_S - 0.5, switch, (service, mode))
    with service.sending(strangers, per_s=STRANGERS_PER_S):
        seen, _ = paced(service, Shop(name, user_count=50), PER_S, MEASURED_S, begun=fails.start)
    fails.join()
    switch(service, Mode.OK)
    until(lambda: "\norders_waiting_commands 0.0\n" in worker.admin("/metrics")[1], "all that waited is decided")
    return percentile([event.latency_ms for event in seen], 99)


def switch(service: Service, mode: Mode) -> None:
    """Switch the stub to another way of answering."""
    body = json.dumps({"mode": mode}).encode()
    with urllib.request.urlopen(urllib.request.Request(f"{service.users.url}/mode", body, method="PUT")):
        pass
