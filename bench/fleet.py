"""A fleet: of three workers one is killed, or each is restarted in turn; and one worker takes many partitions."""

import signal
import time
from itertools import pairwise

from bench.latency import under_way
from bench.load import Pace, Shop
from bench.sizes import RUNS, scaled
from bench.table import Row, Target
from bench.watching import Seen, WrongResult
from bench.world import World
from order_service.local.broker import free_port
from tests.support.service import WorkerProcess, until

WORKERS = 3
PARTITIONS = 12
MANY_PARTITIONS = scaled(300)
PER_S = 300
MANY_PER_S = MANY_PARTITIONS // 4
"""A command every four seconds in each. Kafka reads and writes every partition by itself: a broker and three workers
keep two cores busy with 300/s over 300 partitions, and nothing would be left for claims."""
CALM_S = 5.0
MANY_CALM_S = 90.0
"""A broker that has just started needs so long until its code for hundreds of partitions is compiled."""
STEP_S = 20.0
MANY_STEP_S = 45.0
"""Commands are sent for so long per step: no step may take longer on average."""

HOW = f"""\
{WORKERS} workers with their default static names; every partition gets its commands evenly. Kill: {PARTITIONS} \
partitions, {PER_S} commands/s in all; one worker after the other is killed (kill -9) and started again at once. The \
longest time without a new event in any partition of the others, until {CALM_S:g} s after all partitions run again. \
Rolling restart: {MANY_PARTITIONS} partitions, {MANY_PER_S:,} commands/s in all; one worker after the other is told to \
stop (SIGTERM), awaited, and started again; with its default name it leaves the group, with ORDERS_INSTANCE_ID it \
stays a member; the longest time that a command waited for its event, per worker. Both \
beside the same figure for {CALM_S:g} s before the first step: the pace and the load alone cause that. All events are \
counted. Start: from the start of a worker's process until all of its {MANY_PARTITIONS} partitions run."""


def measure(world: World) -> list[Row]:
    """Kill the workers of a service, restart those of another, and start one of a third, as often as there are runs."""
    calm_s, *at_kills = [silence_s(*step) for step in steps(world, PARTITIONS, PER_S, CALM_S, STEP_S, signal.SIGKILL)]
    many = steps(world, MANY_PARTITIONS, MANY_PER_S, MANY_CALM_S, MANY_STEP_S, signal.SIGTERM)
    many_calm_s, *at_restarts = [longest_wait_s(seen, since, to) for seen, _, since, to in many]
    started = [many_partitions_s(world) for _ in range(RUNS)]
    named = steps(world, MANY_PARTITIONS, MANY_PER_S, MANY_CALM_S, MANY_STEP_S, signal.SIGTERM, is_named=True)
    at_named_restarts = [longest_wait_s(seen, since, to) for seen, _, since, to in named[1:]]
    few, large = f"fleet, {PARTITIONS} partitions", f"fleet, {MANY_PARTITIONS} partitions"
    return [
        Row(f"{few}: silence of any before the kills", "s", [calm_s]),
        Row(f"{few}: silence of the untouched at a kill", "s", at_kills, Target("<=", 1)),
        Row(f"{large}: longest wait before the restarts", "s", [many_calm_s]),
        Row(f"{large}: longest wait at a step of a rolling restart", "s", at_restarts, Target("<=", 5)),
        Row(f"{large}: the same with ORDERS_INSTANCE_ID", "s", at_named_restarts, Target("<=", 5)),
        Row(f"{large}: start of one worker", "s", started, Target("<=", 12)),
    ]


Step = tuple[list[Seen], list[int], int, int]
"""All events, the partitions to look at, and the start and end of the step by the monotonic clock, in nanoseconds."""


