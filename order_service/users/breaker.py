"""The state of a client of a failing service: a breaker, refused credentials, answers that fail, concurrency slots.

Everything is synchronous and takes its clock as an argument, except `Slots`, which wait.
"""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Callable
from enum import IntEnum
from typing import Final

from order_service.errors import UserServiceUnavailable
from order_service.runtime.deadline import deadline

Clock = Callable[[], float]

IN_A_ROW: Final = 3
"""Lookups without a usable answer after which an operator must know why."""
REASONS_LOGGED: Final = 5


class State(IntEnum):
    """The state of a breaker, with the lookups that it admits. The number is the value of its gauge."""

    CLOSED = 0  # every lookup
    HALF_OPEN = 1  # none, while a probe is out
    OPEN = 2  # none


class Breaker:
    """Stops lookups when the whole service is silent, but never because of a few users.

    It opens after lookups of `users` different users failed and `silence_s` passed without any answer since the first
    of these lookups. Any answer closes it, even an unusable one. One probe is sent every `probe_every_s`, which must be
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
        """Whether a lookup would be refused now."""
        return self.state is not State.CLOSED and self._clock() < self._probe_at

    def admit(self) -> bool:
        """Return whether this lookup may be sent. If the breaker is not closed, it is the probe."""
        if self.refuses:
            return False
        if self.state is not State.CLOSED:
            self.state = State.HALF_OPEN
            self._probe_at = self._clock() + self._probe_every_s
        return True

    def record_answer(self) -> bool:
        """Record an answer. Return whether it closes the breaker."""
        closes = self.state is not State.CLOSED
        self.state = State.CLOSED
        self._answered_at = self._clock()
        self._unanswered.clear()
        return closes

    def record_failure(self, user_id: str, asked_at: float) -> bool:
        """Record a lookup without an answer. Return whether it opens the breaker."""
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
    """Whether a service refuses our credential: from a 401 or 403 until an answer and `calm_s` without a refusal.

    Without this pause, a credential that only some instances accept would turn readiness on and off with every lookup.
    """

    def __init__(self, *, calm_s: float, clock: Clock) -> None:
        self._calm_s = calm_s
        self._clock = clock
        self._status = 0
        self._at = 0.0
        self._answered_since = False

    @property
    def reason(self) -> str | None:
        """Why the service refuses our credential, or None if it does not."""
        if not self._status or (self._answered_since and self._clock() - self._at >= self._calm_s):
            return None
        return f"the User Service refuses our credential with status {self._status}"

    def record_refusal(self, status: int) -> bool:
        """Record a refusal. Return whether `reason` was None before it."""
        is_first = self.reason is None
        self._status, self._at, self._answered_since = status, self._clock(), False
        return is_first

    def record_answer(self) -> bool:
        """Record an answer. Return whether it ends a refusal, at the earliest after `calm_s`."""
        self._answered_since = True
        ends = self._status != 0 and self.reason is None
        if ends:
            self._status = 0
        return ends


class NoAnswers:
    """Why lookups have no usable answer, once `IN_A_ROW` of them had none.

    If the service has ever given a usable answer, these must be lookups of as many users: a few users whom it cannot
    answer are no reason. A lookup that a usable answer overtook does not count.
    """

    def __init__(self, *, clock: Clock) -> None:
        self._clock = clock
        self._answered_at = -math.inf
        self._users: set[str] = set()
        self._count = 0
        self._why = ""

    @property
    def has_answered(self) -> bool:
        """Whether there was ever a usable answer."""
        return self._answered_at > -math.inf

    @property
    def reason(self) -> str | None:
        """Why the last lookup had no usable answer, or None before the third in a row."""
        in_a_row = len(self._users) if self.has_answered else self._count
        return self._why if in_a_row >= IN_A_ROW else None

    def record_no_answer(self, user_id: str, asked_at: float, why: str) -> bool:
        """Record a lookup without a usable answer. Return whether it is the third in a row."""
        if asked_at < self._answered_at:
            return False
        had_reason = self.reason is not None
        self._why = why
        self._count = min(self._count + 1, IN_A_ROW)
        if len(self._users) < IN_A_ROW:
            self._users.add(user_id)
        return not had_reason and self.reason is not None

    def record_answer(self) -> bool:
        """Record a usable answer. Return whether `reason` was not None before it."""
        had_reason = self.reason is not None
        self._answered_at = self._clock()
        self._users.clear()
        self._count = 0
        return had_reason


class Unusable:
    """The counts of unusable answers by their reason. They are due for the log at once, then every `pause_s`."""

    def __init__(self, *, pause_s: float, clock: Clock) -> None:
        self._pause_s = pause_s
        self._clock = clock
        self._log_at = -math.inf
        self._counts: Counter[str] = Counter()

    def record(self, why: str) -> dict[str, int] | None:
        """Record an answer that is unusable for this reason. Return the most frequent ones if they are due."""
        self._counts[why] += 1
        if self._clock() < self._log_at:
            return None
        self._log_at = self._clock() + self._pause_s
        counts, self._counts = self._counts, Counter()
        return dict(counts.most_common(REASONS_LOGGED))


class Slots:
    """A limit on concurrent lookups, on the number of lookups that wait for a slot, and on their waiting time."""

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

    async def __aexit__(self, *_: object) -> None:
        self.free += 1
        self._semaphore.release()

    async def _queue_up(self) -> None:
        if self._queued >= self._queue_max:
            raise UserServiceUnavailable("too many lookups wait for a slot")
        self._queued += 1
        try:
            async with deadline(self._wait_s):
                await self._semaphore.acquire()
        except TimeoutError as error:
            raise UserServiceUnavailable("no slot was free in time") from error
        finally:
            self._queued -= 1
