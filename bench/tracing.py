"""What tracing costs a worker: the backlog with tracing off, and with one trace in a hundred recorded.

Not part of the whole bench: `python -m bench tracing`.
"""

from collections.abc import Callable
from typing import Any, Final

from confluent_kafka import Producer

from bench.backlog import COMMANDS, ORDERS, decide
from bench.load import Shop, in_order, waves
from bench.sizes import RUNS
from bench.table import Row, Target
from bench.world import World
from order_service.wire.commands import encode_json_command
from tests.support.collector import Collector
from tests.support.service import Service, enqueue

RECORDED_EVERY: Final = 100
OFF, SENT, BEGUN = "off", "traces of senders", "traces of the worker"
Headers = list[tuple[str, bytes]]

HOW = f"""\
{COMMANDS:,} JSON commands as in "backlog", 4 partitions, one worker; tracing off, and on with a collector that \
answers at once, in turn. "{SENT}": each command has a traceparent, and every {RECORDED_EVERY}th is recorded by its \
sender. "{BEGUN}": no command has one, and the worker records 1 % of the traces that begin with it \
(OTEL_TRACES_SAMPLER=parentbased_traceidratio, OTEL_TRACES_SAMPLER_ARG=0.01). The commands of all three have the same \
values; with "{OFF}", they have a traceparent, too. The ratios are of the runs of one round."""


def measure(world: World) -> list[Row]:
    """Take each figure once per run, in turn."""
    per_s: dict[str, list[float]] = {OFF: [], SENT: [], BEGUN: []}
    processor_us: dict[str, list[float]] = {OFF: [], SENT: [], BEGUN: []}
    with Collector() as collector:
        off: dict[str, Any] = {}
        on: dict[str, Any] = {"ORDERS_TRACING": "true", "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url}
        rate = {"OTEL_TRACES_SAMPLER": "parentbased_traceidratio", "OTEL_TRACES_SAMPLER_ARG": str(1 / RECORDED_EVERY)}
        modes = {OFF: (off, traceparent), SENT: (on, traceparent), BEGUN: (on | rate, nothing)}
        for run in range(1, RUNS + 1):
            for name, (settings, headers) in modes.items():
                before = len(collector.spans())
                with world.service(**settings) as service:
                    load(service, headers)
                    decide(service, per_s[name], processor_us[name])
                world.say(f"tracing {run}, {name}: {per_s[name][-1]:,.0f}/s, {len(collector.spans()) - before:,} spans")
    rows = [Row(f"backlog, {name}", "/s", runs) for name, runs in per_s.items()]
    for name in (SENT, BEGUN):
        ratios = [on_per_s / off_per_s for on_per_s, off_per_s in zip(per_s[name], per_s[OFF], strict=True)]
        times = [on_us / off_us for on_us, off_us in zip(processor_us[name], processor_us[OFF], strict=True)]
        rows.append(Row(f"throughput with {name}, compared with off", "times", ratios, Target(">=", 0.95)))
        rows.append(Row(f"processor time with {name}, compared with off", "times", times))
    return rows


def traceparent(number: int) -> Headers:
    """Return the trace context of a command, each of another trace."""
    flags = "01" if number % RECORDED_EVERY == 0 else "00"
    return [("traceparent", f"00-{number + 1:032x}-{number + 1:016x}-{flags}".encode())]


def nothing(_number: int) -> Headers:
    """Return no trace context."""
    return []


def load(service: Service, headers: Callable[[int], Headers]) -> None:
    """Put the backlog into Kafka."""
    producer = Producer(in_order(service.bootstrap_servers) | {"linger.ms": 20})
    for number, command in enumerate(waves(Shop("shop"), ORDERS)):
        value = encode_json_command(command)
        enqueue(producer, service.names.commands, command.order_id, value, headers=headers(number))
    if left := producer.flush(60):
        raise RuntimeError(f"{left} commands did not arrive")
