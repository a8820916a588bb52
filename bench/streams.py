"""Streams: what thousands of open connections cost one web process, and how soon an event is at the other end.

Not part of the whole bench: `python -m bench streams`.
"""

import asyncio
import gc
import resource
import time
from multiprocessing.connection import Connection
from typing import Any, Final

import msgspec
from aiohttp import ClientSession, ClientTimeout, TCPConnector
from confluent_kafka import Producer
from msgspec import Struct
from pydantic import SecretStr
from sqlalchemy import func, select

from bench.idle import processor_s
from bench.load import Shop, in_order
from bench.processes import running
from bench.restore import put
from bench.sizes import scaled, scaled_s
from bench.table import Row, Target, percentile
from bench.watching import WrongResult
from bench.world import World
from order_service.domain.messages import AmendOrder
from order_service.settings import Settings
from order_service.views.tables import database_of, open_database, orders
from order_service.wire.commands import encode_json_command
from tests.support.service import Service, WorkerProcess, until
from tests.support.shop import Shop as Site

READERS: Final = scaled(2_000)
FEW: Final = 4
PER_S: Final = 100
TURNS: Final = 20
IDLE_S: Final = scaled_s(10.0)
OPENING: Final = 64
"""How many connections are being opened at a time."""
WITHIN_S: Final = 30.0
"""How long after the last amendment its event may come."""
SURPLUS_S: Final = 1.0
"""How long readers listen on, to see what is too much."""
SHOP: Final = Shop("shop")

HOW: Final = f"""\
{READERS:,} server-sent-event connections to one web process, views in SQLite; taken once. "Each its own": every \
connection follows another order. {IDLE_S:g} s nothing happens, then all orders are amended, {PER_S} a second, by a \
producer in a process of its own. "A few": {FEW} orders are followed by {READERS // FEW} connections each, and \
amended {TURNS} times, {FEW} amendments a second. From the call of produce to the event in the reader's hands; all \
readers are one process (aiohttp). Each must get every event of its order, once and in order."""


class Load(Struct, frozen=True):
    """Who follows what: a reader's order has its number, modulo `orders`, and `known` events before the load."""

    name: str
    orders: int
    known: int
    turns: int
    per_s: int


LOADS: Final = (
    Load("each its own", READERS, 1, 1, PER_S),
    Load(f"{FEW} orders", FEW, 2, TURNS, FEW),
)


class Got(Struct, frozen=True):
    """An event as its reader got it: `sent_ns` is when its command was sent, 0 of those before the load."""

    version: int
    sent_ns: int
    seen_ns: int


def measure(world: World) -> list[Row]:
    """Open all connections twice: to as many orders, and to a few."""
    url = f"sqlite:///{world.directory}/streams.db"
    with world.service(ORDERS_DATABASE_URL=url) as service:
        site = Site(service)
        site.worker.wait_lanes(service.partitions)
        site.projector.wait_ready()
        put(service, SHOP, READERS, steps=1)
        wait_projected(url)
        return [row for load in LOADS for row in follow(world, service, site, load)]


def follow(world: World, service: Service, site: Site, load: Load) -> list[Row]:
    """Follow orders while nothing happens, and then while they are amended."""
    http, web = site.serve()
    alone_mb = web.resident_bytes() / 1e6
    with (
        running(read, http.port, load) as readers,
        running(amend, service.bootstrap_servers, service.names.commands, load) as sender,
    ):
        began_at = time.monotonic()
        readers.recv()
        took_s = time.monotonic() - began_at
        idle_percent = percent_of_a_core(web)
        sender.recv()
        sender.send("go")
        got: list[list[Got]] = readers.recv()
        open_mb = web.resident_bytes() / 1e6
    web.end()
    latencies_ms = check(got, load)
    median_ms = percentile(latencies_ms, 50)
    world.say(
        f"streams: {load.name}: {len(got):,} opened in {took_s:.1f} s, {len(latencies_ms):,} events delivered, "
        f"median {median_ms:.1f} ms; the web process held {alone_mb:.0f} MB before, {open_mb:.0f} MB at the end"
    )
    said = f"{READERS:,} streams, {load.name}"
    return [
        Row(f"{said}: memory of the web process", "MB", [open_mb], Target("<=", 200)),
        Row(f"{said}: its processor while idle", "% of a core", [idle_percent]),
        Row(f"{said}: delivery, p50", "ms", [median_ms]),
        Row(f"{said}: delivery, p99", "ms", [percentile(latencies_ms, 99)]),
    ]


