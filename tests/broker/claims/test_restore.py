"""A worker that restores a large table: it answers meanwhile, and the lanes that run go on."""

import time
import urllib.request
from collections import defaultdict
from datetime import UTC, datetime

from confluent_kafka import Producer

from order_service.wire.changelog import BARRIER_KEY, POSITION_KEY, Position, encode
from tests.support.samples import create, deliver, entry_after, pay, ship
from tests.support.service import enqueue, histories, until

ORDERS = 150_000
LARGE = 1
ANSWERS_WITHIN_S = 1.0


def fill_table(service, orders, partition):
    """Write the changelog of a table with so many delivered orders, all in one partition."""
    entry = encode(entry_after([create, pay, ship, deliver]))
    producer = Producer(
        {"log_level": 0, "bootstrap.servers": service.bootstrap_servers, "linger.ms": 20, "batch.size": 1_000_000}
    )
    for number in range(orders):
        enqueue(producer, service.names.table, f"old-{number:06d}", entry, partition=partition)
    enqueue(producer, service.names.table, POSITION_KEY, encode(Position(0, "nobody", 0, None)), partition=partition)
    enqueue(producer, service.names.waiting, BARRIER_KEY, b"nothing waits", partition=partition)
    assert producer.flush(60) == 0


def answer_s(worker):
    """Ask whether a worker is alive, and give how long its answer took."""
    began_at = time.monotonic()
    with urllib.request.urlopen(f"http://127.0.0.1:{worker.admin_port}/health/live", timeout=60):
        return time.monotonic() - began_at


def times_of_outcomes(service):
    """Return when Kafka has appended each outcome, by partition."""
    times = defaultdict(list)
    for topic in (service.names.events, service.names.rejections, service.names.dead_letters):
        for message in service.read(topic):
            times[message.partition()].append(datetime.fromtimestamp(message.timestamp()[1] / 1000, UTC))
    return times


def test_a_worker_answers_and_decides_while_it_restores(service):
    fill_table(service, ORDERS, LARGE)
    service.send(histories(20))
    worker = service.start_worker(ORDERS_PAYMENT_DUE_S="86400")
    until(lambda: worker.lines("Lane started."), "those of the other partitions run at once")
    slowest = 0.0
    while len(worker.lines("Lane started.")) < 4:
        slowest = max(slowest, answer_s(worker))
    [restored] = [line for line in worker.lines("Lane started.") if line["partition"] == LARGE]
    assert restored["orders"] == ORDERS
    assert slowest < ANSWERS_WITHIN_S
    service.wait_outcomes(100)
    times = times_of_outcomes(service)
    decided_last = max(time for partition in times.keys() - {LARGE} for time in times[partition])
    assert decided_last < datetime.fromisoformat(restored["timestamp"]), "the other partitions wait for the large one"
