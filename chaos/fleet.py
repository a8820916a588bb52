"""The workers of a run: each in its place, started again when it ends, as `up` or an orchestrator would do it."""

import re
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Final

from msgspec import Struct

from chaos.verdict.liveness import Served
from order_service.local.broker import free_port
from tests.support.service import Service, WorkerProcess

ENDS: Final = {
    0: "told to end",
    -signal.SIGKILL: "killed",
    -signal.SIGTERM: "told to end before it had begun",
    10: "fenced",
    12: "stuck, or a commit unresolved",
}
"""How a worker may end here; any other end is a fault of the service."""
ENDS_OF: Final = {
    "stranger": {14: "kept out of its group"},
    "hang": {15: "its event loop hung"},
    "compaction": {13: "settings of a topic were worse"},
}
"""How a worker may end by one kind of fault only."""
MODULE: Final = ("chaos.worker",)
STOP_WITHIN_S: Final = 25.0
OWNER: Final = r'"owner": "([^"]+)", "event": "Partitions assigned."'
"""Where a worker's log says its transactional id."""


class Measured(Struct, frozen=True):
    """What the workers say together: commands that are not decided, commands that wait, partitions that run."""

    lag: int
    waiting: int
    lanes: int


class Fleet:
    """Workers in places. `ended` is told each worker that has ended and the partitions that it had.

    Who is started in a place has the admin port of who was there before, and so is the same member to its group; where
    `is_static` says so of the place's number, also by an instance id that was chosen.
    """

    def __init__(
        self,
        service: Service,
        ended: Callable[[frozenset[int]], None] = lambda _: None,
        *,
        is_static: Callable[[int], bool] = lambda _: False,
    ) -> None:
        self.ends: Counter[int] = Counter()
        self.static_starts = 0
        self._service = service
        self._ended = ended
        self._is_static = is_static
        self._count = 0
        self._numbers: dict[int, int] = {}
        self._ports: dict[int, int] = {}
        self._places: list[WorkerProcess] = []
        self._leaving: list[WorkerProcess] = []
        self._committed: dict[int, int] = {}

    @property
    def committed(self) -> int:
        """Count the commands that were decided, as each worker last said of itself; for progress."""
        return sum(self._committed.values())

    @property
    def workers(self) -> list[WorkerProcess]:
        """List those that are to run."""
        return list(self._places)

    def join(self) -> None:
        """Add one."""
        self._count += 1
        self._places.append(self._start(self._count))

    def _start(self, number: int) -> WorkerProcess:
        is_static = self._is_static(number)
        self.static_starts += is_static
        member = f"{self._service.app_id}-{number}" if is_static else ""
        clock = self._clock_of(number)
        if not clock.exists():
            clock.write_text("0")
        port = self._ports.setdefault(number, free_port())
        settings = {
            "ORDERS_INSTANCE_ID": member,
            "ORDERS_ADMIN_PORT": str(port),
            "ORDERS_TABLE_DIR": str(self._tables_of(number)),
            "TEST_CLOCK_FILE": str(clock),
        }
        worker = self._service.start_worker(None, module=MODULE, **settings)
        self._numbers[worker.process.pid] = number
        return worker

    def set_clock(self, worker: WorkerProcess, shift_s: int) -> None:
        """Shift the wall clock of a worker, and of those that follow in its place; 0 sets it right."""
        clock = self._clock_of(self._numbers[worker.process.pid])
        new = clock.with_suffix(".new")
        new.write_text(str(shift_s))
        new.replace(clock)  # at once: it is read at any time

    def _clock_of(self, number: int) -> Path:
        return self._service.directory / f"clock-{number}.s"

    def tables_of(self, worker: WorkerProcess) -> Path:
        """Return the directory of the tables of a worker, and of those that follow in its place."""
        return self._tables_of(self._numbers[worker.process.pid])

    def _tables_of(self, number: int) -> Path:
        return self._service.directory / f"tables-{number}"

    def leave(self, pick: float) -> bool:
        """Stop one worker for good; return False if it is the last one."""
        if len(self._places) < 2:
            return False
        worker = self._places.pop(self._index(pick))
        worker.send(signal.SIGTERM)
        worker.send(signal.SIGCONT)
        self._leaving.append(worker)
        return True

    def pick(self, pick: float) -> WorkerProcess:
        """Choose one."""
        return self._places[self._index(pick)]

    def transactional_id(self, pick: float) -> str | None:
        """Choose one of those under which workers have written since partitions were assigned to them, if any has."""
        ids: list[str] = [owner for worker in self._places for owner in re.findall(OWNER, worker.log())[-1:]]
        return ids[int(pick * len(ids))] if ids else None

    def tend(self) -> None:
        """Note who has ended, and start another in each place that has become empty."""
        for index, worker in enumerate(self._places):
            if (code := worker.process.poll()) is not None:
                self.ends[code] += 1
                self._ended(partitions_of(worker))
                self._places[index] = self._start(self._numbers[worker.process.pid])
        for worker in list(self._leaving):
            if (code := worker.process.poll()) is not None:
                self._leaving.remove(worker)
                self.ends[code] += 1
                self._ended(partitions_of(worker))

    def measure(self) -> Measured:
        """Ask all of them; one that is stopped, or has just begun, says nothing."""
        said = [worker.admin("/metrics", within_s=1.0)[1] for worker in self._places]
        for worker, metrics in zip(self._places, said, strict=True):
            committed = _sum(r"^orders_commands_total{.*} (\S+)", [metrics])
            self._committed[worker.process.pid] = max(committed, self._committed.get(worker.process.pid, 0))
        return Measured(
            lag=_sum(r"^orders_lag_commands{.*} (\S+)", said),
            waiting=_sum(r"^orders_waiting_commands (\S+)", said),
            lanes=_sum(r'^orders_lanes{state="running"} (\S+)', said),
        )

    def served(self) -> Served:
        """Ask all of them which partitions run and which are parked."""
        said = [worker.admin("/metrics", within_s=1.0)[1] for worker in self.workers]
        parked = _partitions(r'^orders_lane_parked{partition="(\d+)"} 1', said)
        return Served(0.0, _partitions(r'^orders_lag_commands{partition="(\d+)"}', said) - parked, parked)

    def stop(self) -> None:
        """Stop all workers, and wait until they have ended."""
        workers = [*self._places, *self._leaving]
        self._places, self._leaving = [], []
        for worker in workers:
            if worker.process.poll() is None:
                worker.send(signal.SIGTERM)
        for worker in workers:
            self.ends[worker.wait_ended(within_s=STOP_WITHIN_S)] += 1

    def _index(self, pick: float) -> int:
        return int(pick * len(self._places))


def partitions_of(worker: WorkerProcess) -> frozenset[int]:
    """Return the partitions that were assigned to a worker last, as its log says."""
    assigned = worker.lines("Partitions assigned.")
    return frozenset(assigned[-1]["partitions"]) if assigned else frozenset()


def _partitions(pattern: str, said: list[str]) -> frozenset[int]:
    return frozenset(int(found) for metrics in said for found in re.findall(pattern, metrics, re.MULTILINE))


def _sum(pattern: str, said: list[str]) -> int:
    return sum(round(float(value)) for metrics in said for value in re.findall(pattern, metrics, re.MULTILINE))
