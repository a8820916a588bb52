"""What a rebuild derives from the other topics is what the lane itself holds; what contradicts it is refused."""

import asyncio
from datetime import timedelta
from typing import Any

import pytest
from aiokafka.structs import TopicPartition
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from order_service.domain.decision import UserCheck
from order_service.domain.entry import FullEntry, ShortEntry, short_entry
from order_service.domain.order import Delivered
from order_service.errors import DamagedError, OperationRefused
from order_service.operations.rebuild.rebuild import LOSSES_MAX, recorded_losses
from order_service.operations.rebuild.rebuild_plan import (
    MISSING_COMMAND,
    NOT_RESTORED,
    TRUNCATED,
    PartitionLook,
    Progress,
)
from order_service.wire import changelog, operations
from order_service.wire.changelog import BARRIER_KEY, POSITION_KEY, REBUILDING, Ends, waiting_key
from order_service.wire.commands import encode_json_command
from order_service.wire.headers import command_offset_of
from order_service.wire.operations import LaneResumed, PartitionRebuilt
from order_service.worker import records
from tests.support.samples import NOW, amend, cancel, create, pay, ship
from tests.unit.operations.topics_in_memory import (
    COMMANDS,
    DEAD_LETTERS,
    EVENTS,
    KNOWN,
    LATER,
    NAMES,
    REJECTIONS,
    TABLE,
    WAITING,
    MemoryReader,
    Topics,
    honest,
    moved,
    named,
)
from tests.unit.worker.lane_world import CHECKS, wishes

LONG_AGO = NOW - timedelta(days=3650)


def plan_of(topics, settled=None, reader=None):
    """Look at the topics once, and return the plan."""
    return asyncio.run(look_at(reader or MemoryReader(topics)).plan(topics.ends, settled))


def look_at(reader: Any) -> PartitionLook:
    return PartitionLook(reader, 0, 1, Progress(lambda _: None, lambda _: None))


def lose(topics, *names):
    """Make changelogs as empty as a topic that was deleted and created again."""
    for name in names:
        topics.records[name].clear()
        topics.starts[name] = topics.ends[name] = 0


def expected_entries(plan):
    return {order_id: plan.changelogs.expected(order_id) for order_id in plan.outcomes.entries}


def assert_rebuilt(topics, plan):
    """Check that a plan has the table and the waiting room of the lane itself, whatever that has forgotten.

    Commands at or after the position are decided again: they have no outcome.
    """
    lane, next_offset = topics.lane, plan.position.next_offset
    expected, held = expected_entries(plan), dict(lane.table.items())
    forgotten = {order_id for order_id, entry in held.items() if type(entry) is ShortEntry}
    assert expected | {order_id: short_entry(expected[order_id]) for order_id in forgotten} == held
    waiting = {key: structs.replace(each, queued_at=NOW) for key, each in plan.waiting.items()}
    queued = [each for queue in lane.room._queues.values() for each in queue if each.offset < next_offset]
    assert waiting == {each.key: structs.replace(each, queued_at=NOW) for each in queued}
    assert plan.position.waiting_count == len(waiting)
    outcomes = [*topics.records[EVENTS], *topics.records[REJECTIONS], *topics.records[DEAD_LETTERS]]
    answered = [offset for record in outcomes if (offset := command_offset_of(record.headers)) is not None]
    assert max(answered, default=-1) < next_offset <= lane.next_offset


@pytest.fixture
def topics():
    return honest()


def test_an_honest_partition_is_intact(topics):
    plan = plan_of(topics)
    assert plan.is_intact
    assert not plan.difference
    assert (plan.losses, plan.unreadable, plan.notes) == ([], {}, [])
    assert plan.is_owner_known
    assert_rebuilt(topics, plan)


def test_a_partition_that_nothing_was_decided_in_is_intact():
    plan = plan_of(Topics())
    assert plan.is_intact
    topics = Topics()
    topics.append(COMMANDS, b"o-1", b"not decided yet")
    assert plan_of(topics).is_intact


