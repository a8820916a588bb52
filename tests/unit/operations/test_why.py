"""`why` finds an order by every kind of id, and shows each of its commands once, in decision order."""

import asyncio
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
from aiokafka.structs import TopicPartition

from order_service.errors import DamagedError
from order_service.operations.verify.verify import SETTLED_S, Progress
from order_service.operations.why import order_records
from order_service.operations.why.id_search import search_for
from order_service.operations.why.why import MAX_ORDERS, why
from order_service.wire import changelog
from order_service.wire.changelog import POSITION_KEY
from order_service.wire.commands import encode_json_command
from order_service.wire.operations import (
    DeadLettersApplied,
    DeadLettersDiscarded,
    DeadLettersPlanned,
    LaneResumed,
    PartitionRebuilt,
    PlannedCommand,
    encode,
)
from tests.support.samples import NOW, amend, but, create, pay
from tests.unit.operations.topics_in_memory import (
    COMMANDS,
    DEAD_LETTERS,
    EVENTS,
    LATER,
    OPERATIONS,
    REJECTIONS,
    TABLE,
    WAITING,
    Bar,
    MemoryReader,
    Topics,
    honest,
    named,
)


class Reader(MemoryReader):
    """A reader whose ends can be looked up any number of times."""

    async def ends(self, partitions):
        return {partition: self.topics.ends[partition.topic] for partition in partitions}


async def no_sleep(_seconds):
    raise AssertionError("nothing has to settle")


async def settled(_seconds):
    """Return at once."""


def answer(topics, text, *, reader=None, bar=None, sleep=no_sleep, **options):
    bar = bar or Bar()
    progress = Progress(bar.start, bar.advance)
    reader = reader or Reader(topics)
    return asyncio.run(why(reader, searched(text), progress, now=LATER.timestamp, sleep=sleep, **options))


def searched(text):
    """Return the search for a text that can be an id."""
    search = search_for(text)
    assert search is not None
    return search


def only_order(topics, text, **options):
    [order] = answer(topics, text, **options).orders
    return order


def short(order):
    """Return each command as its offset, its state, and the version or the reason of its outcome."""
    return [
        (
            story.command and story.command.offset,
            story.state.value,
            story.outcome and (story.outcome.reason or story.outcome.version),
        )
        for story in order.commands
    ]


@pytest.fixture
def topics():
    return honest()


def test_an_order_is_shown_with_every_command_in_decision_order(topics):
    order = only_order(topics, "o-1")
    assert (order.order_id, order.status, order.version, order.table_version) == ("o-1", "delivered", 5, 5)
    assert short(order) == [
        (0, "accepted", 1),
        (6, "rejected", "not_paid"),
        (7, "dead_letter", "unknown_format"),
        (8, "accepted", 2),
        (9, "accepted", 3),
        (13, "repeat", 3),
        (14, "repeat", "not_paid"),
        (15, "accepted", 4),
        (18, "accepted", 5),
    ]
    assert [story.repeat_of for story in order.commands if story.state == "repeat"] == [9, 6]
    assert (order.lane.position, order.lane.start, order.lane.end, order.lane.lag) == (21, 0, 21, 0)
    assert order.lane.position_offset == topics.records[TABLE][topics.position()[0]].offset


def test_every_record_is_shown_where_it_is(topics):
    order = only_order(topics, "o-1")
    shown = [order.table] + [record for story in order.commands for record in (story.command, story.outcome) if record]
    for record in shown:
        [stored] = [each for each in topics.records[record.topic] if each.offset == record.offset]
        assert (record.partition, stored.key) == (0, b"o-1")
        assert record.at == datetime.fromtimestamp(stored.timestamp / 1000, UTC)
    topic_counts = {topic: sum(each.key == b"o-1" for each in topics.records[topic]) for topic in topics.records}
    assert {record.topic for record in shown} == {topic for topic, count in topic_counts.items() if count}


def test_a_decision_of_the_service_comes_after_the_outcomes_before_it(topics):
    order = only_order(topics, "o-5")
    assert short(order) == [(4, "accepted", 1), (None, "accepted", 2)]
    assert order.commands[1].outcome.command_offset is None


def test_a_waiting_command_names_the_user_that_its_order_waits_for(topics):
    order = only_order(topics, "o-7")
    assert [(story.command.offset, story.state, story.waiting.user_id) for story in order.commands] == [
        (19, "waiting", "sam"),
        (20, "waiting", "sam"),
    ]
    assert order.status == "absent"


