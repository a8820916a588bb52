"""Partitions move between workers that join, leave, die and fall asleep: nothing is lost, doubled or out of order."""

import signal

from tests.support.deciding import end
from tests.support.samples import SHOP, but, create, pay
from tests.support.service import GRACE_S, histories, until
from tests.support.users import hanging


def test_whatever_happens_to_the_workers_each_command_has_one_outcome(service):
    commands = histories(300)
    killed, sleeper = service.start_worker(), service.start_worker()
    killed.wait_ready()
    sleeper.wait_ready()
    with service.sending(commands, per_s=150):
        service.wait_outcomes(150)
        killed.send(signal.SIGKILL)
        joining = service.start_worker().wait_ready()
        until(lambda: joining.lanes() + sleeper.lanes() == 4, "the dead worker's lanes have moved")
        sleeper.send(signal.SIGSTOP)
        joining.wait_lanes(4)
        sleeper.send(signal.SIGCONT)
        last = service.start_worker().wait_ready()
        joining.send(signal.SIGTERM)
        assert joining.wait_ended(within_s=GRACE_S) == 0
    service.wait_outcomes(len(commands))
    assert sleeper.process.poll() in {None, 10, 12}  # a member again, fenced, or too late for its own commit
    assert last.process.poll() is None
    service.check(commands)


def test_lanes_that_stay_run_on_without_a_claim(service):
    commands = histories(40)
    first = service.start_worker().wait_lanes(4)
    service.send(commands[:100])
    service.wait_outcomes(100)
    with service.sending(commands[100:], per_s=40):
        second = service.start_worker().wait_lanes(2)
        first.wait_lanes(2)
    service.wait_outcomes(len(commands))
    started, runs_on = (
        [line["partition"] for line in first.lines(event)] for event in ("Lane started.", "Lane runs on.")
    )
    assert sorted(started) == [0, 1, 2, 3]
    assert sorted(runs_on + [line["partition"] for line in second.lines("Lane started.")]) == [0, 1, 2, 3]
    assert second.lines("Lane runs on.") == []
    assert len({line["owner"] for line in first.lines("Partitions assigned.")}) == 1
    service.check(commands)


def has_written_its_positions(service):
    """Return whether the newest position of each partition knows the last batch of events, so that no other follows."""
    batches: dict[int, dict[int, int]] = {}
    for event in service.read(service.names.events):  # the events of a batch have one append time
        batches.setdefault(event.partition(), {}).setdefault(event.timestamp()[1], event.offset())
    positions = service.positions()
    return all(positions[partition].ends.events > max(firsts.values()) for partition, firsts in batches.items())


def test_the_partitions_of_a_worker_that_was_stopped_are_claimed_without_a_fence(service):
    first = service.start_worker().wait_lanes(4)
    commands = histories(10)
    service.send(commands[:25])
    service.wait_outcomes(25)
    end(first)
    service.start_worker(("claim.fenced", 1, "SIGKILL")).wait_lanes(4)
    service.send(commands[25:])
    service.wait_outcomes(len(commands))
    service.check(commands)


def test_workers_with_another_app_id_go_on_after_those_before_have_stopped(service):
    commands = histories(10)
    first = service.start_worker().wait_lanes(4)
    service.send(commands[:25])
    service.wait_outcomes(25)
    end(first)
    service.start_worker(ORDERS_APP_ID=f"{service.app_id}-other").wait_lanes(4)
    service.send(commands[25:])
    service.wait_outcomes(len(commands))
    service.check(commands)


def test_a_lane_that_another_worker_has_claimed_meanwhile_is_claimed_again(service):
    creates = [but(create, order_id=f"order-{n}", command_id=f"create-{n}", actor=SHOP) for n in range(20)]
    payments = [but(pay, order_id=f"order-{n}", command_id=f"pay-{n}") for n in range(20)]
    sleeper = service.start_worker().wait_lanes(4)
    service.send(creates)
    service.wait_outcomes(20)
    until(lambda: has_written_its_positions(service), "the sleeper has nothing left to write")
    sleeper.send(signal.SIGSTOP)
    other = service.start_worker(ORDERS_PAYMENT_DUE_S="1")
    service.wait_outcomes(40)  # its timers have cancelled all orders
    other.send(signal.SIGTERM)
    assert other.wait_ended(within_s=GRACE_S) == 0
    sleeper.send(signal.SIGCONT)
    until(lambda: len(sleeper.lines("Lane started.")) == 8, "the sleeper claims its lanes again")
    assert sleeper.lines("Lane runs on.") == []
    assert len(sleeper.lines("Claiming the partitions again.")) == 1
    service.send(payments)
    service.wait_outcomes(60)
    assert [rejection.reason for rejection in service.rejections()] == ["order_cancelled"] * 20


def test_an_order_whose_user_is_known_to_its_new_worker_does_not_wait_on(service, users):
    orders = [but(create, order_id=f"order-{n}", command_id=f"create-{n}", actor=SHOP) for n in range(20)]
    knowing = service.start_worker().wait_lanes(4)
    service.send(orders[:1])
    service.wait_outcomes(1)
    with hanging(users):
        other = service.start_worker().wait_lanes(2)
        service.send(orders[1:])
        until(service.waiting, "the other worker waits for the user")
        other.send(signal.SIGKILL)
        knowing.wait_lanes(4)
        service.wait_outcomes(len(orders), within_s=20)
    service.check(orders)
