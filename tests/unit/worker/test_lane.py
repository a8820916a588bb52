"""The lane without a broker: runs of commands go in, what a turn writes comes out."""

import gc
import weakref
from collections import defaultdict
from datetime import timedelta
from itertools import pairwise

import pytest
from aiokafka import ConsumerRecord
from hypothesis import given
from hypothesis import strategies as st

from order_service.domain.decision import UserCheck, answer
from order_service.domain.entry import MAX_REFUSED, Entry, ShortEntry, after_event, after_rejection
from order_service.domain.messages import Event, Rejection
from order_service.errors import HistoryError, RunLost
from order_service.sdk.testing import samples
from order_service.wire import avro
from order_service.wire.changelog import Position, WaitingCommand, decode_entry, decode_waiting
from order_service.wire.commands import encode_json_command
from order_service.wire.trace_context import TraceContext, trace_context_of
from order_service.worker.inbox import Run, decode_record
from order_service.worker.lane import RESTORED_AT_A_TIME, Lane, LanePolicy
from order_service.worker.table import Table
from order_service.worker.waiting_room import MAX_PER_ORDER
from tests.support.samples import (
    LATER,
    NOW,
    ORDER_ID,
    USER_ID,
    amend,
    but,
    cancel,
    create,
    deliver,
    entry_after,
    pay,
    ship,
)
from tests.support.tables import table_of
from tests.unit.worker.lane_world import CHECKS, Log, Outcome, World, users, wishes


def knowing(**policy):
    return World(LanePolicy(partition_count=1, commands_topic="commands", **policy), **{USER_ID: UserCheck.ACTIVE})


def restored(written):
    """Return the table that a claim restores from these values."""
    return table_of({order_id: decode_entry(value) for order_id, value in written.items()})


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
    assert decode_entry(changes.table[ORDER_ID]).version == 5
    assert (changes.next_offset, changes.last_timestamp_ms) == (6, 7)
    assert [record[0] for record in changes.events] == [ORDER_ID.encode()] * 5


def test_a_repeat_moves_the_position_and_makes_nothing_else():
    world = knowing()
    world.send(create)
    changes = world.send(create)
    assert (changes.events, changes.rejections, changes.table, changes.next_offset) == ([], [], {}, 2)
    assert changes


def test_each_decided_command_has_since_when_it_was_undecided():
    """A dead letter counts, too; a command that waits does so when it is decided, from the time of its record."""
    world = World()
    assert world.send(create).decided_since_ms == []
    unreadable = world.record(b"no command", b"key")
    world.lane.decide([decode_record(unreadable)], LATER)
    assert world.changes().decided_since_ms == [7]
    assert world.learn(USER_ID, UserCheck.ACTIVE, LATER).decided_since_ms == [7]
    assert world.send(create, pay, now=LATER).decided_since_ms == [7, 7]


def test_a_command_that_waited_over_a_restart_has_the_time_of_its_record():
    world, log = World(), Log()
    log.write(world.send(create, amend))
    world.restart(log)
    assert world.learn(USER_ID, UserCheck.ACTIVE, LATER).decided_since_ms == [7, 7]


def test_a_waiting_command_of_an_earlier_version_counts_from_when_it_was_read():
    world = World()
    world.lane.restore(Table(), [WaitingCommand(create, 0, NOW, None)], Position(1, "owner", 1, 7))
    assert world.learn(USER_ID, UserCheck.ACTIVE, LATER).decided_since_ms == [NOW.timestamp() * 1000]


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
def test_a_key_other_than_the_order_id_makes_a_dead_letter_also_for_a_known_order(key):
    world = knowing()
    for expected in (0, 1):
        world.lane.decide([decode_record(world.record(encode_json_command(create), key, (("trace", b"1"),)))], NOW)
        changes = world.changes()
        [(letter_key, value, headers)] = changes.dead_letters
        assert (letter_key, value) == (key, encode_json_command(create))
        assert (b"trace", b"1") in [(name.removeprefix("orig_").encode(), found) for name, found in headers]
        assert len(world.outcomes) == expected
        world.send(create)


