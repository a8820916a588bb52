"""How much of the machine others took meanwhile: a figure taken beside them does not describe the service."""

import os
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Final

_TICKS: Final = os.sysconf("SC_CLK_TCK")


class Others:
    """Tells the share of all cores that processes other than ours took since the last time; needs Linux's /proc.

    Ours are this process, those below it, and a `broker` that was started elsewhere.
    """

    def __init__(self, broker: int | None = None) -> None:
        self._ours = frozenset({os.getpid()} if broker is None else {os.getpid(), broker})
        self._last = _all_and_busy_s()
        self._own_s = tree_s(self._ours)

    def percent(self) -> float:
        """Return the share since the last call, in percent; 0 where there is no /proc."""
        (all_s, busy_s), own = _all_and_busy_s(), tree_s(self._ours)
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


def tree_s(tops: AbstractSet[int]) -> float:
    """Sum the processor time of these processes and all below them, those that have ended included."""
    return sum(tree(tops).values())


def tree(tops: AbstractSet[int]) -> dict[int, float]:
    """Return these processes and all below them, each with its processor time and that of its ended children."""
    parents: dict[int, int] = {}
    times: dict[int, float] = {}
    for place in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = place.read_text().rpartition(")")[2].split()
        except OSError:  # it has ended meanwhile
            continue
        pid = int(place.parent.name)
        parents[pid], times[pid] = int(fields[1]), sum(map(int, fields[11:15])) / _TICKS
    return {pid: seconds for pid, seconds in times.items() if _is_below(pid, tops, parents)}


def _is_below(pid: int, tops: AbstractSet[int], parents: dict[int, int]) -> bool:
    while pid not in tops and pid in parents:
        pid = parents[pid]
    return pid in tops


def listening_on(port: int) -> int | None:
    """Return the process that listens on a TCP port of this machine, or None if it is not seen. Source: proc(5)."""
    lines = [line.split() for file in ("tcp", "tcp6") for line in Path("/proc/net", file).read_text().splitlines()[1:]]
    sockets = {f"socket:[{line[9]}]" for line in lines if line[1].endswith(f":{port:04X}") and line[3] == "0A"}
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            if str(link.readlink()) in sockets:
                return int(link.parts[2])
        except OSError:  # it was closed meanwhile, or is of another user
            continue
    return None
