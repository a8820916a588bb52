"""Deadlines that count only the time in which the event loop ran."""

import asyncio
import time

import pytest

from order_service.runtime.deadline import TICK_S, deadline


async def test_a_block_that_takes_longer_raises():
    with pytest.raises(TimeoutError):
        async with deadline(TICK_S):
            await asyncio.Event().wait()


async def test_time_in_which_the_loop_was_blocked_counts_as_one_tick():
    answered = asyncio.get_running_loop().create_future()
    asyncio.get_running_loop().call_later(0.1, answered.set_result, "late")
    async with deadline(2 * TICK_S):
        time.sleep(3 * TICK_S)  # noqa: ASYNC251, that is the point
        assert await answered == "late"


async def test_a_block_that_ends_in_time_leaves_no_timer():
    async with deadline(TICK_S):
        await asyncio.sleep(0)
    timers: list[asyncio.TimerHandle] = asyncio.get_running_loop()._scheduled  # type: ignore[attr-defined]
    assert all(timer.cancelled() for timer in timers)