@pytest.mark.parametrize("lost", [(TABLE,), (WAITING,), (TABLE, WAITING)])
def test_lost_changelogs_are_derived_from_the_other_topics(topics, lost):
    lose(topics, *lost)
    plan = plan_of(topics)
    assert not plan.is_intact
    assert_rebuilt(topics, plan)
    assert plan.is_owner_known == (TABLE not in lost)
    assert len(plan.difference.missing) == (len(topics.lane.table) if TABLE in lost else 0)


steps = st.one_of(
    st.lists(wishes, min_size=1, max_size=4),
    st.sampled_from(sorted(CHECKS)),
    st.just("later"),
    st.just("forget"),
    st.just("dead letter"),
)


def played(history):
    """Decide a history with a lane: commands, answers of the User Service, passing time and records of no command."""
    known = dict(KNOWN)
    topics, now = Topics(), NOW
    topics.append(WAITING, BARRIER_KEY, b"of the first claim")
    topics.lane._known = known.get
    for step in history:
        if step == "later":
            now += timedelta(hours=2)
            topics.turn(now=now)
        elif step == "forget":
            topics.forget(now)
        elif step == "dead letter":
            topics.send((b"o-1", b"not a command"), now=now)
        elif isinstance(step, str):
            known[step] = CHECKS[step]
            topics.lane.room.add_answer(step, CHECKS[step])
            topics.turn(now=now)
        else:
            topics.send(*step, now=now)
    return topics


@given(st.lists(steps, max_size=12), st.sets(st.sampled_from([TABLE, WAITING])))
def test_the_fold_of_any_history_is_what_the_lane_holds(history, lost):
    topics = played(history)
    lose(topics, *lost)
    plan = plan_of(topics)
    assert_rebuilt(topics, plan)
    if not lost:
        assert plan.is_intact


@given(st.lists(steps, max_size=10), st.integers(0, 30), st.integers(0, 30))
def test_the_fold_of_truncated_changelogs_is_what_the_lane_holds(history, table_count, waiting_count):
    topics = played(history)
    for name, count in ((TABLE, table_count), (WAITING, waiting_count)):
        del topics.records[name][count:]
    assert_rebuilt(topics, plan_of(topics))


def test_orders_that_have_forgotten_are_intact_and_repeats_after_that_are_new_commands(topics):
    topics.forget(LATER + timedelta(hours=1))
    assert type(topics.entry("o-1")[1]) is type(topics.entry("o-3")[1]) is ShortEntry
    topics.send(named(create, "o-1"), named(pay, "o-1"), named(cancel, "o-3"), now=LATER + timedelta(hours=2))
    assert len(topics.records[REJECTIONS]) == 6, "the one before, two commands that waited for long, and three repeats"
    plan = plan_of(topics)
    assert plan.is_intact
    assert_rebuilt(topics, plan)


@pytest.mark.parametrize(
    "change",
    [{"version": 3}, {"head": bytes(16)}, {"changed_at": NOW}, {"order": Delivered("another")}],
    ids=lambda change: next(iter(change)),
)
def test_a_short_entry_that_differs_from_its_events_is_written_again(topics, change):
    topics.forget(LATER + timedelta(hours=1))
    index, entry = topics.entry("o-1")
    topics.replace(TABLE, index, value=changelog.encode(structs.replace(entry, **change)))
    plan = plan_of(topics)
    assert plan.difference.behind | plan.difference.changed == {"o-1"}
    assert type(plan.changelogs.expected("o-1")) is FullEntry, "it forgets again with the next sweep"


def test_a_short_entry_of_an_order_that_is_open_differs(topics):
    index, entry = topics.entry("o-2")
    short = ShortEntry(Delivered("dana"), entry.created_at, entry.changed_at, entry.head, entry.version)
    topics.replace(TABLE, index, value=changelog.encode(short))
    assert plan_of(topics).difference.changed == {"o-2"}


