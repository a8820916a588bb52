"""A claim on a real broker: it sees all that was committed before it, waits for what is open, parks what is lost."""

import signal

import pytest
from aiokafka.cluster import ClusterMetadata

from order_service.errors import Fenced
from order_service.kafka.connection import connection
from order_service.wire.changelog import BARRIER_KEY
from order_service.worker.transactions import TRANSACTION_TIMEOUT_S, claiming
from tests.support.claiming import claim_that_stops, open_transaction
from tests.support.damaged_topics import recreate
from tests.support.deciding import FIRST, decide, end
from tests.support.samples import create
from tests.support.service import histories, until
from tests.support.users import hanging


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


def test_a_claim_that_was_stopped_for_long_does_not_fence_the_new_owner(service):
    """It reads the changelog after the next owner has named itself there."""
    with claim_that_stops(service, after="claim.locked") as go_on:
        worker = service.start_worker().wait_lanes(4)
        with pytest.raises(Fenced, match="-claim-1"):
            go_on()
    commands = histories(10)
    service.send(commands)
    service.wait_outcomes(len(commands))
    assert worker.wait_ready().lines("Claiming the partitions again.") == []
    service.check(commands)


async def test_a_claim_that_was_stopped_inside_a_transaction_does_not_start_again(service):
    """It would take a new lock, read who has the partition now, and fence it."""

    def lock():
        return claiming(
            f"{service.group_id}-claim-1", connection(service.settings()), ClusterMetadata(), [service.names.table]
        )

    async def claim_late():
        async with lock() as late:
            await late.begin()
            late._begun_at -= 2 * TRANSACTION_TIMEOUT_S
            async with lock():
                pass
            await late.commit(await late.send_all(service.names.table, 1, [(BARRIER_KEY, b"late", [])]))

    said = r"-claim-1 was open for 3\d s: Kafka aborts it after 15 s; another worker may have claimed the partition"
    with pytest.raises(Fenced, match=said):
        await claim_late()


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
    assert all(
        f"partition {n} is parked: table_lost: there are outcomes but no position" in worker.faults() for n in lanes
    )
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
        assert "is parked: waiting_lost: the changelog of the waiting room is lost" in worker.faults()
        end(worker)
