"""A lane of which nothing is fetched shows, and one that gets on, or waits for something else, does not."""

from types import SimpleNamespace
from typing import Any

import pytest
from structlog.testing import capture_logs

from order_service.worker.assignment import Assignment
from order_service.worker.monitoring.stall_watch import StallWatch


@pytest.fixture
def watch(clock):
    return StallWatch("orders.commands.v1", clock)


def look(watch, clock, offsets, *, has_more=True):
    for offset in offsets:
        watch.note(1, offset, has_more=has_more)
        watch.keep({1})
        clock.now += 8


def test_a_lane_that_stands_still_is_reported_once_and_its_way_on_too(watch, clock):
    with capture_logs() as logs:
        look(watch, clock, [17, 17, 17])
        assert watch.faults() == [
            "partition 1: no command is fetched from orders.commands.v1 from offset 17 on, for 24 s"
        ]
        look(watch, clock, [17, 18])
        assert watch.faults() == []
    assert [(line["event"], line["partition"]) for line in logs] == [
        ("Commands are not fetched.", 1),
        ("Commands are fetched again.", 1),
    ]


@pytest.mark.parametrize(
    ("offsets", "has_more"),
    [pytest.param(range(17, 27), True, id="it gets on"), pytest.param([17] * 10, False, id="there is no more")],
)
def test_a_lane_that_does_what_it_can_is_not_reported(watch, clock, offsets, has_more):
    look(watch, clock, offsets, has_more=has_more)
    assert watch.faults() == []


def test_a_lane_that_left_is_forgotten(watch, clock):
    look(watch, clock, [17, 17, 17])
    watch.keep(set())
    assert watch.faults() == []


@pytest.mark.parametrize(
    ("stable", "is_empty", "waiting", "has_more"),
    [
        pytest.param(18, True, [], True, id="a command is in the log and nowhere else"),
        pytest.param(17, True, [], False, id="all is read"),
        pytest.param(18, False, [], False, id="what was read waits for a turn"),
        pytest.param(18, True, [1], False, id="what was read waits for the schema registry"),
    ],
)
def test_only_commands_that_were_not_fetched_count(stable, is_empty, waiting, has_more):
    fetching = SimpleNamespace(stable_end_of=lambda _partition: stable)
    assignment: Any = SimpleNamespace(
        inbox=SimpleNamespace(is_empty=lambda _partition: is_empty),
        lookups=SimpleNamespace(waiting=waiting),
        _context=SimpleNamespace(fetching=fetching),
    )
    lane: Any = SimpleNamespace(partition=1, resume_at=17)
    assert Assignment.has_more(assignment, lane) is has_more
