"""What tracing costs a worker: the backlog with tracing off, and with one trace in a hundred recorded.

Not part of the whole bench: `python -m bench tracing`.
"""

import gc
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any, Final

from aiokafka import ConsumerRecord
from confluent_kafka import Producer
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from bench.backlog import COMMANDS, ORDERS, decide
from bench.load import Shop, in_order, waves
from bench.sizes import RUNS, scaled
from bench.table import Row, Target
from bench.world import World
from order_service.domain.decision import UserCheck
from order_service.runtime.spans import ExportQueue, Spans
from order_service.wire.commands import encode_json_command
from order_service.worker.command_spans import CommandSpans
from order_service.worker.inbox import Received, decode_record
from order_service.worker.lane import Lane, LanePolicy
from tests.support.collector import Collector
from tests.support.service import Service, enqueue

RECORDED_EVERY: Final = 100
OFF, SENT = "off, traceparents", "1 % of senders' traces"
OFF_BARE, BEGUN = "off, no traceparents", "1 % of the worker's traces"
PAIRS: Final = {SENT: OFF, BEGUN: OFF_BARE}
"""What each mode is compared with: tracing off, the same commands and headers."""
LANE_ORDERS: Final = scaled(2_000)
LANE_ROUNDS: Final = 5
TURN: Final = 2_000
Headers = list[tuple[str, bytes]]

HOW = f"""\
{COMMANDS:,} JSON commands as in "backlog", 4 partitions, one worker; tracing off, and on with a collector that \
answers at once, in turn. "{SENT}": each command has a traceparent, and every {RECORDED_EVERY}th is recorded by its \
sender. "{BEGUN}": no command has one, and the worker records 1 % of the traces that begin with it \
(OTEL_TRACES_SAMPLER=parentbased_traceidratio, OTEL_TRACES_SAMPLER_ARG=0.01). Each is compared with tracing off and \
the same headers, in one round. The processor time of a worker has its start, to which tracing adds the import of \
OpenTelemetry. "Lane alone": no Kafka; the same commands in turns of {TURN:,}, decided, and their spans encoded by the \
thread that exports them; the least processor time of {LANE_ROUNDS} rounds."""