def test_refusals_are_remembered_only_if_the_order_existed_and_only_the_newest_sixteen():
    topics = Topics()
    topics.send(named(ship, "o-1", command_id="too-early"), named(create, "o-1"))
    topics.send(*[named(ship, "o-1", command_id=f"ship-{n}") for n in range(20)])
    topics.send(named(pay, "o-1"), named(ship, "o-1", command_id="accepted"))
    lose(topics, TABLE)
    plan = plan_of(topics)
    assert [known for known, _ in expected_entries(plan)["o-1"].refused] == [f"ship-{n}" for n in range(4, 20)]
    assert_rebuilt(topics, plan)


def test_refused_commands_whose_rejections_were_deleted_stay_as_the_table_has_them(topics):
    topics.records[REJECTIONS].clear()
    topics.starts[REJECTIONS] = topics.ends[REJECTIONS]
    plan = plan_of(topics)
    assert plan.is_intact
    lane_entry = topics.lane.table.get("o-1")
    assert lane_entry.refused
    index, entry = topics.entry("o-1")
    old = structs.replace(entry, accepted=entry.accepted[:-1])  # of the version before
    topics.replace(TABLE, index, value=changelog.encode(old))
    plan = plan_of(topics)
    assert plan.difference.behind == {"o-1"}
    assert plan.changelogs.expected("o-1") == lane_entry


def test_refused_commands_without_a_rejection_differ_if_no_rejection_was_deleted(topics):
    index, entry = topics.entry("o-2")
    topics.replace(TABLE, index, value=changelog.encode(structs.replace(entry, refused=(("other", b"d" * 16),))))
    plan = plan_of(topics)
    assert plan.difference.changed == {"o-2"}
    assert plan.changelogs.expected("o-2") == entry


def test_an_entry_that_differs_is_missing_behind_changed_or_superfluous(topics):
    topics.append(TABLE, b"o-1", None)
    topics.replace(TABLE, topics.index(TABLE, b"o-2"), value=changelog.encode(topics.entry("o-3")[1]))
    topics.append(TABLE, b"o-9", b"\x01\x90")
    difference = plan_of(topics).difference
    assert (difference.missing, difference.changed, difference.superfluous) == ({"o-1"}, {"o-2"}, {"o-9"})


# Position


def test_a_position_behind_the_outcomes_is_set_after_them_and_its_owner_is_unknown(topics):
    index, position = topics.position()
    topics.replace(TABLE, index, value=changelog.encode(structs.replace(position, next_offset=5)))
    plan = plan_of(topics)
    assert not plan.is_intact
    assert not plan.is_owner_known
    assert_rebuilt(topics, plan)
    command = topics.records[COMMANDS][plan.position.next_offset - 1]
    assert plan.position.last_timestamp_ms == command.timestamp


def test_a_position_after_the_outcomes_stays_where_it_is(topics):
    topics.send(named(create, "o-1"), named(create, "o-1"))  # repeats, which have no outcome
    topics.append(TABLE, b"o-1", None)
    plan = plan_of(topics)
    _, position = topics.position()
    assert plan.position.next_offset == position.next_offset
    assert plan.position.last_timestamp_ms == position.last_timestamp_ms
    assert plan.position.ends == Ends(
        topics.ends[EVENTS], topics.ends[REJECTIONS], topics.ends[DEAD_LETTERS], topics.ends[WAITING]
    )


def test_a_command_that_waits_is_before_the_position(topics):
    lose(topics, TABLE)
    assert plan_of(topics).position.next_offset == topics.lane.next_offset


def test_a_position_that_a_rebuild_has_begun_with_is_not_intact_and_has_no_owner_to_fence(topics):
    topics.records[TABLE].clear()
    _, position = honest().position()
    unfinished = structs.replace(position, waiting_count=REBUILDING, next_offset=4)
    topics.append(TABLE, POSITION_KEY, changelog.encode(unfinished))
    plan = plan_of(topics)
    assert not plan.is_intact
    assert plan.is_owner_known
    assert_rebuilt(topics, plan)


