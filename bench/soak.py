"""A soak: many recurring orders for a long time; does memory grow, do file descriptors?

Not part of the whole bench: `python -m bench soak`. SOAK_PER_S and SOAK_S say how fast and how long.
"""

import os
import re
import time
from collections.abc import Iterator
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
from tests.service import WorkerProcess, enqueue, until

PER_S: Final = int(os.environ.get("SOAK_PER_S", "10000"))
SECONDS: Final = float(os.environ.get("SOAK_S", "1200"))
ORDERS: Final = scaled(50_000)
ROUNDS: Final = 51 + 16
"""Until every order remembers all that it ever will: its 51 accepted commands, and the last 16 refused."""
WARM_S: Final = max(ROUNDS * ORDERS / PER_S * 1.2, SECONDS / 4)
LOOK_EVERY_S: Final = 5.0

HOW = f"""\
{PER_S:,} commands/s for {SECONDS:g} s on {ORDERS:,} orders, each created once and then amended over and over: 50 \
times, after which it is refused. Resident memory and open files of the one worker are looked at every \
{LOOK_EVERY_S:g} s; the slope is the regression over what came \
after {WARM_S:.0f} s, when every order remembers all that it ever will."""


class Look(Struct, frozen=True):
    """A worker at a moment."""

    at_s: float
    resident_mb: float
    open_files: int


def measure(world: World) -> list[Row]:
    """Soak one worker."""
    with world.service() as service:
        worker = service.start_worker().wait_lanes(service.partitions)
        with running(send, service.bootstrap_servers, service.names.commands) as sender:
            looks = watch(world, worker, sender)
            sent = sender.recv()
        until(lambda: decided(worker) >= sent, f"all {sent:,} commands are decided", within_s=300)
        if decided(worker) != sent:
            raise WrongResult(f"{decided(worker)} outcomes for {sent} commands")
    warm = [look for look in looks if look.at_s > WARM_S]
    if len(warm) < 2:
        raise WrongResult(f"a soak of {SECONDS:g} s is too short: it is warm after {WARM_S:.0f} s; set SOAK_S")
    slope = linear_regression([look.at_s / 60 for look in warm], [look.resident_mb for look in warm]).slope
    files = [float(look.open_files) for look in warm]
    return [
        Row("soak, commands decided", "", [float(sent)]),
        Row("soak, memory at its end", "MB", [looks[-1].resident_mb]),
        Row("soak, slope of memory once warm", "MB/min", [slope], Target("<=", 1.0)),
        Row("soak, open files, most over fewest", "", [max(files) - min(files)], Target("<=", 2.0)),
    ]


def watch(world: World, worker: WorkerProcess, sender: "Connection[Any, Any]") -> list[Look]:
    """Look at the worker until all is sent."""
    began_at, looks = time.monotonic(), []
    while not sender.poll(LOOK_EVERY_S):
        if worker.process.poll() is not None:
            raise WrongResult(f"the worker ended with {worker.process.returncode}")
        look = Look(time.monotonic() - began_at, worker.resident_bytes() / 1e6, open_files(worker))
        looks.append(look)
        if len(looks) % 12 == 0:
            said = f"{look.resident_mb:.0f} MB, {look.open_files} files, {decided(worker):,} decided"
            world.say(f"soak {look.at_s:.0f} s: {said}")
    return looks


def open_files(worker: WorkerProcess) -> int:
    """Count its file descriptors."""
    return len(list(Path(f"/proc/{worker.process.pid}/fd").iterdir()))


def decided(worker: WorkerProcess) -> int:
    """Ask how many commands it has decided."""
    counts = re.findall(r"^orders_commands_total{.*} (\S+)", worker.admin("/metrics")[1], re.MULTILINE)
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
    """Send at the pace, in a process of its own; tell how many when all have arrived."""
    producer = Producer(in_order(servers) | {"linger.ms": 5})
    total = round(PER_S * SECONDS)
    start = time.monotonic()
    for number, command in enumerate(islice(recurring(Shop("soak"), ORDERS), total)):
        if number % 100 == 0 and (early := start + number / PER_S - time.monotonic()) > 0:
            time.sleep(early)
        enqueue(producer, topic, command.order_id, encode_json_command(command))
    if producer.flush(60):
        raise RuntimeError("not all commands arrived in Kafka")
    pipe.send(total)
