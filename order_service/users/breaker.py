"""What a client remembers of a service that fails: when to stop asking, how many to ask at once, who refuses us.

Synchronous and without a clock of its own, but for `Slots`, which wait.
"""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Callable
from enum import IntEnum
from types import TracebackType

from order_service.errors import UserServiceUnavailable

Clock = Callable[[], float]


class NoAnswer(UserServiceUnavailable):
    """A lookup brought no answer. `again` says whether a retry may help: no, yes, or after that many seconds.

    `is_of_user` says that the service works and answered with what we cannot use: another user may get an answer.
    """

    def __init__(self, why: str, *, again: float | bool = False, status: int = 0, is_of_user: bool = False) -> None:
        super().__init__(why)
        self.again = again
        self.status = status
        self.is_of_user = is_of_user


class State(IntEnum):
    """What a breaker lets through; the number is the one of its gauge."""

    CLOSED = 0  # every lookup
    HALF_OPEN = 1  # none, while a probe is out
    OPEN = 2  # none


class Breaker:
    """Stops lookups when the whole service is silent, and never for the sake of a few users.

    It opens when `users` different users got no answer and nobody has got one for `silence_s` since the first of them
    asked. Any answer closes it, also one that we cannot use. One probe goes out every `probe_every_s`, which must be
    longer than a lookup may take.
    """

    def __init__(self, *, users: int, silence_s: float, probe_every_s: float, clock: Clock) -> None:
        self.state = State.CLOSED
        self._users = users
        self._silence_s = silence_s
        self._probe_every_s = probe_every_s
        self._clock = clock
        self._unanswered: set[str] = set()
        self._answered_at = -math.inf
        self._silent_since = 0.0
        self._probe_at = 0.0

    @property
    def refuses(self) -> bool:
        """Whether a lookup could not go out now."""
        return self.state is not State.CLOSED and self._clock() < self._probe_at

    def admit(self) -> bool:
        """Say whether this lookup may go out; if the breaker is not closed, it is the probe."""
        if self.refuses:
            return False
        if self.state is not State.CLOSED:
            self.state = State.HALF_OPEN
            self._probe_at = self._clock() + self._probe_every_s
        return True

    def answered(self) -> bool:
        """Note that somebody got an answer; True if that closes the breaker."""
        closes = self.state is not State.CLOSED
        self.state = State.CLOSED
        self._answered_at = self._clock()
        self._unanswered.clear()
        return closes

    def unanswered(self, user_id: str, asked_at: float) -> bool:
        """Note that this user got none; True if that opens the breaker."""
        now = self._clock()
        if not self._unanswered:
            self._silent_since = max(asked_at, self._answered_at)
        if len(self._unanswered) < self._users:
            self._unanswered.add(user_id)
        if self.state is not State.CLOSED:
            self.state = State.OPEN
            return False
        if len(self._unanswered) < self._users or now - self._silent_since < self._silence_s:
            return False
        self.state = State.OPEN
        self._probe_at = now + self._probe_every_s
        return True


class Refusals:
    """Whether a service refuses our credential: since its last 401 or 403, until an answer and `calm_s` of neither.

    The calm keeps one forbidden user among many others from turning readiness on and off with every lookup.
    """

    def __init__(self, *, calm_s: float, clock: Clock) -> None:
        self._calm_s = calm_s
        self._clock = clock
        self._status = 0
        self._at = 0.0
        self._answered_since = False

    @property
    def reason(self) -> str | None:
        """Why our credential does not do; None while it does."""
        if not self._status or (self._answered_since and self._clock() - self._at >= self._calm_s):
            return None
        return f"the User Service refuses our credential with status {self._status}"

    def refused(self, status: int) -> bool:
        """Note a refusal; True if that is news."""
        news = self.reason is None
        self._status, self._at, self._answered_since = status, self._clock(), False
        return news

    def answered(self) -> bool:
        """Note an answer; True if that ends a refusal, though not at once."""
        self._answered_since = True
        ends = self._status != 0 and self.reason is None
        if ends:
            self._status = 0
        return ends


class Unusable:
    """Counts the answers that we cannot use, by status, until it is time to log them: at once, then every `pause_s`."""

    def __init__(self, *, pause_s: float, clock: Clock) -> None:
        self._pause_s = pause_s
        self._clock = clock
        self._log_at = -math.inf
        self._counts: Counter[int] = Counter()

    def note(self, status: int) -> dict[int, int] | None:
        """Note an answer with this status; return the counts if they are to be logged now."""
        self._counts[status] += 1
        if self._clock() < self._log_at:
            return None
        self._log_at = self._clock() + self._pause_s
        counts, self._counts = dict(self._counts), Counter()
        return counts


class Slots:
    """A bound on what runs at once, and on those who wait for it: how many, and how long."""

    def __init__(self, count: int, *, queue_max: int, wait_s: float) -> None:
        self.free = count
        self._semaphore = asyncio.Semaphore(count)
        self._queued = 0
        self._queue_max = queue_max
        self._wait_s = wait_s

    async def __aenter__(self) -> None:
        if self._semaphore.locked():
            await self._queue_up()
        else:
            await self._semaphore.acquire()  # returns at once
        self.free -= 1

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.free += 1
        self._semaphore.release()

    async def _queue_up(self) -> None:
        if self._queued >= self._queue_max:
            raise NoAnswer("too many lookups wait for a slot")
        self._queued += 1
        try:
            async with asyncio.timeout(self._wait_s):
                await self._semaphore.acquire()
        except TimeoutError as error:
            raise NoAnswer("no slot was free in time") from error
        finally:
            self._queued -= 1
