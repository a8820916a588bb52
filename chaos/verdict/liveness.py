"""Whether partitions kept moving: how long each was silent while commands waited, and whether a lane was stuck.

What consumers saw, and when, is noted by one clock (`watching.py`): the timestamps in the log are those of workers,
whose clocks may be wrong. Nothing here reads a clock or asks the service.
"""

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import accumulate, pairwise
from math import inf
from typing import Final

from msgspec import Struct, field

from chaos.verdict.decoding import Command, Poison

SLACK_S: Final = 0.5
"""How late a fault, an end of a worker or an outcome can be noticed."""


class Seen(Struct):
    """When a committed consumer saw each command and each outcome of one partition, in seconds of the run.

    `commands` has the time of each offset. `outcomes` holds time and offset of the command, in the order of time;
    the offset is None for an outcome that answers no command. `events` has the offsets of the events.
    """

    commands: dict[int, float] = field(default_factory=dict)
    outcomes: list[tuple[float, int | None]] = field(default_factory=list)
    events: set[int] = field(default_factory=set)


class Touch(Struct, frozen=True):
    """A fault that takes partitions away from their worker for a while; `partitions` is None for all of them."""

    at_s: float
    until_s: float
    partitions: frozenset[int] | None
    what: str

    def explains(self, silence: "Silence") -> bool:
        """Return whether the fault hit the partition within the silence."""
        is_its = self.partitions is None or silence.partition in self.partitions
        return is_its and self.at_s - SLACK_S <= silence.until_s and silence.from_s <= self.until_s + SLACK_S


class Silence(Struct, frozen=True):
    """A time without an outcome in a partition that had a command to decide whose user is known."""

    partition: int
    from_s: float
    until_s: float

    @property
    def seconds(self) -> float:
        """Its length."""
        return self.until_s - self.from_s

    def __str__(self) -> str:
        return f"{self.seconds:.1f} s in partition {self.partition}, from {self.from_s:.1f} s on"


class Served(Struct, frozen=True):
    """Partitions that ran, and those that were parked, as all workers together said at one time."""

    at_s: float
    running: frozenset[int]
    parked: frozenset[int] = frozenset()


class Watched(Struct):
    """What was seen of a run while it was under way, and how long what may last."""

    silence_max_s: float
    stuck_max_s: float
    seen: dict[int, Seen] = field(default_factory=lambda: defaultdict(Seen))
    touches: list[Touch] = field(default_factory=list)
    served: list[Served] = field(default_factory=list)


def silences(partition: int, commands: Iterable[tuple[int, Command | Poison]], seen: Seen) -> list[Silence]:
    """Return every silence of a partition, in the order of time; `commands` gives each offset and what it holds.

    Commands that wait for a user, or may, are left out, and so are repeats, which have no outcome.
    """
    decided: dict[int, float] = {}
    for at_s, offset in seen.outcomes:
        if offset is not None:
            decided.setdefault(offset, at_s)
    plain = sorted(_plain(commands, seen.commands, decided))
    decided_at = [decided_s for decided_s, _ in plain]
    oldest = list(accumulate((arrived_s for _, arrived_s in reversed(plain)), min))[::-1]
    found = []
    for last_s, next_s in pairwise([-inf, *(at_s for at_s, _ in seen.outcomes)]):
        place = bisect_right(decided_at, last_s)
        if place < len(plain) and oldest[place] < next_s and last_s < next_s:
            found.append(Silence(partition, max(last_s, oldest[place]), next_s))
    return found


def _plain(
    commands: Iterable[tuple[int, Command | Poison]], arrived: Mapping[int, float], decided: Mapping[int, float]
) -> Iterator[tuple[float, float]]:
    """Yield when each command was decided and when it came, of those that wait for no user."""
    user_known_at: dict[str, float] = defaultdict(lambda: -inf)
    for offset, command in commands:
        arrived_s, decided_s = arrived.get(offset, inf), decided.get(offset, inf)
        if isinstance(command, Command):
            if command.type == "CreateOrder":
                user_known_at[command.order_id] = max(user_known_at[command.order_id], decided_s)
            if user_known_at[command.order_id] > arrived_s:
                continue
        if decided_s < inf and arrived_s < inf:
            yield decided_s, arrived_s


def unexplained(found: Iterable[Silence], touches: Sequence[Touch]) -> list[Silence]:
    """Return the silences that no fault of their partition explains, the longest first."""
    untouched = (silence for silence in found if not any(touch.explains(silence) for touch in touches))
    return sorted(untouched, key=lambda silence: -silence.seconds)


def stuck(partition: int, served: Iterable[Served], touches: Iterable[Touch], bound_s: float) -> list[Silence]:
    """Return each time, longer than the bound or up to the end, in which a lane neither ran nor was parked.

    The time does not count in which a fault hit all partitions: without brokers no lane runs.
    """
    found = []
    since_s: float | None = None
    last_s = 0.0
    for sample in served:
        is_served = partition in sample.running or partition in sample.parked
        if not is_served and since_s is None:
            since_s = last_s
        elif is_served and since_s is not None:
            found.append(Silence(partition, since_s, sample.at_s))
            since_s = None
        last_s = sample.at_s
    everywhere = sorted((touch.at_s, touch.until_s) for touch in touches if touch.partitions is None)
    too_long = [silence for silence in found if silence.seconds - _overlap_s(silence, everywhere) > bound_s]
    return too_long if since_s is None else [*too_long, Silence(partition, since_s, last_s)]


def _overlap_s(silence: Silence, times: Iterable[tuple[float, float]]) -> float:
    """Return how much of a silence lies in any of some times, which are sorted."""
    overlap_s, reached_s = 0.0, silence.from_s
    for from_s, until_s in times:
        overlap_s += max(0.0, min(until_s, silence.until_s) - max(from_s, reached_s))
        reached_s = max(reached_s, until_s)
    return overlap_s
