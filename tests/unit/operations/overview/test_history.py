"""The last hour in memory: lag and rate by steps, gaps, and counters that begin again."""

import tracemalloc
from datetime import timedelta

import pytest

from order_service.operations.overview.history import KEPT, SAMPLES_MAX, STEP, History, Increases
from tests.support.samples import NOW

WORKER, OTHER = "worker:9100/", "worker:9200/1"


def at(seconds):
    return NOW + timedelta(seconds=seconds)


def known(history, now):
    """Return the points that have something, by their distance from now in steps."""
    points = history.points(now)
    return {
        len(points) - 1 - index: (point.lag, point.decided_per_s)
        for index, point in enumerate(points)
        if (point.lag, point.decided_per_s) != (None, None)
    }


def test_without_samples_every_point_of_the_hour_is_a_gap():
    points = History().points(NOW)
    assert len(points) == KEPT // STEP == 120
    assert (points[0].at, points[-1].at) == (NOW - KEPT + STEP, NOW)
    assert known(History(), NOW) == {}


def test_a_step_has_its_largest_lag_and_the_offsets_that_were_passed_per_second():
    history = History()
    for seconds, lag, position in ((0, 0, 100), (10, 70, 150), (20, 30, 400), (40, 5, 500)):
        history.add(at(seconds), lag, {0: position, 1: 7})
    assert known(history, at(45)) == {0: (30, 350 / 30), 1: (70, 5.0)}


def test_time_without_samples_is_a_gap_and_has_no_rate():
    history = History()
    history.add(at(0), 5, {0: 100})
    history.add(at(300), 9, {0: 900})
    assert known(history, at(300)) == {0: (9, None), 10: (5, None)}


@pytest.mark.parametrize(
    ("before", "after"),
    [
        pytest.param({0: 100}, {1: 900}, id="another partition"),
        pytest.param({0: 100}, {0: 20}, id="a position that was set back"),
        pytest.param({}, {0: 20}, id="a new partition"),
    ],
)
def test_what_is_no_decided_command_does_not_count(before, after):
    history = History()
    history.add(at(0), 0, before)
    history.add(at(10), 0, after)
    assert known(history, at(10)) == {0: (0, 0.0)}


def test_samples_older_than_an_hour_are_dropped_and_never_more_are_kept_than_the_bound():
    history = History()
    for seconds in range(2 * SAMPLES_MAX):
        history.add(at(seconds), seconds, {0: seconds})
    assert len(history._samples) == SAMPLES_MAX
    history.add(at(100_000), 1, {0: 1})
    assert known(history, at(100_000)) == {0: (1, None)}


def test_the_memory_of_an_hour_does_not_grow_with_the_partitions():
    """A sample every 5 s: with 1,000 partitions, their positions would be 70 MB, compared again for each refresh."""
    tracemalloc.start()
    try:
        history = History()
        for sample in range(100):
            history.add(at(5 * sample), 0, dict.fromkeys(range(1_000), 1_000_000 + sample))
        kept_bytes, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept_bytes < 1_000_000
    assert known(history, at(495))[0] == (0, 200.0)


def test_a_clock_that_is_set_back_replaces_what_was_later():
    history = History()
    history.add(at(100), 100, {0: 100})
    history.add(at(50), 50, {0: 110})
    assert known(history, at(50)) == {0: (50, None)}


def counted(*additions):
    increases = Increases()
    for seconds, processes, counts in additions:
        increases.add(at(seconds), counts, processes)
    return increases


@pytest.mark.parametrize(
    ("additions", "expected"),
    [
        pytest.param([(0, [WORKER], {(WORKER, "paid"): 40})], {}, id="the first value is where counting begins"),
        pytest.param(
            [(0, [WORKER], {(WORKER, "paid"): 40}), (9, [WORKER], {(WORKER, "paid"): 45})], {"paid": 5}, id="it grows"
        ),
        pytest.param([(0, [WORKER], {}), (9, [WORKER], {(WORKER, "paid"): 3})], {"paid": 3}, id="a new reason"),
        pytest.param(
            [(0, [WORKER], {(WORKER, "paid"): 40}), (9, [WORKER], {(WORKER, "paid"): 2})], {"paid": 2}, id="a restart"
        ),
        pytest.param(
            [
                (0, [WORKER], {(WORKER, "paid"): 40}),
                (9, [OTHER], {(OTHER, "paid"): 50}),
                (18, [WORKER, OTHER], {(WORKER, "paid"): 41, (OTHER, "paid"): 52}),
            ],
            {"paid": 3},
            id="processes that do not answer each time",
        ),
    ],
)
def test_counters_of_several_processes(additions, expected):
    assert counted(*additions).last_hour(at(20)) == expected


def test_increases_are_forgotten_after_an_hour_and_processes_that_are_gone_too():
    increases = counted((0, [WORKER], {}), (10, [WORKER], {(WORKER, "paid"): 3}))
    assert increases.last_hour(at(3_600)) == {"paid": 3}
    assert increases.last_hour(at(3_611)) == {}
    increases.add(at(9_000), {(OTHER, "paid"): 1}, [OTHER])
    assert increases._values.keys() == {OTHER}
