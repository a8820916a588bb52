"""HTTP: how long callers wait for what they write, and how many of them one process serves with what they read.

Not part of the whole bench: `python -m bench http`.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Final

from msgspec import Struct

from bench import crud
from bench.callers import Took, ask, read, read_evenly, write
from bench.databases import DATABASES, Databases, databases
from bench.idle import processor_s
from bench.million import ORDERS, fill, lists, orders_by_id
from bench.processes import running
from bench.sizes import RUNS, scaled_s
from bench.table import Row, Target, percentile
from bench.world import World, stub
from order_service.local.broker import free_port
from tests.support.service import WorkerProcess
from tests.support.shop import Shop

PER_S: Final = 200
USERS_LATENCY_MS: Final = 5
WARM_S: Final = 3.0
WARM_UP_S: Final = scaled_s(45.0)
MEASURED_S: Final = scaled_s(8.0)
READ_S: Final = scaled_s(4.0)
CONNECTIONS: Final = 32
READS_PER_S: Final = 1_500
PLAIN: Final = "plain CRUD"
TARGETS: Final = {("create", 50): 60.0, ("create", 99): 150.0, ("pay", 50): 45.0, ("pay", 99): 150.0}
"""Milliseconds, by what is asked and percentile."""

HOW: Final = f"""\
One web process, one worker, one projector, 4 partitions, their default settings, no authentication; callers \
(aiohttp) are a process of their own. Writes: {WARM_UP_S:g} s that do not count, then {PER_S}/s for {MEASURED_S:g} s \
after {WARM_S:g} s, evenly, open loop: half are creates, each of a user never seen before (the stub answers after \
{USERS_LATENCY_MS} ms), half are payments of orders placed a second before. From when a request was due to its 200 or \
201: the event is then committed, and GET sees it, which is tried on every tenth order. "Plain CRUD" gets the same \
from aiohttp and psycopg: a row and an outbox row in one transaction of PostgreSQL, the same question to the User \
Service; no process reads its outbox. "% of a core" is the processor time of a process meanwhile. Reads: \
{ORDERS:,} orders, put into the table by SQL, not by way of Kafka. GET by id: {CONNECTIONS} connections, closed \
loop, each asks again as soon as it has its answer; then for the p99 an open loop at {READS_PER_S:,}/s. Lists \
of 50: one caller, closed loop; deep pages begin anywhere by cursor. PostgreSQL has its default settings."""


class Site(Struct, frozen=True):
    """What answers on a port, and its processes that are measured, by their names."""

    port: int
    pids: dict[str, int]

    def processor_s(self) -> dict[str, float]:
        """Return the processor time that each process has taken."""
        return {name: processor_s(pid) for name, pid in self.pids.items()}


Figures = dict[tuple[str, str, int], list[float]]
"""Milliseconds of each run, by who answers, what is asked and percentile."""


def measure(world: World) -> list[Row]:
    """Take each figure once per run."""
    with databases(world.directory) as make:
        return [*writes(world, make), *(row for kind in DATABASES for row in reads(world, kind, make(kind)))]


def writes(world: World, make: Databases) -> list[Row]:
    """Write with either database, and to the peer, in turn."""
    figures: Figures = {}
    percents: dict[tuple[str, str], list[float]] = {}
    with ExitStack() as stack:
        sites = {kind: stack.enter_context(site(world, make(kind))) for kind in DATABASES}
        sites[PLAIN] = Site(stack.enter_context(plain(make("PostgreSQL"))), {})
        for each in sites.values():
            ask(write, each.port, "warm-up", PER_S, WARM_UP_S)  # a young broker compiles itself meanwhile, on our cores
        for run in range(1, RUNS + 1):
            for who, each in sites.items():
                before = each.processor_s()
                taken = ask(write, each.port, f"user-{run}", PER_S, WARM_S + MEASURED_S)
                for name, used_s in each.processor_s().items():
                    percent = 100 * (used_s - before[name]) / (WARM_S + MEASURED_S)
                    percents.setdefault((who, name), []).append(percent)
                world.say(f"writes {run}: {who}: {note(figures, who, taken)}")
    return [
        Row(f"{what}, {who}, p{percent}", "ms", runs, None if who == PLAIN else Target("<=", TARGETS[what, percent]))
        for (who, what, percent), runs in figures.items()
    ] + [Row(f"{PER_S} writes/s, {who}, {name}", "% of a core", runs) for (who, name), runs in percents.items()]


def note(figures: Figures, who: str, taken: list[Took]) -> str:
    """Add the figures of one run; say them."""
    measured = [took for took in taken if took.due_s >= WARM_S]
    said = []
    for what in ("create", "pay"):
        for percent in (50, 99):
            figure = percentile([took.latency_ms for took in measured if took.kind == what], percent)
            figures.setdefault((who, what, percent), []).append(figure)
            said.append(f"{what} p{percent} {figure:.1f} ms")
    late_ms = percentile([took.late_ms for took in measured], 99)
    return f"{', '.join(said)}; the callers late by {late_ms:.1f} ms (p99)"


def reads(world: World, kind: str, url: str) -> list[Row]:
    """Read from a million orders, by id and as lists."""
    per_s: list[float] = []
    by_id_ms: list[float] = []
    lists_ms: dict[str, list[float]] = {}
    written = fill(url)
    world.say(f"reads: {ORDERS:,} orders are in {kind}")
    with reader(world, url) as port:
        one, pages = orders_by_id(written), lists(written)
        ask(read, port, [*one[:1000], *pages], CONNECTIONS, 1.0)  # what is slow once is no figure
        for run in range(1, RUNS + 1):
            taken = ask(read, port, one, CONNECTIONS, READ_S)
            per_s.append(len(taken) / max(took.due_s + took.latency_ms / 1000 for took in taken))
            evenly = ask(read_evenly, port, one, CONNECTIONS, READS_PER_S, READ_S)
            by_id_ms.append(percentile([took.latency_ms for took in evenly], 99))
            listed = ask(read, port, pages, 1, READ_S)
            for page in sorted({took.kind for took in listed}):
                latencies = [took.latency_ms for took in listed if took.kind == page]
                lists_ms.setdefault(page, []).append(percentile(latencies, 99))
            world.say(
                f"reads {run}: {kind}: {per_s[-1]:,.0f} orders/s by id, p99 {by_id_ms[-1]:.1f} ms; {len(listed)} lists"
            )
    return [
        Row(f"GET by id, {kind}, {CONNECTIONS} connections", "/s", per_s, Target(">=", READS_PER_S)),
        Row(f"GET by id, {kind}, at {READS_PER_S:,}/s, p99", "ms", by_id_ms, Target("<=", 20)),
        *[Row(f"list {page}, {kind}, p99", "ms", runs, Target("<=", 30)) for page, runs in lists_ms.items()],
    ]


@contextmanager
def site(world: World, url: str) -> Iterator[Site]:
    """Run all that answers callers."""
    with world.service(users_latency_ms=USERS_LATENCY_MS, ORDERS_DATABASE_URL=url) as service:
        shop = Shop(service)
        shop.worker.wait_lanes(service.partitions)
        shop.projector.wait_ready()
        caller, web = shop.serve()
        processes = {"web": web, "worker": shop.worker, "projector": shop.projector}
        yield Site(caller.port, {name: each.process.pid for name, each in processes.items()})


@contextmanager
def plain(url: str) -> Iterator[int]:
    """Run the peer; give its port."""
    port = free_port()
    with stub(USERS_LATENCY_MS) as users, running(crud.serve, url, users.url, port) as pipe:
        pipe.recv()
        yield port


@contextmanager
def reader(world: World, url: str) -> Iterator[int]:
    """Run a web process alone; give its port."""
    with world.service(ORDERS_DATABASE_URL=url) as service:
        port = free_port()
        web: WorkerProcess = service.start_worker(module=("order_service.cli", "web"), ORDERS_HTTP_PORT=str(port))
        web.wait_ready()
        yield port
