"""A worker that breaks at SIGPROF: `python -m tests.support.hindered PART`.

The part is one of `heartbeat`, `fetching`, `deaf` and `loop`.
The part `database` is broken from the start. A command after the part, as in `loop projector`, is run instead of a
worker.
"""

import signal
import sys
import threading
from typing import Any

from aiokafka.consumer.fetcher import Fetcher
from aiokafka.consumer.group_coordinator import GroupCoordinator
from aiokafka.errors import KafkaError
from sqlalchemy import Engine

from order_service import cli
from order_service.runtime import signals
from order_service.views import database_watch
from tests.support import worker

# mypy: disable-error-code="method-assign,attr-defined,misc"

TOLD, DEAF = threading.Event(), threading.Event()


def heartbeat() -> None:
    """Make the coordinator answer a heartbeat with an error that aiokafka does not try again."""
    beat = GroupCoordinator._do_heartbeat

    async def refused(self: GroupCoordinator) -> Any:
        if TOLD.is_set():
            raise KafkaError("Unexpected exception in heartbeat task: UnknownError()")
        return await beat(self)

    GroupCoordinator._do_heartbeat = refused


def fetching() -> None:
    """Make the task that fetches die."""
    actions = Fetcher._get_actions_per_node

    def fail(self: Fetcher, assignment: Any) -> Any:
        if TOLD.is_set():
            raise AssertionError("a bug")
        return actions(self, assignment)

    Fetcher._get_actions_per_node = fail


def deaf() -> None:
    """Make the task that fetches live on, and fetch nothing."""
    actions = Fetcher._get_actions_per_node

    def nothing(self: Fetcher, assignment: Any) -> Any:
        fetch, *rest = actions(self, assignment)
        topics = {place.topic for place in assignment.tps}
        if not TOLD.is_set() or len(topics) != 1:  # a claim reads several, and is not meant
            return fetch, *rest
        if not DEAF.is_set() and not self._in_flight:
            DEAF.set()
            sys.stderr.write("it is deaf\n")
        return [], *rest

    Fetcher._get_actions_per_node = nothing


def loop() -> None:
    """Hang in the main thread."""


def database() -> None:
    """Keep the database from answering, from the start, and lose patience soon."""

    def hang(self: Engine) -> Any:
        threading.Event().wait()

    Engine.connect = hang
    database_watch.SILENT_AFTER_S = 0.5
    signals.CLOSE_WITHIN_S, signals.CUT_WITHIN_S = 0.3, 0.2


def _told(*_: object) -> None:
    TOLD.set()
    if sys.argv[0] == "loop":
        threading.Event().wait()


def main() -> None:
    """Plant the fault, and run a worker or another process."""
    sys.argv = sys.argv[1:]
    signal.signal(signal.SIGPROF, _told)
    globals()[sys.argv[0]]()
    if sys.argv[1:]:
        cli.main()
    else:
        worker.main()


if __name__ == "__main__":
    main()
