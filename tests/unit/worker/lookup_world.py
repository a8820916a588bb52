"""What the tests of asking share: a world whose clock they set, whose questions they let go on, and its users."""

import asyncio
from contextlib import asynccontextmanager
from typing import Any

from order_service.domain.decision import UserCheck
from order_service.errors import UserServiceUnavailable
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


class Users:
    """Stands in for the client: lookups end when the test says so."""

    def __init__(self):
        self.on_breaker_closed = []
        self.retry_capacity = 2
        self.asked = []
        self.lookups = {}
        self.cached = {}
        self.problem = self.no_answer = None

    def known(self, user_id):
        return self.cached.get(user_id)

    async def check(self, user_id, *, again=False):
        self.asked.append((user_id, again))
        self.lookups[user_id] = asyncio.get_running_loop().create_future()
        return await self.lookups[user_id]

    def answer(self, user_id):
        """Answer that a user is active, and cache it as the client does."""
        self.cached[user_id] = UserCheck.ACTIVE
        self.lookups.pop(user_id).set_result(UserCheck.ACTIVE)

    def fail(self, user_id, why="no answer"):
        """End a lookup without an answer."""
        self.lookups.pop(user_id).set_exception(UserServiceUnavailable(why))


def users_that_wait() -> Any:
    return Users()
