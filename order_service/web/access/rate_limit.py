"""Rate limits per subject: a token bucket that holds two seconds of the rate. Large bodies count more."""

import math
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from order_service.web.http.problems import Problem, Trouble

SUBJECTS_MAX: Final = 10_000
BURST_S: Final = 2.0
LARGE_BYTES: Final = 64 * 1024
"""The size above which a body is large. Few orders are. It counts as a request for each such part."""
LARGE_MAX: Final = 32
"""Maximum number of large bodies that are received at a time, a quarter of them from one subject."""


class Limits:
    """The token buckets of up to `SUBJECTS_MAX` subjects; the least recently active one is dropped first."""

    def __init__(self, per_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_s = per_s
        self._capacity = max(1.0, per_s * BURST_S)
        self._clock = clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()
        self._large: Counter[str] = Counter()

    @contextmanager
    def large_body(self, subject: str) -> Iterator[None]:
        """Reserve a slot while a large body is received. Raises Problem if no slot is free."""
        if self._large.total() >= LARGE_MAX or self._large[subject] >= LARGE_MAX // 4:
            raise Problem(Trouble.TOO_MANY_REQUESTS, "Too many large bodies are sent.", headers={"Retry-After": "1"})
        self._large[subject] += 1
        try:
            yield
        finally:
            self._large[subject] -= 1
            if not self._large[subject]:
                del self._large[subject]

    def take(self, subject: str) -> None:
        """Use one token for a request of a subject. Raises Problem if the bucket is empty."""
        self._take(subject, 1.0, again=1.0)

    def take_parts(self, subject: str, count: int) -> None:
        """Use a token for each part of a large body, at most what its request leaves of a full bucket.

        Raises Problem if the bucket does not hold as many: its `Retry-After` counts the repeated request, too.
        """
        needed = min(float(count), self._capacity - 1.0)
        self._take(subject, needed, again=needed + 1.0)

    def _take(self, subject: str, needed: float, *, again: float) -> None:
        now = self._clock()
        tokens, filled_at = self._buckets.pop(subject, (self._capacity, now))
        tokens = min(self._capacity, tokens + (now - filled_at) * self._per_s)
        self._buckets[subject] = (tokens - needed, now) if tokens >= needed else (tokens, now)
        if len(self._buckets) > SUBJECTS_MAX:
            self._buckets.popitem(last=False)
        if tokens < needed:
            wait_s = math.ceil((again - tokens) / self._per_s)
            raise Problem(Trouble.TOO_MANY_REQUESTS, "Rate limit exceeded.", headers={"Retry-After": str(wait_s)})
