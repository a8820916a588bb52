"""Commands as a shop sends them: every order is created with two lines, amended twice, paid, shipped and delivered."""

import gc
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import count, cycle, islice
from multiprocessing.connection import Connection
from typing import Any
from uuid import UUID
from zlib import crc32

from confluent_kafka import Producer
from msgspec import Struct, structs

from bench.table import percentile
from order_service.domain.messages import AmendOrder, Command, CreateOrder, DeliverOrder, Line, PayOrder, ShipOrder
from order_service.wire.commands import partition_of
from tests.support.service import enqueue

HANGING = "slow-600000-"
"""The stub answers about such a user after ten minutes: that is, not while we measure."""


class Shop(Struct, frozen=True):
    """Where commands come from. Its users are few and return, or (`user_count` 0) every order has another one.

    With `hanging_every` n, the User Service hangs for the user of every n-th order.
    """

    name: str
    user_count: int = 100
    hanging_every: int = 0

    def is_hanging(self, number: int) -> bool:
        """Return whether the user of an order hangs."""
        return self.hanging_every > 0 and number % self.hanging_every == 0

    def user(self, number: int) -> str:
        """Return the name of the user of an order."""
        if self.is_hanging(number):
            return f"{HANGING}{self.name}-{number}"
        return f"{self.name}-user-{number % self.user_count if self.user_count else number}"

    def order_id(self, number: int) -> str:
        """Return the id of an order."""
        return f"{self.name}-{number:08}"

    def head(self, number: int, step: int) -> dict[str, Any]:
        """Return what all commands of an order have; ids are as long as real ones."""
        command_id = UUID(int=crc32(self.name.encode()) << 96 | number << 8 | step)
        return {"command_id": str(command_id), "order_id": self.order_id(number)}


def create(shop: Shop, number: int) -> Command:
    """Order two mugs and a poster."""
    user = shop.user(number)
    return CreateOrder(
        **shop.head(number, 1), actor=f"user:{user}", user_id=user, currency="EUR", lines=_lines(2), shipping=500
    )


def amend_lines(shop: Shop, number: int) -> Command:
    """Order one mug more."""
    return AmendOrder(**shop.head(number, 2), actor=f"user:{shop.user(number)}", lines=_lines(3))


def amend_address(shop: Shop, number: int) -> Command:
    """Have it sent elsewhere."""
    return AmendOrder(**shop.head(number, 3), actor=f"user:{shop.user(number)}", shipping_address_ref="office")


def pay(shop: Shop, number: int) -> Command:
    """Pay the whole amount."""
    return PayOrder(
        **shop.head(number, 4),
        actor="service:payments",
        payment_id=f"payment-{number}",
        amount=3 * 1250 + 900 + 500,
        currency="EUR",
    )


def ship(shop: Shop, number: int) -> Command:
    """Send it."""
    return ShipOrder(
        **shop.head(number, 5), actor="service:shipping", carrier="DHL", tracking_number=f"JD0146{number:08}"
    )


def deliver(shop: Shop, number: int) -> Command:
    """Hand it over."""
    return DeliverOrder(**shop.head(number, 6), actor="service:shipping")


def _lines(mugs: int) -> tuple[Line, ...]:
    return (
        Line(sku="mug-blue", name="Blue mug", quantity=mugs, unit_price=1250),
        Line(sku="poster-a2", quantity=1, unit_price=900),
    )


LIFE: tuple[Callable[[Shop, int], Command], ...] = (create, amend_lines, amend_address, pay, ship, deliver)


def waves(shop: Shop, orders: int, *, block: int = 5_000, steps: int = len(LIFE)) -> Iterator[Command]:
    """Yield one step after the other of a block of orders, then of the next block: a backlog."""
    for first in range(0, orders, block):
        for step in LIFE[:steps]:
            for number in range(first, min(first + block, orders)):
                yield step(shop, number)


