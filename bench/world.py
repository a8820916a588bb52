"""What every part runs on: one warm broker, User Service stubs as processes, a service with fresh topics."""

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, cast
from uuid import uuid4

from confluent_kafka import Consumer, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic  # type: ignore[attr-defined]
from msgspec import Struct
from rich.console import Console

from bench.others import Others
from bench.processes import running
from bench.watching import Ends
from order_service.local.broker import free_port
from order_service.users.stub import serve_stub
from tests.support.service import Service, StubThread, until

WARM_TRANSACTIONS = 200
WARM_RECORDS = 1_000  # in each of them
SESSION_TIMEOUT_S = "15"  # the default of the settings; the tests' own is shorter


class StubProcess(Struct, frozen=True):
    """A User Service stub that runs in a process of its own."""

    url: str


class World(Struct, frozen=True):
    """A broker, a place for logs, where to print, and who else is on this machine."""

    servers: str
    directory: Path
    console: Console
    others: Others

    @contextmanager
    def service(self, *, partitions: int = 4, users_latency_ms: int = 0, **settings: str) -> Iterator[Service]:
        """Provide a service without orders, its User Service beside it; topics and workers end with the block."""
        place = self.directory / uuid4().hex
        place.mkdir()
        with (
            stub(users_latency_ms) as users,
            Service(
                self.servers,
                place,
                cast("StubThread", users),
                keep_topics=False,
                ORDERS_PARTITIONS=str(partitions),
                ORDERS_SESSION_TIMEOUT_S=SESSION_TIMEOUT_S,
                **settings,
            ) as service,
        ):
            yield service

    def say(self, line: str) -> None:
        """Print a line of progress, and what others took of the machine since the last one."""
        others = f"others took {self.others.percent():.0f} % of the machine"
        self.console.print(f"[dim]{time.strftime('%H:%M:%S')} {line} ({others})[/]", highlight=False)


@contextmanager
def stub(latency_ms: int) -> Iterator[StubProcess]:
    """Run a stub that takes so long for every lookup."""
    with running(_serve, latency_ms) as pipe:
        yield StubProcess(pipe.recv())


def _serve(pipe: "Connection[Any, Any]", latency_ms: int) -> None:
    asyncio.run(serve_stub("127.0.0.1", free_port(), latency_ms=latency_ms, ready=pipe.send))


@contextmanager
def topics(servers: str, names: list[str], partitions: int) -> Iterator[None]:
    """Make topics that are no part of the service, and remove them after the block."""
    admin = AdminClient({"bootstrap.servers": servers})
    for made in admin.create_topics([NewTopic(name, partitions, 1) for name in names]).values():
        made.result(30)
    until(lambda: all(_is_led(servers, name, partitions) for name in names), f"{names} have leaders")
    try:
        yield
    finally:
        for removed in admin.delete_topics(names).values():
            removed.exception(30)


def _is_led(servers: str, name: str, partitions: int) -> bool:
    try:
        return Ends(servers, name, partitions).sum() == 0
    except KafkaException:
        return False


def warm_up(servers: str) -> int:
    """Make a fresh broker's code hot: 200,000 records in 200 transactions, and read them; gives how many were read."""
    topic = f"warm-{uuid4().hex[:10]}"
    with topics(servers, [topic], 4):
        producer = Producer({"bootstrap.servers": servers, "transactional.id": topic, "log_level": 3})
        producer.init_transactions(30)
        for _ in range(WARM_TRANSACTIONS):
            producer.begin_transaction()
            for number in range(WARM_RECORDS):
                producer.produce(topic, key=str(number), value=bytes(500))
            producer.commit_transaction(30)
        return _read(servers, topic, WARM_TRANSACTIONS * WARM_RECORDS)


def _read(servers: str, topic: str, count: int) -> int:
    consumer = Consumer({"bootstrap.servers": servers, "group.id": topic, "isolation.level": "read_committed"})
    consumer.assign([TopicPartition(topic, partition, 0) for partition in range(4)])
    read = 0
    try:
        while read < count and (messages := consumer.consume(10_000, 10)):
            read += len(messages)
    finally:
        consumer.close()
    return read
