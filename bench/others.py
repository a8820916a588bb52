"""How much of the machine others took meanwhile: a figure taken beside them does not describe the service."""

import os
from pathlib import Path
from typing import Final

_TICKS: Final = os.sysconf("SC_CLK_TCK")


class Others:
    """Tells the share of all cores that processes other than ours took since the last time; needs Linux's /proc."""

    def __init__(self) -> None:
        self._last = _all_and_busy_s()
        self._own_s = own_s()

    def percent(self) -> float:
        """Return the share since the last call, in percent; 0 where there is no /proc."""
        (all_s, busy_s), own = _all_and_busy_s(), own_s()
        took_s = (busy_s - self._last[1]) - (own - self._own_s)
        passed_s = all_s - self._last[0]
        self._last, self._own_s = (all_s, busy_s), own
        return max(0.0, 100 * took_s / passed_s) if passed_s else 0.0


def _all_and_busy_s() -> tuple[float, float]:
    """Read the time of all cores, and what of it was not idle. Source: proc(5), `/proc/stat`."""
    stat = Path("/proc/stat")
    if not stat.exists():
        return 0.0, 0.0
    user, nice, system, idle, wait, *rest = map(int, stat.read_text().split("\n", 1)[0].split()[1:9])
    busy = user + nice + system + sum(rest)  # rest: interrupts, and what other machines on this host took
    return (busy + idle + wait) / _TICKS, busy / _TICKS


def own_s() -> float:
    """Sum the processor time of this process and all below it, those that have ended included."""
    parents: dict[int, int] = {}
    times: dict[int, float] = {}
    for place in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = place.read_text().rpartition(")")[2].split()
        except OSError:  # it has ended meanwhile
            continue
        pid = int(place.parent.name)
        parents[pid], times[pid] = int(fields[1]), sum(map(int, fields[11:15])) / _TICKS
    return sum(seconds for pid, seconds in times.items() if _is_below(pid, os.getpid(), parents))


def _is_below(pid: int, top: int, parents: dict[int, int]) -> bool:
    while pid != top and pid in parents:
        pid = parents[pid]
    return pid == top