def wait_projected(url: str) -> None:
    """Wait until all orders are in the views."""
    engine = open_database(database_of(Settings(database_url=SecretStr(url))))

    def all_are_there() -> bool:
        with engine.begin() as connection:
            return connection.scalar(select(func.count()).select_from(orders)) == READERS

    until(all_are_there, f"{READERS} orders are in the views")
    engine.dispose()


def percent_of_a_core(process: WorkerProcess) -> float:
    """Watch a process while nothing happens."""
    before, began_at = processor_s(process.process.pid), time.monotonic()
    time.sleep(IDLE_S)
    return 100 * (processor_s(process.process.pid) - before) / (time.monotonic() - began_at)


def check(got: list[list[Got]], load: Load) -> list[float]:
    """See that each reader got all events of its order, once and in order; give how long those of the load took."""
    for events in got:
        versions = [event.version for event in events]
        if versions != list(range(1, load.known + load.turns + 1)):
            raise WrongResult(f"a reader got the versions {versions}, not {load.known + load.turns} in order")
    return [(event.seen_ns - event.sent_ns) / 1e6 for events in got for event in events[load.known :]]


def amend(pipe: "Connection[Any, Any]", servers: str, topic: str, load: Load) -> None:
    """Amend all orders in turn, in a process of its own: say when ready, begin when told."""
    producer = Producer(in_order(servers) | {"linger.ms": 0})
    producer.list_topics(topic, 30)
    pipe.send("ready")
    pipe.recv()
    start = time.monotonic()
    for place in range(load.orders * load.turns):
        time.sleep(max(0.0, start + place / load.per_s - time.monotonic()))
        command = AmendOrder(
            command_id=f"{load.orders}-{place}",
            order_id=order_id(place % load.orders),
            actor="service:bench",
            shipping_address_ref=f"office-{place}",
            correlation_id=str(time.monotonic_ns()),
        )
        producer.produce(topic, key=command.order_id, value=encode_json_command(command))
        producer.poll(0)
    producer.flush(30)
    pipe.recv()  # until killed


def order_id(number: int) -> str:
    """Return the name of the order with a number."""
    return str(SHOP.head(number, 0)["order_id"])


def read(pipe: "Connection[Any, Any]", port: int, load: Load) -> None:
    """Open all connections, in a process of their own: say when all have what was, tell what they got in the end."""
    gc.disable()  # a collection here would look like a pause of the service
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    pipe.send(asyncio.run(_read(pipe, port, load)))


async def _read(pipe: "Connection[Any, Any]", port: int, load: Load) -> list[list[Got]]:
    door = asyncio.Semaphore(OPENING)
    readers = [Reader(order_id(number % load.orders), door, load) for number in range(READERS)]
    connector = TCPConnector(limit=0)
    async with ClientSession(f"http://127.0.0.1:{port}", connector=connector, timeout=ClientTimeout()) as session:
        reading = [asyncio.create_task(reader.read(session)) for reader in readers]
        await asyncio.gather(*[reader.is_open.wait() for reader in readers])
        pipe.send("open")
        goal = asyncio.gather(*[reader.has_all.wait() for reader in readers])
        await asyncio.wait([goal], timeout=IDLE_S + load.orders * load.turns / load.per_s + WITHIN_S)
        await asyncio.sleep(SURPLUS_S)
        for task in reading:
            task.cancel()
    return [reader.got for reader in readers]


class Reader:
    """One connection."""

    def __init__(self, followed: str, door: asyncio.Semaphore, load: Load) -> None:
        self.got: list[Got] = []
        self.is_open = asyncio.Event()
        self.has_all = asyncio.Event()
        self._path = f"/v1/orders/{followed}/stream"
        self._door = door
        self._load = load

    async def read(self, session: ClientSession) -> None:
        """Take events until cancelled."""
        await self._door.acquire()
        async with session.get(self._path) as answer:
            answer.raise_for_status()
            async for line in answer.content:
                if line.startswith(b"data: "):
                    self._take(line.removeprefix(b"data: "))

    def _take(self, data: bytes) -> None:
        event = _decode(data)
        self.got.append(Got(event.version, int(event.correlation_id or 0), time.monotonic_ns()))
        if len(self.got) == self._load.known:
            self.is_open.set()
            self._door.release()
        if len(self.got) == self._load.known + self._load.turns:
            self.has_all.set()


class _Event(Struct):
    version: int
    correlation_id: str | None


_decode: Final = msgspec.json.Decoder(_Event).decode
