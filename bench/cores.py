"""A backlog that a worker of one process decides, and one of two processes (`ORDERS_WORKERS`)."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

from bench.backlog import COMMANDS, load
from bench.idle import processor_s
from bench.sizes import RUNS
from bench.table import Row, Target
from bench.watching import Ends, check, growth_per_s
from bench.world import World
from order_service.wire.commands import encode_json_command
from tests.support.process_tree import descendants
from tests.support.service import Service, WorkerProcess

COUNTS = (1, 2)
COMMAND = ("order_service.cli", "worker")
SESSION_TIMEOUT_S = "120"
HOW = f"""\
{COMMANDS:,} JSON commands as in "backlog", 4 partitions, a worker with one process and one with two, in turn. The \
worker is ready with all lanes, and stopped (SIGSTOP) while the commands are put into Kafka: so neither its start nor \
the first rebalances count. Measured from the first commit to the last. Broker and worker share the cores: with two \
cores, two processes cannot have twice the speed of one. "Processor time" is that of all processes of the worker."""


def measure(world: World) -> list[Row]:
    """Take each figure once per run, in turn."""
    per_s: dict[int, list[float]] = {count: [] for count in COUNTS}
    processor_us: dict[int, list[float]] = {count: [] for count in COUNTS}
    for run in range(1, RUNS + 1):
        for count in COUNTS:
            with world.service() as service:
                decide(service, count, per_s[count], processor_us[count])
        world.say(f"cores {run}: " + ", ".join(f"{count}: {runs[-1]:,.0f}/s" for count, runs in per_s.items()))
    one, two = per_s.values()
    times = [both / alone for alone, both in zip(one, two, strict=True)]
    return [
        Row("backlog, one process", "/s", one),
        Row("backlog, two processes", "/s", two),
        Row("two processes, compared with one", "times", times, Target(">=", 1.6)),
        *(Row(f"processor time per command, {count} of them", "us", us) for count, us in processor_us.items()),
    ]


def decide(service: Service, count: int, per_s: list[float], processor_us: list[float]) -> None:
    """Run a worker of so many processes on the backlog; add its speed, and its processor time for a command."""
    settings = {"ORDERS_WORKERS": str(count), "ORDERS_SESSION_TIMEOUT_S": SESSION_TIMEOUT_S}
    worker = service.start_worker(None, module=COMMAND, **settings).wait_ready()
    pids = [worker.process.pid, *descendants(worker.process.pid)]
    ends = Ends(service.bootstrap_servers, service.names.events, service.partitions)
    with stopped(pids):
        load(service, encode_json_command)
        before_s = sum(map(processor_s, pids))
    per_s.append(growth_per_s(ends, COMMANDS, worker))
    processor_us.append((sum(map(processor_s, pids)) - before_s) / COMMANDS * 1e6)
    end(worker)
    check(service, COMMANDS)


@contextmanager
def stopped(pids: list[int]) -> Iterator[None]:
    """Stop processes while the block runs."""
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


def end(worker: WorkerProcess) -> None:
    """End a worker and all of its processes."""
    worker.send(signal.SIGTERM)
    worker.wait_ended()
