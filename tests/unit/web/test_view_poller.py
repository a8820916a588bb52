"""What waits for new rows of the views ends when it is cancelled."""

import asyncio
from typing import Any

from order_service.web.live.subscriptions import Subscription
from order_service.web.live.view_poller import ViewPoller

WITHIN_S = 10


class EmptyViews:
    def offsets(self):
        return {}


class PatientListener:
    poll_interval_s = 60.0


async def test_a_poller_ends_although_it_is_cancelled_while_a_request_wakes_it():
    views: Any = EmptyViews()
    listener: Any = PatientListener()
    poller = ViewPoller(views)
    poller.add(listener)
    running = asyncio.create_task(poller.run())
    await asyncio.sleep(0)  # it runs until it waits
    await poller.wake()
    running.cancel()
    await asyncio.wait([running], timeout=WITHIN_S)
    assert running.cancelled()


async def test_a_reader_of_a_subscription_ends_although_it_is_cancelled_while_an_event_arrives():
    subscription = Subscription()
    reading = asyncio.create_task(subscription.next(within_s=60))
    await asyncio.sleep(0)
    await asyncio.sleep(0)  # it waits, also if a task of its own waits for it
    subscription.put(None)
    reading.cancel()
    await asyncio.wait([reading], timeout=WITHIN_S)
    assert reading.cancelled()
