"""A member of the group that is not a worker of this service: what readiness, metric and log say about it."""

import asyncio

import pytest
import structlog
from aiokafka.coordinator.protocol import ConsumerProtocolMemberAssignment
from aiokafka.errors import GroupCoordinatorNotAvailableError
from msgspec import structs

from order_service.worker import metrics
from order_service.worker.membership import Member
from order_service.worker.monitoring.group_watch import GroupWatch

OURS = Member("w-1", "order-service@orders-0-9100", "/10.0.0.6")
STRANGER = Member("r-1", "reporting", "/10.0.0.7")


def holding(*partitions):
    """Return the stranger with these partitions."""
    assignment = ConsumerProtocolMemberAssignment(0, [("orders.commands.v1", list(partitions))], b"").encode()
    return structs.replace(STRANGER, assignment=assignment)


def strangers_measured():
    [measured] = metrics.STRANGERS.collect()
    return measured.samples[0].value


def seconds_measured():
    [measured] = metrics.STRANGER_SECONDS.collect()
    return {sample.labels["partition"]: sample.value for sample in measured.samples}


async def unread():
    raise AssertionError


def test_a_stranger_in_the_group_shows_until_it_has_left():
    now_s = [100.0]
    watch = GroupWatch("shop.orders", unread, clock=lambda: now_s[0])
    with structlog.testing.capture_logs() as logged:
        watch.take([OURS])
        assert (watch.faults, strangers_measured(), logged) == ([], 0, [])
        watch.take([OURS, holding(3, 1)])
        assert strangers_measured() == 1
        now_s[0] += 12
        watch.take([OURS, holding(3, 1)])
        assert seconds_measured() == {"1": 12, "3": 12}
        [fault] = watch.faults
        assert "are in the group shop.orders: reporting at 10.0.0.7 (holds orders.commands.v1-1, " in fault
        assert "orders.commands.v1-3, seen for 12 s); end them" in fault
        watch.take([OURS, STRANGER])
        watch.take([OURS])
    assert (watch.faults, strangers_measured(), seconds_measured()) == ([], 0, {})
    first, second, last = logged
    assert first["event"] == second["event"] == "Another program is in the group."
    assert "(holds orders.commands.v1-1, orders.commands.v1-3, seen for 0 s)" in first["reason"]
    assert "(holds no partitions, seen for 12 s)" in second["reason"]
    assert last["event"] == "No other program is in the group any more."


def test_a_stranger_that_comes_back_is_counted_from_its_return():
    now_s = [100.0]
    watch = GroupWatch("shop.orders", unread, clock=lambda: now_s[0])
    for members in ([STRANGER], [], [STRANGER]):
        watch.take(members)
        now_s[0] += 10
    assert "seen for 0 s" in watch.faults[0]


@pytest.mark.parametrize("assignment", [b"", b"\0", b"no assignment", b"\0\0\0\0\0\1\xff\xff", b"\0\0" + 8 * b"\xff"])
def test_a_stranger_whose_assignment_cannot_be_read_shows(assignment):
    watch = GroupWatch("shop.orders", unread)
    watch.take([structs.replace(STRANGER, assignment=assignment)])
    assert "reporting at 10.0.0.7 (holds no partitions, seen for 0 s)" in watch.faults[0]


async def test_a_stranger_stays_reported_while_the_coordinator_does_not_answer():
    answers = iter([[STRANGER], GroupCoordinatorNotAvailableError(), TimeoutError()])
    asked = asyncio.Event()

    async def read():
        answer = next(answers, None)
        if answer is None:
            asked.set()
            await asyncio.get_running_loop().create_future()
        if isinstance(answer, Exception):
            raise answer
        return answer

    watch = GroupWatch("shop.orders", read, every_s=0.0)
    with structlog.testing.capture_logs() as logged:
        watching = asyncio.create_task(watch.run())
        async with asyncio.timeout(30):
            await asked.wait()
    assert len(watch.faults) == 1
    assert [line["log_level"] for line in logged] == ["error", "warning"]  # the second failure says nothing new
    watching.cancel()