def measure(world: World) -> list[Row]:
    """Take each figure once per run, in turn."""
    per_s: dict[str, list[float]] = {OFF: [], SENT: [], OFF_BARE: [], BEGUN: []}
    processor_us: dict[str, list[float]] = {OFF: [], SENT: [], OFF_BARE: [], BEGUN: []}
    lane: dict[str, list[float]] = {}
    with Collector() as collector:
        off: dict[str, Any] = {}
        on: dict[str, Any] = {"ORDERS_TRACING": "true", "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url}
        rate = {"OTEL_TRACES_SAMPLER": "parentbased_traceidratio", "OTEL_TRACES_SAMPLER_ARG": str(1 / RECORDED_EVERY)}
        modes = {OFF: (off, sampled), SENT: (on, sampled), OFF_BARE: (off, bare), BEGUN: (on | rate, bare)}
        for run in range(1, RUNS + 1):
            for name, us in lane_us().items():
                lane.setdefault(name, []).append(us)
            figures = ", ".join(f"{name} {runs[-1]:.2f} us" for name, runs in lane.items())
            world.say(f"tracing {run}, lane alone: {figures}")
            for name, (settings, headers) in modes.items():
                before = len(collector.spans())
                with world.service(**settings) as service:
                    load(service, headers)
                    decide(service, per_s[name], processor_us[name])
                world.say(f"tracing {run}, {name}: {per_s[name][-1]:,.0f}/s, {len(collector.spans()) - before:,} spans")
    rows = [Row(f"lane alone, {name}: processor time per command", "us", runs) for name, runs in lane.items()]
    rows += [Row(f"backlog, {name}", "/s", runs) for name, runs in per_s.items()]
    for name, base in PAIRS.items():
        ratios = [on_per_s / off_per_s for on_per_s, off_per_s in zip(per_s[name], per_s[base], strict=True)]
        times = [on_us / off_us for on_us, off_us in zip(processor_us[name], processor_us[base], strict=True)]
        rows.append(Row(f"throughput with {name}, compared with off", "times", ratios, Target(">=", 0.95)))
        rows.append(Row(f"processor time with {name}, compared with off", "times", times))
    return rows


def sampled(number: int) -> Headers:
    """Return the trace context of a command, each of another trace; every hundredth is recorded."""
    return traceparent(number, "01" if number % RECORDED_EVERY == 0 else "00")


def unsampled(number: int) -> Headers:
    """Return the trace context of a command whose trace is not recorded."""
    return traceparent(number, "00")


def bare(_number: int) -> Headers:
    """Return no trace context."""
    return []


def traceparent(number: int, flags: str) -> Headers:
    """Return the trace context of a command, each of another trace."""
    return [("traceparent", f"00-{number + 1:032x}-{number + 1:016x}-{flags}".encode())]


def load(service: Service, headers: Callable[[int], Headers]) -> None:
    """Put the backlog into Kafka."""
    producer = Producer(in_order(service.bootstrap_servers) | {"linger.ms": 20})
    for number, command in enumerate(waves(Shop("shop"), ORDERS)):
        value = encode_json_command(command)
        enqueue(producer, service.names.commands, command.order_id, value, headers=headers(number))
    if left := producer.flush(60):
        raise RuntimeError(f"{left} commands did not arrive")


class Encoding(SpanExporter):
    """Encodes spans as they are sent to a collector, and sends nothing."""

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Encode a batch."""
        encode_spans(spans).SerializeToString()
        return SpanExportResult.SUCCESS


def lane_us() -> dict[str, float]:
    """Return the processor time of one command in microseconds, in a lane without Kafka, for each mode."""
    queue = ExportQueue(Encoding(), 100_000)
    none, some = (_command_spans(queue, rate) for rate in (0.0, 1 / RECORDED_EVERY))
    modes = {
        OFF: (sampled, None),
        "on, none of senders' traces": (unsampled, some),
        SENT: (sampled, some),
        OFF_BARE: (bare, None),
        "on, none of the worker's traces": (bare, none),
        BEGUN: (bare, some),
    }
    received = {headers: _received(headers) for headers, _ in modes.values()}
    least = dict.fromkeys(modes, float("inf"))
    try:
        for _ in range(LANE_ROUNDS):
            for name, (headers, spans) in modes.items():
                least[name] = min(least[name], _decided_us(received[headers], spans, queue))
    finally:
        queue.shutdown()
    return least


def _command_spans(queue: ExportQueue, root_rate: float) -> CommandSpans:
    return CommandSpans(Spans(queue, root_rate), "orders.commands.v1", "orders-worker", "/v1/users/{id}")


def _received(headers: Callable[[int], Headers]) -> list[Received]:
    received = []
    for number, command in enumerate(waves(Shop("shop"), LANE_ORDERS)):
        value, key = encode_json_command(command), command.order_id.encode()
        size = len(key), len(value)
        record = ConsumerRecord("c", 0, number, 0, 0, key, value, None, *size, tuple(headers(number)))
        received.append(decode_record(record))
    return received


def _decided_us(received: list[Received], spans: CommandSpans | None, queue: ExportQueue) -> float:
    """Decide commands in turns, and export their spans; return the processor time of each, in microseconds."""
    policy = LanePolicy(partition_count=1, commands_topic="c")
    lane, now = Lane(0, policy, lambda _: UserCheck.ACTIVE, lambda _: None, spans), datetime.now(UTC)
    gc.collect()
    gc.disable()  # a worker looks for cycles after 100,000 objects
    began_at = time.process_time()
    for start in range(0, len(received), TURN):
        turn_at = time.monotonic()
        lane.decide(received[start : start + TURN], now)
        changes = lane.take_changes()
        if spans is not None:
            spans.committed(changes.spans, turn_at, changes.decided)
    queue.force_flush()
    took_s = time.process_time() - began_at
    gc.enable()
    return took_s / len(received) * 1e6
