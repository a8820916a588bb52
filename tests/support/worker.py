"""A worker for tests: `python -m tests.support.worker [STEP COUNT SIGNAL]`, which gets the signal at the COUNT-th STEP.

Between a signal and its effect nothing else is done: the process sends it to itself.
"""

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from order_service.errors import OrderServiceError
from order_service.kafka import topics
from order_service.runtime import logs
from order_service.runtime.signals import exit_on_signal
from order_service.settings import Settings
from order_service.worker import membership
from order_service.worker.clock import Clock
from order_service.worker.faust.app import end_process, run
from order_service.worker.monitoring import topic_watch
from order_service.worker.standbys.standbys import Standbys


class Failpoint:
    """Sends this process a signal when a step was done so many times."""

    def __init__(self, step: str, count: str, signal_name: str) -> None:
        self._step = step
        self._left = int(count)
        self._signal = signal.Signals[signal_name]

    def __call__(self, step: str) -> None:
        """Count a step."""
        if step == self._step:
            self._left -= 1
            if self._left == 0:
                os.kill(os.getpid(), self._signal)


def _nothing(_step: str) -> None:
    pass


def _wall_clock() -> float:
    """Return the time, shifted by the seconds in a file that a test writes."""
    file = os.environ.get("TEST_CLOCK_FILE")
    return time.time() + (float(Path(file).read_text()) if file else 0.0)


def hold_standbys_while(file: Path) -> None:
    """Make standbys read nothing while there is a file that a test makes."""
    read: Any = Standbys._read_step

    async def read_step(standbys: Standbys, *arguments: Any) -> bool:
        return not file.exists() and await read(standbys, *arguments)  # noqa: ASYNC240, a file that is not there

    Standbys._read_step = read_step  # type: ignore[method-assign, assignment]


def main() -> None:
    """Run a worker with the settings of the environment."""
    exit_on_signal()
    logs.configure("json")
    topic_watch.LOOK_EVERY_S = float(os.environ.get("TEST_TOPICS_EVERY_S", topic_watch.LOOK_EVERY_S))
    if stop_file := os.environ.get("TEST_STANDBY_STOP_FILE"):
        hold_standbys_while(Path(stop_file))
    if os.environ.get("TEST_FEW_REPLICAS_ARE_ENOUGH"):
        topics._replica_faults = lambda topic, nodes: []  # noqa: ARG005
    if machine := os.environ.get("TEST_MACHINE"):
        membership.this_machine = lambda: machine
    settings = Settings()
    failpoint = Failpoint(*sys.argv[1:]) if sys.argv[1:] else _nothing
    try:
        run(settings, clock=Clock(settings.clock_skew_max_s, wall=_wall_clock), failpoint=failpoint)
    except OrderServiceError as error:  # it cannot begin
        end_process(error)


if __name__ == "__main__":
    main()
