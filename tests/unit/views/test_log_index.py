"""Where the views say that the records of an order are."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from order_service.kafka.topics import topic_names
from order_service.views import log_index
from order_service.views.log_index import GAP, ranges
from tests.support import samples
from tests.support.event_log import START, after, seens
from tests.support.samples import ORDER_ID, but

NAMES = topic_names()
offsets = st.integers(0, 5_000)


@given(st.sets(offsets, max_size=30), offsets, offsets)
def test_every_offset_of_the_order_and_all_that_the_views_lack_is_covered(known, position, more):
    end = position + more
    covered = ranges((offset for offset in known if offset < end), position, end)
    assert all(any(first <= offset < behind for first, behind in covered) for offset in known if offset < position)
    assert position == end or any(first <= position and behind == end for first, behind in covered)
    assert all(first < behind <= end for first, behind in covered)
    assert all(behind + GAP <= first for (_, behind), (first, _) in pairwise(covered))


def test_too_many_ranges_become_one(monkeypatch):
    monkeypatch.setattr(log_index, "RANGES_MAX", 2)
    assert ranges([10, 2_000, 4_000], 9_000, 9_000) == [(10, 9_000)]


def test_the_offsets_of_all_records_of_orders_are_found(projection, views):
    messages = [*samples.events, samples.ship_refused, but(samples.order_created, order_id="other")]
    projection.positions(START)
    found = seens(messages)
    projection.apply(found, START, after(START, found))
    count = len(samples.events)
    assert views.offsets_of([ORDER_ID]) == {(NAMES.events, 0): [*range(count)], (NAMES.rejections, 0): [count]}
    assert views.offsets_of(["other"]) == {(NAMES.events, 0): [count + 1]}
    assert views.offsets_of(["nobody"]) == {}
