"""Bounds of memory that hold for a lane, and for all lanes of a worker together."""

from msgspec import Struct


class Bound(Struct, frozen=True):
    """A bound of each lane, and one of all lanes together.

    Below the second one, a lane may use all of its own. Above it, only lanes with less than an equal share may use
    more. So no lane starves because of others, and all together use at most twice the second bound.
    """

    of_lane: int
    of_worker: int

    def is_reached(self, used: int, used_by_all: int, lane_count: int) -> bool:
        """Return whether a lane that uses so much must not use more."""
        share = self.of_worker / max(1, lane_count)
        return used >= self.of_lane or (used_by_all >= self.of_worker and used >= share)

    def left(self, used_by_all: int, lane_count: int) -> int:
        """Return how much a lane that uses nothing may use: at least 1."""
        return max(1, min(self.of_lane, max(self.of_worker - used_by_all, self.of_worker // max(1, lane_count))))