def test_a_command_in_the_partition_of_another_key_makes_a_dead_letter():
    lane = Lane(0, LanePolicy(partition_count=4, commands_topic="commands"), lambda _: UserCheck.ACTIVE, print)
    record = ConsumerRecord("commands", 0, 0, 7, 0, ORDER_ID.encode(), encode_json_command(create), None, 0, 0, ())
    lane.decide([decode_record(record)], NOW)
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


def test_a_copy_of_a_waiting_command_is_a_repeat_where_the_room_is_full():
    world = World()
    waiting = [create, *(but(amend, command_id=f"amend-{n}") for n in range(MAX_PER_ORDER - 1))]
    world.send(*waiting)
    changes = world.send(create, waiting[-1])
    assert (world.outcomes, changes.outcomes) == (
        [],
        {("CreateOrder", "repeated", ""): 1, ("AmendOrder", "repeated", ""): 1},
    )
    world.send(but(waiting[-1], discount=1))
    assert world.answers() == {waiting[-1].command_id: "too_many_waiting"}


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
    records = [value for value in world.send(create, amend).waiting.values() if value is not None]
    again = World(policy)
    again.lane.restore(Table(), [decode_waiting(value) for value in reversed(records)], Position(2, "owner", 2, 7))
    assert [again.lane.next_offset, *again.lane.room.users()] == [2, USER_ID]
    again.settle(NOW + timedelta(seconds=61))
    assert again.answers() == {"create-1": "user_check_timed_out", "amend-1": "order_not_found"}


@pytest.mark.parametrize(
    ("headers", "trace"),
    [
        ((("traceparent", None), ("other", b"1"), ("traceparent", b"00-1")), TraceContext(b"00-1")),
        ((("tracestate", b"shop=1"), ("traceparent", b"00-1")), TraceContext(b"00-1", b"shop=1")),
        ((("traceparent", b"x" * 300),), None),
        ((), None),
    ],
)
def test_an_event_names_the_trace_of_its_command_however_long_that_waited(headers, trace):
    at_once, later, restarted = knowing(), World(), World()
    record = at_once.record(encode_json_command(create), ORDER_ID.encode(), headers)
    at_once.lane.decide([decode_record(record)], NOW)
    later.lane.decide([decode_record(record)], NOW)
    kept = [decode_waiting(value or b"") for value in later.changes().waiting.values()]
    restarted.lane.restore(Table(), kept, Position(1, "owner", 1, 7))
    for changes in (at_once.changes(), *(world.learn(USER_ID, UserCheck.ACTIVE) for world in (later, restarted))):
        [(_, _, made)] = changes.events
        assert trace_context_of(made) == trace
        assert (made.count(("command_offset", b"0")), len(changes.rejections)) == (1, 0)


class Broken(Table):
    """A table that holds an order that cannot be read."""

    def get(self, _order_id):
        raise HistoryError("version 3 of an order cannot follow on version 1")


def test_a_lane_knows_the_trace_of_the_command_that_it_could_not_decide():
    headers = (("traceparent", samples.TRACEPARENT.encode()),)
    trace_id = samples.TRACEPARENT.split("-")[1]
    at_once, later = knowing(), World()
    record = at_once.record(encode_json_command(create), ORDER_ID.encode(), headers)
    for world in (at_once, later):
        world.lane.decide([decode_record(record)], NOW)
        assert world.lane.trace_id is None, "all that it had is decided, or waits"
        world.lane.table = Broken()
    record = at_once.record(encode_json_command(amend), ORDER_ID.encode(), headers)
    with pytest.raises(HistoryError):
        at_once.lane.decide([decode_record(record)], NOW)
    with pytest.raises(HistoryError):
        later.learn(USER_ID, UserCheck.ACTIVE)
    assert (at_once.lane.trace_id, later.lane.trace_id) == (trace_id, trace_id)


