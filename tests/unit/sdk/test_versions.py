"""Repeats and holes, from versions alone."""

from order_service.sdk.versions import Versions

WHOLE, PART = 0, 1


def seen(*versions, partition=PART, order_id="order-1", kept=None):
    kept = kept or Versions()
    for version in versions:
        kept.record(partition, order_id, version)
    return kept


def test_what_was_seen_is_a_repeat_and_what_is_next_is_none():
    kept = seen(1, 2)
    assert [kept.is_repeat("order-1", version) for version in (1, 2, 3)] == [True, True, False]
    assert kept.expected(PART, "order-1", 5) == 3


def test_an_order_that_is_met_in_the_middle_may_have_any_version():
    assert Versions().expected(PART, "order-1", 7) == 7


def test_where_all_is_read_an_order_begins_with_1():
    kept = Versions()
    kept.begin([WHOLE])
    assert kept.expected(WHOLE, "order-1", 7) == 1
    assert kept.expected(PART, "order-1", 7) == 7


def test_a_partition_that_comes_back_knows_repeats_and_no_holes():
    kept = seen(3)
    kept.resume([PART])
    assert kept.is_repeat("order-1", 3)
    assert kept.expected(PART, "order-1", 9) == 9
    assert seen(9, kept=kept).expected(PART, "order-1", 11) == 10


def test_a_partition_that_stays_knows_holes():
    kept = seen(3)
    kept.resume([WHOLE])
    assert kept.expected(PART, "order-1", 9) == 4


def test_behind_what_was_passed_over_any_version_may_come_that_was_not_seen():
    kept = seen(3)
    kept.begin([WHOLE])
    kept.lost_track("order-1")
    kept.lost_track("order-2")
    assert [kept.is_repeat("order-1", version) for version in (3, 4)] == [True, False]
    assert kept.expected(PART, "order-1", 5) == 5
    assert kept.expected(WHOLE, "order-2", 2) == 2
    assert seen(5, kept=kept).expected(PART, "order-1", 7) == 6


def test_what_was_passed_over_counts_among_the_orders_that_are_remembered():
    kept = seen(1, kept=Versions(orders_max=2))
    for order_id in ("order-2", "order-3"):
        kept.lost_track(order_id)
    assert not kept.is_repeat("order-1", 1)


def test_of_an_order_that_was_forgotten_any_version_is_a_beginning():
    kept = Versions(orders_max=2)
    kept.begin([WHOLE])
    for order_id in ("order-1", "order-2", "order-3"):
        seen(1, partition=WHOLE, order_id=order_id, kept=kept)
    assert kept.expected(WHOLE, "order-1", 2) == 2
    assert kept.expected(WHOLE, "order-3", 3) == 2
