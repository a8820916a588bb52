"""A claim on a real broker: it sees all that was committed before it, waits for what is open, parks what is lost."""

import signal
from contextlib import contextmanager
from typing import Any

import pytest
from confluent_kafka import Producer

from order_service.wire.changelog import BARRIER_KEY
from tests.kafka.test_positions import decide, end, recreate
from tests.kafka.test_rebalance import hanging
from tests.samples import but, cancel, create
from tests.service import histories, until

FIRST: dict[str, list[Any]] = {
    "events": histories(20),
    "rejections": [but(cancel, order_id=f"order-{n}", command_id=f"cancel-{n}") for n in range(20)],
    "dead letters": [(f"order-{n}", b"no command") for n in range(20)],
}


@contextmanager
def open_transaction(service, topic, partition):
    """Have a stranger's transaction with a record of it open on a partition; whoever asks for it ends it."""
    stranger = Producer(
        {"bootstrap.servers": service.bootstrap_servers, "transactional.id": f"{service.app_id}-stranger"}
    )
    stranger.init_transactions(30)
    stranger.begin_transaction()
    stranger.produce(topic, key=BARRIER_KEY, value=b"stranger", partition=partition)
    assert stranger.flush(30) == 0
    yield stranger


def count_outside(service, topic, partition):
    """Count what a topic has in the other partitions."""
    return sum(message.partition() != partition for message in service.read(topic))


@pytest.mark.parametrize(("log", "ending"), [("table", "commit_transaction"), ("waiting", "abort_transaction")])
def test_a_claim_waits_for_a_foreign_open_transaction_and_sees_what_lies_behind_it(service, log, ending):
    commands = histories(40)
    first = service.start_worker().wait_lanes(4)
    service.send(commands[:60])
    service.wait_outcomes(60)
    with open_transaction(service, getattr(service.names, log), 1) as stranger:
        service.send(commands[60:120])
        service.wait_outcomes(120)
        first.send(signal.SIGKILL)
        heir = service.start_worker()
        until(lambda: heir.lanes() == 3, "three lanes run")
        service.send(commands[120:])
        elsewhere = count_outside(service, service.names.commands, 1)
        until(lambda: count_outside(service, service.names.events, 1) == elsewhere, "three lanes have decided all")
        assert "partition 1 is being claimed" in heir.faults()
        getattr(stranger, ending)(30)
    heir.wait_lanes(4)
    service.wait_outcomes(len(commands))
    service.check(commands)


def test_a_worker_whose_claim_still_waits_ends_when_it_is_told_to(service):
    with open_transaction(service, service.names.table, 1) as stranger:
        worker = service.start_worker()
        until(lambda: worker.lanes() == 3, "three lanes run")
        assert "partition 1 is being claimed" in worker.faults()
        end(worker)
        stranger.abort_transaction(30)
    commands = histories(10)
    decide(service, commands)
    service.check(commands)


def until_parked(worker):
    until(lambda: worker.lanes("parked") == 4, "all lanes are parked")


@pytest.mark.parametrize("first", ["events", "rejections", "dead letters"])
def test_a_lost_table_parks_its_lanes_and_nothing_is_decided_anew(service, first):
    commands = FIRST[first]
    decide(service, commands)
    recreate(service, service.names.table)
    worker = service.start_worker()
    until(lambda: worker.lanes("parked") + worker.lanes() == 4, "all lanes are claimed")
    lanes = {message.partition() for message in service.read(service.names.commands)}
    assert all(f"partition {n} is parked: there are outcomes but no position" in worker.faults() for n in lanes)
    assert service.outcome_count() == len(commands)
    end(worker)


def test_a_lost_waiting_room_parks_its_lanes(service, users):
    worker = service.start_worker().wait_lanes(4)
    with hanging(users):
        service.send([create])
        until(service.waiting, "the order waits")
        end(worker)
    recreate(service, service.names.waiting)
    for _ in range(2):  # a restart is no cure
        worker = service.start_worker()
        until_parked(worker)
        assert "the changelog of the waiting room is lost" in worker.faults()
        end(worker)
