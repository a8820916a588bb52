"""The newest position of a partition, from the records at the end of its changelog."""

import asyncio

import pytest

from order_service.errors import DamagedError
from order_service.operations import positions
from order_service.operations.positions import newest_in, newest_positions
from order_service.wire import changelog
from order_service.wire.changelog import BARRIER_KEY, POSITION_KEY, RELEASE_KEY, Position
from tests.unit.operations.topics_in_memory import TABLE, MemoryReader, Topics


def read(reader):
    """Return the newest position of partition 0."""
    return asyncio.run(newest_positions(reader, [0]))[0]


def position(next_offset, owner="one"):
    return POSITION_KEY, changelog.encode(Position(next_offset, owner, 9, None))


@pytest.mark.parametrize(
    ("records", "offset", "owner", "is_released"),
    [
        pytest.param([], None, None, False, id="a new partition has no position"),
        pytest.param([position(1), position(2, "two")], 2, "two", False, id="the newest position counts"),
        pytest.param([position(1), (RELEASE_KEY, b"one")], 1, None, True, id="its owner has released it"),
        pytest.param([position(1), (RELEASE_KEY, b"two")], 1, "one", False, id="a release of another owner"),
        pytest.param([(RELEASE_KEY, b"one"), position(1)], 1, "one", False, id="a release before the position"),
        pytest.param([position(1), (BARRIER_KEY, b"x"), (b"o-1", b"")], 1, "one", False, id="other records"),
        pytest.param([position(1), (POSITION_KEY, None)], None, None, False, id="the position was deleted"),
    ],
)
def test_the_newest_position_and_its_owner(records, offset, owner, is_released):
    topics = Topics()
    newest = newest_in([topics.append(TABLE, key, value) for key, value in records])
    assert (newest.owner, newest.is_released, newest.fault) == (owner, is_released, "")
    assert (newest.position and newest.position.next_offset) == offset


def test_a_position_that_cannot_be_read_says_where_it_is():
    topics = Topics()
    newest = newest_in([topics.append(TABLE, *position(1)), topics.append(TABLE, POSITION_KEY, b"\x07")])
    assert newest.position is None
    assert f"{TABLE} partition 0 offset 1 cannot be read" in newest.fault


def test_a_position_before_many_other_records_is_found(monkeypatch):
    monkeypatch.setattr(positions, "FIRST_WINDOW", 2)
    topics = Topics()
    topics.append(TABLE, *position(7))
    for number in range(100):
        topics.append(TABLE, b"o-%d" % number, b"")
    assert read(MemoryReader(topics)).position.next_offset == 7


def test_a_damaged_changelog_is_a_fault_of_its_partition():
    topics = Topics()
    topics.append(TABLE, *position(7))
    reader = MemoryReader(topics)
    reader.error = DamagedError((TABLE, 0), 5)
    assert "damaged at offset 5" in read(reader).fault
