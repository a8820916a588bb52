"""Detection of a database that does not answer: readiness reports a query that has been open for too long.

A driver waits without limit for a server that accepts connections and never answers: a proxy in front of a dead
PostgreSQL, or a server whose disk hangs.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from order_service.runtime.readiness import NotReady, ReadinessFault

SILENT_AFTER_S: Final = 15.0
"""The limit for one query; longer than a statement waits for another writing process (`postgresql.BUSY_S`)."""


class DatabaseWatch:
    """The start time of the open query. Only one query may be open at a time."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._started_at: float | None = None

    @contextmanager
    def query(self) -> Iterator[None]:
        """Record that a query is open while the body runs, in any thread."""
        self._started_at = self._clock()
        try:
            yield
        finally:
            self._started_at = None

    def faults(self) -> list[ReadinessFault]:
        """Return a fault if the database has not answered for too long. The admin server's thread calls this."""
        started_at = self._started_at
        silent_s = 0.0 if started_at is None else self._clock() - started_at
        return [NotReady.DATABASE_SILENT.fault(seconds=round(silent_s))] if silent_s > SILENT_AFTER_S else []
