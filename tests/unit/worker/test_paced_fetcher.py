"""When the worker fetches: shortly before its next turn, at once while it is idle."""

import asyncio
import time
from types import SimpleNamespace
from typing import Any

from aiokafka import ConsumerRecord, TopicPartition

from order_service.worker.faust.consumer import FetchThread
from order_service.worker.faust.paced_fetcher import PAUSE_S, PacedFetcher

REVOKED: Any = SimpleNamespace(active=False)
"""An assignment whose responses aiokafka drops: these tests are about the requests."""


class Broker:
    """A client that records when a request is sent."""

    def __init__(self):
        self.sent_at = []

    async def send(self, _node_id, _request):
        self.sent_at.append(time.monotonic())


def fetcher_on(broker) -> Any:
    fetcher = PacedFetcher.__new__(PacedFetcher)  # without aiokafka's tasks
    fetcher._client = broker
    return fetcher


async def fetch(fetcher) -> bool:
    async with asyncio.timeout(30):
        return bool(await fetcher._proc_fetch_request(REVOKED, 0, None))


async def test_a_fetch_is_sent_at_once_while_no_turn_is_due():
    broker = Broker()
    began_at = time.monotonic()
    await fetch(fetcher_on(broker))
    assert began_at <= broker.sent_at[0]


async def test_a_fetch_waits_until_its_time_and_the_newest_time_counts():
    broker = Broker()
    fetcher = fetcher_on(broker)
    at = time.monotonic() + 0.05
    fetcher.wait_until(at - 0.04)
    fetching = asyncio.create_task(fetch(fetcher))
    await asyncio.sleep(0)  # it has begun to wait for the first time
    fetcher.wait_until(at)
    await fetching
    assert broker.sent_at[0] >= at


async def test_no_fetch_is_sent_in_the_moment_after_records_were_returned():
    broker = Broker()
    fetcher = fetcher_on(broker)
    began_at = time.monotonic()
    fetcher.pause()
    await fetch(fetcher)
    assert broker.sent_at[0] >= began_at + PAUSE_S


async def test_a_pause_does_not_shorten_the_wait_for_a_turn():
    fetcher = fetcher_on(Broker())
    at = time.monotonic() + 60
    fetcher.wait_until(at)
    fetcher.pause()
    assert fetcher._not_before == at


async def test_a_fetch_that_is_cancelled_while_it_waits_has_no_records():
    """aiokafka reads the result of a cancelled request; a CancelledError would end the task that reads it."""
    broker = Broker()
    fetcher = fetcher_on(broker)
    fetcher.wait_until(time.monotonic() + 60)
    fetching = asyncio.create_task(fetch(fetcher))
    await asyncio.sleep(0)
    fetching.cancel()
    assert await fetching is False
    assert broker.sent_at == []


def record(partition, offset) -> Any:
    return ConsumerRecord(partition.topic, partition.partition, offset, 0, 0, b"", b"", None, 0, 0, ())


def test_the_runs_of_one_fetch_are_one_record_of_faust():
    """Else a turn would begin with the first partition, and the others would wait for the next turn."""
    thread: Any = FetchThread.__new__(FetchThread)
    thread._seeks, thread._numbers = {}, {}
    paused = []
    thread._consumer = SimpleNamespace(_fetcher=SimpleNamespace(pause=lambda: paused.append(True)))
    partitions = [TopicPartition("orders.commands.v1", number) for number in (2, 0, 5)]
    fetched = {
        partition: [record(partition, offset) for offset in range(number + 1)]
        for number, partition in enumerate(partitions)
    }
    [(_, [one])] = thread._as_one_record(fetched).items()
    assert {number: [(run.number, len(run.records))] for number, run in one.value.items()} == {
        2: [(0, 1)],
        0: [(0, 2)],
        5: [(0, 3)],
    }
    assert paused == [True]