@pytest.mark.parametrize("end", [5, 8, 21])
def test_a_recreated_commands_topic_adds_no_waiting_commands_and_parks_the_lane(topics, end):
    lose(topics, TABLE, WAITING)
    next_offset = plan_of(topics).position.next_offset
    recreate(topics, end)
    plan = plan_of(topics)
    assert (plan.waiting, plan.position.next_offset) == ({}, next_offset)
    assert plan.position.last_timestamp_ms == MISSING_COMMAND
    [recreated, not_restored] = plan.notes
    assert "was recreated, or restored with other records" in recreated
    assert "are not restored" in not_restored


@pytest.mark.parametrize(
    ("changes", "is_recreated"),
    [
        pytest.param({"value": encode_json_command(named(create, "new"))}, True, id="another command"),
        pytest.param({"value": b"undecodable", "key": b"new"}, True, id="another key"),
        pytest.param({"value": b"undecodable"}, False, id="the same key, of a schema that is not known now"),
        pytest.param({"offset": 99}, True, id="a control record"),
        pytest.param({"timestamp": 1}, False, id="the same command, restored at another time"),
    ],
)
def test_the_last_decided_command_shows_whether_its_topic_was_recreated(topics, changes, is_recreated):
    lose(topics, TABLE)
    last = plan_of(topics).outcomes.next_offset - 1
    topics.replace(COMMANDS, last, **changes)
    assert any("was recreated" in note for note in plan_of(topics).notes) == is_recreated


@pytest.mark.parametrize(
    ("changes", "is_recreated"),
    [
        pytest.param({"timestamp": 1}, False, id="restored at another time"),
        pytest.param({"value": b"other"}, True, id="another value"),
        pytest.param({"key": b"o-2"}, True, id="another key"),
    ],
)
def test_a_dead_letter_shows_whether_the_topic_of_its_command_was_recreated(topics, changes, is_recreated):
    topics.send((b"o-1", b"not a command"), now=LATER)
    lose(topics, TABLE, WAITING)
    topics.replace(COMMANDS, -1, **changes)
    plan = plan_of(topics)
    assert any("was recreated, or restored with other records" in note for note in plan.notes) == is_recreated
    assert len(plan.waiting) == (0 if is_recreated else 2)
    assert plan.position.last_timestamp_ms == (MISSING_COMMAND if is_recreated else 1)


def test_a_dead_letter_that_was_truncated_shows_that_its_topic_is_the_same(topics, monkeypatch):
    monkeypatch.setattr(records, "MAX_DEAD_VALUE", 3)
    topics.send((b"o-1", b"not a command"), now=LATER)
    lose(topics, TABLE, WAITING)
    assert_rebuilt(topics, plan_of(topics))


def recreate(topics, end):
    """Replace the commands by those of a new topic."""
    lose(topics, COMMANDS)
    for number in range(end):
        topics.append(COMMANDS, b"new-%d" % number, encode_json_command(named(create, f"new-{number}")), at=LATER)


def test_a_command_that_waits_is_before_the_position_also_if_its_topic_was_recreated(topics):
    lose(topics, TABLE)
    recreate(topics, 3)
    plan = plan_of(topics)
    assert plan.position.next_offset == topics.lane.next_offset
    assert len(plan.waiting) == plan.position.waiting_count == 2
    assert all(command.offset < plan.position.next_offset for command in plan.waiting.values())


def waiting_first():
    """Write a log whose first command waits, so that it has no outcome, and whose second one is decided."""
    topics = Topics()
    topics.send(named(create, "o-1", user_id="sam"), named(create, "o-2"))
    return topics


