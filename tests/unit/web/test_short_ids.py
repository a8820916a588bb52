"""Streams over HTTP whose ids name a checkpoint, as with many partitions: they go on where they broke off."""

import asyncio
from contextlib import AsyncExitStack
from typing import Any

import pytest

from order_service.views import checkpoints, projector
from order_service.web.live import positions, view_poller
from order_service.web.live.positions import LogPosition
from tests.support.copies import two_views
from tests.support.samples import but, create

WITHIN_S = 30


@pytest.fixture(autouse=True)
def _every_id_is_too_long(monkeypatch):
    monkeypatch.setattr(LogPosition, "_needs_checkpoint", lambda _: True)
    monkeypatch.setattr(projector, "STORED_FROM_BYTES", 0)
    monkeypatch.setattr(checkpoints, "APART_S", 0)
    monkeypatch.setattr(view_poller, "CHECKPOINT_EVERY_S", 0.0)


@pytest.fixture
async def shop(tmp_path):
    """Two servers over one log, each with a database of its own, of which the first one has a checkpoint."""
    async with two_views(tmp_path) as (world, first, late, second):
        world.projection.store_checkpoint()
        yield world, first, late, second


def place(world, number):
    world.commands.append(but(create, order_id=f"order-{number}", command_id=f"create-{number}"))
    assert world.decide() == ["OrderCreated"]
    world.project()


async def test_an_id_names_the_newest_checkpoint_that_the_reader_has_passed(shop):
    world, first, _, _ = shop
    begin = world.views.newest_checkpoint()
    async with AsyncExitStack() as stack:
        stream = await stack.enter_async_context(first.stream("/v1/events"))
        place(world, 0)
        assert await stream.next() == (f"c{begin.checkpoint_id}.{begin.anchor_id}.0-1", "OrderCreated")
        world.projection.store_checkpoint()
        newest = world.views.newest_checkpoint()
        async with asyncio.timeout(WITHIN_S):
            number = 1
            while True:
                place(world, number)
                number += 1
                event_id, _ = await stream.next()
                if event_id.startswith(f"c{newest.checkpoint_id}.{begin.checkpoint_id}"):
                    break
    place(world, number)
    async with first.stream("/v1/events", Last_Event_ID=event_id) as stream:
        assert await stream.next() == (event_id.replace(f".0-{number}", f".0-{number + 1}"), "OrderCreated")


async def test_what_has_no_room_in_an_id_is_repeated(shop, monkeypatch):
    world, first, _, _ = shop
    monkeypatch.setattr(positions, "ID_MAX_BYTES", 34)
    async with first.stream("/v1/events") as stream:
        place(world, 0)
        event_id, _ = await stream.next()
    newest = world.views.newest_checkpoint()
    assert event_id == f"c{newest.checkpoint_id}.{newest.anchor_id}"
    place(world, 1)
    async with first.stream("/v1/events", Last_Event_ID=event_id) as stream:
        assert [await stream.next() for _ in range(2)] == [(event_id, "OrderCreated")] * 2


async def test_an_id_of_a_database_that_was_replaced_is_refused_like_one_of_a_replaced_log(shop):
    world, first, late, second = shop
    newest = world.views.newest_checkpoint()
    seen = f"c{newest.checkpoint_id}.{newest.anchor_id}"
    late.projection.store_checkpoint()
    async with first.stream("/v1/events", Last_Event_ID=seen) as stream:
        assert stream.status == 200
    for event_id in (seen, seen + ".1-0"):
        async with second.stream("/v1/events", Last_Event_ID=event_id) as stream:
            assert stream.status == 400
            answer = await stream.text()
        async with second.stream("/v1/events", Last_Event_ID="0-99") as stream:
            assert (stream.status, await stream.text()) == (400, answer)


@pytest.mark.parametrize("beyond", [".0-9", ".1-0"])
async def test_an_id_past_the_end_of_the_log_is_refused(shop, beyond):
    world, first, _, _ = shop
    newest = world.views.newest_checkpoint()
    seen = f"c{newest.checkpoint_id}.{newest.anchor_id}{beyond}"
    async with first.stream("/v1/events", Last_Event_ID=seen) as stream:
        assert stream.status == 400


async def test_an_id_with_all_offsets_stays_valid(shop):
    world, first, _, _ = shop
    place(world, 0)
    place(world, 1)
    world.projection.store_checkpoint()
    async with first.stream("/v1/events", Last_Event_ID="0-1") as stream:
        event_id, _ = await stream.next()
        assert event_id == "0-2", "the reader has not passed the newest checkpoint before this event"
    newest = world.views.newest_checkpoint()
    async with first.stream("/v1/events", Last_Event_ID="0-2") as stream:
        place(world, 2)
        assert await stream.next() == (f"c{newest.checkpoint_id}.{newest.anchor_id}.0-3", "OrderCreated")


async def test_a_quiet_stream_names_a_new_checkpoint_in_its_heartbeats(tmp_path):
    async with two_views(tmp_path) as (world, _, _, _), world.server(heartbeat_s=0.05) as http:
        world.projection.store_checkpoint()
        async with http.stream("/v1/events") as stream:
            place(world, 0)
            await stream.next()
            world.projection.store_checkpoint()
            newest: Any = world.views.newest_checkpoint()
            place(world, 1)
            async with asyncio.timeout(WITHIN_S):
                while (line := (await stream._content.readline()).decode()) and not line.startswith(
                    f"id: c{newest.checkpoint_id}."
                ):
                    pass
            assert line
