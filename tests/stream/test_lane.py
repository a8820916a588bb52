"""The lane without a broker: runs of commands go in, what a turn writes comes out."""

from collections import defaultdict
from datetime import timedelta
from typing import Any

import pytest
from aiokafka import ConsumerRecord
from hypothesis import given
from hypothesis import strategies as st

from order_service.domain.answer import MAX_REFUSED, UserCheck, after_event, after_rejection, answer
from order_service.domain.messages import Event, Rejection
from order_service.errors import RunLost
from order_service.stream.inbox import Run
from order_service.stream.lane import Lane, LanePolicy
from order_service.stream.waiting import MAX_PER_ORDER, Waiting
from order_service.stream.worker import _decoded
from order_service.wire import avro, changelog
from order_service.wire.changelog import Position
from order_service.wire.commands import decode_command, encode_json_command
from tests.samples import LATER, NOW, ORDER_ID, USER_ID, amend, but, cancel, create, deliver, pay, ship

POLICY = LanePolicy(partition_count=1, commands_topic="commands")


class World:
    """A lane, the users that are known to it, and those that it asks about."""

    def __init__(self, policy=POLICY, **known):
        self.known = known
        self.asked: list[str] = []
        self.lane = Lane(0, policy, self.known.get, self.asked.append)
        self.offset = 0
        self.outcomes = []

    def record(self, value, key=None, headers=()):
        record = ConsumerRecord("commands", 0, self.offset, 7, 0, key, value, None, 0, 0, headers)
        self.offset += 1
        return record

    def send(self, *commands, now=NOW):
        records = [self.record(encode_json_command(c), c.order_id.encode()) for c in commands]
        self.lane.decide([_decoded(record) for record in records], now)
        return self.changes()

    def learn(self, user_id, check, now=NOW):
        self.known[user_id] = check
        self.lane.room.answered(user_id, check)
        return self.settle(now)

    def settle(self, now=NOW):
        self.lane.settle(now)
        return self.changes()

    def changes(self):
        changes = self.lane.take_changes()
        self.outcomes += [avro.decode_event(value or b"") for _, value, _, _ in changes.events]
        self.outcomes += [avro.decode_rejection(value or b"") for _, value, _, _ in changes.rejections]
        return changes

    def answers(self):
        """Tell what came of each command, by its id: the version that it made, or why it was refused."""
        return {
            outcome.command_id: outcome.version if isinstance(outcome, Event) else outcome.reason
            for outcome in self.outcomes
        }


def knowing(**policy):
    return World(LanePolicy(partition_count=1, commands_topic="commands", **policy), **{USER_ID: UserCheck.ACTIVE})


def test_commands_become_events_rejections_and_the_folded_order():
    world = knowing()
    changes = world.send(create, amend, pay, ship, deliver, cancel)
    assert world.answers() == {
        "create-1": 1,
        "amend-1": 2,
        "pay-1": 3,
        "ship-1": 4,
        "deliver-1": 5,
        "cancel-1": "already_delivered",
    }
    assert list(changes.table) == [ORDER_ID]
    assert changes.table[ORDER_ID].version == 5
    assert (changes.next_offset, changes.last_timestamp_ms) == (6, 7)
    assert [record[0] for record in changes.events] == [ORDER_ID.encode()] * 5


def test_a_repeat_moves_the_position_and_makes_nothing_else():
    world = knowing()
    world.send(create)
    changes = world.send(create)
    assert (changes.events, changes.rejections, changes.table, changes.next_offset) == ([], [], {}, 2)
    assert changes


def test_nothing_in_is_nothing_out():
    assert not knowing().changes()


def test_offsets_may_have_holes_and_what_is_below_the_position_was_decided():
    world = knowing()
    world.offset = 10
    assert world.send(create).next_offset == 11
    world.offset = 5
    changes = world.send(amend)
    assert not changes
    assert world.answers() == {"create-1": 1}


