"""A worker for the proof: `python -m chaos.worker`, whose event loop hangs for ever when it is sent `HANG`."""

import signal
import time
from typing import Final, NoReturn

from tests.support import worker

HANG: Final = signal.SIGWINCH
"""Ignored by a process that has only just begun, and used by none of our libraries."""


def _hang(*_: object) -> NoReturn:
    while True:  # in the main thread, between two steps of the event loop; other threads go on
        time.sleep(60)


def main() -> None:
    """Run a worker with the settings of the environment."""
    signal.signal(HANG, _hang)
    worker.main()


if __name__ == "__main__":
    main()