def test_a_command_that_is_not_in_the_waiting_room_any_more_does_not_wait(topics):
    topics.append(WAITING, topics.records[WAITING][1].key, None)
    order = only_order(topics, "o-7", sleep=settled)
    assert [story.state for story in order.commands] == ["waiting", "no_outcome"]


def test_the_schemas_of_commands_are_looked_up(topics):
    reader = Reader(topics)
    answer(topics, "o-1", reader=reader)
    assert reader.learned == list(range(topics.ends[COMMANDS]))


def test_a_command_after_the_position_is_undecided(topics):
    for command in (named(pay, "o-2", command_id="pay-9"), named(pay, "o-4", command_id="pay-9")):
        topics.append(COMMANDS, command.order_id.encode(), encode_json_command(command))
    order = only_order(topics, "o-4")
    undecided = order.commands[-1]
    assert (undecided.state, undecided.is_before_position, undecided.offsets_before) == ("undecided", False, 1)
    assert order.lane.lag == 2


def test_without_a_position_every_command_is_undecided(topics):
    topics.records = {topic: [] for topic in topics.records} | {COMMANDS: topics.records[COMMANDS]}
    topics.starts[COMMANDS] = 2
    order = only_order(topics, "o-3")
    assert {story.state for story in order.commands} == {"undecided"}
    assert order.commands[0].offsets_before == 0
    assert (order.lane.position, order.lane.lag) == (None, 19)


def test_a_command_that_was_deleted_is_known_by_its_outcome_or_by_the_waiting_room(topics):
    topics.starts[COMMANDS] = topics.ends[COMMANDS]
    assert short(only_order(topics, "o-2")) == [(None, "accepted", 1), (None, "accepted", 2)]
    assert [story.state for story in only_order(topics, "create-1-o-7").commands] == ["waiting", "waiting"]
    assert short(only_order(topics, "0:6"))[1] == (None, "rejected", "not_paid")


@pytest.mark.parametrize(
    ("text", "kinds"),
    [
        ("o-1", {("order_id", "o-1")}),
        ("pay-1-o-1", {("command_id", "o-1")}),
        ("JD0146", {("tracking_number", "o-1")}),
        ("payment-1", {("payment_id", f"o-{number}") for number in (1, 2, 3, 6)}),
        ("0:7", {("command_offset", "o-1")}),
        ("0:19", {("command_offset", "o-7")}),
    ],
)
def test_an_order_is_found_by_every_kind_of_id(topics, text, kinds):
    found = answer(topics, text)
    assert {(match.kind, match.order_id) for match in found.matches} == kinds
    assert {order.order_id for order in found.orders} == {order_id for _, order_id in kinds}
    assert found.is_known


def test_all_kinds_that_a_text_is_are_shown(topics):
    topics.send(named(create, "payment-1"))
    found = answer(topics, "payment-1")
    assert {(match.kind, match.order_id) for match in found.matches} >= {
        ("order_id", "payment-1"),
        ("payment_id", "o-1"),
    }
    assert len(found.orders) == 5


def test_a_record_without_a_key_is_shown_alone(topics):
    topics.send((None, encode_json_command(named(pay, "o-1", command_id="pay-8"))), (None, b"no command"))
    for text in ("0:21", "pay-8"):
        order = only_order(topics, text)
        assert (order.order_id, short(order)) == ("", [(21, "dead_letter", "key_missing")])
    assert short(only_order(topics, "0:22")) == [(22, "dead_letter", "unknown_format")]


def test_a_record_with_a_key_that_is_no_id_is_shown_under_this_key(topics):
    key = b"\xff\0" + b"x" * 1000
    topics.send((key, b"no command"))
    order = only_order(topics, "0:21")
    assert order.order_id == "\\xff\0" + "x" * (300 - 5) + "…"
    assert short(order) == [(21, "dead_letter", "unknown_format")]


def test_nothing_that_a_sender_can_write_freely_is_shown(topics):
    command = named(create, "o-8", actor=f"service:{'x' * 5000}", metadata={"secret-key": "secret"})
    line = msgspec.structs.replace(command.lines[0], name="secret")
    topics.send(msgspec.structs.replace(command, lines=(line,), user_id="dana"))
    shown = msgspec.json.encode(answer(topics, "o-8"))
    assert b"secret" not in shown
    assert b"x" * 301 not in shown