@pytest.mark.parametrize("key", [None, b"", b"another"])
def test_a_key_that_is_not_the_orders_makes_a_dead_letter_also_for_an_order_that_is_here(key):
    world = knowing()
    for expected in (0, 1):
        world.lane.decide([_decoded(world.record(encode_json_command(create), key, (("trace", b"1"),)))], NOW)
        changes = world.changes()
        [(letter_key, value, _, headers)] = changes.dead_letters
        assert (letter_key, value) == (key, encode_json_command(create))
        assert (b"trace", b"1") in [(name.removeprefix("orig_").encode(), found) for name, found in headers]
        assert len(world.outcomes) == expected
        world.send(create)


def test_a_command_in_the_partition_of_another_key_makes_a_dead_letter():
    lane = Lane(0, LanePolicy(partition_count=4, commands_topic="commands"), lambda _: UserCheck.ACTIVE, print)
    record = ConsumerRecord("commands", 0, 0, 7, 0, ORDER_ID.encode(), encode_json_command(create), None, 0, 0, ())
    lane.decide([_decoded(record)], NOW)
    assert dict(lane.take_changes().dead_reasons) == {"wrong_partition": 1}


def test_a_run_from_before_the_seek_is_passed_over_and_a_missing_one_is_an_error():
    lane = knowing().lane
    lane.follow(7)
    assert not lane.accept(Run(6, 0, []))
    assert lane.accept(Run(7, 0, []))
    assert lane.accept(Run(7, 1, []))
    with pytest.raises(RunLost, match="expected run 2"):
        lane.accept(Run(7, 3, []))


def test_a_create_waits_for_its_user_and_the_commands_behind_it_keep_their_order():
    world = World()
    changes = world.send(create, amend, pay)
    assert (world.asked, world.outcomes, len(world.lane.room)) == ([USER_ID], [], 3)
    assert len(changes.waiting) == 3
    assert changes.next_offset == 3
    decided = world.learn(USER_ID, UserCheck.ACTIVE)
    assert world.answers() == {"create-1": 1, "amend-1": 2, "pay-1": 3}
    assert decided.waiting == dict.fromkeys(changes.waiting)
    assert len(world.lane.room) == 0


def test_a_refused_create_lets_the_next_one_ask_anew():
    world = World()
    again = but(create, command_id="create-2", user_id="sam", actor="service:shop")
    world.send(create, again, amend)
    world.learn(USER_ID, UserCheck.NOT_FOUND)
    assert world.answers() == {"create-1": "user_not_found"}
    assert world.asked == [USER_ID, "sam"]
    world.learn("sam", UserCheck.ACTIVE)
    assert world.answers() == {"create-1": "user_not_found", "create-2": 1, "amend-1": "order_not_found"}


def test_at_most_32_commands_of_an_order_wait_and_others_are_not_concerned():
    world = World()
    world.send(create, *(but(amend, command_id=f"amend-{n}") for n in range(MAX_PER_ORDER)))
    assert world.answers() == {f"amend-{MAX_PER_ORDER - 1}": "too_many_waiting"}
    world.send(but(create, order_id="order-2", command_id="create-2"))
    assert len(world.lane.room) == MAX_PER_ORDER + 1


def test_a_deadline_of_the_user_check_passes_and_the_rest_is_decided():
    world = World(LanePolicy(partition_count=1, commands_topic="commands", user_deadline_s=60))
    world.send(create, amend)
    world.settle(NOW + timedelta(seconds=60))
    assert world.outcomes == []
    world.settle(NOW + timedelta(seconds=61))
    assert world.answers() == {"create-1": "user_check_timed_out", "amend-1": "order_not_found"}


def test_a_commands_own_deadline_passes_while_it_waits():
    world = World()
    world.send(but(create, decide_by=LATER))
    world.settle(LATER)
    assert world.outcomes == []
    world.settle(LATER + timedelta(milliseconds=1))
    assert world.answers() == {"create-1": "deadline_passed"}


def test_a_restart_keeps_what_waits_and_does_not_extend_its_deadline():
    policy = LanePolicy(partition_count=1, commands_topic="commands", user_deadline_s=60)
    world = World(policy)
    records = world.send(create, amend).waiting
    again = World(policy)
    waiting = []
    for value in records.values():
        record = changelog.decode_waiting(value)
        waiting.append(Waiting(decode_command(record.value), record.offset, record.came_at, None))
    again.lane.restore({}, waiting[::-1], Position(2, "owner", 2, 7))
    assert [again.lane.next_offset, *again.lane.room.users()] == [2, USER_ID]
    again.settle(NOW + timedelta(seconds=61))
    assert again.answers() == {"create-1": "user_check_timed_out", "amend-1": "order_not_found"}


