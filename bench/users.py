"""User lookups that take 20 ms, every order of another user: creates per second, and what hanging users cost others."""

from bench.latency import paced
from bench.load import Shop, produce, waves
from bench.sizes import RUNS, scaled, scaled_s
from bench.table import Row, Target, percentile
from bench.watching import Ends, check, growth_per_s
from bench.world import World
from order_service.wire.commands import encode_json_command

USERS = scaled(50_000)
LATENCY_MS = 20
PER_S = 400
MEASURED_S = scaled_s(20.0)
HANGING_EVERY = 100

HOW = f"""\
The stub is a process of its own and answers after {LATENCY_MS} ms; nothing is in the cache. Throughput: {USERS:,} \
creates of {USERS:,} users in Kafka before the worker starts, 4 partitions, from the first committed event to the \
last. Hanging users: {PER_S} creates/s for {MEASURED_S:g} s (after 3 s), without and with every {HANGING_EVERY}th user \
hanging, in turn, measured as latency is; the creates of the hanging ones are left out."""


def measure(world: World) -> list[Row]:
    """Take each figure once per run, in turn."""
    per_s: list[float] = []
    quiet: list[float] = []
    hanging: list[float] = []
    for run in range(1, RUNS + 1):
        per_s.append(creates_per_s(world))
        quiet.append(p99_ms(world, Shop("quiet", user_count=0)))
        hanging.append(p99_ms(world, Shop("hanging", user_count=0, hanging_every=HANGING_EVERY)))
        world.say(f"users {run}: {per_s[-1]:,.0f} creates/s; p99 {quiet[-1]:.1f} ms, with hanging {hanging[-1]:.1f} ms")
    ratios = [with_hanging / without for with_hanging, without in zip(hanging, quiet, strict=True)]
    return [
        Row("creates, lookups of 20 ms, none cached", "/s", per_s, Target(">=", 1_000)),
        Row(f"{PER_S} creates/s, p99, no user hangs", "ms", quiet),
        Row(f"{PER_S} creates/s, p99 of the others, 1 % hang", "ms", hanging),
        Row("the one over the other", "x", ratios, Target("<=", 1.2)),
    ]


def creates_per_s(world: World) -> float:
    """Run one worker on creates that each need a lookup, and return the creates per second."""
    with world.service(users_latency_ms=LATENCY_MS) as service:
        creates = waves(Shop("shop", user_count=0), USERS, steps=1)
        records = ((create.order_id, encode_json_command(create)) for create in creates)
        produce(service.bootstrap_servers, service.names.commands, records)
        ends = Ends(service.bootstrap_servers, service.names.events, service.partitions)
        worker = service.start_worker()
        per_s = growth_per_s(ends, USERS, worker)
        worker.end()
        check(service, USERS)
        return per_s


def p99_ms(world: World, shop: Shop) -> float:
    """Send creates at a pace; the p99 of those whose users do not hang."""
    with world.service(users_latency_ms=LATENCY_MS) as service:
        service.start_worker().wait_lanes(service.partitions)
        seen, _ = paced(service, shop, PER_S, MEASURED_S, steps=1)
        return percentile([event.latency_ms for event in seen], 99)
