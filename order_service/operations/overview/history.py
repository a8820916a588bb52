"""The last hour of the lanes, in memory: samples of positions and lag, and increases of counters."""

from collections import Counter, deque
from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from typing import Final

from msgspec import Struct

from order_service.operations.overview.processes import Counts

KEPT: Final = timedelta(hours=1)
STEP: Final = timedelta(seconds=30)
GAP: Final = timedelta(seconds=60)
"""The longest time between two samples for which a rate is shown: a longer one is a gap."""
SAMPLES_MAX: Final = 1_000
"""An hour of samples, and some more: they are taken every few seconds."""


class Point(Struct, frozen=True):
    """One step of the last hour, up to `at`: the largest lag, and the commands decided per second. None is a gap."""

    at: datetime
    lag: int | None
    decided_per_s: float | None


class _Sample(Struct, frozen=True):
    """The lag at a time, and by how many offsets the positions have moved since the sample before, in which time."""

    at: datetime
    lag: int
    passed: int
    lasted: timedelta


class History:
    """Throughput and lag of the last hour. A sample that is earlier than others replaces them: the clock was set."""

    def __init__(self) -> None:
        self._samples: deque[_Sample] = deque(maxlen=SAMPLES_MAX)
        self._newest: tuple[datetime, dict[int, int]] | None = None
        """The newest positions. Those of an hour would be 70 MB with 1,000 partitions, and take a second to compare."""

    def add(self, at: datetime, lag: int, positions: Mapping[int, int]) -> None:
        """Add a sample: how many offsets are undecided in all partitions, and the position of each."""
        while self._samples and self._samples[-1].at >= at:
            self._samples.pop()
        while self._samples and self._samples[0].at < at - KEPT - GAP:
            self._samples.popleft()
        passed, lasted = 0, timedelta()
        if self._newest is not None and timedelta() < at - self._newest[0] <= GAP:
            passed, lasted = _passed(self._newest[1], positions), at - self._newest[0]
        self._samples.append(_Sample(at, lag, passed, lasted))
        self._newest = at, dict(positions)

    def points(self, now: datetime) -> list[Point]:
        """Return one point for each step of the last hour, the oldest first."""
        count = KEPT // STEP
        lags: list[int | None] = [None] * count
        passed, lasted = [0] * count, [timedelta()] * count
        for sample in self._samples:
            if (index := _index(sample.at, now, count)) is not None:
                lags[index] = max(sample.lag, lags[index] or 0)
                passed[index] += sample.passed
                lasted[index] += sample.lasted
        return [
            Point(
                now - (count - 1 - index) * STEP,
                lags[index],
                passed[index] / lasted[index].total_seconds() if lasted[index] else None,
            )
            for index in range(count)
        ]


def _index(at: datetime, now: datetime, count: int) -> int | None:
    """Return the step in which a time lies, or None for one before the first step."""
    index = count - 1 - (now - at) // STEP
    return index if 0 <= index < count else None


def _passed(before: Mapping[int, int], after: Mapping[int, int]) -> int:
    """Return by how many offsets the positions moved; a position that an operator has set back counts as none."""
    return sum(max(0, after[partition] - position) for partition, position in before.items() if partition in after)


class Increases:
    """By how much counters of processes have grown in the last hour, by reason.

    The first values of a process are only where its counting begins. A counter that falls was restarted from 0.
    """

    def __init__(self) -> None:
        self._values: dict[str, dict[str, float]] = {}
        self._seen_at: dict[str, datetime] = {}
        self._grown: deque[tuple[datetime, Counter[str]]] = deque(maxlen=SAMPLES_MAX)

    def add(self, at: datetime, counts: Counts, processes: Iterable[str]) -> None:
        """Add what processes have counted so far. `processes` are all that answered, also those without a count."""
        values: dict[str, dict[str, float]] = {process: {} for process in processes}
        for (process, reason), value in counts.items():
            values.setdefault(process, {})[reason] = value
        grown: Counter[str] = Counter()
        for process, now in values.items():
            before = self._values.get(process)
            if before is not None:
                for reason, value in now.items():
                    since = before.get(reason, 0.0)
                    grown[reason] += round(value - since if value >= since else value)
            self._values[process], self._seen_at[process] = now, at
        for process in [each for each, seen_at in self._seen_at.items() if seen_at < at - KEPT]:
            del self._values[process], self._seen_at[process]
        if grown.total():
            self._grown.append((at, grown))

    def last_hour(self, now: datetime) -> Counter[str]:
        """Return the increases of the last hour."""
        total: Counter[str] = Counter()
        for at, grown in self._grown:
            if at > now - KEPT:
                total += grown
        return total