def test_an_unknown_id_names_what_was_searched_and_how_far_back_it_reaches(topics):
    topics.starts[COMMANDS], topics.starts[REJECTIONS] = 3, 1
    bar = Bar()
    found = answer(topics, "unknown", bar=bar)
    assert (found.is_known, found.all_partitions, found.matches, found.orders) == (False, True, [], [])
    oldest = datetime.fromtimestamp(topics.records[COMMANDS][3].timestamp / 1000, UTC)
    assert {topic.topic: topic.since for topic in found.searched} == {
        COMMANDS: oldest,
        WAITING: None,
        EVENTS: None,
        REJECTIONS: LATER,  # none is left
        DEAD_LETTERS: None,
    }
    assert {topic.partitions for topic in found.searched} == {1}
    assert bar.done >= bar.total > 0


def test_a_damaged_batch_is_named_and_the_rest_is_read(topics):
    reader = Reader(topics)
    reader.error = DamagedError(TopicPartition(REJECTIONS, 0), 3)
    found = answer(topics, "o-2", reader=reader)
    assert [(batch.topic, batch.partition, batch.offset) for batch in found.damaged] == [(REJECTIONS, 0, 3)]
    assert short(found.orders[0]) == [(1, "accepted", 1), (10, "accepted", 2)]


def test_an_outcome_that_becomes_visible_later_than_the_position_is_found(topics):
    hidden = topics.records[EVENTS].pop()
    topics.ends[EVENTS] = hidden.offset
    slept = []

    async def settle(seconds):
        slept.append(seconds)
        topics.records[EVENTS].append(hidden)
        topics.ends[EVENTS] += 1

    assert short(only_order(topics, "o-1", sleep=settle))[-1] == (18, "accepted", 5)
    assert slept == [SETTLED_S]


def test_a_command_whose_outcome_stays_missing_has_none(topics):
    topics.drop(EVENTS, -1)
    assert short(only_order(topics, "o-1", sleep=settled))[-1] == (18, "no_outcome", None)


def test_a_command_whose_rejection_was_deleted_is_known_from_the_table(topics):
    topics.starts[REJECTIONS] = topics.ends[REJECTIONS]
    assert {(6, "outcome_deleted", None), (14, "outcome_deleted", None)} <= set(short(only_order(topics, "o-1")))


def test_a_command_whose_rejection_was_lost_has_no_outcome(topics):
    topics.drop(REJECTIONS, 0)
    assert (6, "no_outcome", None) in short(only_order(topics, "o-1", sleep=settled))


def test_records_that_are_damaged_are_shown_without_their_contents(topics):
    topics.replace(EVENTS, topics.index(EVENTS, b"o-2"), value=b"\0damaged")
    topics.replace(TABLE, topics.entry("o-2")[0], value=b"damaged")
    topics.replace(WAITING, 0, value=b"damaged")
    order = only_order(topics, "o-2")
    assert [story.outcome.type for story in order.commands] == ["OrderCreated", "unreadable"]
    assert order.table is not None
    assert order.table_version is None
    assert short(only_order(topics, "o-7", sleep=settled))[0] == (19, "no_outcome", None)


def test_a_damaged_position_is_like_none(topics):
    topics.replace(TABLE, topics.index(TABLE, POSITION_KEY), value=b"damaged")
    assert only_order(topics, "o-2").lane.position is None


ACT: dict[str, Any] = {"at": LATER, "actor": "user:dana", "reason": "a free text"}
RESUMED = LaneResumed(id="resumed", previous_position=21, position=23, **ACT)
PLANNED = PlannedCommand(offset=0, order_id="", command_id="c", version=1, result="repeat")


def operations_of(order):
    return [(each.kind, each.operation_id, each.actor, each.offset) for each in order.operations]


def test_a_skipped_command_is_not_without_outcome_and_the_operation_is_named(topics):
    key, value = b"o-1", encode_json_command(named(pay, "o-1", command_id="skipped"))
    topics.append(COMMANDS, key, value, at=LATER)
    topics.append(COMMANDS, key, b"not a command", at=LATER)
    topics.append(OPERATIONS, b"broken", b"{}")
    topics.append(OPERATIONS, b"resumed", encode(RESUMED))
    topics.append(OPERATIONS, b"o-1", encode(but(RESUMED, id="o-1", previous_position=23, position=24)))
    index, position = topics.position()
    topics.replace(TABLE, index, value=changelog.encode(but(position, next_offset=23)))
    order = only_order(topics, "o-1")
    assert short(order)[-2:] == [(21, "skipped", None), (22, "skipped", None)]
    assert operations_of(order) == [("lane_resumed", "resumed", "user:dana", 1)]
    assert (order.operations[0].previous_position, order.operations[0].position) == (21, 23)
    assert operations_of(only_order(topics, "o-2")) == [], "none of its commands was skipped"
    assert b"free text" not in msgspec.json.encode(answer(topics, "o-1"))


