"""A batch of commands that a disk has damaged: its lane parks, and the others of the same worker go on."""

import pytest

from tests.samples import but, create
from tests.service import Service, until


@pytest.fixture
def service(broker, tmp_path, users):
    with Service(broker.bootstrap_servers, tmp_path, users) as made:
        yield made


def test_a_damaged_batch_parks_its_lane_and_the_others_lose_nothing(broker, service):
    commands = [but(create, order_id=f"order-{number}", command_id=f"create-{number}") for number in range(40)]
    damaged = service.partition_of("order-0")
    for start in range(0, 40, 10):  # batches before and after the damage, and in all partitions
        service.send(commands[start : start + 10])
    broker.stop()
    log = broker.directory / "data" / f"{service.names.commands}-{damaged}" / "00000000000000000000.log"
    data = bytearray(log.read_bytes())
    data[data.index(b"create-0") + 2] ^= 1
    log.write_bytes(data)
    broker.start()
    worker = service.start_worker()
    reason = f"partition {damaged} is parked: a batch of {service.names.commands}-{damaged} is damaged"
    until(lambda: reason in worker.faults(), "the lane is parked")
    others = [command for command in commands if service.partition_of(command.order_id) != damaged]
    service.wait_outcomes(len(others))
    service.send([but(command, command_id=f"{command.command_id}-again") for command in others])
    service.wait_outcomes(2 * len(others))
    assert {event.order_id for event in service.events()} == {command.order_id for command in others}
    assert worker.process.poll() is None