def test_a_topic_that_ends_before_the_position_adds_nothing_without_a_proof_that_it_is_the_same():
    topics = waiting_first()
    lose(topics, TABLE, WAITING)
    recreate(topics, 1)
    plan = plan_of(topics)
    assert (plan.waiting, plan.position.last_timestamp_ms) == ({}, MISSING_COMMAND)
    assert plan.notes == [
        f"{COMMANDS} partition 0 ends at offset 1, before the position 2: the lane will park",
        f"{COMMANDS} partition 0: {NOT_RESTORED}",
    ]


def test_a_topic_that_was_truncated_adds_the_commands_that_it_still_has():
    topics = Topics()
    topics.send(named(create, "o-1", user_id="sam"), named(create, "o-2"), named(create, "o-3"))
    lose(topics, TABLE, WAITING)
    topics.drop(COMMANDS, 2)
    topics.ends[COMMANDS] = 2
    plan = plan_of(topics)
    assert len(plan.waiting) == 1
    assert plan.position.last_timestamp_ms == MISSING_COMMAND
    assert plan.notes == [
        f"{COMMANDS} partition 0 ends at offset 2, before the position 3: the lane will park",
        f"{COMMANDS} partition 0: {TRUNCATED}",
    ]


def replace_position(topics, **changes):
    index, position = topics.position()
    topics.replace(TABLE, index, value=changelog.encode(structs.replace(position, **changes)))


@pytest.mark.parametrize("end", [5, 8, 21, 30])
def test_a_recreated_topic_parks_the_lane_also_if_its_position_has_no_timestamp(topics, end):
    replace_position(topics, last_timestamp_ms=None)
    lose(topics, WAITING)
    recreate(topics, end)
    assert plan_of(topics).position.last_timestamp_ms == MISSING_COMMAND


def test_commands_that_were_restored_after_a_killed_rebuild_are_those_of_the_position(topics):
    timestamp_ms = topics.position()[1].last_timestamp_ms
    replace_position(topics, last_timestamp_ms=MISSING_COMMAND, waiting_count=REBUILDING)
    lose(topics, WAITING)
    assert plan_of(topics).position.last_timestamp_ms == timestamp_ms


def test_a_rebuild_that_was_killed_keeps_the_timestamp_of_a_recreated_topic():
    """No outcome shows that the topic is the same."""
    topics = Topics()
    topics.send(named(create, "o-1", user_id="sam"), now=LONG_AGO)
    replace_position(topics, last_timestamp_ms=MISSING_COMMAND, waiting_count=REBUILDING)
    recreate(topics, 2)
    assert plan_of(topics).position.last_timestamp_ms == MISSING_COMMAND


def test_a_command_that_is_deleted_before_it_is_read_does_not_show_a_recreated_topic(topics):
    lose(topics, TABLE, WAITING)
    last = plan_of(topics).outcomes.newest.offset

    class Reader(MemoryReader):
        async def learn(self, records):
            """The retention deletes the commands up to the last one with an outcome."""

        async def between(self, starts, ends):
            if list(starts.items()) == [(TopicPartition(COMMANDS, 0), last)]:
                topics.starts[COMMANDS] = last + 1
                topics.records[COMMANDS] = topics.records[COMMANDS][last + 1 :]
            async for kept in super().between(starts, ends):
                yield kept

    plan = plan_of(topics, reader=Reader(topics))
    assert plan.notes == []
    assert plan.position.last_timestamp_ms is None


def test_a_position_after_the_end_of_the_commands_matches_no_later_command(topics):
    lose(topics, TABLE, COMMANDS)
    plan = plan_of(topics)
    assert plan.position.next_offset > 0
    assert plan.position.last_timestamp_ms == MISSING_COMMAND


# What operators did


def resumed(topics, at, **positions):
    act = LaneResumed(id="id", at=at, actor="user:ops", reason="why", **positions)
    topics.append(NAMES.operations, b"id", operations.encode(act), at=at)