def test_of_many_orders_that_can_be_released_some_stay_for_the_next_turn():
    world = World()
    for number in range(5):
        world.send(
            but(create, order_id=f"o-{number}", command_id=f"c-{number}", user_id=f"u-{number}", actor="service:s")
        )
        world.lane.room.answered(f"u-{number}", UserCheck.ACTIVE)
    assert len(world.lane.room.take_released(NOW, most=2)) == 2
    assert world.lane.room.has_answers()
    assert len(world.lane.room.take_released(NOW, most=9)) == 3


def test_an_unpaid_order_cancels_itself_once():
    world = knowing(payment_due_s=60)
    world.send(create)
    assert world.lane.due_orders(NOW + timedelta(seconds=59)) == []
    due = world.lane.due_orders(NOW + timedelta(seconds=60))
    assert due == [ORDER_ID]
    for _ in range(2):
        world.lane.cancel_unpaid(due, LATER)
        world.changes()
    assert [outcome.fact.reason for outcome in world.outcomes[1:]] == ["payment_timeout"]


def test_a_paid_order_does_not_cancel_itself():
    world = knowing(payment_due_s=60)
    world.send(create, but(pay))
    world.lane.cancel_unpaid(world.lane.due_orders(LATER), LATER)
    assert not world.changes().events


def test_the_timers_come_back_from_the_table():
    world = knowing(payment_due_s=60)
    entries = world.send(create).table
    again = knowing(payment_due_s=60)
    again.lane.restore(entries, [], Position(1, "owner", 1, 7))
    assert again.lane.due_orders(LATER) == [ORDER_ID]


ORDERS, USERS = ("o-1", "o-2", "o-3"), ("u-1", "u-2")
CHECKS = {"u-1": UserCheck.ACTIVE, "u-2": UserCheck.NOT_FOUND}


def wishes(number, kind, order_id, user_id):
    command = {"create": create, "amend": amend, "pay": pay, "cancel": cancel}[kind]
    named = but(command, order_id=order_id, command_id=f"c-{number}", actor="service:shop")
    return but(named, user_id=user_id) if kind == "create" else named


steps = st.lists(
    st.one_of(
        st.tuples(
            st.sampled_from(["create", "create", "amend", "pay", "cancel"]),
            st.sampled_from(ORDERS),
            st.sampled_from(USERS),
        ),
        st.sampled_from(USERS),
    ),
    max_size=30,
)


def told_at_once(commands):
    """Say what each command would have come to, had every user been known from the start."""
    entries: dict[str, Any] = {}
    answers: dict[str, Any] = {}
    for command in commands:
        entry = entries.get(command.order_id)
        match answer(command, entry, NOW, CHECKS.get(getattr(command, "user_id", ""))):
            case Event() as event:
                answers[event.command_id] = event.version
                entries[command.order_id] = after_event(entry, event, avro.digest(avro.encode_event(event)))
            case Rejection() as rejection:
                answers[rejection.command_id] = rejection.reason
                entries[command.order_id] = after_rejection(entry, rejection)
    return answers, {order_id: entry for order_id, entry in entries.items() if entry is not None}


@given(steps)
def test_whenever_the_answers_come_an_order_is_the_fold_of_its_commands_in_the_order_of_the_log(taken):
    world = World()
    sent: list[Any] = []
    for step in taken:
        if isinstance(step, tuple):
            sent.append(wishes(len(sent), *step))
            world.send(sent[-1])
        elif step in world.asked:
            world.learn(step, CHECKS[step])
    for user_id in USERS:
        world.learn(user_id, CHECKS[user_id])
    expected, entries = told_at_once(sent)
    assert world.answers() == expected
    assert dict(world.lane.table.items()) == entries
    assert len(world.lane.room) == 0
    versions = defaultdict(list)
    for outcome in world.outcomes:
        if isinstance(outcome, Event):
            versions[outcome.order_id].append(outcome.version)
    assert all(found == list(range(1, len(found) + 1)) for found in versions.values())
    assert all(len(entry.refused) <= MAX_REFUSED for entry in entries.values())
