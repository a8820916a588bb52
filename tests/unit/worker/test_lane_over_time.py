"""The lane as time passes: deadlines race with answers, and whichever comes first decides a command, once."""

from collections import defaultdict
from datetime import datetime, timedelta
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from order_service.domain.decision import UserCheck, answer
from order_service.domain.entry import Entry, after_event, after_rejection
from order_service.domain.messages import Command, Event, Rejection
from order_service.wire import avro
from order_service.wire.commands import encode_json_command
from order_service.worker.bounds import Bound
from order_service.worker.inbox import Run, decode_record
from order_service.worker.lane import LanePolicy
from tests.support.samples import LATER, NOW, USER_ID, amend, but, create
from tests.unit.worker.lane_world import CHECKS, Log, World, offset_of, users, wishes

DEADLINE = timedelta(seconds=60)
POLICY = LanePolicy(partition_count=1, commands_topic="commands", user_deadline_s=60, waiting_max=3)


def at(seconds):
    return NOW + timedelta(seconds=seconds)


def settle_all(world, now):
    """Settle as a turn does, until nothing is left that can be decided."""
    while world.lane.settle(now):
        pass


def test_every_record_below_the_position_is_skipped_and_the_one_at_it_is_not():
    world = World(**{USER_ID: UserCheck.ACTIVE})
    world.send(create, amend)
    for offset in (0, 1):
        world.offset = offset
        assert not world.send(but(amend, command_id=f"again-{offset}"))
    assert world.send(but(amend, command_id="next")).next_offset == 3
    assert world.answers() == {"create-1": 1, "amend-1": 2, "next": 3}


def test_a_new_seek_restarts_the_run_numbers_and_runs_of_other_seeks_are_ignored():
    lane = World().lane
    for seek in (7, 9):
        lane.follow(seek)
        assert [lane.accept(Run(other, 0, [])) for other in (seek - 1, seek + 1)] == [False, False]
        assert [lane.accept(Run(seek, number, [])) for number in (0, 1)] == [True, True]


def test_a_commands_own_deadline_is_kept_when_it_comes_before_that_of_the_user_check():
    world = World(POLICY)
    world.send(but(create, decide_by=at(5)))
    assert world.lane.room.next_deadline() == at(5)
    world.settle(at(5))
    assert world.outcomes == []
    world.settle(at(6))
    assert world.answers() == {"create-1": "deadline_passed"}


def test_a_key_that_is_not_the_orders_does_not_join_the_commands_that_wait():
    world = World()
    world.send(create)
    for key in (None, b"another"):
        world.lane.decide([decode_record(world.record(encode_json_command(amend), key))], NOW)
    changes = world.changes()
    assert dict(changes.dead_reasons) == {"key_missing": 1, "key_mismatch": 1}
    assert (len(world.lane.room), changes.waiting) == (1, {})


def test_the_deadline_of_a_create_counts_from_its_arrival():
    world = World(POLICY)
    world.send(create)
    world.send(but(create, command_id="create-2", user_id="sam", actor="service:shop"), now=at(10))
    world.learn(USER_ID, UserCheck.NOT_FOUND, at(50))
    assert world.lane.room.next_deadline() is not None
    world.settle(at(70))
    assert world.answers() == {"create-1": "user_not_found"}
    world.settle(at(71))
    assert world.answers() == {"create-1": "user_not_found", "create-2": "user_check_timed_out"}


def test_an_answer_in_time_counts_even_if_its_turn_is_after_the_deadline():
    world = World(POLICY)
    world.send(create)
    world.lane.room.add_answer(USER_ID, UserCheck.ACTIVE)
    world.settle(LATER)
    assert world.answers() == {"create-1": 1}


def test_an_answer_after_the_timeout_is_not_wanted_and_changes_nothing():
    world = World(POLICY)
    world.send(create)
    world.settle(at(61))
    assert (list(world.lane.room.users()), world.lane.room.waits_for(USER_ID)) == ([], False)
    world.lane.room.add_answer(USER_ID, UserCheck.ACTIVE)
    assert not world.lane.room.has_answers()
    assert not world.learn(USER_ID, UserCheck.ACTIVE, at(62))
    assert world.answers() == {"create-1": "user_check_timed_out"}


def test_a_lane_is_full_while_the_commands_that_wait_are_too_large():
    world = World(structs.replace(POLICY, waiting_max=1_000, waiting_bytes=Bound(20_000, 1_000_000)))
    world.send(create)
    assert not world.lane.is_full()
    world.send(but(amend, metadata={str(number): "v" * 500 for number in range(20)}))
    assert not world.lane.is_full()
    world.send(but(amend, command_id="amend-2", metadata={str(number): "w" * 500 for number in range(20)}))
    assert world.lane.is_full()
    world.learn(USER_ID, UserCheck.ACTIVE)
    assert (world.lane.is_full(), world.lane.room.size_bytes) == (False, 0)


