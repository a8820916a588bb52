"""A batch of commands that a disk has damaged: its lane stops and says so, and the others of the same worker go on."""

import struct

import pytest

from tests.support.samples import but, create
from tests.support.service import Service, until

COMMANDS = [but(create, order_id=f"order-{number}", command_id=f"create-{number}") for number in range(40)]
LENGTH_AT, BEFORE_LENGTH = 8, 12
"""Where a batch has its length, and how many bytes the length does not count. Source: Kafka, "Record batch"."""


@pytest.fixture
def service(broker, tmp_path, users):
    with Service(broker.bootstrap_servers, tmp_path, users) as made:
        yield made


def content(log):
    """Change a byte of a value: the checksum does not fit."""
    log[log.index(b"create-0") + 2] ^= 1


def length_of_the_second(log):
    """Make the second batch too short to be one; it is fetched together with the first."""
    [first] = struct.unpack_from(">i", log, LENGTH_AT)
    struct.pack_into(">i", log, BEFORE_LENGTH + first + LENGTH_AT, 5)


def length_of_the_first(log):
    """Make the first batch too short to be one: the broker itself cannot find the commands."""
    struct.pack_into(">i", log, LENGTH_AT, 5)


@pytest.mark.parametrize(
    ("damage", "fault"),
    [
        (content, "partition {} is parked: damaged_batch: a batch of {}-{} is damaged"),
        (length_of_the_second, "partition {} is parked: damaged_batch: a batch of {}-{} is damaged"),
        (length_of_the_first, "partition {}: no command is fetched from {} from offset 0 on"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_damaged_batch_stops_its_lane_and_the_others_lose_nothing(broker, service, damage, fault):
    damaged = service.partition_of("order-0")
    for start in range(0, len(COMMANDS), 10):  # batches before and after the damage, and in all partitions
        service.send(COMMANDS[start : start + 10])
    path = broker.directory / "data" / f"{service.names.commands}-{damaged}" / "00000000000000000000.log"
    with path.open("r+b") as file:  # the broker has it open, and reads it for each fetch
        log = bytearray(file.read())
        damage(log)
        file.seek(0)
        file.write(log)
    worker = service.start_worker()
    expected = fault.format(damaged, service.names.commands, damaged)
    until(lambda: expected in worker.faults(), "the lane has stopped, and says so")
    others = [command for command in COMMANDS if service.partition_of(command.order_id) != damaged]
    service.wait_outcomes(len(others))
    service.send([but(command, command_id=f"{command.command_id}-again") for command in others])
    service.wait_outcomes(2 * len(others))
    assert {event.order_id for event in service.events()} == {command.order_id for command in others}
    assert worker.process.poll() is None
