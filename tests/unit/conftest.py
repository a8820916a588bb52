from __future__ import annotations

import asyncio

import pytest


@pytest.fixture
def until():
    async def wait_until(condition, deadline_s=30.0):
        async with asyncio.timeout(deadline_s):
            while not condition():  # noqa: ASYNC110 - a condition has no event
                await asyncio.sleep(0.005)

    return wait_until
