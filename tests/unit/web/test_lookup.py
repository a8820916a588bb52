"""Orders that are asked for at the same time are one question, and each asker gets its own answer."""

import asyncio
import threading
from typing import Any

import pytest

from order_service.web.live import order_loader as module
from order_service.web.live.order_loader import OrderLoader


class Slow:
    """Views that answer when they are let: each id is its own order, but `none` is there."""

    def __init__(self):
        self.questions = []
        self.is_let = threading.Event()

    def orders(self, order_ids):
        self.questions.append(list(order_ids))
        assert self.is_let.wait(30)
        if "broken" in order_ids:
            raise ZeroDivisionError
        return {order_id: f"order {order_id}" for order_id in order_ids if order_id != "none"}


@pytest.fixture
def views():
    return Slow()


@pytest.fixture
def lookup(views):
    loose: Any = views
    return OrderLoader(loose)


async def asked(lookup, *order_ids):
    """Begin to ask."""
    asking = [asyncio.create_task(lookup.order(order_id)) for order_id in order_ids]
    await asyncio.wait(asking, timeout=0)
    return asking


async def test_what_is_asked_meanwhile_is_one_question(lookup, views):
    first = await asked(lookup, "a")
    more = await asked(lookup, "b", "none", "b", "a")
    views.is_let.set()
    assert await asyncio.gather(*first, *more) == ["order a", "order b", None, "order b", "order a"]
    assert views.questions == [["a"], ["b", "none", "a"]]


async def test_a_question_asks_for_so_many_and_no_more(lookup, views, monkeypatch):
    monkeypatch.setattr(module, "BATCH_MAX", 2)
    views.is_let.set()
    asking = await asked(lookup, "a", "b", "c", "d", "e")
    assert len(await asyncio.gather(*asking)) == 5
    assert max(map(len, views.questions)) == 2


async def test_who_hangs_up_takes_nobody_along(lookup, views):
    gone, stays = await asked(lookup, "a", "a")
    gone.cancel()
    await asyncio.wait({gone})
    views.is_let.set()
    assert await stays == "order a"


async def test_what_fails_fails_for_those_who_asked_for_it_alone(lookup, views):
    first = await asked(lookup, "broken")
    later = await asked(lookup, "b")
    views.is_let.set()
    with pytest.raises(ZeroDivisionError):
        await first[0]
    assert await later[0] == "order b"
    assert await lookup.order("c") == "order c"
