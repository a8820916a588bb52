"""A backlog of 300,000 commands over 50,000 orders: one worker, beside it a plain loop and the limit."""

from collections.abc import Callable
from functools import partial
from uuid import uuid4

from bench import limit, plain
from bench.idle import processor_s
from bench.load import LIFE, Shop, produce, waves
from bench.processes import Work, running
from bench.sizes import RUNS, scaled
from bench.table import Row, Target
from bench.watching import Ends, WrongResult, check, growth_per_s
from bench.world import World, topics
from order_service.domain.messages import Command
from order_service.wire.avro import encode_command as encode_avro
from order_service.wire.commands import encode_json_command as encode_json
from tests.support.service import Service

ORDERS = scaled(50_000)
COMMANDS = ORDERS * len(LIFE)
HOW = f"""\
{COMMANDS:,} commands over {ORDERS:,} orders (waves of 5,000; 100 users, so that nearly all lookups are in the cache), \
in Kafka before the worker starts; 4 partitions, one worker, its default settings. Measured from its first commit to \
its last, as the ends of the events topic for committed readers show them (asked every 30 ms); then every event is \
counted. Its processor time (with its start) depends less on who else uses the machine. "Plain loop": aiokafka, no \
transactions, no changelog, one small event per command. "Limit": the same turns of up to 2,000, one transaction \
each, records of the same sizes made beforehand, nothing decided."""


def measure(world: World) -> list[Row]:
    """Take each figure once per run, in turn."""
    figures: dict[str, list[float]] = {"json": [], "avro": [], "plain": [], "limit": []}
    processor_us: dict[str, list[float]] = {"json": [], "avro": []}
    for run in range(1, RUNS + 1):
        with world.service() as service:
            load(service, encode_json)
            decide(service, figures["json"], processor_us["json"])
            figures["plain"].append(peer_per_s(world, service, plain.consume, ["plain"]))
            figures["limit"].append(peer_per_s(world, service, limit.consume, ["limit-events", "limit-table"]))
        with world.service() as service:
            load(service, encode_avro)
            decide(service, figures["avro"], processor_us["avro"])
        world.say(f"backlog {run}: " + ", ".join(f"{name} {runs[-1]:,.0f}/s" for name, runs in figures.items()))
    row = partial(Row, unit="/s")
    return [
        row("backlog, JSON commands", runs=figures["json"], target=Target(">=", 30_000)),
        row("backlog, Avro commands", runs=figures["avro"], target=Target(">=", 22_000)),
        Row("JSON: the worker's processor time per command", "us", processor_us["json"]),
        Row("Avro: the worker's processor time per command", "us", processor_us["avro"]),
        row("beside it: a plain aiokafka loop", runs=figures["plain"]),
        row("beside it: the limit, nothing decided", runs=figures["limit"]),
    ]


def load(service: Service, encode: Callable[[Command], bytes]) -> None:
    """Put the backlog into Kafka."""
    commands = waves(Shop("shop"), ORDERS)
    records = ((command.order_id, encode(command)) for command in commands)
    produce(service.bootstrap_servers, service.names.commands, records)


def decide(service: Service, per_s: list[float], processor_us: list[float]) -> None:
    """Run one worker until it has decided the backlog; add its speed, and its processor time with that of its start."""
    ends = Ends(service.bootstrap_servers, service.names.events, service.partitions)
    worker = service.start_worker()
    try:
        per_s.append(growth_per_s(ends, COMMANDS, worker))
        processor_us.append(processor_s(worker.process.pid) / COMMANDS * 1e6)
    except WrongResult as error:
        raise WrongResult(f"{error}; the worker's log ends with {worker.log()[-2000:]}") from error
    worker.end()
    check(service, COMMANDS)


def peer_per_s(world: World, service: Service, consume: Work, targets: list[str]) -> float:
    """Run a peer on the same backlog and return its records per second; the first of its targets is watched."""
    names = [f"{target}-{uuid4().hex[:10]}" for target in targets]
    with topics(world.servers, names, service.partitions):
        ends = Ends(world.servers, names[0], service.partitions)
        with running(consume, world.servers, service.names.commands, *names):
            return growth_per_s(ends, COMMANDS)