def test_a_lane_is_full_until_some_of_what_waits_is_decided():
    world = World(POLICY)
    world.send(create, amend)
    assert not world.lane.is_full()
    world.send(but(amend, command_id="amend-2"))
    assert world.lane.is_full()
    world.learn(USER_ID, UserCheck.ACTIVE)
    assert not world.lane.is_full()
    assert world.answers() == {"create-1": 1, "amend-1": 2, "amend-2": 3}


class Lived:
    """A world with a clock, and all that was sent to it with the time at which it came."""

    def __init__(self):
        self.world = World(POLICY)
        self.log = Log()
        self.seconds = 0
        self.sent: list[tuple[Command, datetime]] = []
        self.made: dict[str, list[tuple[int, Event | Rejection]]] = defaultdict(list)

    @property
    def now(self):
        return at(self.seconds)

    def turn(self, commands=()):
        """Take one turn: what waits and can be decided, then what came in."""
        settle_all(self.world, self.now)
        self.sent += [(command, self.now) for command in commands]
        records = [self.world.record(encode_json_command(c), c.order_id.encode()) for c in commands]
        self.world.lane.decide([decode_record(record) for record in records], self.now)
        self._write(self.world.changes())
        deadline = self.world.lane.room.next_deadline()
        assert deadline is None or deadline >= self.now

    def _write(self, changes):
        self.log.write(changes)
        found: list[tuple[int, Any]] = [
            *((offset_of(headers), avro.decode_event(value or b"")) for _, value, headers in changes.events),
            *((offset_of(headers), avro.decode_rejection(value or b"")) for _, value, headers in changes.rejections),
        ]
        for offset, outcome in sorted(found, key=lambda made: made[0]):
            self.made[outcome.order_id].append((offset, outcome))

    def restart(self):
        self.world.restart(self.log)


def with_deadline(command, seconds):
    return but(command, decide_by=None if seconds is None else at(seconds))


dated = st.builds(with_deadline, wishes, st.sampled_from([None, None, None, 5, 30, 90, 200]))
steps = st.lists(
    st.one_of(
        st.tuples(st.just("send"), st.lists(dated, min_size=1, max_size=3)),
        st.tuples(st.sampled_from(["answer", "forget"]), users),
        st.tuples(st.just("pass"), st.sampled_from([1, 20, 59, 61])),
        st.just(("turn", None)),
        st.just(("restart", None)),
    ),
    max_size=10,  # at most 30 commands: none is one too many for the room of an order
)


@given(steps)
def test_an_answer_or_a_deadline_decides_each_command_once_and_by_the_rules(taken):
    lived = Lived()
    for step, what in taken:
        match step:
            case "send":
                lived.turn(what)
            case "answer" if lived.world.lane.room.waits_for(what):
                lived.world.known[what] = CHECKS[what]
                lived.world.lane.room.add_answer(what, CHECKS[what])
            case "forget":
                lived.world.known.pop(what, None)
            case "pass":
                lived.seconds += what
            case "turn":
                lived.turn()
            case "restart":
                lived.turn()
                lived.restart()
    lived.seconds += 61  # no answer comes any more, and no command has to wait longer
    lived.turn()
    assert (len(lived.world.lane.room), lived.log.waiting) == (0, {})
    by_the_rules(lived)


def by_the_rules(lived):
    """Decide all sent commands again, order by order, at the lane's times, and check that the outcomes are the same."""
    for order_id in {command.order_id for command, _ in lived.sent}:
        entry: Entry | None = None
        made = dict(lived.made[order_id])
        assert list(made) == [offset for offset, _ in lived.made[order_id]] == sorted(made)  # once, and in order
        for offset, (command, came_at) in enumerate(lived.sent):
            if command.order_id == order_id:
                entry = decided_again(command, came_at, entry, made.pop(offset, None))
        assert made == {}
        assert lived.log.table.get(order_id) == entry


def decided_again(command, came_at, entry, outcome):
    """Check one outcome against the rules, and give the order after it; no outcome is one that repeats."""
    if outcome is None:
        assert not isinstance(answer(command, entry, came_at, UserCheck.ACTIVE), Event | Rejection)
        return entry
    decided_at = outcome.occurred_at if isinstance(outcome, Event) else outcome.rejected_at
    check = CHECKS.get(getattr(command, "user_id", ""))
    if isinstance(outcome, Rejection) and outcome.reason == "user_check_timed_out":
        assert decided_at > came_at + DEADLINE
        check = UserCheck.TIMED_OUT
    assert answer(command, entry, decided_at, check) == outcome
    if isinstance(outcome, Event):
        return after_event(entry, outcome, avro.digest(avro.encode_event(outcome)))
    return after_rejection(entry, outcome)
