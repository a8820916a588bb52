"""Searches over HTTP are bounded: one at a time, and none takes longer than its deadline."""

import asyncio
from contextlib import asynccontextmanager

import pytest

from order_service.errors import KafkaAwayError
from order_service.operations.why.why import DamagedBatch, SearchedTopic, Why
from order_service.settings import Settings
from order_service.web.api import id_searches
from order_service.web.api.id_searches import IdSearches
from order_service.web.http.problems import Problem, Trouble


@asynccontextmanager
async def silent_kafka():
    """Provide settings of a Kafka that accepts connections and never answers, and an event that is set by the first."""
    connected, released = asyncio.Event(), asyncio.Event()

    async def hold(_reader, writer):
        connected.set()
        await released.wait()
        writer.close()

    async with await asyncio.start_server(hold, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        yield Settings(kafka_bootstrap_servers=f"127.0.0.1:{port}"), connected
        released.set()


async def problem_of(search):
    with pytest.raises(Problem) as caught:
        await search
    return caught.value


async def test_a_second_search_is_refused_while_one_runs_and_a_slow_one_ends():
    async with silent_kafka() as (settings, connected):
        searches = IdSearches(settings, deadline_s=1.0)
        slow = asyncio.create_task(problem_of(searches.why("order-1", all_partitions=False)))
        await asyncio.wait_for(connected.wait(), 30)
        second = await problem_of(searches.why("order-2", all_partitions=False))
        assert (second.kind, second.headers) == (Trouble.TOO_MANY_REQUESTS, {"Retry-After": "5"})
        ended = await slow
        assert (ended.kind, ended.headers) == (Trouble.SERVICE_UNAVAILABLE, {}), "trying again would take as long"
        assert "order-service why" in ended.detail
        again = await problem_of(searches.why("order-1", all_partitions=False))
        assert again.kind is Trouble.SERVICE_UNAVAILABLE, "the slow search is over"


async def test_a_caller_that_hangs_up_leaves_the_search_to_others():
    async with silent_kafka() as (settings, connected):
        searches = IdSearches(settings, deadline_s=1.0)
        task = asyncio.create_task(searches.why("order-1", all_partitions=False))
        await asyncio.wait_for(connected.wait(), 30)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (await problem_of(searches.why("order-1", all_partitions=False))).kind is Trouble.SERVICE_UNAVAILABLE


async def test_a_kafka_that_is_away_is_unavailable():
    searches = IdSearches(Settings(kafka_bootstrap_servers="127.0.0.1:1"))
    with pytest.raises(KafkaAwayError):
        await searches.why("order-1", all_partitions=False)


@pytest.mark.parametrize(
    ("damaged", "kind", "text"),
    [
        ([], Trouble.NOT_FOUND, "in any partition of orders.commands.v1."),
        (
            [DamagedBatch("orders.events.v1", 3, 17)],
            Trouble.SERVICE_UNAVAILABLE,
            "orders.events.v1 partition 3 from offset 17 on",
        ),
    ],
)
async def test_nothing_found_is_not_found_only_if_all_records_were_read(monkeypatch, damaged, kind, text):
    searched = [SearchedTopic("orders.commands.v1", 4, None)]

    @asynccontextmanager
    async def reader(_settings):
        yield None

    async def why(_reader, search, _progress, *, all_partitions):
        return Why(search.text, False, all_partitions, [], [], False, searched, damaged)

    monkeypatch.setattr(id_searches, "Reader", reader)
    monkeypatch.setattr(id_searches, "why", why)
    found = await problem_of(IdSearches(Settings()).why("order-1", all_partitions=True))
    assert (found.kind, found.headers) == (kind, {})
    assert text in found.detail


async def test_a_text_that_no_id_can_be_is_an_invalid_parameter():
    refused = await problem_of(IdSearches(Settings()).why("x" * 256, all_partitions=False))
    assert refused.kind is Trouble.INVALID_PARAMETER
    assert "xxx" not in str(refused.more)