def test_of_a_record_that_is_no_command_only_its_dead_letter_is_left():
    """Without help of the garbage collector: it can come late, and find gigabytes."""
    gc.disable()
    try:
        for value in (
            b"\xff",
            b"{",
            b'{"type": 1}',
            b'{"a":' * 2000,
            encode_json_command(create)[:-1] + b'"\xff"}',
            None,
        ):
            record, letters = buried(value)
            assert (record(), letters) == (None, 2), value
    finally:
        gc.enable()


def buried(value):
    """Bury two records, received as a worker does: what was returned from can still be held by an error."""
    world = World()
    received = [decode_record(world.record(value)) for _ in range(2)]
    world.lane.decide(received, NOW)
    return weakref.ref(received[0][0]), len(world.changes().dead_letters)


def test_of_many_orders_that_can_be_released_some_stay_for_the_next_turn():
    world = World()
    for number in range(5):
        world.send(
            but(create, order_id=f"o-{number}", command_id=f"c-{number}", user_id=f"u-{number}", actor="service:s")
        )
        world.lane.room.add_answer(f"u-{number}", UserCheck.ACTIVE)
    assert len(world.lane.room.take_released(NOW, limit=2)) == 2
    assert world.lane.room.has_answers()
    assert len(world.lane.room.take_released(NOW, limit=9)) == 3


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


def test_of_many_unpaid_orders_some_are_cancelled_in_the_next_turns():
    world = knowing(payment_due_s=60)
    order_ids = [f"order-{n}" for n in range(5)]
    world.send(*(but(create, order_id=order_id, command_id=f"create-{order_id}") for order_id in order_ids))
    assert [sorted(world.lane.due_orders(LATER, limit=2)) for _ in range(4)] == [
        order_ids[:2],
        order_ids[2:4],
        order_ids[4:],
        [],
    ]


def test_of_the_orders_that_a_sweep_has_found_those_that_are_closed_for_long_forget_their_commands():
    world = knowing(remember_closed_s=86_400)
    world.send(create, pay, ship, deliver, but(create, order_id="open", command_id="create-open"))
    for now in (NOW + timedelta(days=1, milliseconds=-1), NOW + timedelta(days=1)):
        world.lane.shorten([ORDER_ID, "open", "unknown"], now)
        changes = world.changes()
        is_due = now == NOW + timedelta(days=1)
        assert (changes.shortened, list(changes.table), bool(changes)) == (is_due, [ORDER_ID] * is_due, is_due)
    short = decode_entry(changes.table[ORDER_ID])
    assert (type(short), short.version, short.order.status) == (ShortEntry, 4, "delivered")
    world.send(create, but(create, tax=1), but(ship), but(cancel, command_id="new"))
    assert [rejection.reason for rejection in world.outcomes[5:]] == [
        "order_exists",
        "order_exists",
        "already_delivered",
        "already_delivered",
    ]
    world.lane.shorten([ORDER_ID], NOW + timedelta(days=9))
    assert not world.changes()


def test_a_lane_that_remembers_for_ever_shortens_nothing():
    world = knowing()
    world.send(create, cancel)
    world.lane.shorten([ORDER_ID], NOW + timedelta(days=9_999))
    assert not world.changes()


def test_a_paid_order_does_not_cancel_itself():
    world = knowing(payment_due_s=60)
    world.send(create, but(pay))
    world.lane.cancel_unpaid(world.lane.due_orders(LATER), LATER)
    assert not world.changes().events


def test_the_timers_come_back_from_the_table():
    world = knowing(payment_due_s=60)
    written = world.send(create).table
    again = knowing(payment_due_s=60)
    again.lane.restore(restored(written), [], Position(1, "owner", 1, 7))
    assert again.lane.due_orders(LATER) == [ORDER_ID]


