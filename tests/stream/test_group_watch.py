"""A member of the group that is not a worker of this service: what readiness, metric and log say about it."""

import asyncio

import structlog
from aiokafka.errors import GroupCoordinatorNotAvailableError

from order_service import metrics
from order_service.stream.group_watch import GroupWatch
from order_service.stream.membership import Member

OURS = Member("w-1", "order-service@orders-0-9100", "/10.0.0.6")
STRANGER = Member("r-1", "reporting", "/10.0.0.7")


def strangers_measured():
    [measured] = metrics.STRANGERS.collect()
    return measured.samples[0].value


async def unread():
    raise AssertionError


def test_a_stranger_in_the_group_shows_until_it_has_left():
    watch = GroupWatch("shop.orders", unread)
    with structlog.testing.capture_logs() as logged:
        watch.take([OURS])
        assert (watch.faults, strangers_measured(), logged) == ([], 0, [])
        watch.take([OURS, STRANGER])
        watch.take([OURS, STRANGER])
        [fault] = watch.faults
        assert "are in the group shop.orders: reporting at 10.0.0.7; end them" in fault
        assert strangers_measured() == 1
        assert [(line["event"], line["reason"]) for line in logged] == [("Another program is in the group.", fault)]
        watch.take([OURS])
    assert (watch.faults, strangers_measured()) == ([], 0)
    assert logged[1]["event"] == "No other program is in the group any more."


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
    watching = asyncio.create_task(watch.run())
    async with asyncio.timeout(30):
        await asked.wait()
    assert len(watch.faults) == 1
    watching.cancel()
