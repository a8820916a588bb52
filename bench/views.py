"""Views: how fast a projector builds them from the log.

Not part of the whole bench: `python -m bench views`. VIEWS_EVENTS says how many events, a million by hand.
"""

import os
import time
from contextlib import ExitStack
from typing import Final

from pydantic import SecretStr
from sqlalchemy import Engine, func, select
from sqlalchemy.exc import SQLAlchemyError

from bench.databases import DATABASES, databases
from bench.idle import processor_s
from bench.load import LIFE, Shop
from bench.restore import put
from bench.sizes import RUNS, scaled
from bench.table import Row, Target
from bench.watching import WrongResult, growth_per_s
from bench.world import World
from order_service.domain.refusals import Status
from order_service.settings import Settings
from order_service.views.queries import Views
from order_service.views.tables import database_of, open_database, order_events, orders
from tests.support.service import Service

ORDERS: Final = int(os.environ.get("VIEWS_EVENTS", scaled(120_000))) // len(LIFE)
EVENTS: Final = ORDERS * len(LIFE)
SAY_EVERY_S: Final = 5.0
TARGETS: Final = {"SQLite": 15_000, "PostgreSQL": 8_000}
TWO: Final = "PostgreSQL, two projectors"
BUILDS: Final = {kind: (kind, 1) for kind in DATABASES} | {TWO: ("PostgreSQL", 2)}
"""What is built: the kind of database, and how many projectors share the partitions."""

HOW: Final = f"""\
{EVENTS:,} events of {ORDERS:,} orders (created to delivered, blocks of 5,000 side by side), decided by a worker, in \
4 partitions; then one projector, or two that share the partitions, are started on an empty database, with default \
settings. Measured from the first batch that is seen in the database to the last (asked every 30 ms); then all events \
and states are counted. Processor time is that of the projectors, with their start; PostgreSQL's comes on top of it."""


def measure(world: World) -> list[Row]:
    """Build the views once per run and kind of database, in turn."""
    per_s: dict[str, list[float]] = {name: [] for name in BUILDS}
    processor_us: dict[str, list[float]] = {name: [] for name in BUILDS}
    with databases(world.directory) as make, world.service() as service:
        worker = service.start_worker().wait_lanes(service.partitions)
        put(service, Shop("shop"), ORDERS)
        worker.end()
        for run in range(1, RUNS + 1):
            for name, (kind, projectors) in BUILDS.items():
                built_per_s, took_s = build(world, service, make(kind), projectors)
                per_s[name].append(built_per_s)
                processor_us[name].append(took_s / EVENTS * 1e6)
                world.say(f"views {run}: {name}: {built_per_s:,.0f} events/s")
    times_one = [two / one for two, one in zip(per_s[TWO], per_s["PostgreSQL"], strict=True)]
    return [
        *[Row(f"projector into {kind}", "/s", per_s[kind], Target(">=", TARGETS[kind])) for kind in DATABASES],
        Row(TWO, "/s", per_s[TWO]),
        Row("two projectors, times one", "x", times_one, Target(">=", 1.7)),
        *[Row(f"their processor time per event, {name}", "us", times) for name, times in processor_us.items()],
    ]


def build(world: World, service: Service, url: str, projectors: int = 1) -> tuple[float, float]:
    """Build the views; return the events per second, and the processor time of all projectors in seconds."""
    engine = open_database(database_of(Settings(database_url=SecretStr(url))))
    with ExitStack() as stack:
        stack.callback(engine.dispose)
        running = [
            service.start_worker(
                module=("order_service.cli", "projector"),
                ORDERS_DATABASE_URL=url,
                ORDERS_PROJECTORS=str(projectors),
                ORDERS_PROJECTOR_INDEX=str(index),
            )
            for index in range(projectors)
        ]
        for projector in running:
            stack.callback(projector.end)
        per_s = growth_per_s(Built(world, Views(engine, service.names)), EVENTS, *running)
        took_s = sum(processor_s(projector.process.pid) for projector in running)
        check(engine)
    return per_s, took_s


class Built:
    """How far the views are: the sum of their positions; says it from time to time."""

    def __init__(self, world: World, views: Views) -> None:
        self._world = world
        self._views = views
        self._say_at = time.monotonic() + SAY_EVERY_S

    def sum(self) -> int:
        """Ask the database; 0 while there are no tables."""
        try:
            offsets = sum(self._views.offsets().values())
        except SQLAlchemyError:
            return 0
        if time.monotonic() > self._say_at:
            self._world.say(f"views: {offsets:,} offsets are folded, of {EVENTS:,} events and the ends of transactions")
            self._say_at = time.monotonic() + SAY_EVERY_S
        return offsets


def check(engine: Engine) -> None:
    """See that all events are there, and all orders as their last one left them."""
    with engine.begin() as connection:
        events = connection.scalar(select(func.count()).select_from(order_events))
        done = connection.scalar(select(func.count()).where(orders.c.status == Status.DELIVERED))
    if (events, done) != (EVENTS, ORDERS):
        raise WrongResult(f"{events} events of {EVENTS}, {done} of {ORDERS} orders delivered")
