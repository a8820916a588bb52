"""What holds the commands back, and how far behind a worker is, is seen from the broker and said."""

import json
import re
import signal

from confluent_kafka import Producer

from tests.support.samples import but, create
from tests.support.service import until


def lag(worker):
    """Read the lag of each partition."""
    found = re.findall(r'^orders_lag_commands\{partition="(\d)"\} (\S+)$', worker.admin("/metrics")[1], re.MULTILINE)
    return {int(partition): float(value) for partition, value in found}


def held_s(worker):
    """Read for how long a foreign transaction has held partition 2."""
    series = r'^orders_foreign_transaction_seconds\{partition="2",topic="[^"]+\.commands\.v1"\} (\S+)$'
    found = re.search(series, worker.admin("/metrics")[1], re.MULTILINE)
    return float(found[1]) if found else None


def test_an_open_transaction_on_the_commands_shows_with_partition_and_age(service):
    worker = service.start_worker().wait_lanes(4)
    foreign = Producer(
        {"log_level": 0, "bootstrap.servers": service.bootstrap_servers, "transactional.id": f"{service.app_id}-erp"}
    )
    foreign.init_transactions(30)
    foreign.begin_transaction()
    foreign.produce(service.names.commands, b"{}", b"order-1", partition=2)
    assert foreign.flush(30) == 0
    fault = until(worker.faults, "readiness says what holds the commands back")
    [said] = json.loads(fault)["faults"]
    assert said.startswith("partition 2: a transaction of another program is open on ")
    assert said.endswith("the commands behind it wait")
    until(lambda: (held_s(worker) or 0) >= 10, "the metric has its age")
    until(lambda: lag(worker) == {0: 0, 1: 0, 2: 1, 3: 0}, "the lag counts it")
    [line] = worker.lines("A transaction of another program is open; the commands behind it wait.")
    assert (line["partition"], line["level"]) == (2, "error")
    foreign.abort_transaction(30)
    worker.wait_ready()
    until(lambda: held_s(worker) == 0, "nothing holds the commands back")
    until(lambda: worker.lines("The open transaction of another program has ended."), "it says so")


def test_the_lag_grows_although_nothing_is_fetched(service):
    """As the last fetch saw it, there would be none."""
    worker = service.start_worker(module=("tests.support.hindered", "deaf")).wait_lanes(4)
    worker.send(signal.SIGPROF)
    until(lambda: "is deaf" in worker.log(), "nothing is fetched any more")
    service.send([but(create, order_id=f"order-{number}", command_id=f"create-{number}") for number in range(20)])
    until(lambda: sum(lag(worker).values()) == 20, "the lag counts all commands")