def test_an_operation_of_a_newer_form_is_refused(topics):
    topics.append(NAMES.operations, b"id", b'{"operation":"newer"}')
    with pytest.raises(OperationRefused, match=f"{NAMES.operations} partition 0 offset 0 cannot be decoded"):
        plan_of(topics)


def test_commands_that_an_operator_skipped_do_not_wait():
    topics = Topics()
    topics.send(named(create, "o-1"))
    topics.append(COMMANDS, b"o-2", encode_json_command(named(create, "o-2")))
    resumed(topics, LATER, previous_position=1, position=2)
    topics.lane.next_offset = 2
    topics.send(named(create, "o-3"), now=LATER)
    lose(topics, TABLE, WAITING)
    plan = plan_of(topics)
    assert plan.waiting == {}
    assert plan.position.next_offset == 3


def test_outcomes_from_before_the_position_moved_back_do_not_count():
    topics = Topics()
    topics.send(named(create, "o-1"), named(create, "o-2"), named(create, "o-3"), now=LONG_AGO)
    for index in range(3):
        topics.replace(EVENTS, index, timestamp=0)
    topics.records[COMMANDS].clear()
    topics.ends[COMMANDS] = 0
    resumed(topics, LONG_AGO, previous_position=3, position=0)
    topics.lane.next_offset = 0
    topics.send(named(create, "o-4"), named(create, "o-5", user_id="sam"), now=LATER)
    lose(topics, TABLE, WAITING)
    plan = plan_of(topics)
    assert plan.position.next_offset == 1
    assert plan.waiting == {}, "the command that waits is decided again, from the commands"
    assert plan.outcomes.entries.keys() == {"o-1", "o-2", "o-3", "o-4"}


def test_the_position_of_an_earlier_rebuild_is_a_lower_bound(topics):
    act = PartitionRebuilt(
        id="id", at=NOW, actor="user:ops", reason="why", position=21, orders=0, waiting=0, changed=0, removed=0
    )
    topics.append(NAMES.operations, b"id", operations.encode(act))
    lose(topics, TABLE, WAITING)
    assert plan_of(topics).position.next_offset == 21


# The waiting room


def test_a_waiting_command_that_has_an_outcome_is_removed(topics):
    create_1 = topics.records[COMMANDS][0]
    decided = changelog.WaitingCommand(named(create, "o-1"), create_1.offset, NOW, None)
    topics.append(WAITING, decided.key, changelog.encode(decided))
    plan = plan_of(topics)
    assert not plan.is_intact
    assert decided.key not in plan.waiting
    assert_rebuilt(topics, plan)


def test_a_waiting_command_is_known_although_its_record_in_the_commands_was_deleted(topics):
    topics.records[COMMANDS].clear()
    topics.starts[COMMANDS] = topics.ends[COMMANDS]
    lose(topics, TABLE)
    assert_rebuilt(topics, plan_of(topics))


def test_a_command_that_cannot_be_decoded_and_has_no_dead_letter_is_reported(topics):
    topics.drop(DEAD_LETTERS, 0)
    lose(topics, TABLE, WAITING)
    plan = plan_of(topics)
    [note] = plan.notes
    assert note.startswith(f"{COMMANDS} partition 0 offset 7 has no outcome, and cannot be decoded")
    assert_rebuilt(topics, plan)


def test_a_waiting_command_of_version_0_1_with_an_empty_correlation_id_waits_again():
    topics = Topics()
    command = named(create, "o-1", user_id="sam")
    topics.send(command)
    topics.send(named(create, "o-2"))
    old = structs.replace(command, correlation_id="")
    topics.replace(COMMANDS, 0, value=encode_json_command(old))
    lose(topics, TABLE, WAITING)
    plan = plan_of(topics)
    assert (plan.notes, [each.command for each in plan.waiting.values()]) == ([], [old])


