"""The waiting room by user, from its changelog, in bounded steps."""

import asyncio
import threading
from datetime import datetime, timedelta
from typing import Any

import pytest
from aiokafka.structs import TopicPartition

from order_service.errors import HistoryError
from order_service.operations.overview.bounded_reads import SLICE, SLICE_BYTES, ends_of_a_read, in_slices
from order_service.operations.overview.waiting_users import USERS_MAX, WaitingUser, WaitingUsers, _Waiting
from order_service.wire import changelog
from order_service.wire.changelog import BARRIER_KEY, WaitingCommand
from tests.support.samples import NOW, but, create, pay
from tests.unit.operations.topics_in_memory import WAITING, MemoryReader, Topics


def waiting(order_id, offset=0, seconds=0, command=create, **changes):
    entry = WaitingCommand(but(command, order_id=order_id, **changes), offset, NOW + timedelta(seconds=seconds), None)
    return entry.key, changelog.encode(entry)


def room_of(topics, users=None):
    reader: Any = MemoryReader(topics)
    return asyncio.run((users or WaitingUsers()).read(reader))


def test_nobody_waits():
    room = room_of(Topics())
    assert (room.is_complete, room.command_count, room.users) == (True, 0, [])


def test_users_are_listed_with_their_commands_and_their_oldest_the_longest_waiting_first():
    topics = Topics()
    topics.append(WAITING, BARRIER_KEY, b"x")
    topics.append(WAITING, *waiting("o-1", 1, 20, user_id="erin"))
    topics.append(WAITING, *waiting("o-2", 2, 10, user_id="dana"))
    topics.append(WAITING, *waiting("o-2", 3, 30, command=pay))
    topics.append(WAITING, *waiting("o-3", 4, 0, user_id="gone"))
    topics.append(WAITING, waiting("o-3", 4)[0], None)
    room = room_of(topics)
    assert (room.command_count, room.user_count) == (3, 2)
    assert room.users == [
        WaitingUser("dana", 2, NOW + timedelta(seconds=10), "o-2"),
        WaitingUser("erin", 1, NOW + timedelta(seconds=20), "o-1"),
    ]


def test_a_command_whose_create_does_not_wait_has_no_user():
    topics = Topics()
    topics.append(WAITING, *waiting("o-1", command=pay))
    assert [user.user_id for user in room_of(topics).users] == [None]


def test_only_so_many_users_are_listed_and_all_are_counted():
    topics = Topics()
    for number in range(USERS_MAX + 7):
        topics.append(WAITING, *waiting(f"o-{number}", number, number, user_id=f"user-{number}"))
    room = room_of(topics)
    assert (room.user_count, len(room.users), room.users[0].user_id) == (USERS_MAX + 7, USERS_MAX, "user-0")


@pytest.mark.parametrize(
    ("count", "size_bytes", "most"),
    [
        pytest.param(3 * SLICE + 1, 10, SLICE, id="many commands"),
        pytest.param(10, SLICE_BYTES // 2, 2, id="large commands"),
    ],
)
async def test_a_fetch_is_handled_in_slices_between_which_the_server_answers(count, size_bytes, most):
    record: Any = Topics().append(WAITING, b"key", b"x" * size_bytes)
    handled = 0
    at_once: list[int] = []

    async def handle():
        nonlocal handled
        async for taken in in_slices([record] * count):
            handled += len(taken)

    async def answer():
        last = 0
        while last < count:
            at_once.append(handled - last)
            last = handled
            await asyncio.sleep(0)

    await asyncio.gather(handle(), answer())
    assert (sum(at_once), max(at_once)) == (count, most)


def test_a_full_waiting_room_is_sorted_beside_the_loop_that_serves_requests():
    """Of 240,000 commands, it takes a second. They wait while the User Service is away, when operators look."""
    threads = set()

    class Time(datetime):
        def __lt__(self, other):
            threads.add(threading.get_ident())
            return super().__lt__(other)

    users = WaitingUsers()
    for day in (2, 1):
        users._waiting[str(day).encode()] = _Waiting(f"user-{day}", f"o-{day}", Time(2026, 12, day, tzinfo=NOW.tzinfo))
    assert [user.user_id for user in room_of(Topics(), users).users] == ["user-1", "user-2"]
    assert threads
    assert threading.get_ident() not in threads


def test_a_long_changelog_is_read_in_several_steps_and_then_only_what_is_new():
    topics, users = Topics(), WaitingUsers(offsets_max=10)
    for number in range(25):
        topics.append(WAITING, *waiting(f"o-{number}", number))
    read = [room_of(topics, users) for _ in range(3)]
    assert [(room.is_complete, room.command_count) for room in read] == [(False, 10), (False, 20), (True, 25)]
    topics.append(WAITING, waiting("o-3", 3)[0], None)
    assert room_of(topics, users).command_count == 24


def test_a_changelog_that_was_recreated_is_read_again():
    topics, users = Topics(), WaitingUsers()
    for number in range(5):
        topics.append(WAITING, *waiting(f"o-{number}", number))
    assert room_of(topics, users).command_count == 5
    again = Topics()
    again.append(WAITING, *waiting("o-9"))
    assert room_of(again, users).command_count == 1


def test_a_record_that_cannot_be_read_is_an_error():
    topics = Topics()
    topics.append(WAITING, b"o-1\x000", b"\x07")
    with pytest.raises(HistoryError):
        room_of(topics)


@pytest.mark.parametrize(
    ("begins", "ends", "expected"),
    [
        pytest.param((0, 0), (5, 5), (5, 5), id="little is read at once"),
        pytest.param((0, 0), (100, 3), (5, 3), id="each partition has its share"),
        pytest.param((0, 3), (100, 3), (10, 3), id="one that is read leaves its share to the others"),
        pytest.param((7, 3), (7, 3), (7, 3), id="nothing is new"),
    ],
)
def test_how_far_a_read_goes(begins, ends, expected):
    partitions = [TopicPartition("t", number) for number in range(2)]
    stops = ends_of_a_read(dict(zip(partitions, begins, strict=True)), dict(zip(partitions, ends, strict=True)), 10)
    assert tuple(stops.values()) == expected
