"""Payment deadlines: how many orders are cancelled at once."""

import asyncio
from typing import Any

from order_service.worker.clock import Clock
from order_service.worker.lane import DUE
from order_service.worker.payment_deadlines import PaymentDeadlines


class DueLane:
    """A lane in which any number of orders is due; it remembers how many were taken."""

    def __init__(self, partition):
        self.partition = partition
        self.taken = 0

    def due_orders(self, _now, limit):
        self.taken += limit
        return [f"order-{number}" for number in range(limit)]


async def test_the_orders_that_are_cancelled_at_once_are_bounded_and_each_lane_has_a_share():
    """After a long outage they are due in all lanes together, and one turn cancels what was taken."""
    lanes: Any = {partition: DueLane(partition) for partition in range(8)}
    taken = asyncio.Event()

    def spawn(work):
        work.close()  # it stays open: the log is being read
        if all(lane.taken for lane in lanes.values()):
            taken.set()

    unused: Any = None
    payments = PaymentDeadlines(lanes, 60.0, Clock(60), end=unused, read_to=unused, cancel=unused, spawn=spawn)
    running = asyncio.create_task(payments.run())
    async with asyncio.timeout(30):
        await taken.wait()
    running.cancel()
    share = DUE.of_worker // len(lanes)
    assert [lane.taken for lane in lanes.values()] == [DUE.of_lane] * 4 + [share] * 4
