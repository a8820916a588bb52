"""The last version of each order, from which repeats and missing versions are detected."""

from collections import Counter, OrderedDict
from collections.abc import Iterable
from typing import Final

ORDERS_MAX: Final = 100_000
"""The number of orders that are remembered, about 20 MB. A forgotten order may continue with any version."""
_NO_RUN: Final = -1


class Versions:
    """The last version of each of the orders that were seen last, `orders_max` at most.

    A partition in `whole` is read from its first record, so its orders begin with version 1. In other partitions, the
    first version of an order may be any. This holds for every partition once more than `orders_max` orders were seen.
    After a `resume` of a partition, earlier versions still detect repeats, but not missing versions: another consumer
    may have read those.
    """

    def __init__(self, orders_max: int = ORDERS_MAX) -> None:
        self._orders_max = orders_max
        self._last: OrderedDict[str, tuple[int, int]] = OrderedDict()  # version, and the run of its partition
        self._runs: Counter[int] = Counter()
        self._whole: frozenset[int] = frozenset()

    def begin(self, whole: Iterable[int]) -> None:
        """Set the partitions that are read from their first record."""
        self._whole = frozenset(whole)

    def resume(self, partitions: Iterable[int]) -> None:
        """Record that these partitions may continue at other offsets than before."""
        self._runs.update(partitions)

    def is_repeat(self, order_id: str, version: int) -> bool:
        """Return whether this version or a later one was seen."""
        return version <= self._last.get(order_id, (0, 0))[0]

    def expected(self, partition: int, order_id: str, version: int) -> int:
        """Return the version that must come next, or `version` itself if that is unknown."""
        if order_id not in self._last:
            return 1 if partition in self._whole else version
        last, run = self._last[order_id]
        return last + 1 if run == self._runs[partition] else version

    def record(self, partition: int, order_id: str, version: int) -> None:
        """Record the last version of an order."""
        self._remember(order_id, version, self._runs[partition])

    def lost_track(self, order_id: str) -> None:
        """Record that a record of an order was skipped: any version that was not seen may come next."""
        last, _ = self._last.get(order_id, (0, _NO_RUN))
        self._remember(order_id, last, _NO_RUN)

    def _remember(self, order_id: str, version: int, run: int) -> None:
        self._last[order_id] = version, run
        self._last.move_to_end(order_id)
        if len(self._last) > self._orders_max:
            self._last.popitem(last=False)
            self._whole = frozenset()  # an unknown order may be a forgotten one
