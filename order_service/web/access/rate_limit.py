"""How often a subject may ask: a bucket that fills at a rate and holds two seconds of it."""

import math
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from order_service.web.http.problems import Problem, Trouble

SUBJECTS_MAX: Final = 10_000
BURST_S: Final = 2.0


class Limits:
    """Tokens per subject; of more subjects than fit, those are forgotten that were quiet the longest."""

    def __init__(self, per_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_s = per_s
        self._clock = clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, subject: str) -> None:
        """Count one request of a subject; Problem if it asks too often."""
        now = self._clock()
        most = max(1.0, self._per_s * BURST_S)
        tokens, then = self._buckets.pop(subject, (most, now))
        tokens = min(most, tokens + (now - then) * self._per_s)
        self._buckets[subject] = (max(0.0, tokens - 1.0), now) if tokens >= 1.0 else (tokens, now)
        if len(self._buckets) > SUBJECTS_MAX:
            self._buckets.popitem(last=False)
        if tokens < 1.0:
            wait_s = math.ceil((1.0 - tokens) / self._per_s)
            raise Problem(Trouble.TOO_MANY_REQUESTS, "You ask too often.", headers={"Retry-After": str(wait_s)})
