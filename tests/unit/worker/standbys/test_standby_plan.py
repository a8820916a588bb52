"""Which member stands by for which partition: for none of its own, evenly, and with as few changes as that allows."""

from aiokafka import TopicPartition
from hypothesis import given
from hypothesis import strategies as st

from order_service.worker.standbys.standby_plan import decode_standbys, encode_standbys, inherited, standby_plan

NOBODY: frozenset[int] = frozenset()


def lanes(*numbers):
    return [TopicPartition("commands", number) for number in numbers]


def shared(partitions, *members):
    """Return the partitions of each member, dealt one after the other."""
    return {member: lanes(*range(first, partitions, len(members))) for first, member in enumerate(members)}


def plan(assigned, *willing, before=None):
    return standby_plan(assigned, {member: (before or {}).get(member, NOBODY) for member in willing})


def numbers_of(assigned):
    return {member: {lane.partition for lane in partitions} for member, partitions in assigned.items()}


def test_each_partition_has_one_standby_on_another_member():
    assigned = shared(12, "a", "b", "c")
    planned = plan(assigned, "a", "b", "c")
    assert sorted(partition for each in planned.values() for partition in each) == list(range(12))
    for member, own in numbers_of(assigned).items():
        assert not planned[member] & own
        assert len(planned[member]) == 4


def test_the_partitions_of_each_member_are_spread_over_the_others():
    """So if one is lost, each of the others takes over an even share."""
    assigned = {"a": lanes(0, 1, 2, 3), "b": lanes(4, 5, 6, 7), "c": lanes(8, 9, 10, 11)}
    planned = plan(assigned, "a", "b", "c")
    for own in numbers_of(assigned).values():
        assert sorted(len(planned[member] & own) for member in planned) == [0, 2, 2]


def test_a_plan_stays_while_the_assignment_stays():
    assigned = shared(12, "a", "b", "c")
    planned = plan(assigned, "a", "b", "c")
    assert plan(assigned, "a", "b", "c", before=planned) == planned


def test_of_a_lost_member_only_the_partitions_are_planned_that_it_held_or_stood_by_for():
    before = plan(shared(12, "a", "b", "c"), "a", "b", "c")
    lost = numbers_of(shared(12, "a", "b", "c"))["c"]
    after = {
        member: lanes(*sorted(own | (before[member] & lost)))
        for member, own in numbers_of(shared(12, "a", "b", "c")).items()
        if member != "c"
    }
    planned = plan(after, "a", "b", before=before)
    assert before["a"] - lost <= planned["a"]
    assert before["b"] - lost <= planned["b"]
    assert sorted(planned["a"] | planned["b"]) == list(range(12))


def test_a_member_that_stands_by_for_too_many_leaves_some_to_one_that_joins():
    before = {"a": frozenset({1, 3, 5, 7, 9, 11}), "b": frozenset({0, 2, 4, 6, 8, 10})}
    planned = plan(shared(12, "a", "b", "c"), "a", "b", "c", before=before)
    assert sorted(map(len, planned.values())) == [4, 4, 4]


def test_a_member_alone_stands_by_for_nothing():
    assert plan(shared(4, "a"), "a") == {"a": NOBODY}


def test_a_member_that_does_not_stand_by_gets_no_standby_but_its_partitions_have_one():
    planned = plan(shared(4, "old", "new"), "new")
    assert planned == {"new": frozenset({0, 2})}


def test_nobody_stands_by_where_no_member_does():
    assert plan(shared(4, "a", "b")) == {}


@given(
    st.integers(1, 40),
    st.integers(1, 6),
    st.sets(st.integers(0, 5), min_size=1),
    st.dictionaries(st.integers(0, 5), st.frozensets(st.integers(0, 60))),
)
def test_whatever_was_before_no_partition_has_two_standbys_and_none_is_on_its_own_worker(
    partitions, workers, willing, before
):
    assigned = shared(partitions, *map(str, range(workers)))
    planned = plan(assigned, *map(str, willing), before={str(member): each for member, each in before.items()})
    everything = [partition for each in planned.values() for partition in each]
    assert len(everything) == len(set(everything))
    for member, own in numbers_of(assigned).items():
        assert not planned.get(member, NOBODY) & own
    others = {lane.partition for member, each in assigned.items() for lane in each if {*map(str, willing)} - {member}}
    assert set(everything) == others


def test_a_lost_partition_goes_to_the_member_that_stood_by_for_it():
    stood_by = {"a": frozenset({4, 5}), "b": frozenset({6, 7})}
    assert inherited(lanes(4, 5, 6, 7), {"a": 4, "b": 4}, stood_by) == {"a": lanes(4, 5), "b": lanes(6, 7)}


def test_nobody_gets_more_than_an_even_share_because_it_stood_by():
    stood_by = {"a": frozenset({4, 5, 6, 7}), "b": NOBODY}
    assert inherited(lanes(4, 5, 6, 7), {"a": 2, "b": 2}, stood_by) == {"a": lanes(4, 5), "b": []}
    assert inherited(lanes(4, 5, 6), {"a": 2, "b": 2}, stood_by) == {"a": lanes(4, 5), "b": []}


def test_a_lost_partition_without_a_standby_goes_to_nobody_here():
    assert inherited(lanes(0), {"a": 0, "b": 0}, {"a": frozenset({3})}) == {"a": [], "b": []}


def test_the_word_of_a_member_is_read_back():
    assert decode_standbys(["orders-worker-1", encode_standbys({11, 2})]) == frozenset({2, 11})
    assert decode_standbys([encode_standbys(())]) == NOBODY
    assert decode_standbys(["orders-worker-1"]) is None
    assert decode_standbys(["standbys=1,x,-3,4"]) == frozenset({1, 4})
