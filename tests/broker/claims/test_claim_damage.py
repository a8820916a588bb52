"""A claim meets what it cannot read, or what was lost: it parks that lane, says where, and the other lanes run."""

import re
import signal

import msgspec
import pytest

from order_service.wire.changelog import BARRIER_KEY, POSITION_KEY, waiting_key
from tests.support.claiming import open_transaction
from tests.support.command_line import CommandLine
from tests.support.damaged_topics import cut, recreate, write
from tests.support.deciding import FIRST, decide, end
from tests.support.samples import but, cancel, create
from tests.support.service import Service, histories, until
from tests.support.users import hanging

BROKEN = {
    "a newer form": ("table", b"order-x", b"\x02whatever", "has format byte b'\\x02', this version reads b'\\x01'"),
    "another shape": ("table", b"order-x", b"\x01\x90", "cannot be read"),
    "a key that is no text": ("table", b"\xff\xfe", b"\x01\x90", "cannot be read"),
    "a position of a newer form": ("table", POSITION_KEY, b"\x02whatever", "has format byte b'\\x02'"),
    "a waiting command of a newer form": (
        "waiting",
        waiting_key("order-x", 3),
        b"\x03whatever",
        "has format byte b'\\x03'",
    ),
}


def parked(worker, count):
    until(lambda: worker.lanes("parked") == count, f"{count} lanes are parked")
    until(lambda: worker.lanes() == 4 - count, "the others run")
    return worker.faults()


@pytest.mark.parametrize("name", BROKEN)
def test_a_record_that_cannot_be_read_parks_its_lane_and_no_other(service, name):
    log, key, value, why = BROKEN[name]
    commands = histories(20)
    decide(service, commands)
    topic = getattr(service.names, log)
    write(service, topic, [(2, key, value, None)])
    worker = service.start_worker()
    faults = parked(worker, 1)
    unreadable = f"{re.escape(topic)} partition 2 offset \\d+ cannot be read: "
    assert re.search(f"partition 2 is parked: changelog_unreadable: {unreadable}", faults)
    assert why in faults.replace("\\\\", "\\")
    service.send(histories(20, first=21))
    elsewhere = sum(message.partition() != 2 for message in service.read(service.names.commands))
    until(lambda: sum(message.partition() != 2 for message in service.read(service.names.events)) == elsewhere, "all")
    end(worker)


def test_a_table_that_lost_its_tail_parks_its_lanes_and_nothing_is_decided_again(service):
    commands = histories(40)
    decide(service, commands)
    cut(service, service.names.table, lambda count: count // 2)
    for _ in range(2):  # a restart is no cure
        worker = service.start_worker()
        faults = parked(worker, 4)
        assert faults.count(f"the changelog {service.names.table} partition") == 4
        assert faults.count("has lost its last records") == 4
        assert "Restore the lost records" in faults
        end(worker)
    assert service.outcome_count() == len(commands)


def test_a_table_that_lost_its_tail_is_noticed_by_a_position_of_an_earlier_version(service):
    commands = histories(20)
    decide(service, commands)
    behind = []
    for partition, position in service.positions().items():
        fields = [position.next_offset - 1, position.owner, position.end_offset, None]
        behind.append((partition, POSITION_KEY, b"\x01" + msgspec.msgpack.encode(fields), None))
    write(service, service.names.table, behind)
    faults = parked(service.start_worker(), 4)
    assert faults.count("has an outcome, the position is") == 4
    assert service.outcome_count() == len(commands)


@pytest.mark.parametrize("log", FIRST)
def test_outcomes_that_lost_their_tail_park_their_lanes(service, log):
    decide(service, FIRST[log])
    end(service.start_worker().wait_lanes(4))  # this one has seen the whole log
    topic = getattr(service.names, log.replace(" ", "_"))
    lanes = {message.partition() for message in service.read(topic)}
    cut(service, topic, lambda count: max(count - 1, 0))
    faults = parked(service.start_worker(), len(lanes))
    for partition in lanes:
        assert f"partition {partition} is parked: outcomes_lost_tail: {topic} partition {partition}" in faults
    assert faults.count("its last records are lost") == len(lanes)


@pytest.mark.parametrize(
    ("left", "reason"),
    [
        pytest.param(40, "waiting_differs: {} partition {} holds 0 waiting commands, the position", id="count"),
        pytest.param(4, "waiting_lost_tail: {} partition {} ends at 1, it ended at", id="end"),
    ],
)
def test_a_waiting_room_that_lost_its_tail_parks_its_lane_until_it_is_rebuilt(service, users, left, reason):
    where = service.partition_of(create.order_id)
    other = next(order for n in range(99) if service.partition_of(order := f"other-{n}") == where)
    refused = but(cancel, order_id=other)
    worker = service.start_worker().wait_lanes(4)
    with hanging(users):
        service.send([create])
        until(service.waiting, "the order waits")
        service.send([refused])
        service.wait_outcomes(1)  # this turn records the end of the waiting room
        worker.send(signal.SIGKILL)
        worker.wait_ended()
    recreate(service, service.names.waiting)
    write(service, service.names.waiting, [(n % 4, BARRIER_KEY, b"too few", None) for n in range(left)])
    worker = service.start_worker()
    parked = f"partition {where} is parked: {reason.format(service.names.waiting, where)}"
    until(lambda: parked in worker.faults(), "the lane is parked")
    CommandLine(service.environment)("rebuild", "--all", "--reason", "a test", "--yes")
    worker.wait_lanes(4)
    service.wait_outcomes(2)
    service.check([create, refused])


def test_records_of_strangers_among_the_outcomes_park_no_lane(service):
    commands = histories(10)
    decide(service, commands)
    for topic in (service.names.events, service.names.rejections, service.names.dead_letters):
        write(service, topic, [(n, b"x", b"no event", [("command_offset", b"999999")]) for n in range(4)])
    worker = service.start_worker().wait_lanes(4)
    ignored = worker.lines("Foreign records in the outcome topics were ignored.")
    assert sorted((line["partition"], line["count"]) for line in ignored) == [(n, 3) for n in range(4)]


@pytest.fixture
def wide(bootstrap_servers, tmp_path, users):
    with Service(bootstrap_servers, tmp_path, users, ORDERS_PARTITIONS="20") as made:
        yield made


def test_seventeen_claims_that_wait_let_the_other_three_run(wide):
    service = wide
    with open_transaction(service, service.names.table, 0) as stranger:
        for partition in range(1, 17):
            stranger.produce(service.names.table, key=BARRIER_KEY, value=b"stranger", partition=partition)
        assert stranger.flush(30) == 0
        worker = service.start_worker()
        until(lambda: worker.lanes() == 3, "three lanes run")
        assert worker.lanes("claiming") == 17
        until(
            lambda: re.search(
                r"partition 16 is being claimed: it has waited \d+ s for .*a transaction", worker.faults()
            ),
            "readiness tells what it waits for",
        )
        stranger.abort_transaction(30)
    worker.wait_lanes(20)
