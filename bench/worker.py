"""A worker that also measures how long its event loop does not answer: `python -m bench.worker`."""

import asyncio
from typing import Final

from prometheus_client import Gauge

from order_service.runtime import logs
from order_service.runtime.signals import exit_on_signal
from order_service.settings import Settings
from order_service.worker.faust.app import run

BEAT_S: Final = 0.05
LOOP_LATE: Final = "bench_loop_late_seconds"


class Beat:
    """A timer in the event loop that keeps by how much it was late at most. It begins with the first step of a claim.

    The failpoint is called in the event loop that is measured.
    """

    def __init__(self) -> None:
        self._late = Gauge(LOOP_LATE, "By how much a timer of the event loop was late at most.")
        self._most_s = 0.0
        self._is_beating = False

    def __call__(self, _step: str) -> None:
        """Begin, unless it has."""
        if not self._is_beating:
            self._is_beating = True
            self._next(asyncio.get_running_loop())

    def _next(self, loop: asyncio.AbstractEventLoop) -> None:
        due_at = loop.time() + BEAT_S
        loop.call_at(due_at, self._beat, loop, due_at)

    def _beat(self, loop: asyncio.AbstractEventLoop, due_at: float) -> None:
        self._most_s = max(self._most_s, loop.time() - due_at)
        self._late.set(self._most_s)
        self._next(loop)


if __name__ == "__main__":
    exit_on_signal()
    logs.configure("json")
    run(Settings(), failpoint=Beat())
