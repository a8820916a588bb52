"""The waiting room on a real Kafka: a slow neighbour hurts no other service, and no question is lost."""

import json
import signal

import pytest

from order_service.users.stub import Mode
from tests.support.samples import amend, but, cancel, create, pay
from tests.support.service import until

SHOP = "service:shop"


def order(number, user_id="dana"):
    """A create and three commands behind it."""
    named = [
        but(c, order_id=f"order-{number}", command_id=f"{c.command_id}-{number}") for c in (create, amend, pay, cancel)
    ]
    return [but(named[0], user_id=user_id, actor=SHOP), *(but(c, actor=SHOP) for c in named[1:])]


def orders(numbers, user_id="dana"):
    return [command for number in numbers for command in order(number, user_id)]


@pytest.fixture
def mode(users):
    """Set what the User Service does; it heals after the test."""

    def set_to(wanted):
        users.stub.mode = wanted

    yield set_to
    users.stub.mode = Mode.OK


def test_while_some_users_hang_the_orders_of_all_others_are_decided(service):
    worker = service.start_worker(ORDERS_USER_DEADLINE_S="8").wait_ready()
    hanging = [command for number in range(5) for command in order(f"h{number}", f"slow-600000-{number}")]
    others = orders(range(20))
    service.send([*hanging, *others])
    service.wait_outcomes(len(others))
    assert {event.order_id for event in service.events()} == {command.order_id for command in others}
    assert len(service.waiting()) == len(hanging)
    assert worker.is_ready()
    service.wait_outcomes(len(others) + len(hanging))
    assert sum(rejection.reason == "user_check_timed_out" for rejection in service.rejections()) == 5
    service.check([*hanging, *others])


def test_what_waits_survives_a_kill_and_keeps_its_order(service, mode):
    mode(Mode.ERROR)
    commands = orders(range(3), "pat")
    worker = service.start_worker().wait_ready()
    service.send(commands)
    until(lambda: len(service.waiting()) == len(commands), "all commands wait")
    worker.send(signal.SIGKILL)
    worker.wait_ended()
    assert service.outcome_count() == 0
    mode(Mode.OK)
    service.start_worker()
    service.wait_outcomes(len(commands))
    service.check(commands)
    assert [event.version for event in service.events() if event.order_id == "order-0"] == [1, 2, 3, 4]


def test_an_outage_ends_with_everything_decided(service, mode):
    service.start_worker().wait_ready()
    mode(Mode.HANG)
    commands = [command for number in range(30) for command in order(number, f"user-{number}")]
    service.send(commands)
    until(lambda: len(service.waiting()) == len(commands), "all commands wait")
    mode(Mode.OK)
    service.wait_outcomes(len(commands))
    service.check(commands)


def test_a_refused_credential_makes_the_worker_not_ready_and_the_orders_wait(service, mode):
    mode(Mode.UNAUTHORIZED)
    worker = service.start_worker().wait_ready()
    commands = order(1, "kim")
    service.send(commands)
    until(lambda: worker.admin("/health/ready")[0] == 503, "it is not ready")
    assert service.outcome_count() == 0
    mode(Mode.OK)
    service.wait_outcomes(len(commands))
    until(worker.is_ready, "it is ready again")
    service.check(commands)


def test_answers_that_no_worker_expects_are_named_by_readiness_and_by_the_lanes(service, mode):
    mode(Mode.REDIRECT)
    worker = service.start_worker().wait_ready()
    commands = [command for number in range(3) for command in order(number, f"lou-{number}")]
    service.send(commands)
    why = "status 302, a redirect to another path of the same host"
    until(lambda: why in worker.faults(), "it is not ready")
    lanes = json.loads(worker.admin("/lanes")[1])["lanes"]
    assert f"commands wait for the User Service: {why}" in [lane["reason"] for lane in lanes]
    mode(Mode.OK)
    service.wait_outcomes(len(commands))
    until(worker.is_ready, "it is ready again")
    service.check(commands)


def test_garbage_is_no_answer_and_a_no_is_one(service, mode):
    service.start_worker().wait_ready()
    noes = [*order(1, "unknown-1"), *order(2, "inactive-2")]
    service.send(noes)
    service.wait_outcomes(len(noes))
    reasons = {rejection.command_id: rejection.reason for rejection in service.rejections()}
    assert (reasons["create-1-1"], reasons["create-1-2"]) == ("user_not_found", "user_not_active")
    mode(Mode.GARBAGE)
    waits = order(3, "lou")
    service.send(waits)
    until(lambda: len(service.waiting()) == len(waits), "it waits")
    mode(Mode.OK)
    service.wait_outcomes(len(noes) + len(waits))
    service.check([*noes, *waits])


def test_an_answer_may_meet_a_rebalance(service, mode):
    mode(Mode.ERROR)
    commands = [command for number in range(20) for command in order(number, f"member-{number}")]
    first = service.start_worker().wait_ready()
    service.send(commands)
    until(lambda: len(service.waiting()) == len(commands), "all commands wait")
    second = service.start_worker()
    until(lambda: "Partitions assigned." in second.log(), "the second is a member")
    mode(Mode.OK)
    service.wait_outcomes(len(commands))
    service.check(commands)
    assert first.process.poll() is None


def test_a_full_waiting_room_pauses_its_partition_and_no_other(service, mode):
    service.start_worker(ORDERS_WAITING_MAX="4").wait_ready()
    service.send(order("known", "dana"))
    service.wait_outcomes(4)
    mode(Mode.ERROR)
    by_partition: dict[int, list[int]] = {}
    for number in range(60):
        by_partition.setdefault(service.partition_of(f"order-{number}"), []).append(number)
    full, other = by_partition[0], by_partition[1]
    waiting = [command for number in full[:6] for command in order(number, f"late-{number}")]
    service.send(waiting[:4])
    until(lambda: len(service.waiting()) == 4, "the room of one partition is full")
    going_on = orders(other[:5])
    service.send([*waiting[4:], *going_on])
    service.wait_outcomes(4 + len(going_on))
    assert len(service.waiting()) == 4
    mode(Mode.OK)
    service.wait_outcomes(4 + len(going_on) + len(waiting))
    service.check([*order("known", "dana"), *waiting, *going_on])
