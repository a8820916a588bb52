"""An event loop that is blocked for longer than a deadline: the answer that came meanwhile is still read."""

import asyncio
import time
from typing import Final

TICK_S: Final = 0.001
DEADLINE_S: Final = 10 * TICK_S


def shorten(monkeypatch, module):
    """Make the deadline of a module, and the ticks in which deadlines are counted, short."""
    monkeypatch.setattr(f"order_service.worker.{module}.DEADLINE_S", DEADLINE_S)
    monkeypatch.setattr("order_service.runtime.deadline.TICK_S", TICK_S)


async def block_loop():
    """Block the loop past the deadline, then wait for fewer passes of the loop than the deadline has ticks."""
    time.sleep(2 * DEADLINE_S)  # noqa: ASYNC251, that is the point
    for _ in range(5):
        await asyncio.sleep(0)
