"""The ranges of the log that an index leads to."""

from itertools import pairwise

import pytest
from aiokafka.structs import TopicPartition
from hypothesis import given
from hypothesis import strategies as st

from order_service.sdk import log_index
from order_service.sdk.log_index import GAP, IndexEntries, ranges_of

FIRST, SECOND = TopicPartition("events", 0), TopicPartition("events", 1)
offsets = st.integers(0, 5_000)


@given(st.sets(offsets, max_size=30), offsets, offsets)
def test_every_offset_of_the_order_and_all_that_the_index_lacks_is_covered(known, position, more):
    end = position + more
    covered = ranges_of((offset for offset in known if offset < end), position, end)
    assert all(any(first <= offset < behind for first, behind in covered) for offset in known if offset < position)
    assert position == end or any(first <= position and behind == end for first, behind in covered)
    assert all(first < behind <= end for first, behind in covered)
    assert all(behind + GAP <= first for (_, behind), (first, _) in pairwise(covered))


def test_too_many_ranges_become_one(monkeypatch):
    monkeypatch.setattr(log_index, "RANGES_MAX", 2)
    assert ranges_of([10, 2_000, 4_000], 9_000, 9_000) == [(10, 9_000)]


@pytest.mark.parametrize(
    ("positions", "ranges"),
    [
        pytest.param({FIRST: 1_000}, {FIRST: [(3, 4), (1_000, 1_200)]}, id="the index is behind"),
        pytest.param({FIRST: 1_200}, {FIRST: [(3, 4)]}, id="the index has all"),
        pytest.param({FIRST: 1_201}, None, id="the index is ahead: it is of another log"),
        pytest.param({SECOND: 9_000}, {FIRST: [(0, 1_200)]}, id="the partition is not in the index"),
    ],
)
def test_the_ranges_of_a_partition_that_ends_at_1200(positions, ranges):
    assert IndexEntries({FIRST: [3]}, positions).ranges({FIRST: 1_200}) == ranges
