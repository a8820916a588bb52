"""A fleet: of three workers one is killed, then each is restarted in turn; and one worker takes many partitions."""

import signal
import time
from collections.abc import Iterable
from itertools import pairwise

from bench.latency import under_way
from bench.load import Pace, Shop
from bench.sizes import RUNS, scaled
from bench.table import Row, Target
from bench.watching import Seen
from bench.world import World
from order_service.embedded.broker import free_port
from tests.service import WorkerProcess, until

WORKERS = 3
PARTITIONS = 12
MANY_PARTITIONS = scaled(300)
PER_S = 300
EVERY_S = 15.0

HOW = f"""\
Kill: {WORKERS} workers with their default static names, {PARTITIONS} partitions, {PER_S} commands/s; every \
{EVERY_S:g} s one worker is killed (kill -9) and started again at once. The longest time without a new event in any \
partition of the others, until the next kill. Rolling restart: one worker after the other is told to stop (SIGTERM), \
awaited, and started again; the longest time without a new event in any partition, per worker. All events are counted. \
Many partitions: from the start of a worker's process until all of its {MANY_PARTITIONS} partitions run."""


def measure(world: World) -> list[Row]:
    """Kill and restart the workers of one service, then start one of another, each as often as there are runs."""
    with world.service(partitions=PARTITIONS) as service:
        ports = [free_port() for _ in range(WORKERS)]
        workers = [service.start_worker(ORDERS_ADMIN_PORT=str(port)) for port in ports]
        wait_shared(workers)
        pace = Pace(service.bootstrap_servers, service.names.commands, Shop("fleet"), PER_S, EVERY_S * 2 * (RUNS + 2))
        steps: list[tuple[int, list[int]]] = []
        with under_way(service, pace) as all_seen:
            for run in range(2 * RUNS):
                time.sleep(EVERY_S / 3)
                number, is_kill = run % WORKERS, run < RUNS
                steps.append((time.monotonic_ns(), untouched(workers, number) if is_kill else list(range(PARTITIONS))))
                workers[number].send(signal.SIGKILL if is_kill else signal.SIGTERM)
                workers[number].wait_ended()
                workers[number] = service.start_worker(ORDERS_ADMIN_PORT=str(ports[number]))
                wait_shared(workers)
                time.sleep(max(0.0, EVERY_S * 2 / 3 - (time.monotonic_ns() - steps[-1][0]) / 1e9))
            seen, _ = all_seen()
    silences = [silence_s(seen, partitions, since, since + int(EVERY_S * 1e9)) for since, partitions in steps]
    started = [many_partitions_s(world) for _ in range(RUNS)]
    return [
        Row("fleet: silence of untouched partitions at a kill", "s", silences[:RUNS], Target("<=", 1)),
        Row("fleet: silence of any partition at a step of a rolling restart", "s", silences[RUNS:], Target("<=", 5)),
        Row(f"fleet: start with {MANY_PARTITIONS} partitions", "s", started, Target("<=", 12)),
    ]


def wait_shared(workers: list[WorkerProcess]) -> None:
    """Wait until the workers together run all partitions, each its share."""
    share = PARTITIONS // WORKERS
    until(lambda: all(worker.is_ready() and worker.lanes() == share for worker in workers), "all partitions run")


def untouched(workers: list[WorkerProcess], killed: int) -> list[int]:
    """Return the partitions that the other workers have, as each has logged it last."""
    others = [worker for number, worker in enumerate(workers) if number != killed]
    return [partition for worker in others for partition in worker.lines("Partitions are assigned.")[-1]["partitions"]]


def silence_s(seen: list[Seen], partitions: Iterable[int], since_ns: int, until_ns: int) -> float:
    """Return the longest time without an event in any of these partitions, in seconds."""
    longest_ns = 0
    for partition in partitions:
        times = sorted(event.seen_ns for event in seen if event.partition == partition)
        inside = [at for at in times if since_ns <= at <= until_ns]
        longest_ns = max(longest_ns, *(after - before for before, after in pairwise([since_ns, *inside, until_ns])))
    return longest_ns / 1e9


def many_partitions_s(world: World) -> float:
    """Start a worker on new topics with many partitions, and return the seconds until all run."""
    with world.service(partitions=MANY_PARTITIONS) as service:
        began_at = time.monotonic()
        worker = service.start_worker()
        until(lambda: worker.lanes() == MANY_PARTITIONS, f"{MANY_PARTITIONS} partitions run", within_s=120)
        taken = time.monotonic() - began_at
        world.say(f"fleet: {MANY_PARTITIONS} partitions run after {taken:.1f} s")
        return taken
