"""The parent of a worker with several processes (`ORDERS_WORKERS`): it starts, restarts and stops them.

Each process is a member of the group under its own name, and knows nothing of the others. The parent decides no
command: it only supervises, and answers on the admin port for all of them.
"""

import asyncio
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import structlog
from prometheus_client import Counter

from order_service.errors import SetupError, TopicsError
from order_service.runtime.build_info import report_build
from order_service.runtime.supervisor import CLI, Child, Restarts, Supervisor
from order_service.settings import Settings
from order_service.users.client import CallPolicy
from order_service.worker.processes.combined_admin import CombinedAdminServer, Process

log = structlog.get_logger()

STOP_WITHIN_S: Final = 12.0
"""Within this time all processes have stopped, or are killed: docker-compose.yml kills a worker after 15 s."""
SOCKET_PATH_MAX: Final = 103
"""The longest path of a socket, in bytes (`sun_path` in sys/un.h): 107 on Linux, 103 on macOS."""
USAGE_ERROR: Final = 2
RESTARTS: Final = Restarts(final_codes=frozenset({USAGE_ERROR, TopicsError.exit_code}))
"""A process that has ended 11 times in a row, each time within a minute, ends the worker, with its exit status."""
STARTED: Final = Counter("orders_worker_process_starts_total", "Starts of a process of this worker.", ["process"])


class _Reports:
    """Writes what the supervisor reports to the log, and remembers why a process does not run."""

    def __init__(self, processes: Sequence[Process]) -> None:
        self._processes = {str(process.number): process for process in processes}

    def started(self, child: Child) -> None:
        self._processes[child.name].why_down = "it is starting"
        STARTED.labels(child.name).inc()
        log.info("Process started.", process=int(child.name))

    def ended(self, child: Child, code: int, wait_s: float | None) -> None:
        again = "it is not started again" if wait_s is None else f"it is started again after {wait_s:g} s"
        self._processes[child.name].why_down = f"it ended with {code}, {again}"
        log.error("Process ended.", process=int(child.name), exit_code=code, restart_in_s=wait_s)

    def not_ready(self, child: Child, within_s: float) -> None:
        log.error("Process was not ready in time.", process=int(child.name), within_s=within_s)

    def killed(self, child: Child, within_s: float) -> None:
        log.error("Process did not stop in time and is killed.", process=int(child.name), within_s=within_s)


def run_processes(settings: Settings, options: Sequence[str], *, command: Sequence[str] = (*CLI, "worker")) -> int:
    """Run the processes of a worker until SIGTERM or SIGINT. Return the exit status.

    It is 0 after a signal, otherwise the status of the process that is not started again. `options` are those of the
    command line for each process. Raises SetupError for settings that do not fit together.
    """
    CallPolicy.from_settings(settings)
    report_build("worker")
    with tempfile.TemporaryDirectory(prefix="order-service-") as directory:
        processes = [Process(n, Path(directory, f"{n}.sock")) for n in range(1, settings.workers + 1)]
        _check_length(processes[-1].socket)
        children = [
            Child(
                name=str(process.number),
                command=(*command, f"--process={process.number}", f"--admin-socket={process.socket}", *options),
                inherits_output=True,
            )
            for process in processes
        ]
        supervisor = Supervisor(
            children,
            restarts=RESTARTS,
            stop_within_s=STOP_WITHIN_S,
            stops_together=True,
            reports=_Reports(processes),
        )
        with CombinedAdminServer(settings.admin_address, settings.admin_port, processes):
            return asyncio.run(supervisor.run())


def _check_length(socket: Path) -> None:
    """Raise SetupError if the path of a socket is too long for the system. Its child would end for ever."""
    if (size := len(os.fsencode(socket))) > SOCKET_PATH_MAX:
        raise SetupError(
            f"the path {socket} has {size} bytes, and that of a socket at most {SOCKET_PATH_MAX}: "
            "set TMPDIR to a shorter folder, such as /tmp"
        )
