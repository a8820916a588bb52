"""A soak: many recurring orders for a long time; does memory grow, do file descriptors?

Not part of the whole bench: `python -m bench soak`. SOAK_S says how long.
"""

import os
import re
import time
from collections.abc import Callable, Iterator
from itertools import count, islice
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import linear_regression
from typing import Any, Final

from confluent_kafka import Producer
from msgspec import Struct

from bench.load import Shop, amend_address, create, in_order
from bench.processes import running
from bench.sizes import scaled
from bench.table import Row, Target
from bench.watching import WrongResult
from bench.world import World
from order_service.domain.messages import AmendOrder, Command
from order_service.wire.commands import encode_json_command
from tests.support.service import WorkerProcess, enqueue, until

SECONDS: Final = float(os.environ.get("SOAK_S", "1200"))
ORDERS: Final = scaled(50_000)
ROUNDS: Final = 51 + 16
"""Until every order remembers all that it ever will: its 51 accepted commands, and the last 16 refused."""
WARMING: Final = ROUNDS * ORDERS
LOOK_EVERY_S: Final = 5.0

HOW = f"""\
{ORDERS:,} orders are created and then amended over and over: 50 times, after which it is refused. The first \
{WARMING:,} commands come as fast as the worker takes them: then every order remembers all that it ever will, and how \
fast the last third of them was decided is the maximum. Then they come at half of that for {SECONDS:g} s, and as no \
order may change more often, each is refused. Resident memory and open files of the one worker are looked at every \
{LOOK_EVERY_S:g} s; the slope is the regression."""


class Look(Struct, frozen=True):
    """A worker at a moment."""

    at_s: float
    decided: int
    resident_mb: float
    open_files: int


def measure(world: World) -> list[Row]:
    """Soak one worker."""
    with world.service() as service:
        worker = service.start_worker().wait_lanes(service.partitions)
        with running(send, service.bootstrap_servers, service.names.commands) as sender:
            warming = watch(world, worker, lambda: decided(worker) >= WARMING, within_s=1800)
            most_per_s = pace(warming)
            sender.send(most_per_s / 2)
            looks = watch(world, worker, sender.poll, within_s=SECONDS + 120)
            sent = WARMING + sender.recv()
        until(lambda: decided(worker) >= sent, f"all {sent:,} commands are decided", within_s=60)
        if decided(worker) != sent:
            raise WrongResult(f"{decided(worker)} outcomes for {sent} commands")
    if len(looks) < 2:
        raise WrongResult(f"a soak of {SECONDS:g} s is too short: set SOAK_S")
    slope = linear_regression([look.at_s / 60 for look in looks], [look.resident_mb for look in looks]).slope
    files = [float(look.open_files) for look in looks]
    return [
        Row("soak, most that such orders allow", "commands/s", [most_per_s]),
        Row("soak, commands decided", "", [float(sent)]),
        Row("soak, memory at its end", "MB", [looks[-1].resident_mb]),
        Row("soak, slope of memory", "MB/min", [slope], Target("<=", 1.0)),
        Row("soak, open files, most over fewest", "", [max(files) - min(files)], Target("<=", 2.0)),
    ]


def watch(world: World, worker: WorkerProcess, is_over: Callable[[], bool], within_s: float) -> list[Look]:
    """Look at the worker until it is over."""
    began_at, looks = time.monotonic(), []
    while not is_over():
        time.sleep(LOOK_EVERY_S)
        at_s = time.monotonic() - began_at
        if worker.process.poll() is not None or at_s > within_s:
            raise WrongResult(f"not over after {at_s:.0f} s; the worker ended with {worker.process.returncode}")
        look = Look(at_s, decided(worker), worker.resident_bytes() / 1e6, open_files(worker))
        looks.append(look)
        if len(looks) % 12 == 0:
            said = f"{look.resident_mb:.0f} MB, {look.open_files} files, {look.decided:,} decided"
            world.say(f"soak {at_s:.0f} s: {said}")
    return looks


def pace(looks: list[Look]) -> float:
    """Return how many commands were decided per second in the last third."""
    end = looks[-1]
    begin = next(look for look in looks if look.decided >= WARMING * 2 / 3)
    if end is begin:
        raise WrongResult("warm too soon to see how fast: raise BENCH_SCALE")
    return (end.decided - begin.decided) / (end.at_s - begin.at_s)


def open_files(worker: WorkerProcess) -> int:
    """Count its file descriptors."""
    return len(list(Path(f"/proc/{worker.process.pid}/fd").iterdir()))


def decided(worker: WorkerProcess) -> int:
    """Ask how many commands it has decided."""
    status, metrics = worker.admin("/metrics", within_s=30.0)
    if status != 200:
        raise WrongResult(f"the admin port of the worker answers {status} (0 is nothing within 30 s)")
    counts = re.findall(r"^orders_commands_total{.*} (\S+)", metrics, re.MULTILINE)
    return sum(round(float(count)) for count in counts)


def recurring(shop: Shop, orders: int) -> Iterator[Command]:
    """Create so many orders, and then amend one after the other for ever."""
    for number in range(orders):
        yield create(shop, number)
    for turn in count(2):
        for number in range(orders):
            amended = amend_address(shop, number)
            yield AmendOrder(
                command_id=f"{amended.command_id}-{turn}",
                order_id=amended.order_id,
                actor=amended.actor,
                shipping_address_ref=f"office-{turn}",
            )


def send(pipe: "Connection[Any, Any]", servers: str, topic: str) -> None:
    """Send what warms in one go; then at the pace that the pipe says, and tell how many when all have arrived."""
    producer = Producer(in_order(servers) | {"linger.ms": 5})
    commands = recurring(Shop("soak"), ORDERS)
    for command in islice(commands, WARMING):
        enqueue(producer, topic, command.order_id, encode_json_command(command))
    producer.flush()
    per_s = pipe.recv()
    total = round(per_s * SECONDS)
    start = time.monotonic()
    for number, command in enumerate(islice(commands, total)):
        if number % 100 == 0 and (early := start + number / per_s - time.monotonic()) > 0:
            time.sleep(early)
        enqueue(producer, topic, command.order_id, encode_json_command(command))
    if producer.flush(60):
        raise RuntimeError("not all commands arrived in Kafka")
    pipe.send(total)
