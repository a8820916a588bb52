"""What the tests of asking share: a world whose clock they set, and whose questions they let go on."""

import asyncio
from contextlib import asynccontextmanager

from order_service.worker.user_lookups import UserLookups


class AskingWorld:
    """A clock, and the asking that reads it."""

    asking: UserLookups

    def __init__(self):
        self.now = 0.0

    async def at(self, now):
        """Set the time, and wait until all tasks have gone on."""
        self.now = now
        self.asking._wake.set()
        await self.settled()

    async def settled(self):
        """Wait until all tasks that can go on have gone on."""
        for _ in range(10):
            await asyncio.sleep(0)


@asynccontextmanager
async def asking_in(world):
    """Run its asking while the block does."""
    running = asyncio.create_task(world.asking.run())
    yield world
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
