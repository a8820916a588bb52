"""An outage of the User Service: creates wait by the hundred thousand, and when it heals all are decided, in order."""

import os
import threading
import time
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import Final

from confluent_kafka import Producer

from chaos.fleet import Fleet, Measured
from chaos.plan import Sizes
from chaos.run import running
from chaos.verdict.checker import Verdict, verdict_of
from chaos.verdict.judging import Kept, check, keep
from order_service.domain.messages import AmendOrder, Command, CreateOrder, Line
from order_service.users.stub import Mode
from order_service.wire.commands import encode_json_command
from tests.support.service import enqueue, until, vars_of

CREATES: Final = int(os.environ.get("CREATES", "100000"))
AWAY_S: Final = float(os.environ.get("AWAY_S", "600"))
AMENDED_EVERY: Final = 10
WAITING_MAX: Final = 40_000
"""Of one lane: above what a quarter of all can come to."""
PAYMENT_DUE_S: Final = 100_000.0
TELL_EVERY_S: Final = 30.0
HEALED_WITHIN_S: Final = 600.0


def run(directory: Path, say: Callable[[str], None]) -> Verdict:
    """Make all commands wait, heal, and check; report what the worker holds in memory meanwhile."""
    sizes = Sizes(commands=CREATES + CREATES // AMENDED_EVERY, workers=1, faults=0, kinds=())
    deadline_s = 3600.0
    settings = {
        "ORDERS_WAITING_MAX": str(WAITING_MAX),
        "ORDERS_USER_DEADLINE_S": str(deadline_s),
        "ORDERS_PAYMENT_DUE_S": str(PAYMENT_DUE_S),
    }
    with running(sizes, directory, **settings) as (cluster, users, service):
        kept = Kept(sizes, vars_of(service.names), deadline_s, PAYMENT_DUE_S)
        keep(kept, directory)
        fleet = Fleet(service)
        fleet.join()
        until(lambda: fleet.measure().lanes == service.partitions, "all partitions run")

        def tell(what: str) -> None:
            [worker] = fleet.workers
            held_mb = worker.resident_bytes() / 1e6
            say(f"{what}: waiting {fleet.measure().waiting:,}, the worker holds {held_mb:,.0f} MB")

        tell("before")
        users.stub.mode = Mode.HANG
        away_since = time.monotonic()
        send(cluster.bootstrap_servers, service.names.commands)
        until(lambda: fleet.measure().waiting == sizes.commands, "all wait", within_s=HEALED_WITHIN_S)
        pause = threading.Event()
        while (left := away_since + AWAY_S - time.monotonic()) > 0:
            tell(f"away for {time.monotonic() - away_since:.0f} s")
            pause.wait(min(left, TELL_EVERY_S))
        users.stub.mode = Mode.OK
        healed_at = time.monotonic()
        done = Measured(lag=0, waiting=0, lanes=service.partitions)  # one that is too busy to answer has no lanes
        until(lambda: fleet.measure() == done, "all is decided", within_s=HEALED_WITHIN_S)
        tell(f"{time.monotonic() - healed_at:.0f} s after it has healed")
        fleet.stop()
        return verdict_of(check(kept, cluster.bootstrap_servers, say), faults=1, seed=sizes.seed)


def send(servers: str, topic: str) -> None:
    """Send a create for each order, and behind it a change of every tenth."""
    producer = Producer(
        {"log_level": 0, "bootstrap.servers": servers, "partitioner": "murmur2_random", "enable.idempotence": True}
    )
    for command in chain(creates(), changes()):
        enqueue(producer, topic, command.order_id, encode_json_command(command))
    if left := producer.flush(60):
        raise RuntimeError(f"{left} commands did not arrive in Kafka")


def creates() -> Iterator[Command]:
    """Make the creates, each of another user."""
    lines = (Line(sku="mug-blue", quantity=2, unit_price=1250),)
    for number in range(CREATES):
        user = f"user-{number}"
        yield CreateOrder(
            command_id=f"create-{number}",
            order_id=f"order-{number}",
            actor=f"user:{user}",
            user_id=user,
            currency="EUR",
            lines=lines,
        )


def changes() -> Iterator[Command]:
    """Make the changes."""
    for number in range(0, CREATES, AMENDED_EVERY):
        yield AmendOrder(command_id=f"amend-{number}", order_id=f"order-{number}", actor="service:shop", shipping=500)
