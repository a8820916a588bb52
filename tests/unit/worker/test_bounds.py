"""Bounds of a lane, and of all lanes of a worker together."""

import pytest

from order_service.worker.bounds import Bound
from order_service.worker.faust.consumer import fetch_bytes

MIB = 1024 * 1024
BOUND = Bound(100, 600)


@pytest.mark.parametrize(
    ("used", "used_by_all", "lane_count", "is_reached"),
    [
        pytest.param(99, 99, 1, False, id="below both"),
        pytest.param(100, 100, 1, True, id="its own"),
        pytest.param(99, 599, 300, False, id="all of its own while the others use little"),
        pytest.param(99, 600, 300, True, id="more than its share above that of the worker"),
        pytest.param(2, 600, 300, True, id="its share"),
        pytest.param(1, 600, 300, False, id="less than its share"),
        pytest.param(0, 10_000, 300, False, id="a lane that uses nothing is never stopped by others"),
        pytest.param(0, 0, 0, False, id="no lane yet"),
    ],
)
def test_when_a_lane_must_not_use_more(used, used_by_all, lane_count, is_reached):
    assert BOUND.is_reached(used, used_by_all, lane_count) is is_reached


@pytest.mark.parametrize(
    ("used_by_all", "lane_count", "left"),
    [
        pytest.param(0, 300, 100, id="its own"),
        pytest.param(550, 300, 50, id="what is left of the worker's"),
        pytest.param(600, 12, 50, id="at least its share"),
        pytest.param(600, 1_000, 1, id="at least one"),
    ],
)
def test_how_much_a_lane_may_begin(used_by_all, lane_count, left):
    assert BOUND.left(used_by_all, lane_count) == left


@pytest.mark.parametrize("lane_count", [1, 7, 300])
def test_lanes_that_take_what_they_may_use_at_most_twice_the_bound(lane_count):
    used = [0] * lane_count
    is_moving = True
    while is_moving:
        is_moving = False
        for lane in range(lane_count):
            if not BOUND.is_reached(used[lane], sum(used), lane_count):
                used[lane] += 1
                is_moving = True
    assert sum(used) <= 2 * BOUND.of_worker
    assert min(used) >= min(BOUND.of_lane, BOUND.of_worker // lane_count)


@pytest.mark.parametrize(
    ("partition_count", "size"),
    [(0, MIB), (12, MIB), (96, MIB), (300, 96 * MIB // 300), (5_000, MIB // 4)],
)
def test_many_partitions_are_fetched_in_smaller_pieces(partition_count, size):
    assert fetch_bytes(partition_count) == size
