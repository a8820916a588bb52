"""What the runbooks of alerts show of a fault: each line of it must be seen while a test causes that fault.

A block `console` has commands and what they print. A block `text` has faults of `/health/ready` and lines of the log.
`…` stands for anything.
"""

import json
import re
from collections.abc import Iterable, Sequence

from tests.support.command_line import CommandLine
from tests.support.consoles import page_steps
from tests.support.service import ROOT, Service, WorkerProcess, until

RUNBOOKS = ROOT / "docs" / "operations" / "runbooks"
WORKER_OPTION = re.compile(r" --worker \S+")


class Sightings:
    """What the runbooks of some alerts show, and has not been seen yet."""

    def __init__(self, alerts: Iterable[str]) -> None:
        pages = [page for alert in alerts if (page := RUNBOOKS / f"{alert}.md").exists()]
        self._steps = {step for page in pages for step in page_steps(page)}
        self._lines = {line for page in pages for line in shown_lines(page.read_text(encoding="utf-8"))}
        self._printed: dict[str, str] = {}

    def look(self, service: Service, workers: Sequence[WorkerProcess]) -> None:
        """Compare what the service shows now with what has not been seen yet."""
        self._printed = {command: _printed(command, service, workers) for command in {each for each, _ in self._steps}}
        self._steps -= {step for step in self._steps if is_like(step[1], self._printed[step[0]])}
        self._look_at_lines(service)

    def check(self, service: Service) -> None:
        """Check that everything was seen. A process may write a line of its log a moment after the fault."""
        assert not self._steps, f"shown, but not printed: {self._steps}; printed: {self._printed}"
        until(lambda: self._look_at_lines(service), f"these lines are written: {self._lines}")

    def _look_at_lines(self, service: Service) -> bool:
        """Return whether all lines have been seen."""
        if self._lines:
            seen = {_plain(line, service) for process in service.workers for line in _lines_of(process)}
            self._lines -= {shown for shown in self._lines if any(is_like(shown, line) for line in seen)}
        return not self._lines


def shown_lines(page: str) -> list[str]:
    """Return the lines of the blocks `text` of a page."""
    return [line for block in re.findall(r"```text\n(.*?)```", page, re.DOTALL) for line in block.splitlines()]


def is_like(shown: str, seen: str) -> bool:
    """Return whether a text is as a page shows it."""
    parts = map(re.escape, shown.strip().split("…"))
    return re.fullmatch(".*".join(parts), seen.strip(), re.DOTALL) is not None


def _lines_of(process: WorkerProcess) -> list[str]:
    """Return the faults of a process that is not ready, and the lines of its log, unless that is a pipe."""
    faults = json.loads(process.faults() or "{}").get("faults", [])
    return [*faults, *(process.log().splitlines() if process.log_path.is_file() else ())]


def _printed(command: str, service: Service, workers: Sequence[WorkerProcess]) -> str:
    """Return what a command prints. It asks the workers of the test in place of those that the page names."""
    program, *words = WORKER_OPTION.sub("", command).split()
    assert program == "order-service"
    addresses = [f"127.0.0.1:{worker.admin_port}" for worker in workers]
    if WORKER_OPTION.search(command):
        words += [word for address in addresses for word in ("--worker", address)]
    own = {"ORDERS_ADMIN_PORT": str(workers[0].admin_port)} if workers else {}
    return _plain(CommandLine(service.environment | own).printed(*words), service)


def _plain(text: str, service: Service) -> str:
    """Return a text with the names that a service has by default."""
    prefix = service.environment["ORDERS_TOPIC_PREFIX"]
    return text.replace(service.group_id, "orders").replace(prefix, "").replace(service.app_id, "orders")
