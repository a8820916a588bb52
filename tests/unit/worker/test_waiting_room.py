"""The waiting room alone: who is released when, and what it keeps of those who left."""

from datetime import timedelta

from order_service.domain.decision import UserCheck
from order_service.wire.changelog import WaitingCommand
from order_service.worker.waiting_room import OLD_DEADLINES, WaitingRoom
from tests.support.samples import NOW, amend, but, create

ACTIVE = UserCheck.ACTIVE
SECOND = timedelta(seconds=1)


def wait(room, number, user_id="dana", now=NOW):
    """Add a create that waits, and a command behind it."""
    order_id = f"order-{number}"
    room.add(WaitingCommand(but(create, order_id=order_id, user_id=user_id), 2 * number, now, None))
    room.add(WaitingCommand(but(amend, order_id=order_id), 2 * number + 1, now, None))
    return order_id


def release(room, now=NOW, most=9):
    """Release what can be decided and let it go, as a lane does."""
    released = room.take_released(now, most)
    for order_id, _ in released:
        while room.head(order_id) is not None:
            room.pop_head(order_id)
    return released


def test_many_orders_of_one_user_are_released_oldest_first_over_several_turns():
    room = WaitingRoom(60)
    order_ids = [wait(room, number) for number in range(5)]
    room.add_answer("dana", ACTIVE)
    assert release(room, most=2) == [(order_ids[0], ACTIVE), (order_ids[1], ACTIVE)]
    assert room.waits_for("dana")
    assert room.has_answers()
    late = wait(room, 5)
    assert release(room, most=2) == [(order_ids[2], ACTIVE), (order_ids[3], ACTIVE)]
    assert release(room, most=2) == [(order_ids[4], ACTIVE), (late, ACTIVE)]
    assert (release(room), len(room), list(room.users()), room.has_answers()) == ([], 0, [], False)


def test_an_answer_and_a_deadline_release_an_order_once():
    room = WaitingRoom(60)
    answered, timed_out = wait(room, 1, "dana"), wait(room, 2, "sam")
    room.add_answer("dana", ACTIVE)
    assert release(room, NOW + 61 * SECOND) == [(answered, ACTIVE), (timed_out, UserCheck.TIMED_OUT)]
    room.add_answer("sam", ACTIVE)
    assert (release(room, NOW + 61 * SECOND), room.has_answers(), room.next_deadline()) == ([], False, None)


def test_what_has_left_is_forgotten_long_before_its_deadline():
    room = WaitingRoom(3600)
    wait(room, 0, "slow")
    for number in range(1, 10 * OLD_DEADLINES):
        wait(room, number, f"user-{number}", NOW + SECOND)
        room.add_answer(f"user-{number}", ACTIVE)
        release(room)
    assert len(room._deadlines) <= OLD_DEADLINES + 2
    assert room.next_deadline() == NOW + 3600 * SECOND
    assert release(room, NOW + 3601 * SECOND) == [("order-0", UserCheck.TIMED_OUT)]


def test_it_knows_how_many_wait_and_since_when():
    room = WaitingRoom(60)
    assert (len(room), room.oldest(), room.next_deadline()) == (0, None, None)
    wait(room, 1, "dana", NOW + SECOND)
    wait(room, 2, "sam", NOW)
    assert (len(room), room.oldest(), room.next_deadline()) == (4, NOW, NOW + 60 * SECOND)
    room.add_answer("sam", ACTIVE)
    release(room)
    assert (len(room), room.oldest()) == (2, NOW + SECOND)
