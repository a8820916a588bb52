"""The size of an order: its bytes in each topic, on the broker's disk, and in the views."""

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from pydantic import SecretStr
from sqlalchemy import text

from bench.databases import DATABASES, databases
from bench.latency import paced
from bench.load import LIFE, Shop
from bench.restore import put
from bench.sizes import scaled_s
from bench.table import Row
from bench.views import ORDERS, build
from bench.watching import WrongResult
from bench.world import World
from order_service.settings import Settings
from order_service.views.tables import database_of, open_database
from tests.support.service import Service

PER_S: Final = 500
SECONDS: Final = scaled_s(30.0)
SQLITE_BYTES: Final = "SELECT page_count * page_size FROM pragma_page_count(), pragma_page_size()"
POSTGRESQL_BYTES: Final = "SELECT pg_database_size(current_database())"

HOW: Final = f"""\
Six commands an order (created to delivered, two lines), one replica, no compression, before compaction. "In a \
backlog" is {ORDERS:,} orders as fast as they are decided, in large batches; "at {PER_S}/s" is {SECONDS:g} s of that \
pace, in small ones. The sum of the segment files of each topic on the embedded broker's disk. Views: the growth of \
the database by the orders of the backlog."""


def measure(world: World) -> list[Row]:
    """Fill a service in two ways, and divide the bytes by the orders."""
    rows = []
    with databases(world.directory) as make, world.service() as service:
        worker = service.start_worker().wait_lanes(service.partitions)
        put(service, Shop("shop"), ORDERS)
        worker.end()
        rows += [
            Row(f"{topic}, in a backlog", "bytes/order", [size / ORDERS])
            for topic, size in _topic_bytes(world, service)
        ]
        for kind in DATABASES:
            url = make(kind)
            before = 0 if kind == "SQLite" else _database_bytes(url)
            build(world, service, url)
            rows.append(Row(f"views in {kind}", "bytes/order", [(_database_bytes(url) - before) / ORDERS]))
    with world.service() as service:
        service.start_worker().wait_lanes(service.partitions)
        _, sent = paced(service, Shop("paced"), PER_S, SECONDS)
        rows += [
            Row(f"{topic}, at {PER_S}/s", "bytes/order", [size / (sent.count / len(LIFE))])
            for topic, size in _topic_bytes(world, service)
        ]
    return rows


def _topic_bytes(world: World, service: Service) -> Iterator[tuple[str, int]]:
    """Yield the name of each topic of the service without its prefix, and the bytes of its segments."""
    data = world.directory / "kafka" / "data"
    if not data.is_dir():
        raise WrongResult(f"{data} does not exist: this part needs the embedded Kafka, not an external one")
    names = service.names
    for topic in (names.commands, names.events, names.rejections, names.table, names.waiting):
        segments: list[Path] = list(data.glob(f"{topic}-*/*.log"))
        prefix = service.environment["ORDERS_TOPIC_PREFIX"]
        yield topic.removeprefix(prefix), sum(segment.stat().st_size for segment in segments)


def _database_bytes(url: str) -> int:
    engine = open_database(database_of(Settings(database_url=SecretStr(url))))
    try:
        with engine.begin() as connection:
            question = SQLITE_BYTES if engine.dialect.name == "sqlite" else POSTGRESQL_BYTES
            return int(connection.scalar(text(question)) or 0)
    finally:
        engine.dispose()
