"""Latency from produce to a committed event in a consumer's hands, peer beside peer."""

from collections.abc import Callable, Sequence

from bench.latency import WARM_S, paced
from bench.load import Shop
from bench.others import tree_s
from bench.peers.peer import Running, named
from bench.peers.rounds import Run, rotated, table, undisturbed
from bench.table import percentile
from bench.watching import WrongResult
from bench.world import World
from tests.support.service import Service

PEER_WARM_PER_S = 3_000
PEER_WARM_S = 7.0
"""A JVM compiles itself first: each peer gets so many commands, after its start and the usual warm-up."""
HOW = """\
{seconds:g} s per rate after {warm:g} s, and after {peer_warm:g} s at {per_s:,}/s for each start of a peer; JSON \
commands of orders in all steps of their lives, 100 known users; fresh topics for each start. Producer (librdkafka, \
linger 0, evenly paced, open loop) and consumer (librdkafka, read_committed, fetch wait 10 ms) are processes of their \
own; from the call of produce to the return of poll. A missing or doubled event fails the run."""
DEFAULT = ("ours", "streams-20ms", "streams-100ms")


def measure(
    world: World,
    broker: int | None,
    names: Sequence[str],
    *,
    rounds: int,
    rates: Sequence[int],
    partitions: Sequence[int],
    seconds: float,
) -> None:
    """Run every peer once per round and number of partitions, and print the table."""
    runs: dict[tuple[str, ...], list[Run]] = {
        (f"{count} partitions", f"{rate:,}/s", name): [] for count in partitions for rate in rates for name in names
    }
    for number, order in rotated(names, rounds):
        for count in partitions:
            for name in order:
                with world.service(partitions=count) as service, named(name).running(service) as running:
                    paced(service, Shop("warm"), PEER_WARM_PER_S, PEER_WARM_S)
                    for rate in rates:
                        what = f"latency {number}, {count} partitions, {rate:,}/s, {name}"
                        run = undisturbed(world, what, _measuring(service, running, broker, rate, seconds))
                        runs[f"{count} partitions", f"{rate:,}/s", name].append(run)
    how = HOW.format(seconds=seconds, warm=WARM_S, peer_warm=PEER_WARM_S + WARM_S, per_s=PEER_WARM_PER_S)
    world.console.print(how, highlight=False)
    table(world, "Latency", runs, ["topics", "rate", "peer"])


def _measuring(
    service: Service, running: Running, broker: int | None, rate: int, seconds: float
) -> Callable[[int], dict[str, float]]:
    """Return what sends at a rate and returns the figures; each call is for orders of its own."""

    def processor_s() -> tuple[float, float]:
        return running.processor_s(), 0.0 if broker is None else tree_s({broker})

    def measured(attempt: int) -> dict[str, float]:
        before = processor_s()
        try:
            seen, sent = paced(service, Shop(f"s{rate}-{attempt}"), rate, seconds)
        except WrongResult as error:
            raise WrongResult(f"{error}; the peer's log ends with {running.log()}") from error
        cpu_s, broker_s = (now - then for now, then in zip(processor_s(), before, strict=True))
        latencies = [event.latency_ms for event in seen]
        return {
            "p50 ms": percentile(latencies, 50),
            "p99 ms": percentile(latencies, 99),
            "CPU s per 100k": cpu_s / sent.count * 1e5,
            "broker's CPU": broker_s / sent.count * 1e5,
            "sent late, p99 ms": sent.late_ms,
        }

    return measured
