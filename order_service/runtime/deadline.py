"""Deadlines by a clock that stops while the event loop is blocked.

A loop that was busy for 20 s has not waited 20 s for the broker: the response may be in the socket, unread. So only the
time in which the loop could have read it counts.
"""

import asyncio
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

TICK_S: Final = 0.5
"""The length of a tick. The time in which the loop is blocked counts as one tick at most."""


@asynccontextmanager
async def deadline(seconds: float) -> AsyncIterator[None]:
    """Raise TimeoutError if the block takes longer than `seconds` of running loop; used like `asyncio.timeout`."""
    loop = asyncio.get_running_loop()
    ticking: asyncio.TimerHandle | None = None
    async with asyncio.timeout(None) as timeout:

        def tick(left: int) -> None:
            nonlocal ticking
            if left == 0:
                timeout.reschedule(loop.time())
            else:
                ticking = loop.call_later(TICK_S, tick, left - 1)

        ticking = loop.call_later(TICK_S, tick, math.ceil(seconds / TICK_S) - 1)
        try:
            yield
        finally:
            ticking.cancel()