@pytest.mark.parametrize(
    "operation",
    [
        DeadLettersDiscarded(id="x", offsets=(0,), **ACT),
        DeadLettersApplied(id="x", plan_id="p", sent={0: 21}, order_ids=("",), **ACT),
        DeadLettersPlanned(id="x", commands=(PLANNED,), **ACT),
        LaneResumed(id="x", previous_position=90, position=99, skipped_order_ids=("o-1",), **ACT),
    ],
    ids=lambda operation: type(operation).__name__,
)
def test_an_operation_is_shown_with_the_order_of_its_dead_letter(topics, operation):
    assert topics.records[DEAD_LETTERS][0].key == b"o-1"
    topics.append(OPERATIONS, b"x", encode(operation))
    assert [each[1] for each in operations_of(only_order(topics, "o-1"))] == ["x"]
    assert operations_of(only_order(topics, "o-2")) == []


def test_an_operation_that_names_an_order_is_known_after_its_commands_are_deleted(topics):
    operation = LaneResumed(id="x", previous_position=90, position=99, skipped_order_ids=("o-9",), **ACT)
    topics.append(OPERATIONS, b"x", encode(operation))
    assert operations_of(only_order(topics, "o-9")) == [("lane_resumed", "x", "user:dana", 0)]


@pytest.mark.parametrize(
    ("operation", "at", "shown"),
    [
        pytest.param(LaneResumed(id="x", previous_position=18, **ACT), LATER, ["o-1", "o-7"], id="commands had waited"),
        pytest.param(LaneResumed(id="x", previous_position=18, **ACT), NOW, [], id="the commands came later"),
        pytest.param(LaneResumed(id="x", previous_position=21, **ACT), LATER, [], id="all were decided before"),
        pytest.param(
            LaneResumed(id="x", previous_position=30, position=20, **ACT), LATER, ["o-7"], id="the position moved back"
        ),
        pytest.param(
            LaneResumed(id="x", previous_position=30, position=30, lost={REJECTIONS: (1, 2)}, **ACT),
            NOW,
            ["o-1", "o-5"],
            id="an accepted loss",
        ),
        pytest.param(
            PartitionRebuilt(id="x", position=21, orders=7, waiting=2, changed=1, removed=0, **ACT),
            LATER,
            ["o-1", "o-5", "o-7"],
            id="a rebuild",
        ),
    ],
)
def test_an_operation_on_a_partition_is_shown_with_the_orders_that_it_concerned(topics, operation, at, shown):
    topics.append(OPERATIONS, b"x", encode(operation), at=at)
    assert [name for name in ("o-1", "o-5", "o-7") if operations_of(only_order(topics, name))] == shown


def test_memory_is_bounded_however_many_records_an_order_has(topics, monkeypatch):
    monkeypatch.setattr(order_records, "MAX_RECORDS", 3)
    topics.send(*[named(amend, "o-1", command_id=f"late-{number}") for number in range(5)])
    order = only_order(topics, "o-1")
    assert short(order) == [(offset, "rejected", "already_delivered") for offset in (23, 24, 25)]
    assert order.omitted == (9 + 5 - 3) + (5 - 3) + (1 + 5 - 3)


def test_memory_is_bounded_however_many_orders_an_id_has():
    topics = Topics()
    topics.send(*[named(create, f"o-{number}", command_id="same") for number in range(MAX_ORDERS + 1)])
    found = answer(topics, "same")
    assert (len(found.orders), found.has_more) == (MAX_ORDERS, True)
    assert not answer(topics, "o-1").has_more


def test_a_long_list_of_records_leaves_time_for_other_work():
    topics = Topics()
    topics.send(*[named(create, f"o-{number}") for number in range(1000)])
    reader: Any = Reader(topics)

    async def count_turns():
        bar, turns, searching = Bar(), 0, True

        async def other_work():
            nonlocal turns
            while searching:
                turns += 1
                await asyncio.sleep(0)

        other = asyncio.create_task(other_work())
        await why(reader, searched("unknown"), Progress(bar.start, bar.advance))
        searching = False
        await other
        return turns

    assert asyncio.run(count_turns()) > 8