def test_a_command_that_no_create_precedes_cannot_wait_and_is_reported():
    topics = Topics()
    topics.send(named(create, "o-1", user_id="sam"), named(amend, "o-1"))
    topics.send(named(create, "o-2"))
    topics.drop(COMMANDS, 0)
    lose(topics, TABLE, WAITING)
    plan = plan_of(topics)
    assert plan.waiting == {}
    assert plan.notes == [
        "The command at offset 1 has no outcome, and its order does not exist: send it again if it is still needed."
    ]


def test_an_old_command_does_not_wait_if_its_rejection_may_have_been_deleted():
    topics = Topics()
    topics.send(named(create, "o-1", user_id="sam"), now=LONG_AGO)
    topics.lane.room.add_answer("sam", UserCheck.NOT_FOUND)
    topics.turn(now=LONG_AGO)
    topics.send(named(create, "o-2"))
    assert len(topics.records[REJECTIONS]) == 1
    lose(topics, TABLE, WAITING)
    topics.records[REJECTIONS].clear()
    topics.starts[REJECTIONS] = topics.ends[REJECTIONS]
    plan = plan_of(topics)
    assert plan.waiting == {}
    assert plan.notes[0].startswith(f"{COMMANDS} partition 0 offset 0 has no outcome. It may have been refused")


# What cannot be rebuilt


def test_events_with_a_hole_are_refused_with_the_offset_of_the_event_after_it(topics):
    topics.drop(EVENTS, topics.index(EVENTS, b"o-1", 1))
    after = topics.records[EVENTS][topics.index(EVENTS, b"o-1", 1)]
    with pytest.raises(OperationRefused, match=f"{EVENTS} partition 0 offset {after.offset} does not follow") as raised:
        plan_of(topics)
    assert "Restore this topic" in str(raised.value)


def test_an_event_that_cannot_be_decoded_is_refused_and_a_record_of_a_stranger_is_ignored(topics):
    topics.append(EVENTS, b"o-1", b"no event", [("command_offset", b"99")])
    plan = plan_of(topics)
    assert plan.is_intact
    assert plan.outcomes.foreign == 1
    damaged = topics.replace(EVENTS, topics.index(EVENTS, b"o-2"), value=b"\0")
    with pytest.raises(OperationRefused, match=f"offset {damaged.offset} cannot be decoded"):
        plan_of(topics)


def test_events_that_end_before_the_table_are_a_loss(topics):
    topics.drop(EVENTS, topics.index(EVENTS, b"o-1"))
    [loss] = plan_of(topics).losses
    assert loss == "order o-1 is at version 5, its newest event is version 4"


@pytest.mark.parametrize("topic", [EVENTS, REJECTIONS, DEAD_LETTERS])
def test_an_outcome_topic_that_ends_before_its_recorded_end_is_a_loss(topics, topic):
    index, position = topics.position()
    ends = structs.replace(position.ends, **{topic.split(".")[1].replace("-", "_"): 10_000})
    topics.replace(TABLE, index, value=changelog.encode(structs.replace(position, ends=ends)))
    plan = plan_of(topics)
    assert not plan.is_intact
    assert plan.losses == [f"{topic} ends at offset {topics.ends[topic]}, it ended at 10000"]


def test_the_record_of_a_rebuild_has_the_first_losses_and_the_number_of_the_others():
    assert recorded_losses(["one", "two"]) == ("one", "two")
    many = [f"order {number}" for number in range(LOSSES_MAX + 2)]
    assert recorded_losses(many) == (*many[:LOSSES_MAX], "2 more")


def test_a_waiting_room_that_ends_before_its_recorded_end_gets_a_position_with_the_present_end(topics):
    """Its count can be right: the lost records can be those of commands that no longer waited."""
    index, position = topics.position()
    ends = structs.replace(position.ends, waiting=10_000)
    topics.replace(TABLE, index, value=changelog.encode(structs.replace(position, ends=ends)))
    plan = plan_of(topics)
    assert not plan.is_intact
    assert plan.losses == []
    assert plan.position.ends.waiting == topics.ends[WAITING]
    assert_rebuilt(topics, plan)


