"""Which version of each order was seen last: so that repeats are dropped and holes noticed."""

from collections import Counter, OrderedDict
from collections.abc import Iterable
from typing import Final

ORDERS_MAX: Final = 100_000
"""How many orders are remembered, some 20 MB. Of one that was forgotten any version is a beginning again."""
_NO_RUN: Final = -1


class Versions:
    """The last version of each order, of the orders that were seen last.

    A partition in `whole` is read from its first record, so that in it an order begins with version 1; elsewhere an
    order that is met for the first time may have any version. Once more than `orders_max` were seen, that holds for
    every partition. What was seen before a partition was `resumed` still tells a repeat, but no hole: others may have
    had the versions between.
    """

    def __init__(self, orders_max: int = ORDERS_MAX) -> None:
        self._orders_max = orders_max
        self._last: OrderedDict[str, tuple[int, int]] = OrderedDict()  # version, and the run of its partition
        self._runs: Counter[int] = Counter()
        self._whole: frozenset[int] = frozenset()

    def begin(self, whole: Iterable[int]) -> None:
        """Hear which partitions are read from their first record."""
        self._whole = frozenset(whole)

    def resume(self, partitions: Iterable[int]) -> None:
        """Hear that these partitions may go on elsewhere than where we were."""
        self._runs.update(partitions)

    def is_repeat(self, order_id: str, version: int) -> bool:
        """Tell whether this version, or a later one, was seen."""
        return version <= self._last.get(order_id, (0, 0))[0]

    def expected(self, partition: int, order_id: str, version: int) -> int:
        """Tell which version must come now; `version` itself where nobody can know."""
        if order_id not in self._last:
            return 1 if partition in self._whole else version
        last, run = self._last[order_id]
        return last + 1 if run == self._runs[partition] else version

    def saw(self, partition: int, order_id: str, version: int) -> None:
        """Remember a version."""
        self._remember(order_id, version, self._runs[partition])

    def lost_track(self, order_id: str) -> None:
        """Hear that a record of an order was passed over: any version that was not seen may come next."""
        last, _ = self._last.get(order_id, (0, _NO_RUN))
        self._remember(order_id, last, _NO_RUN)

    def _remember(self, order_id: str, version: int, run: int) -> None:
        self._last[order_id] = version, run
        self._last.move_to_end(order_id)
        if len(self._last) > self._orders_max:
            self._last.popitem(last=False)
            self._whole = frozenset()  # an order that is unknown now may just be forgotten
