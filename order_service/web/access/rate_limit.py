"""Rate limits per subject: a token bucket that holds two seconds of the rate."""

import math
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from order_service.web.http.problems import Problem, Trouble

SUBJECTS_MAX: Final = 10_000
BURST_S: Final = 2.0


class Limits:
    """The token buckets of up to `SUBJECTS_MAX` subjects; the least recently active one is dropped first."""

    def __init__(self, per_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_s = per_s
        self._clock = clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, subject: str) -> None:
        """Use one token for a request of a subject. Raises Problem if the bucket is empty."""
        now = self._clock()
        capacity = max(1.0, self._per_s * BURST_S)
        tokens, filled_at = self._buckets.pop(subject, (capacity, now))
        tokens = min(capacity, tokens + (now - filled_at) * self._per_s)
        self._buckets[subject] = (max(0.0, tokens - 1.0), now) if tokens >= 1.0 else (tokens, now)
        if len(self._buckets) > SUBJECTS_MAX:
            self._buckets.popitem(last=False)
        if tokens < 1.0:
            wait_s = math.ceil((1.0 - tokens) / self._per_s)
            raise Problem(Trouble.TOO_MANY_REQUESTS, "Rate limit exceeded.", headers={"Retry-After": str(wait_s)})
