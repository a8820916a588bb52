"""A backlog of commands that is in Kafka before a peer starts: commands per second, processor time, memory."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from uuid import uuid4

from msgspec import structs

from bench.load import LIFE, Shop, produce, waves
from bench.others import tree_s
from bench.peers import peer
from bench.peers.rounds import Run, rotated, table, undisturbed
from bench.watching import Ends, WrongResult, check, growth_per_s
from bench.world import World, topics
from order_service.wire.commands import encode_json_command
from tests.support.service import Service

HOW = """\
JSON commands over {orders:,} orders (waves of 5,000; create, two amendments, pay, ship, deliver; 100 users), all in \
Kafka before a peer starts; {partitions} partitions. The peers of a round decide the same topic, one after the other; \
our workers, which decide the topics of a service only once, have copies of it. From the first commit to the last, as \
the ends of the events topic for committed readers show them (asked every 30 ms); "second half" leaves out the first \
half of the commands, in which a JVM compiles itself. Then every event is counted. Processor time is user and system \
of all processes of a peer, "with start" from the start of the process; memory is the sum of their peaks."""
SILENCE_S = 60.0
"""A JVM beside a busy process takes half of it until its first commit."""
DEFAULT = ("ours", "ours-2", "streams-100ms", "streams-20ms", "streams-rocksdb-100ms", "quix-1000ms")


def measure(world: World, broker: int | None, names: Sequence[str], *, rounds: int, orders: int) -> None:
    """Run every peer once per round, and print the table."""
    runs: dict[tuple[str, ...], list[Run]] = {(name,): [] for name in names}
    for number, order in rotated(names, rounds):
        with loaded(world, orders) as service:
            for name in order:
                runs[name,].append(_run(world, broker, service, name, number, orders))
    world.console.print(HOW.format(orders=orders, partitions=service.partitions), highlight=False)
    table(world, f"Backlog of {orders * len(LIFE):,} commands", runs, ["peer"])


@contextmanager
def loaded(world: World, orders: int) -> Iterator[Service]:
    """Provide a service whose commands are in Kafka."""
    with world.service() as service:
        records = ((command.order_id, encode_json_command(command)) for command in waves(Shop("shop"), orders))
        produce(service.bootstrap_servers, service.names.commands, records)
        yield service


def _run(world: World, broker: int | None, shared: Service, name: str, number: int, orders: int) -> Run:
    def measured(_attempt: int) -> dict[str, float]:
        if not name.startswith("ours"):
            with other_outputs(world, shared) as service:
                return decided(broker, service, name, orders)
        with loaded(world, orders) as service:
            return decided(broker, service, name, orders)

    return undisturbed(world, f"backlog {number}, {name}", measured)


@contextmanager
def other_outputs(world: World, service: Service) -> Iterator[Service]:
    """Provide the same commands with other topics for events, rejections and dead letters."""
    prefix = f"peer-{uuid4().hex[:10]}"
    names = {name: f"{prefix}.{name}" for name in ("events", "rejections", "dead_letters")}
    view = copy(service)
    view.names = structs.replace(service.names, **names)
    with topics(world.servers, list(names.values()), service.partitions):
        yield view


def decided(broker: int | None, service: Service, name: str, orders: int) -> dict[str, float]:
    """Run a peer until it has decided the backlog, and return its figures."""
    goal = orders * len(LIFE)
    looks: list[tuple[float, int, float, float]] = []
    ends = Ends(service.bootstrap_servers, service.names.events, service.partitions)
    with peer.named(name).running(service) as running:

        def grown(now: float, end: int) -> None:
            looks.append((now, end, running.processor_s(), 0.0 if broker is None else tree_s({broker})))

        try:
            per_s = growth_per_s(ends, goal, silence_s=SILENCE_S, grown=grown)
        except WrongResult as error:
            raise WrongResult(f"{name}: {error}; its log ends with {running.log()}") from error
        peak_bytes = running.peak_bytes()
    check(service, goal)
    first, last = looks[0], looks[-1]
    half = next(look for look in looks if look[1] >= last[1] / 2)
    per_100k = 100_000 * last[1] / goal / (last[1] - first[1])
    return {
        "commands/s": per_s,
        "second half, /s": (last[1] - half[1]) * goal / last[1] / (last[0] - half[0]) if last != half else per_s,
        "CPU s per 100k": (last[2] - first[2]) * per_100k,
        "with start": last[2] * 100_000 / goal,
        "broker's CPU": (last[3] - first[3]) * per_100k,
        "memory, MB": peak_bytes / 1e6,
    }
