"""A stream that is resumed at a server whose views are behind waits: an error would end a browser's EventSource."""

import asyncio
from contextlib import AsyncExitStack

import pytest

from order_service.domain.decision import VERSION_MAX
from order_service.errors import KafkaAwayError
from order_service.web.live.log_ends import LogEnds
from tests.support.copies import two_views
from tests.support.event_log import EVENTS
from tests.support.samples import ORDER_ID, but, create, pay, ship

HERE = f"/v1/orders/{ORDER_ID}/stream"


@pytest.fixture
async def shop(tmp_path):
    """Two servers over one log with three events; the second one's views have the first of them."""
    async with two_views(tmp_path) as (world, first, late, second):
        world.commands.append(create)
        assert world.decide() == ["OrderCreated"]
        late.project()
        world.commands += [pay, ship]
        assert world.decide() == ["OrderPaid", "OrderShipped"]
        world.project()
        yield world, first, late, second


@pytest.mark.parametrize(("path", "seen"), [(HERE, "2"), ("/v1/events", "0-2")])
async def test_an_id_that_the_views_have_not_reached_is_waited_for(shop, path, seen):
    _, first, late, second = shop
    async with AsyncExitStack() as stack:
        streams = [await stack.enter_async_context(http.stream(path, Last_Event_ID=seen)) for http in (first, second)]
        assert [stream.status for stream in streams] == [200, 200]
        told = asyncio.create_task(streams[1].next())
        assert await streams[0].next() == (seen.replace("2", "3"), "OrderShipped")
        assert not told.done()
        late.project()
        assert await told == (seen.replace("2", "3"), "OrderShipped")


async def test_an_order_that_the_views_do_not_have_yet_is_waited_for(tmp_path):
    async with two_views(tmp_path) as (world, _, late, second):
        world.commands += [create, pay]
        assert world.decide() == ["OrderCreated", "OrderPaid"]
        async with second.stream(HERE, Last_Event_ID="1") as stream:
            assert stream.status == 200
            told = asyncio.create_task(stream.next())
            late.project()
            assert await told == ("2", "OrderPaid")


async def test_an_order_that_does_not_come_ends_the_stream_and_not_the_reader(shop):
    """A browser asks again after the end of a stream, perhaps at another server; after a 404 it does not."""
    world, _, _, _ = shop
    async with (
        world.server(heartbeat_s=0.1) as http,
        http.stream("/v1/orders/no-such-order/stream", Last_Event_ID="1") as stream,
    ):
        assert (stream.status, await stream.next()) == (200, None)


@pytest.mark.parametrize(
    ("path", "seen"),
    [
        pytest.param(HERE, str(VERSION_MAX + 1), id="a version that no order can have"),
        pytest.param(HERE, "one", id="no version"),
        pytest.param(HERE, "0-1", id="an id of the other stream"),
        pytest.param("/v1/events", "0-4", id="an offset past the end of the log"),
        pytest.param("/v1/events", "1-0", id="a partition that does not exist"),
        pytest.param("/v1/events", "0", id="no offset"),
    ],
)
async def test_an_id_that_can_never_be_reached_is_refused(shop, path, seen):
    _, first, _, second = shop
    for http in (first, second):
        async with http.stream(path, Last_Event_ID=seen) as stream:
            assert stream.status == 400


async def test_an_order_is_not_found_without_an_id(shop):
    _, _, _, second = shop
    async with second.stream("/v1/orders/no-such-order/stream") as stream:
        assert stream.status == 404


async def test_too_many_streams_are_an_error_for_a_new_reader_and_a_pause_for_one_that_resumes(shop):
    _, first, _, _ = shop
    async with AsyncExitStack() as stack:
        for _ in range(10):
            await stack.enter_async_context(first.stream("/v1/events"))
        async with first.stream("/v1/events") as new:
            assert new.status == 429
        async with first.stream("/v1/events", Last_Event_ID="0-1") as resumed:
            assert (resumed.status, await resumed.text()) == (200, "retry: 5000\n\n")


async def test_while_kafka_is_away_every_id_past_the_views_is_waited_for():
    async def away():
        raise KafkaAwayError("Kafka is away")

    log_ends = LogEnds(away, ask_every_s=0.0)
    assert await asyncio.gather(*(log_ends.reach({EVENTS: 5}) for _ in range(5))) == [True] * 5


async def test_those_who_ask_at_once_share_a_question():
    asked = []

    async def ends():
        asked.append(1)
        await asyncio.sleep(0)
        return {EVENTS: 3}

    log_ends = LogEnds(ends, ask_every_s=0.0)
    answers = await asyncio.gather(*(log_ends.reach({EVENTS: offset}) for offset in (3, 4, 5, 6, 3)))
    assert answers == [True, False, False, False, True]
    assert len(asked) <= 2


async def test_more_than_one_order_of_the_log_may_be_ahead(shop):
    world, first, late, second = shop
    other = but(create, order_id="order-2", command_id="create-2")
    world.commands.append(other)
    assert world.decide() == ["OrderCreated"]
    world.project()
    async with second.stream("/v1/events", Last_Event_ID="0-3") as stream:
        told = asyncio.create_task(stream.next())
        late.project()
        assert await told == ("0-4", "OrderCreated")
    async with first.stream("/v1/events", Last_Event_ID="0-3") as stream:
        assert await stream.next() == ("0-4", "OrderCreated")
