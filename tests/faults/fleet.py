"""The workers of a run: each in its place, started again when it ends, as `up` or an orchestrator would do it."""

import re
import signal
from collections import Counter
from typing import Final

from msgspec import Struct

from tests.service import Service, WorkerProcess

ENDS: Final = {
    0: "told to end",
    -signal.SIGKILL: "killed",
    -signal.SIGTERM: "told to end before it had begun",
    10: "fenced",
    12: "stuck, or a commit unresolved",
}
"""How a worker may end here; any other end is a fault of the service."""
STOP_WITHIN_S: Final = 25.0
OWNER: Final = r'"owner": "([^"]+)", "event": "Partitions are assigned."'
"""Where a worker's log says its transactional id."""


class Measured(Struct, frozen=True):
    """What the workers say together: commands that are not decided, commands that wait, partitions that run."""

    lag: int
    waiting: int
    lanes: int


class Fleet:
    """Workers in places."""

    def __init__(self, service: Service) -> None:
        self.ends: Counter[int] = Counter()
        self._service = service
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
        self._places.append(self._service.start_worker())

    def leave(self, pick: float) -> bool:
        """Tell one to end for good; False if it is the last one."""
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

    def transactional_id(self, pick: float) -> str:
        """Choose one of those under which workers have written since partitions were assigned to them."""
        ids: list[str] = [owner for worker in self._places for owner in re.findall(OWNER, worker.log())[-1:]]
        return ids[int(pick * len(ids))]

    def tend(self) -> None:
        """Note who has ended, and start another in each place that has become empty."""
        for index, worker in enumerate(self._places):
            if (code := worker.process.poll()) is not None:
                self.ends[code] += 1
                self._places[index] = self._service.start_worker()
        for worker in [worker for worker in self._leaving if worker.process.poll() is not None]:
            self._leaving.remove(worker)
            self.ends[worker.process.returncode] += 1

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

    def stop(self) -> None:
        """Tell all to end, and wait until they have."""
        workers = [*self._places, *self._leaving]
        self._places, self._leaving = [], []
        for worker in workers:
            if worker.process.poll() is None:
                worker.send(signal.SIGTERM)
        for worker in workers:
            self.ends[worker.wait_ended(within_s=STOP_WITHIN_S)] += 1

    def _index(self, pick: float) -> int:
        return int(pick * len(self._places))


def _sum(pattern: str, said: list[str]) -> int:
    return sum(round(float(value)) for metrics in said for value in re.findall(pattern, metrics, re.MULTILINE))
