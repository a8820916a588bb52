"""Closed orders: which of them forget their commands, how many at once, and what a lane that stops does to a sweep."""

import asyncio
import weakref
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from typing import Any

from order_service.errors import StoreDamaged
from order_service.worker.clock import Clock
from order_service.worker.closed_orders import ClosedOrders
from order_service.worker.lane import RESTORED_AT_A_TIME
from tests.support.samples import NOW, cancel, create, entry_after
from tests.support.tables import table_of

DAY_S = 86_400.0
LONG_AGO = NOW - timedelta(days=1)
OPEN, OLD, YOUNG = (
    entry_after([create], now=LONG_AGO),
    entry_after([create, cancel], now=LONG_AGO),
    entry_after([create, cancel]),
)


class SweptLane:
    """A lane of which a sweep needs the table only."""

    def __init__(self, partition, entries):
        self.partition = partition
        self.table: Any = table_of(entries)
        self.swept_at: datetime | None = None


class Turns:
    """Takes the orders to shorten; each is done when a test says so."""

    def __init__(self):
        self.handed: list[tuple[int, list[str]]] = []
        self.open: set[int] = set()
        self.unavailable: set[int] = set()
        self.failed: list[tuple[int, Exception]] = []

    def shorten(self, partition, order_ids):
        assert partition not in self.open
        self.handed.append((partition, order_ids))
        self.open.add(partition)


@asynccontextmanager
async def sweeping(lanes, turns, *, remember_s: float | None = DAY_S, now=NOW.timestamp):
    """Sweep these lanes while the block runs."""
    clock = Clock(60, wall=now, steady=now)
    closed_orders = ClosedOrders(
        lanes,
        remember_s,
        clock,
        shorten=turns.shorten,
        is_shortening=turns.open.__contains__,
        is_unavailable=turns.unavailable.__contains__,
        failed=lambda partition, _why, error: turns.failed.append((partition, error)),
        pause_s=0.0,
    )
    task = asyncio.create_task(closed_orders.run())
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def becomes(condition):
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110, what is looked at has no event
            await asyncio.sleep(0)


async def test_a_sweep_finds_the_orders_that_are_closed_for_long_and_no_others():
    lane = SweptLane(3, {"open": OPEN, "old": OLD, "young": YOUNG})
    turns = Turns()
    async with sweeping({3: lane}, turns):
        await becomes(lambda: turns.handed)
        assert not lane.swept_at, "until the turn has taken them"
        turns.open.clear()
        await becomes(lambda: lane.swept_at)
        assert lane.swept_at == NOW
    assert turns.handed == [(3, ["old"])]


async def test_the_next_slice_waits_until_a_turn_has_taken_the_last_one():
    count = 2 * RESTORED_AT_A_TIME + 1
    lanes = {0: SweptLane(0, {f"order-{number}": OLD for number in range(count)}), 1: SweptLane(1, {"other": OLD})}
    turns = Turns()
    async with sweeping(lanes, turns):
        for slices in range(1, 5):
            await becomes(lambda slices=slices: len(turns.handed) == slices)
            for _ in range(20):
                await asyncio.sleep(0)
            assert len(turns.handed) == slices
            turns.open.clear()
    assert [(partition, len(order_ids)) for partition, order_ids in turns.handed] == [
        (0, RESTORED_AT_A_TIME),
        (0, RESTORED_AT_A_TIME),
        (0, 1),
        (1, 1),
    ]


async def test_a_lane_is_swept_again_after_a_tenth_of_the_time_and_a_lane_of_the_next_claim_at_once(monkeypatch):
    monkeypatch.setattr("order_service.worker.closed_orders.CHECK_EVERY_S", 0.0)
    lanes = {0: SweptLane(0, {"order": YOUNG})}
    clock, turns = [NOW.timestamp()], Turns()
    async with sweeping(lanes, turns, now=lambda: clock[0]):
        await becomes(lambda: lanes[0].swept_at == NOW)
        clock[0] += DAY_S / 10
        await becomes(lambda: lanes[0].swept_at == NOW + timedelta(days=0.1))
        assert turns.handed == []
        clock[0] += DAY_S
        await becomes(lambda: turns.handed == [(0, ["order"])])
        turns.open.clear()
        lanes[0] = SweptLane(0, {"order": OLD})
        await becomes(lambda: len(turns.handed) == 2)


async def test_a_lane_that_turns_leave_out_does_not_end_the_sweeps_of_the_others(monkeypatch):
    monkeypatch.setattr("order_service.worker.closed_orders.CHECK_EVERY_S", 0.0)
    lanes = {0: SweptLane(0, {"order": OLD}), 1: SweptLane(1, {"other": OLD})}
    turns = Turns()
    turns.unavailable = {0}
    async with sweeping(lanes, turns):
        await becomes(lambda: (1, ["other"]) in turns.handed)
        turns.open.discard(1)
        await becomes(lambda: lanes[1].swept_at)
        assert turns.handed == [(0, ["order"]), (1, ["other"])], "no second slice of a lane while its first one waits"
        turns.unavailable.clear()
        turns.open.clear()  # a turn has taken it
        await becomes(lambda: len(turns.handed) == 3)
        turns.open.clear()
        await becomes(lambda: lanes[0].swept_at)
    assert turns.handed[2] == (0, ["order"])


async def test_a_lane_that_stops_ends_its_sweep_and_not_that_of_the_others():
    lanes = {0: SweptLane(0, {"order": OLD}), 1: SweptLane(1, {"other": OLD})}
    turns = Turns()
    async with sweeping(lanes, turns):
        await becomes(lambda: turns.handed)
        stopped = lanes.pop(0)
        await becomes(lambda: len(turns.handed) == 2)
    assert (turns.handed[1], stopped.swept_at, turns.failed) == ((1, ["other"]), None, [])


async def test_a_lane_that_stops_before_its_turn_is_neither_swept_nor_kept_in_memory(monkeypatch):
    monkeypatch.setattr("order_service.worker.closed_orders.CHECK_EVERY_S", 0.0)
    lanes = {0: SweptLane(0, {"order": OLD}), 1: SweptLane(1, {"other": OLD})}
    turns = Turns()
    async with sweeping(lanes, turns):
        await becomes(lambda: turns.handed)
        stopped = weakref.ref(lanes.pop(1))
        assert stopped() is None
        lanes[2] = SweptLane(2, {"next": OLD})
        turns.open.clear()
        await becomes(lambda: len(turns.handed) == 2)
    assert turns.handed == [(0, ["order"]), (2, ["next"])]


async def test_a_lane_whose_store_cannot_be_read_is_stopped():
    class Damaged:
        def sweep(self, _count):
            raise StoreDamaged("a block has another checksum")

    lanes = {0: SweptLane(0, {}), 1: SweptLane(1, {"other": OLD})}
    lanes[0].table = Damaged()
    turns = Turns()
    async with sweeping(lanes, turns):
        await becomes(lambda: turns.handed)
    partition, error = turns.failed[0]
    assert (partition, str(error)) == (0, "a block has another checksum")


async def test_orders_remember_for_ever_by_default():
    turns = Turns()
    async with sweeping({0: SweptLane(0, {"old": OLD})}, turns, remember_s=None) as task:
        await task
    assert turns.handed == []