def test_an_orders_time_from_a_fast_clock_stays_until_the_clock_reaches_it():
    ahead = NOW + timedelta(hours=2)
    written = knowing().send(create, now=ahead).table
    world = knowing()
    world.lane.restore(restored(written), [], Position(0, "owner", 0, None))
    assert decode_entry(world.send(pay, now=NOW).table[ORDER_ID]).changed_at == ahead
    shipped = world.send(ship, now=NOW + timedelta(minutes=1)).table[ORDER_ID]
    assert decode_entry(shipped).changed_at == ahead
    later = ahead + timedelta(minutes=1)
    assert decode_entry(world.send(deliver, now=later).table[ORDER_ID]).changed_at == later
    assert [event.version for event in world.outcomes] == [2, 3, 4]
    assert [event.occurred_at for event in world.outcomes] == [ahead, ahead, later]


steps = st.lists(
    st.one_of(
        st.tuples(st.just("send"), st.lists(wishes, min_size=1, max_size=4)),
        st.tuples(st.sampled_from(["answer", "forget"]), users),
        st.just(("settle", None)),
        st.just(("restart", None)),
    ),
    max_size=MAX_PER_ORDER // 4,
)


def told_at_once(commands):
    """Return what each command would have come to, had every user been known from the start."""
    entries: dict[str, Entry] = {}
    outcomes: dict[str, list[Outcome]] = defaultdict(list)
    for offset, command in enumerate(commands):
        order_id, entry = command.order_id, entries.get(command.order_id)
        match answer(command, entry, NOW, CHECKS.get(getattr(command, "user_id", ""))):
            case Event() as event:
                outcomes[order_id].append((offset, event.command_id, event.version))
                entries[order_id] = after_event(entry, event, avro.digest(avro.encode_event(event)))
            case Rejection() as rejection:
                outcomes[order_id].append((offset, rejection.command_id, rejection.reason))
                if entry is not None:
                    entries[order_id] = after_rejection(entry, rejection) or entry
    return outcomes, entries


@given(steps)
def test_an_order_is_the_fold_of_its_commands_in_log_order_despite_late_answers(taken):
    """Commands come in runs, answers late or never, the cache forgets them, and the lane is taken over in between."""
    world, log, sent = World(), Log(), []
    for step, what in taken:
        match step:
            case "send":
                world.lane.settle(NOW)  # as a turn does
                sent += what
                log.write(world.send(*what))
            case "answer" if world.lane.room.waits_for(what):
                world.known[what] = CHECKS[what]
                world.lane.room.add_answer(what, CHECKS[what])
            case "forget":
                world.known.pop(what, None)
            case "settle":
                log.write(world.settle())
            case "restart":
                log.write(world.changes())
                world.restart(log)
        assert set(log.waiting) == {waiting.key for queue in world.lane.room._queues.values() for waiting in queue}
        assert set(world.lane.room.users()) <= set(world.asked)
    while len(world.lane.room):
        user_id = world.lane.room.users()[0]
        log.write(world.learn(user_id, CHECKS[user_id]))
    expected, entries = told_at_once(sent)
    assert log.outcomes == expected
    assert log.table == dict(world.lane.table.items()) == entries
    assert log.waiting == {}
    assert not world.lane.room.has_answers()
    for outcomes in log.outcomes.values():
        versions = [said for _, _, said in outcomes if isinstance(said, int)]
        assert versions == list(range(1, len(versions) + 1))
    assert all(len(entry.refused) <= MAX_REFUSED for entry in entries.values())


def test_restoring_pauses_after_some_waiting_commands_and_after_some_orders():
    orders = {f"order-{number}": entry_after([create]) for number in range(3 * RESTORED_AT_A_TIME)}
    waiting = [WaitingCommand(but(create, order_id=f"waits-{n}"), n, NOW, None) for n in range(3 * RESTORED_AT_A_TIME)]
    lane = World(LanePolicy(partition_count=1, commands_topic="commands", payment_due_s=86_400)).lane
    restoring = lane.restoring(table_of(orders), waiting, Position(0, "owner", 0, None))
    restored = [0, *(len(lane.room) + len(lane._timers) for _ in restoring), len(orders) + len(waiting)]
    assert len(lane.room) + len(lane._timers) == restored[-1]
    assert max(after - before for before, after in pairwise(restored)) == RESTORED_AT_A_TIME
