"""A worker for tests: `python -m tests.worker [STEP COUNT SIGNAL]`, which gets the signal at the COUNT-th STEP.

Between a signal and its effect nothing else is done: the process sends it to itself.
"""

import os
import signal
import sys

from order_service import log
from order_service.errors import OrderServiceError
from order_service.settings import Settings
from order_service.signals import end_when_told
from order_service.stream.app import end_process, run


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


def main() -> None:
    """Run a worker with the settings of the environment."""
    end_when_told()
    log.configure("json")
    step = Failpoint(*sys.argv[1:]) if sys.argv[1:] else _nothing
    try:
        run(Settings(), step=step)
    except OrderServiceError as error:  # it cannot begin
        end_process(error)


if __name__ == "__main__":
    main()
