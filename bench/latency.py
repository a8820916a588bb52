"""Latency from produce to a committed event in a consumer's hands, at three rates and on 4 and 12 partitions."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from bench.load import Pace, Sent, Shop, send_evenly
from bench.processes import running
from bench.sizes import RUNS, scaled_s
from bench.table import Row, Target, percentile
from bench.watching import Seen, WrongResult, listen
from bench.world import World
from order_service.wire.commands import encode_json_command
from tests.support.service import Service

WARM_S = 3.0
MEASURED_S = scaled_s(10.0)
PERCENTS = (50, 95, 99)
TARGETS = {(50, 50): 12.0, (500, 50): 25.0, (500, 99): 60.0, (3000, 50): 35.0, (3000, 99): 100.0}
"""Milliseconds, by rate and percentile."""
RATES = (50, 500, 3_000)
MORE_PARTITIONS = 1.5

HOW = f"""\
{MEASURED_S:g} s per rate after {WARM_S:g} s; JSON commands of orders in all steps of their lives, 100 known users; \
one worker, its default settings. Producer (librdkafka, linger 0, evenly paced, open loop) and consumer (librdkafka, \
read_committed, fetch wait 10 ms) are processes of their own; from the call of produce to the return of poll."""

Figures = dict[tuple[int, int, int], list[float]]
"""Milliseconds of each run, by partitions, rate and percentile."""


def measure(world: World) -> list[Row]:
    """Take each figure once per run, the rates in turn."""
    figures: Figures = {}
    for run in range(1, RUNS + 1):
        for partitions in (4, 12) if run % 2 else (12, 4):
            with world.service(partitions=partitions) as service:
                service.start_worker().wait_lanes(partitions)
                for rate in RATES:
                    seen, sent = paced(service, Shop(f"s{rate}"), rate, MEASURED_S)
                    latencies = [event.latency_ms for event in seen]
                    for percent in PERCENTS:
                        figures.setdefault((partitions, rate, percent), []).append(percentile(latencies, percent))
                    measured = "/".join(f"{percentile(latencies, percent):.1f}" for percent in PERCENTS)
                    world.say(
                        f"latency {run}: {partitions} partitions, {rate}/s: {measured} ms (p50/p95/p99); "
                        f"producer late by {sent.late_ms:.1f} ms (p99)"
                    )
    return [_row(figures, key) for key in sorted(figures)]


def warm_up(world: World) -> None:
    """Run a service at the highest rate for as long as a figure takes: a fresh broker distorts the figures."""
    with world.service() as service:
        service.start_worker().wait_lanes(service.partitions)
        paced(service, Shop("warm"), max(RATES), MEASURED_S)


def _row(figures: Figures, key: tuple[int, int, int]) -> Row:
    partitions, rate, percent = key
    row = Row(f"{partitions} partitions, {rate:,}/s, p{percent}", "ms", figures[key])
    if (rate, percent) not in TARGETS:
        return row
    if partitions == 4:
        return Row(row.what, row.unit, row.runs, Target("<=", TARGETS[rate, percent]))
    with_four = _row(figures, (4, rate, percent)).median
    return Row(row.what, row.unit, row.runs, Target("<=", MORE_PARTITIONS * with_four, "(1.5 x 4 partitions)"))


def paced(
    service: Service,
    shop: Shop,
    per_s: int,
    seconds: float,
    *,
    steps: int = 6,
    begun: Callable[[], None] = lambda: None,
) -> tuple[list[Seen], Sent]:
    """Send at a pace and listen; give what was sent after the warm-up and seen, WrongResult if any is missing.

    `begun` is called when sending begins. Events of commands that others send beside it are left out.
    """
    pace = Pace(service.bootstrap_servers, service.names.commands, shop, per_s, WARM_S + seconds, steps)
    with under_way(service, pace) as all_seen:
        begun()
        seen, sent = all_seen()
    measured_from = min(event.sent_ns for event in seen) + WARM_S * 1e9
    return [event for event in seen if event.sent_ns >= measured_from], sent


@contextmanager
def under_way(service: Service, pace: Pace) -> Iterator[Callable[[], tuple[list[Seen], Sent]]]:
    """Send at a pace and listen; the yielded function waits until all is sent and seen, WrongResult if any is missing.

    Events of commands that others send beside it are left out.
    """
    with (
        running(listen, service.bootstrap_servers, service.names.events, service.partitions) as listener,
        running(send_evenly, pace, encode_json_command) as sender,
    ):
        listener.recv()
        sender.recv()
        sender.send("go")

        def all_seen() -> tuple[list[Seen], Sent]:
            sent: Sent = sender.recv()
            listener.send(sent.answerable)
            seen: list[Seen] = [event for event in listener.recv() if event.sent_ns > 0]
            if len(seen) != sent.answerable:
                raise WrongResult(f"{len(seen)} events seen for {sent.answerable} commands")
            return seen, sent

        yield all_seen