def steps(
    world: World,
    partitions: int,
    per_s: int,
    calm_s: float,
    step_s: float,
    signal_number: signal.Signals,
    *,
    is_named: bool = False,
) -> list[Step]:
    """End one worker after the other with a signal and start it again; return the time before, and each step.

    A worker that `is_named` stays a member of the group after a SIGTERM.
    """
    with world.service(partitions=partitions) as service:
        ports = [str(free_port()) for _ in range(WORKERS)]
        ids = [f"worker-{number}" if is_named else "" for number in range(WORKERS)]

        def start(number: int) -> WorkerProcess:
            return service.start_worker(ORDERS_ADMIN_PORT=ports[number], ORDERS_INSTANCE_ID=ids[number])

        workers = [start(number) for number in range(WORKERS)]
        wait_shared(workers, partitions)
        seconds = calm_s + CALM_S + RUNS * step_s
        rotates_over = partitions if signal_number == signal.SIGKILL else 0
        pace = Pace(
            service.bootstrap_servers, service.names.commands, Shop("fleet"), per_s, seconds, partitions=rotates_over
        )
        spans: list[tuple[int, list[int]]] = []  # from then on, until the next one, these partitions are looked at
        with under_way(service, pace) as all_seen:
            time.sleep(calm_s)
            spans.append((time.monotonic_ns(), list(range(partitions))))
            time.sleep(CALM_S)
            for ended in (run % WORKERS for run in range(RUNS)):
                looked_at = untouched(workers, ended) if signal_number == signal.SIGKILL else list(range(partitions))
                spans.append((time.monotonic_ns(), looked_at))
                workers[ended].send(signal_number)
                workers[ended].wait_ended()
                workers[ended] = start(ended)
                wait_shared(workers, partitions)
                took_s = (time.monotonic_ns() - spans[-1][0]) / 1e9
                world.say(f"fleet: all {partitions} partitions run {took_s:.1f} s after {signal_number.name}")
                time.sleep(CALM_S)
            spans.append((time.monotonic_ns(), []))
            seen, _ = all_seen()
    if max(event.sent_ns for event in seen) < spans[-1][0]:
        raise WrongResult(f"the {RUNS} steps took longer than the {seconds:g} s in which commands were sent")
    return [(seen, looked_at, since, to) for (since, looked_at), (to, _) in pairwise(spans)]


def wait_shared(workers: list[WorkerProcess], partitions: int) -> None:
    """Wait until the workers together run all partitions, each its share."""

    def is_shared() -> bool:
        lanes = [worker.lanes() for worker in workers] if all(worker.is_ready() for worker in workers) else []
        return sum(lanes) == partitions and max(lanes) - min(lanes) <= 1

    until(is_shared, f"{partitions} partitions run", within_s=120)


def untouched(workers: list[WorkerProcess], killed: int) -> list[int]:
    """Return the partitions that the other workers have, as each has logged it last."""
    others = [worker for number, worker in enumerate(workers) if number != killed]
    return [partition for worker in others for partition in worker.lines("Partitions assigned.")[-1]["partitions"]]


def silence_s(seen: list[Seen], partitions: list[int], since_ns: int, until_ns: int) -> float:
    """Return the longest time without an event in any of these partitions, in seconds."""
    last = dict.fromkeys(partitions, since_ns)
    longest_ns = 0
    for event in sorted(seen, key=lambda event: event.seen_ns):
        if event.partition in last and since_ns <= event.seen_ns <= until_ns:
            longest_ns = max(longest_ns, event.seen_ns - last[event.partition])
            last[event.partition] = event.seen_ns
    return max(longest_ns, *(until_ns - at for at in last.values())) / 1e9


def longest_wait_s(seen: list[Seen], since_ns: int, until_ns: int) -> float:
    """Return the longest time between a command sent in this span and its event, in seconds.

    A partition may stand still for longer: by the time between two commands to it.
    """
    waits = (event.seen_ns - event.sent_ns for event in seen if since_ns <= event.sent_ns < until_ns)
    return max(waits) / 1e9


def many_partitions_s(world: World) -> float:
    """Start a worker on new topics with many partitions, and return the seconds until all run."""
    with world.service(partitions=MANY_PARTITIONS) as service:
        began_at = time.monotonic()
        worker = service.start_worker()
        wait_shared([worker], MANY_PARTITIONS)
        taken = time.monotonic() - began_at
        world.say(f"fleet: {MANY_PARTITIONS} partitions run after {taken:.1f} s")
        return taken