# Changelogs that cannot be read


@pytest.mark.parametrize(
    ("topic", "key", "value"),
    [
        pytest.param(TABLE, b"order-x", b"\x02newer", id="an entry of a newer form"),
        pytest.param(TABLE, b"\xff\xfe", b"\x01\x90", id="a key that is no text"),
        pytest.param(TABLE, None, b"\x01\x90", id="a record without a key"),
        pytest.param(TABLE, b"\0other", b"", id="an unknown control record"),
        pytest.param(TABLE, POSITION_KEY, b"\x02newer", id="a position of a newer form"),
        pytest.param(WAITING, waiting_key("order-x", 3), b"\x03newer", id="a waiting command of a newer form"),
        pytest.param(WAITING, b"\0other", b"", id="an unknown control record of the waiting room"),
    ],
)
def test_a_record_that_cannot_be_read_makes_its_changelog_be_written_whole(topics, topic, key, value):
    record = topics.append(topic, key, value)
    plan = plan_of(topics)
    assert not plan.is_intact
    assert plan.unreadable.keys() == {topic}
    assert plan.unreadable[topic].startswith(f"{topic} partition 0 offset {record.offset} cannot be read")
    assert_rebuilt(topics, plan)


@pytest.mark.parametrize("topic", [TABLE, WAITING])
def test_a_damaged_batch_of_a_changelog_makes_it_be_written_whole(topics, topic):
    reader = MemoryReader(topics)
    reader.error = DamagedError(TopicPartition(topic, 0), 3)
    plan = plan_of(topics, reader=reader)
    assert not plan.is_intact
    assert plan.unreadable == {topic: f"{topic} partition 0 is damaged on the disk from offset 3 on"}
    assert_rebuilt(topics, plan)


def test_a_position_after_a_damaged_batch_counts_and_names_the_owner(topics):
    topics.records[TABLE] = [moved(record, 5_000) for record in topics.records[TABLE]]
    topics.ends[TABLE] += 5_000
    reader = MemoryReader(topics)
    reader.error = DamagedError(TopicPartition(TABLE, 0), 3)
    plan = plan_of(topics, reader=reader)
    assert plan.last == topics.position()[1]
    assert plan.is_owner_known


@pytest.mark.parametrize("topic", [EVENTS, REJECTIONS, DEAD_LETTERS, COMMANDS])
def test_a_damaged_batch_of_another_topic_is_an_error(topics, topic):
    lose(topics, WAITING)
    reader = MemoryReader(topics)
    reader.error = DamagedError(TopicPartition(topic, 0), 3)
    with pytest.raises(DamagedError):
        plan_of(topics, reader=reader)


# Running lanes


@pytest.mark.parametrize("late", [EVENTS, TABLE])
def test_an_order_that_changed_meanwhile_is_not_compared(topics, late):
    settled = dict(topics.ends)
    topics.send(named(cancel, "o-2"))
    topics.drop(late, -1 if late == EVENTS else -2)
    assert plan_of(topics).difference or plan_of(topics).losses
    plan = plan_of(topics, settled)
    assert not plan.difference
    assert plan.losses == []


def test_an_order_that_has_differed_before_is_compared(topics):
    topics.append(TABLE, b"o-1", None)
    settled = dict(topics.ends)
    topics.send(named(cancel, "o-2"))
    assert plan_of(topics, settled).difference.missing == {"o-1"}


def test_a_second_look_continues_with_the_events_that_came_since(topics):
    look = look_at(MemoryReader(topics))
    asyncio.run(look.plan(dict(topics.ends)))
    topics.send(named(cancel, "o-2"), named(ship, "o-2"))
    plan = asyncio.run(look.plan(topics.ends))
    assert plan.is_intact
    assert_rebuilt(topics, plan)
