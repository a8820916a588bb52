"""Workers that decide commands and end, and commands for each kind of outcome."""

import signal
from typing import Any

from tests.support.samples import SHOP, but, cancel, create
from tests.support.service import GRACE_S, histories

FIRST: dict[str, list[Any]] = {
    "events": histories(20),
    "rejections": [but(cancel, order_id=f"order-{n}", command_id=f"cancel-{n}") for n in range(20)],
    "dead letters": [(f"order-{n}", b"no command") for n in range(20)],
}


def creates(service, count, partition, **changes):
    """Return creates of new orders of one partition."""
    orders = (order for n in range(10_000) if service.partition_of(order := f"order-{partition}-{n}") == partition)
    return [
        but(create, order_id=order, command_id=f"create-{order}", actor=SHOP, **changes)
        for order, _ in zip(orders, range(count), strict=False)
    ]


def end(worker):
    """Send SIGTERM to a worker, and wait until it has ended."""
    worker.send(signal.SIGTERM)
    assert worker.wait_ended(within_s=GRACE_S) == 0


def decide(service, commands):
    """Run a worker until it has decided the commands, and end it."""
    worker = service.start_worker().wait_lanes(4)
    service.send(commands)
    service.wait_outcomes(len(commands))
    end(worker)
