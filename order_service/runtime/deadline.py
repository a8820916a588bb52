"""Deadlines by a clock that stops while the event loop is blocked.

A loop that was busy for 20 s has not waited for the broker for 20 s: the answer may lie in the socket, unread. So only
the time counts in which the loop could have read it.
"""

import asyncio
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

TICK_S: Final = 0.5
"""However long the loop was blocked, it counts as one tick."""


@asynccontextmanager
async def deadline(seconds: float) -> AsyncIterator[None]:
    """Raise TimeoutError if the block takes longer than `seconds` of a loop that runs; used like `asyncio.timeout`."""
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
