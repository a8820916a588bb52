"""Closed orders: those that have been closed for long forget the commands that they remember.

A sweep finds them, in slices, so that no other work waits for it. The next turn writes their short entries to the
changelog. So every claim, standby and check reads the same, and nothing depends on the time at which it reads.
"""

import asyncio
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Final

from order_service.errors import HistoryError, StoreError
from order_service.wire import changelog
from order_service.worker.clock import Clock
from order_service.worker.lane import RESTORED_AT_A_TIME, Lane

CHECK_EVERY_S: Final = 0.5
PAUSE_S: Final = 0.1
"""The pause after a slice of 500 orders: a sweep takes a hundredth of a core, and 200 s for a million orders."""
SWEEPS: Final = 10
"""A sweep begins after a tenth of the time for which orders remember, at the latest after a day."""
DAY_S: Final = 86_400.0


class ClosedOrders:
    """Sweeps the tables of running lanes, one after the other.

    `shorten` makes the next turn shorten the entries of orders of a partition; `is_shortening` returns whether it has
    not done so yet. So at most one slice of a lane is on its way. `is_unavailable` returns whether turns leave a lane
    out, because Kafka cannot write to it. `failed` stops a lane whose table cannot be read.
    """

    def __init__(
        self,
        lanes: Mapping[int, Lane],
        remember_s: float | None,
        clock: Clock,
        *,
        shorten: Callable[[int, list[str]], None],
        is_shortening: Callable[[int], bool],
        is_unavailable: Callable[[int], bool],
        failed: Callable[[int, str, Exception], None],
        pause_s: float = PAUSE_S,
    ) -> None:
        self._lanes = lanes
        self._remember_s = remember_s
        self._clock = clock
        self._shorten = shorten
        self._is_shortening = is_shortening
        self._is_unavailable = is_unavailable
        self._failed = failed
        self._pause_s = pause_s

    async def run(self) -> None:
        """Sweep each table when it is due, until cancelled."""
        if self._remember_s is None:
            return
        age, every = timedelta(seconds=self._remember_s), timedelta(seconds=min(self._remember_s / SWEEPS, DAY_S))
        while True:
            for partition in list(self._lanes):  # no lanes: one that stops must not keep its table in memory meanwhile
                await self._sweep_if_due(partition, age, every)
            await asyncio.sleep(CHECK_EVERY_S)

    async def _sweep_if_due(self, partition: int, age: timedelta, every: timedelta) -> None:
        lane = self._lanes.get(partition)
        if lane is None or self._is_shortening(partition):
            return
        if lane.swept_at is None or self._clock.now() - lane.swept_at >= every:
            await self._sweep(lane, age)

    async def _sweep(self, lane: Lane, age: timedelta) -> None:
        """Find the orders of a lane that have been closed for `age`. One that stops is swept after its next claim.

        A lane that turns leave out is swept from the beginning when they have taken its last slice: the other lanes
        must not wait for it.
        """
        began_at = self._clock.now()
        try:
            for orders in lane.table.sweep(RESTORED_AT_A_TIME):
                since = self._clock.now() - age
                if order_ids := [order_id for order_id, value in orders if changelog.has_been_closed(value, since)]:
                    self._shorten(lane.partition, order_ids)
                await asyncio.sleep(self._pause_s)
                while self._runs(lane) and self._is_shortening(lane.partition):
                    if self._is_unavailable(lane.partition):
                        return
                    await asyncio.sleep(self._pause_s)
                if not self._runs(lane):
                    return
        except (StoreError, HistoryError) as error:
            if self._runs(lane):  # else it has stopped, which has closed its store
                self._failed(lane.partition, "the closed orders of its table cannot be read", error)
            return
        lane.swept_at = began_at

    def _runs(self, lane: Lane) -> bool:
        return self._lanes.get(lane.partition) is lane
