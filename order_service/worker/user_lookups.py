"""Asking about users: every question goes on until it is answered, or nobody waits for it any more."""

import asyncio
import heapq
import time
from collections import deque
from collections.abc import Callable
from typing import Final

from order_service.domain.decision import UserCheck
from order_service.errors import UserServiceUnavailable
from order_service.users.client import UserClient

FIRST_PAUSE_S: Final = 5.0
LONGEST_PAUSE_S: Final = 60.0


class UserLookups:
    """Asks ahead for creates that were read, and again for those that wait: after 5 s, doubling to 60 s.

    `wanted` tells whether an order waits for a user; `answered` is called with each answer.
    """

    def __init__(
        self,
        users: UserClient,
        wanted: Callable[[str], bool],
        answered: Callable[[str, UserCheck], None],
        *,
        concurrency: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._users = users
        self._wanted = wanted
        self._answered = answered
        self._concurrency = concurrency
        self._clock = clock
        self._new: deque[str] = deque()
        self._again: list[tuple[float, str]] = []
        self._pauses: dict[str, float] = {}
        self._open: set[str] = set()
        self._lookups = asyncio.TaskGroup()
        self._lookup_count = 0
        self._wake = asyncio.Event()
        users.on_breaker_closed.append(self._hurry)

    def ask(self, user_id: str) -> None:
        """Ask about a user, unless that is being done."""
        if user_id not in self._open and self._users.known(user_id) is None:
            self._open.add(user_id)
            self._new.append(user_id)
            self._wake.set()

    async def run(self) -> None:
        """Start lookups as there is room for them; ends by being cancelled, or by an error that is a bug."""
        async with self._lookups:
            while True:
                self._wake.clear()
                self._start_lookups()
                await self._until_there_is_more()

    def _start_lookups(self) -> None:
        while self._new and self._lookup_count < self._concurrency:
            self._start(self._new.popleft(), again=False)
        room = self._users.retry_capacity
        while self._again and room > 0 and self._again[0][0] <= self._clock():
            _, user_id = heapq.heappop(self._again)
            if self._wanted(user_id):
                self._start(user_id, again=True)
                room -= 1
            else:
                self._forget(user_id)

    async def _until_there_is_more(self) -> None:
        """Wait for a question, an end of a lookup, or the time to ask again (looked at once a second at most)."""
        pause = max(self._again[0][0] - self._clock(), 1.0) if self._again else None
        try:
            async with asyncio.timeout(pause):
                await self._wake.wait()
        except TimeoutError:
            return

    def _start(self, user_id: str, *, again: bool) -> None:
        lookup = self._lookups.create_task(self._look_up(user_id, again=again), name="ask about a user")
        self._lookup_count += 1
        lookup.add_done_callback(self._ended)

    def _ended(self, _lookup: "asyncio.Task[None]") -> None:
        self._lookup_count -= 1
        self._wake.set()

    async def _look_up(self, user_id: str, *, again: bool) -> None:
        try:
            check = await self._users.check(user_id, again=again)
        except UserServiceUnavailable:
            self._ask_later(user_id)
        else:
            self._forget(user_id)
            self._answered(user_id, check)

    def _ask_later(self, user_id: str) -> None:
        if not self._wanted(user_id):
            self._forget(user_id)
            return
        pause = self._pauses.get(user_id, FIRST_PAUSE_S)
        self._pauses[user_id] = min(2 * pause, LONGEST_PAUSE_S)
        heapq.heappush(self._again, (self._clock() + pause, user_id))

    def _forget(self, user_id: str) -> None:
        self._open.discard(user_id)
        self._pauses.pop(user_id, None)

    def _hurry(self) -> None:
        """Ask everybody again at once: the breaker has closed."""
        now = self._clock()
        self._again = [(now, user_id) for _, user_id in self._again]
        self._wake.set()
