"""Whether the database answers: readiness says so when a question to it has been open for long.

A driver waits without limit for a server that accepts connections and never answers: a proxy in front of a dead
PostgreSQL, or one whose disk hangs.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

SILENT_AFTER_S: Final = 15.0
"""Longer than a statement waits for another process that writes (`tables.BUSY_S`)."""


class DatabaseWatch:
    """Notes since when a question is open. Only one may be open at a time."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._asked_at: float | None = None

    @contextmanager
    def question(self) -> Iterator[None]:
        """Note that a question is open while the body runs, whichever thread that is."""
        self._asked_at = self._clock()
        try:
            yield
        finally:
            self._asked_at = None

    def faults(self) -> list[str]:
        """Return for how long the database has not answered, if that is long; called in the admin server's thread."""
        asked_at = self._asked_at
        silent_s = 0.0 if asked_at is None else self._clock() - asked_at
        return [f"the database has not answered for {silent_s:.0f} s"] if silent_s > SILENT_AFTER_S else []