def flow(shop: Shop, *, lag: int, steps: int = len(LIFE), numbers: Iterable[int] | None = None) -> Iterator[Command]:
    """Mix all steps for ever, each order taking its next one `lag` orders later: a shop's day.

    The orders are numbered from 0, or as `numbers` says.
    """
    newest: deque[int] = deque(maxlen=lag * (steps - 1) + 1)
    for number in count() if numbers is None else numbers:
        newest.appendleft(number)
        for place, step in enumerate(LIFE[:steps]):
            if place * lag < len(newest):
                yield step(shop, newest[place * lag])


def in_rotation(shop: Shop, partitions: int) -> Iterator[int]:
    """Choose the numbers of orders so that their keys lie in partition 0, 1, 2 and so on, again and again.

    Left to the hash, a partition that gets 5 commands/s on average gets none for 2 s now and then.
    """
    numbers = count()
    found: list[deque[int]] = [deque() for _ in range(partitions)]
    for partition in cycle(range(partitions)):
        while not found[partition]:
            number = next(numbers)
            found[partition_of(shop.order_id(number).encode(), partitions)].append(number)
        yield found[partition].popleft()


def in_order(servers: str) -> dict[str, Any]:
    """Configure a producer whose retries change no order: not idempotent, it sent a pay before its create."""
    return {"bootstrap.servers": servers, "partitioner": "murmur2_random", "enable.idempotence": True}


def produce(servers: str, topic: str, records: Iterable[tuple[str, bytes]]) -> int:
    """Produce keys and values as fast as they are taken; returns how many, when all have arrived."""
    producer = Producer(in_order(servers) | {"linger.ms": 20})
    sent = 0
    for key, value in records:
        enqueue(producer, topic, key, value)
        sent += 1
    if left := producer.flush(60):
        raise RuntimeError(f"{left} of {sent} records did not arrive in {topic}")
    return sent


class Pace(Struct, frozen=True):
    """How commands are sent: so many per second, evenly, each with its time of sending as `correlation_id` (ns).

    With `partitions`, each of so many partitions gets them evenly too; else the hash of the order ids decides.
    """

    servers: str
    topic: str
    shop: Shop
    per_s: int
    seconds: float
    steps: int = len(LIFE)
    partitions: int = 0


class Sent(Struct, frozen=True):
    """What was sent: `answerable` are those whose user does not hang; `late_ms` the p99 of being behind the plan."""

    count: int
    answerable: int
    late_ms: float


def send_evenly(pipe: "Connection[Any, Any]", pace: Pace, encode: Callable[[Command], bytes]) -> None:
    """Send at a pace, in a process of its own: say when ready, begin when told, tell what was sent."""
    gc.disable()  # a collection here would look like a pause of the service
    producer = Producer(in_order(pace.servers) | {"linger.ms": 0})
    producer.list_topics(pace.topic, 30)
    numbers = in_rotation(pace.shop, pace.partitions) if pace.partitions else None
    plan = flow(pace.shop, lag=max(1, pace.per_s // pace.steps), steps=pace.steps, numbers=numbers)
    late_ms: list[float] = []
    answerable = 0
    pipe.send("ready")
    pipe.recv()
    start = time.monotonic()
    for number, command in enumerate(islice(plan, round(pace.per_s * pace.seconds))):
        due_at = start + number / pace.per_s
        if (pause := due_at - time.monotonic()) > 0:
            time.sleep(pause)
        stamped = structs.replace(command, correlation_id=str(time.monotonic_ns()))
        producer.produce(pace.topic, key=command.order_id, value=encode(stamped))
        producer.poll(0)
        late_ms.append((time.monotonic() - due_at) * 1000)
        answerable += not (isinstance(command, CreateOrder) and command.user_id.startswith(HANGING))
    if producer.flush(30):
        raise RuntimeError("not all commands arrived in Kafka")
    pipe.send(Sent(len(late_ms), answerable, percentile(late_ms, 99)))
