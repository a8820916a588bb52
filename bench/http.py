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
from order_service.embedded.broker import free_port
from tests.web.shop import Shop as Site

PER_S: Final = 200
USERS_LATENCY_MS: Final = 5
WARM_S: Final = 3.0
MEASURED_S: Final = scaled_s(8.0)
READ_S: Final = scaled_s(4.0)
CONNECTIONS: Final = 32
SHARE: Final = 0.8
PLAIN: Final = "plain CRUD"
TARGETS: Final = {("create", 50): 60.0, ("create", 99): 150.0, ("pay", 50): 45.0, ("pay", 99): 150.0}
"""Milliseconds, by what is asked and percentile."""

HOW: Final = f"""\
One web process, one worker, one projector, 4 partitions, their default settings, no authentication; callers \
(aiohttp) are a process of their own. Writes: {PER_S}/s for {MEASURED_S:g} s after {WARM_S:g} s, evenly, open loop: \
half are creates, each of a user never seen before (the stub answers after {USERS_LATENCY_MS} ms), half are payments \
of orders placed a second before. From when a request was due to its 200 or 201: by then the event is committed, and \
GET sees it, which is tried on every tenth order. "Plain CRUD" gets the same from aiohttp and psycopg: a row and an \
outbox row in one transaction of PostgreSQL, the same question to the User Service; nobody reads its outbox. \
Processor time is that of the web process, worker and projector, or of the peer, without broker, PostgreSQL, stub. \
Reads: {ORDERS:,} orders, put into the table by SQL, not by way of Kafka. GET by id: {CONNECTIONS} connections, \
closed loop, each asks again as soon as it has its answer; then for the p99 an open loop at {SHARE:.0%} of that \
rate. Lists of 50: one caller, closed loop; deep pages begin anywhere by cursor. PostgreSQL has its default \
settings."""

Figures = dict[tuple[str, str, int], list[float]]
"""Milliseconds of each run, by who answers, what is asked and percentile."""


class Server(Struct, frozen=True):
    """Who answers: its port, and all processes of ours that have a part in it."""

    port: int
    pids: tuple[int, ...]

    def processor_s(self) -> float:
        """Sum the processor time that they have taken."""
        return sum(map(processor_s, self.pids))


def measure(world: World) -> list[Row]:
    """Take each figure once per run."""
    with databases(world.directory) as make:
        return [*writes(world, make), *(row for kind in DATABASES for row in reads(world, kind, make(kind)))]


def writes(world: World, make: Databases) -> list[Row]:
    """Write with either database, and to the peer, in turn."""
    figures: Figures = {}
    processor_ms: dict[str, list[float]] = {}
    with ExitStack() as stack:
        servers = {kind: stack.enter_context(site(world, make(kind))) for kind in DATABASES}
        servers[PLAIN] = stack.enter_context(plain(make("PostgreSQL")))
        for run in range(1, RUNS + 1):
            for who, server in servers.items():
                before_s = server.processor_s()
                taken = ask(write, server.port, f"user-{run}", PER_S, WARM_S + MEASURED_S)
                processor_ms.setdefault(who, []).append((server.processor_s() - before_s) / len(taken) * 1e3)
                world.say(f"writes {run}: {who}: {note(figures, who, taken)}")
    return [
        *[
            Row(
                f"{what}, {who}, p{percent}", "ms", runs, None if who == PLAIN else Target("<=", TARGETS[what, percent])
            )
            for (who, what, percent), runs in figures.items()
        ],
        *[Row(f"processor time per write, {who}", "ms", runs) for who, runs in processor_ms.items()],
    ]


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
    processor_ms: list[float] = []
    lists_ms: dict[str, list[float]] = {}
    written = fill(url)
    world.say(f"reads: {ORDERS:,} orders are in {kind}")
    with reader(world, url) as server:
        one, pages = orders_by_id(written), lists(written)
        ask(read, server.port, [*one[:1000], *pages], CONNECTIONS, 1.0)  # what is slow once is no figure
        for run in range(1, RUNS + 1):
            before_s = server.processor_s()
            taken = ask(read, server.port, one, CONNECTIONS, READ_S)
            processor_ms.append((server.processor_s() - before_s) / len(taken) * 1e3)
            per_s.append(len(taken) / max(took.due_s + took.latency_ms / 1000 for took in taken))
            evenly = ask(read_evenly, server.port, one, CONNECTIONS, SHARE * per_s[-1], READ_S)
            by_id_ms.append(percentile([took.latency_ms for took in evenly], 99))
            listed = ask(read, server.port, pages, 1, READ_S)
            for page in sorted({took.kind for took in listed}):
                latencies = [took.latency_ms for took in listed if took.kind == page]
                lists_ms.setdefault(page, []).append(percentile(latencies, 99))
            world.say(f"reads {run}: {kind}: {per_s[-1]:,.0f}/s by id, p99 {by_id_ms[-1]:.1f} ms; {len(listed)} lists")
    return [
        Row(f"GET by id, {kind}, {CONNECTIONS} connections", "/s", per_s, Target(">=", 1_500)),
        Row(f"GET by id, {kind}, processor time", "ms", processor_ms),
        Row(f"GET by id, {kind}, at {SHARE:.0%} of that rate, p99", "ms", by_id_ms, Target("<=", 20)),
        *[Row(f"list {page}, {kind}, p99", "ms", runs, Target("<=", 30)) for page, runs in lists_ms.items()],
    ]


@contextmanager
def site(world: World, url: str) -> Iterator[Server]:
    """Run all that answers callers."""
    with world.service(users_latency_ms=USERS_LATENCY_MS, ORDERS_DATABASE_URL=url) as service:
        processes = Site(service)
        processes.worker.wait_lanes(service.partitions)
        processes.projector.wait_ready()
        http, web = processes.serve()
        yield Server(http.port, tuple(one.process.pid for one in (web, processes.worker, processes.projector)))


@contextmanager
def plain(url: str) -> Iterator[Server]:
    """Run the peer."""
    port = free_port()
    with stub(USERS_LATENCY_MS) as users, running(crud.serve, url, users.url, port) as pipe:
        yield Server(port, (pipe.recv(),))


@contextmanager
def reader(world: World, url: str) -> Iterator[Server]:
    """Run a web process alone."""
    with world.service(ORDERS_DATABASE_URL=url) as service:
        port = free_port()
        web = service.start_worker(module=("order_service.cli", "web"), ORDERS_HTTP_PORT=str(port)).wait_ready()
        yield Server(port, (web.process.pid,))
