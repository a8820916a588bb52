"""Workers whose wall clock steps or is far off, on a real Kafka."""

import signal

import pytest

from order_service.users.stub import Mode
from tests.support.samples import but, create
from tests.support.service import histories, until

TWO_HOURS = "7200"


@pytest.fixture
def clock_file(tmp_path):
    """Make the file that says by how many seconds a worker's wall clock is shifted."""
    file = tmp_path / "clock"
    file.write_text("0")
    return file


def test_a_step_of_the_wall_clock_ends_no_wait_and_cancels_no_order(service, users, clock_file):
    settings = {"ORDERS_PAYMENT_DUE_S": "3600", "ORDERS_USER_DEADLINE_S": "3600"}
    worker = service.start_worker(TEST_CLOCK_FILE=str(clock_file), **settings).wait_ready()
    unpaid = but(create, order_id="unpaid", command_id="unpaid")
    service.send([unpaid])
    service.wait_outcomes(1)
    users.stub.mode = Mode.ERROR
    try:
        waits = but(create, order_id="waits", user_id="erin", actor="service:shop")
        service.send([waits])
        until(service.waiting, "the create waits")
        clock_file.write_text(TWO_HOURS)
        until(lambda: worker.lines("The wall clock has stepped; using the monotonic clock."), "the step is seen")
    finally:
        users.stub.mode = Mode.OK
    service.wait_outcomes(2)
    assert [event.version for event in service.events()] == [1, 1]
    service.check([unpaid, waits])


def test_a_worker_whose_clock_is_far_off_does_not_take_part_until_it_is_set(service, clock_file):
    good = service.start_worker().wait_lanes(4)
    clock_file.write_text(TWO_HOURS)
    bad = service.start_worker(TEST_CLOCK_FILE=str(clock_file))
    until(lambda: "7200 s ahead of Kafka's" in bad.faults(), "it says why it waits")
    commands = histories(10)
    service.send(commands)
    service.wait_outcomes(len(commands))
    assert good.lanes() == 4
    clock_file.write_text("0")
    until(lambda: bad.is_ready() and bad.lanes() == 2, "it takes part")
    for worker in (good, bad):
        worker.send(signal.SIGTERM)
        assert worker.wait_ended() == 0
    service.check(commands)
