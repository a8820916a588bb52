"""`verify` finds nothing in an honest log, and each damage where it is."""

from datetime import timedelta

import pytest
from aiokafka.structs import TopicPartition
from msgspec import structs

from order_service.domain.messages import OrderPaid
from order_service.domain.order import Delivered
from order_service.errors import DamagedError, TopicsError
from order_service.operations.verify.verify import SETTLED_S
from order_service.wire import avro, changelog, operations
from order_service.wire.changelog import POSITION_KEY, Ends
from order_service.wire.operations import LaneResumed
from tests.support.samples import NOW, amend, cancel, create, pay, ship
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
    found,
    honest,
    moved,
    named,
    verified,
)


@pytest.fixture
def topics():
    return honest()


def altered(record, change):
    """Return the value of an event after a change of the event."""
    return avro.encode_event(change(avro.decode_event(record.value)))


def test_an_honest_log_has_no_findings_and_all_totals(topics):
    bar = Bar()
    report = verified(topics, now=LATER, bar=bar)
    assert (report.findings, report.count, report.not_checked) == ([], 0, [])
    totals = report.totals
    assert (totals.commands, totals.events, totals.rejections, totals.dead_letters) == (21, 16, 1, 1)
    assert (totals.waiting, totals.repeats) == (2, 2)
    assert totals.orders == {"delivered": 1, "paid": 2, "cancelled": 3}
    assert totals.paid == {"EUR": 3 * 3800, "USD": 3800}
    assert totals.refunds_due == {"EUR": 3800}
    assert bar.done == bar.total + topics.ends[REJECTIONS] + topics.ends[TABLE], "both are read again for the repeats"


def test_orders_that_have_forgotten_have_no_findings_and_their_old_repeats_are_found_in_the_events(topics):
    topics.forget(LATER + timedelta(hours=1))
    topics.send(named(create, "o-1"), now=LATER + timedelta(hours=2))
    topics.compact(TABLE)
    bar = Bar()
    report = verified(topics, now=LATER + timedelta(hours=2), bar=bar)
    assert (report.findings, report.totals.repeats, report.totals.rejections) == ([], 2, 4)
    read_again = topics.ends[REJECTIONS] + topics.ends[TABLE] + topics.ends[EVENTS]
    assert bar.done == bar.total + read_again


def test_a_repeat_of_a_refused_command_whose_rejection_is_deleted_is_one_also_if_its_order_has_forgotten_it():
    topics = Topics()
    topics.send(named(create, "o-1"), named(cancel, "o-1"), named(ship, "o-1"))
    topics.records[REJECTIONS].clear()
    topics.starts[REJECTIONS] = topics.ends[REJECTIONS]
    topics.records[COMMANDS].pop()
    topics.send(named(ship, "o-1"))
    topics.forget(LATER)
    topics.compact(TABLE)
    assert verified(topics, now=LATER).findings == []


def test_a_lost_rejection_of_an_order_that_has_forgotten_is_found():
    topics = Topics()
    topics.send(named(create, "o-1"), named(cancel, "o-1"), named(ship, "o-1"), named(pay, "o-1"))
    topics.forget(LATER)
    topics.compact(TABLE)
    topics.drop(REJECTIONS, 0)
    assert found(verified(topics, now=LATER)) == [("no_outcome", COMMANDS, 2)]


@pytest.mark.parametrize(
    ("change", "part"),
    [
        pytest.param({"order": Delivered("eve")}, "the user or the amount", id="the user"),
        pytest.param({"changed_at": NOW}, "the time of the newest event", id="the time"),
        pytest.param({"version": 9}, "has version 9, but its newest event is version 5", id="the version"),
    ],
)
def test_a_short_entry_that_differs_is_found(topics, change, part):
    topics.forget(LATER + timedelta(hours=1))
    index, entry = topics.entry("o-1")
    record = topics.replace(TABLE, index, value=changelog.encode(structs.replace(entry, **change)))
    report = verified(topics, now=LATER + timedelta(hours=1))
    assert found(report) == [("table", TABLE, record.offset)]
    assert part in report.findings[0].text


def test_an_empty_partition_has_no_findings():
    assert verified(Topics()).count == 0


def test_control_records_of_the_table_that_are_unknown_are_ignored(topics):
    topics.append(TABLE, b"\0released", b"anything")
    topics.append(WAITING, b"\0barrier", b"anything")
    assert verified(topics).count == 0


# Events


def test_a_dropped_event_is_found_where_the_next_one_is(topics):
    topics.drop(EVENTS, topics.index(EVENTS, b"o-1", 1))
    after = topics.records[EVENTS][topics.index(EVENTS, b"o-1", 1)]
    report = verified(topics)
    assert found(report) == [("version", EVENTS, after.offset)]
    assert "version 3 of order o-1, follows version 1" in report.findings[0].text


def test_the_newest_event_that_is_dropped_is_found_in_the_table(topics):
    topics.drop(EVENTS, topics.index(EVENTS, b"o-2"))
    report = verified(topics)
    index, _ = topics.entry("o-2")
    assert ("table", TABLE, topics.records[TABLE][index].offset) in found(report)
    [finding] = [finding for finding in report.findings if finding.kind == "table"]
    assert "has version 2, but its newest event is version 1" in finding.text


def test_an_event_that_cannot_be_decoded_is_one_finding(topics):
    record = topics.replace(EVENTS, topics.index(EVENTS, b"o-1", 1), value=b"\0\0\0")
    assert found(verified(topics)) == [("unreadable", EVENTS, record.offset)]


def test_the_newest_event_that_cannot_be_decoded_is_one_finding(topics):
    record = topics.replace(EVENTS, topics.index(EVENTS, b"o-1"), value=b"\0\0\0")
    assert found(verified(topics)) == [("unreadable", EVENTS, record.offset)]


def test_the_first_event_that_cannot_be_decoded_is_one_finding(topics):
    record = topics.replace(EVENTS, topics.index(EVENTS, b"o-1", 0), value=None)
    assert found(verified(topics)) == [("unreadable", EVENTS, record.offset)]


def test_a_record_that_is_not_an_event_breaks_no_order(topics):
    record = topics.append(EVENTS, b"o-1", b"no event", [("command_offset", b"0")])
    unknown = topics.append(EVENTS, b"o-99", b"no event", [("command_offset", b"1")])
    report = verified(topics)
    places = [finding for finding in found(report) if finding[0] != "duplicate"]
    assert places == [("unreadable", EVENTS, record.offset), ("unreadable", EVENTS, unknown.offset)]


def test_a_changed_event_is_found_by_the_digest_in_the_next_one(topics):
    index = topics.index(EVENTS, b"o-1", 0)
    value = altered(topics.records[EVENTS][index], lambda event: structs.replace(event, correlation_id="other"))
    record = topics.replace(EVENTS, index, value=value)
    report = verified(topics)
    assert found(report) == [("chain", EVENTS, record.offset)]
    assert "Version 1 of order o-1 differs from the digest that version 2" in report.findings[0].text


def test_the_newest_event_that_is_changed_is_found_by_the_digest_in_the_table(topics):
    index = topics.index(EVENTS, b"o-1")
    value = altered(topics.records[EVENTS][index], lambda event: structs.replace(event, correlation_id="other"))
    record = topics.replace(EVENTS, index, value=value)
    assert found(verified(topics)) == [("chain", EVENTS, record.offset)]


def test_a_first_event_with_the_digest_of_another_one_is_found():
    topics = Topics()
    topics.send(named(create, "o-1"))
    value = altered(topics.records[EVENTS][0], lambda event: structs.replace(event, previous_digest=bytes(16)))
    topics.replace(EVENTS, 0, value=value)
    index, entry = topics.entry("o-1")
    topics.replace(TABLE, index, value=changelog.encode(structs.replace(entry, head=avro.digest(value))))
    assert found(verified(topics)) == [("chain", EVENTS, 0)]


def test_a_changed_amount_is_against_the_rules(topics):
    index = topics.index(EVENTS, b"o-1", 2)
    value = altered(
        topics.records[EVENTS][index], lambda event: structs.replace(event, fact=OrderPaid("payment-1", 1, "EUR"))
    )
    record = topics.replace(EVENTS, index, value=value)
    report = verified(topics)
    assert found(report) == [("transition", EVENTS, record.offset), ("chain", EVENTS, record.offset)]
    assert "pays 1 EUR, the total is 3800 EUR" in report.findings[0].text


def test_a_refund_of_another_amount_is_against_the_rules(topics):
    index = topics.index(EVENTS, b"o-3")
    value = altered(
        topics.records[EVENTS][index],
        lambda event: structs.replace(event, fact=structs.replace(event.fact, refund_due=1)),
    )
    record = topics.replace(EVENTS, index, value=value)
    report = verified(topics)
    assert found(report) == [("transition", EVENTS, record.offset), ("chain", EVENTS, record.offset)]
    assert "has a refund of 1, but 3800 was paid" in report.findings[0].text


def test_an_event_that_cannot_follow_is_against_the_rules():
    topics = Topics()
    topics.send(named(create, "o-1"), named(pay, "o-1"))
    value = altered(topics.records[EVENTS][1], lambda event: structs.replace(event, version=1, previous_digest=None))
    topics.replace(EVENTS, 1, value=value)
    topics.drop(EVENTS, 0)
    report = verified(topics)
    assert report.findings[0].kind == "transition"
    assert "OrderPaid cannot follow an order that is absent" in report.findings[0].text


def test_an_event_that_is_earlier_than_the_one_before_it_is_against_the_rules(topics):
    index = topics.index(EVENTS, b"o-1")
    value = altered(
        topics.records[EVENTS][index],
        lambda event: structs.replace(event, occurred_at=event.occurred_at - timedelta(days=1)),
    )
    record = topics.replace(EVENTS, index, value=value)
    assert found(verified(topics)) == [("transition", EVENTS, record.offset), ("chain", EVENTS, record.offset)]


def test_an_event_that_is_there_twice_is_a_duplicate(topics):
    first = topics.records[EVENTS][topics.index(EVENTS, b"o-1", 1)]
    again = topics.append(EVENTS, first.key, first.value, first.headers)
    report = verified(topics)
    assert found(report) == [("duplicate", EVENTS, again.offset)] * 2, "its version and its command"


def test_an_event_under_another_key_is_one_finding(topics):
    record = topics.replace(EVENTS, topics.index(EVENTS, b"o-1", 0), key=b"o-2")
    assert ("wrong_key", EVENTS, record.offset) in found(verified(topics))


def test_an_event_that_names_no_command_is_found(topics):
    record = topics.replace(EVENTS, topics.index(EVENTS, b"o-1", 1), headers=())
    assert found(verified(topics)) == [("no_command", EVENTS, record.offset)]


def test_a_missing_first_event_is_found_at_the_next_one(topics):
    topics.drop(EVENTS, topics.index(EVENTS, b"o-1", 0))
    first = topics.records[EVENTS][topics.index(EVENTS, b"o-1", 0)]
    assert ("lost_head", EVENTS, first.offset) in found(verified(topics, is_mirror=True))


def test_a_topic_that_begins_late_is_one_finding_for_all_orders():
    topics = Topics()
    topics.send(*[named(create, f"o-{number}") for number in range(40)])
    topics.send(*[named(pay, f"o-{number}") for number in range(20)])
    del topics.records[EVENTS][:40]
    topics.starts[EVENTS] = 40
    report = verified(topics, is_mirror=True)
    assert found(report) == [("lost_head", EVENTS, 41), ("table", TABLE, 20)]
    assert "starts at offset 40, and 20 orders lack their first events" in report.findings[0].text
    assert "20 orders of the table have no event" in report.findings[1].text
    assert report.totals.paid == {"EUR": 20 * 3800}
    assert report.totals.orders == {"unknown": 20}


# Rejections and dead letters


def test_a_changed_rejection_is_found(topics):
    rejection = avro.decode_rejection(topics.records[REJECTIONS][0].value)
    changed = structs.replace(rejection, command_id="other")
    record = topics.replace(REJECTIONS, 0, value=avro.encode_rejection(changed))
    assert found(verified(topics)) == [("unreadable", REJECTIONS, record.offset)]


def test_a_rejection_that_cannot_be_decoded_is_found(topics):
    record = topics.replace(REJECTIONS, 0, value=b"\0\0\0")
    assert found(verified(topics)) == [("unreadable", REJECTIONS, record.offset)]


def test_a_rejection_under_another_key_is_found(topics):
    record = topics.replace(REJECTIONS, 0, key=b"o-2")
    assert found(verified(topics)) == [("wrong_key", REJECTIONS, record.offset)]


def test_two_outcomes_of_a_command_are_a_duplicate(topics):
    event = topics.records[EVENTS][0]
    letter = topics.append(DEAD_LETTERS, b"o-1", b"x", [("command_offset", dict(event.headers)["command_offset"])])
    report = verified(topics)
    assert found(report) == [("duplicate", DEAD_LETTERS, letter.offset)]
    assert "has a dead letter here, and an event before it" in report.findings[0].text


@pytest.mark.parametrize("topic", [EVENTS, REJECTIONS, DEAD_LETTERS])
def test_a_command_without_an_outcome_is_found(topics, topic):
    dropped = topics.drop(topic, -1 if topic != EVENTS else topics.index(EVENTS, b"o-6"))
    command_offset = int(dict(dropped.headers)["command_offset"])
    assert ("no_outcome", COMMANDS, command_offset) in found(verified(topics))


# Table, position and waiting room

CHANGED = {
    "the status": lambda entry: structs.replace(entry, order=Delivered(entry.order.user_id)),
    "the accepted commands": lambda entry: structs.replace(entry, accepted=entry.accepted[::-1]),
    "the time of the first event": lambda entry: structs.replace(entry, created_at=entry.created_at.replace(year=2020)),
    "the time of the newest event": lambda entry: structs.replace(
        entry, changed_at=entry.changed_at.replace(year=2030)
    ),
}


@pytest.mark.parametrize("part", CHANGED)
def test_an_entry_that_differs_from_its_events_is_found(topics, part):
    index, entry = topics.entry("o-2")
    record = topics.replace(TABLE, index, value=changelog.encode(CHANGED[part](entry)))
    report = verified(topics)
    assert found(report) == [("table", TABLE, record.offset)]
    assert f"differs from its events in {part}" in report.findings[0].text


def test_an_entry_with_another_amount_is_found(topics):
    index, entry = topics.entry("o-2")
    changed = structs.replace(entry, order=structs.replace(entry.order, total=1))
    record = topics.replace(TABLE, index, value=changelog.encode(changed))
    report = verified(topics)
    assert found(report) == [("table", TABLE, record.offset)]
    assert "the user or the amount" in report.findings[0].text


def test_an_entry_with_other_contents_is_found():
    topics = Topics()
    topics.send(named(create, "o-1"))
    index, entry = topics.entry("o-1")
    changed = structs.replace(entry, order=structs.replace(entry.order, metadata={"channel": "phone"}))
    record = topics.replace(TABLE, index, value=changelog.encode(changed))
    report = verified(topics)
    assert found(report) == [("table", TABLE, record.offset)]
    assert "the contents" in report.findings[0].text


def test_an_entry_with_another_digest_is_found_at_the_event_and_names_the_entry(topics):
    index, entry = topics.entry("o-2")
    record = topics.replace(TABLE, index, value=changelog.encode(structs.replace(entry, head=bytes(16))))
    event = topics.records[EVENTS][topics.index(EVENTS, b"o-2")]
    report = verified(topics)
    assert found(report) == [("chain", EVENTS, event.offset)]
    assert f"{TABLE} has for it, at offset {record.offset}" in report.findings[0].text


def test_an_entry_that_cannot_be_decoded_is_found(topics):
    index, _ = topics.entry("o-2")
    record = topics.replace(TABLE, index, value=b"\x01\x90")
    assert found(verified(topics)) == [("unreadable", TABLE, record.offset)]


def test_an_entry_that_is_gone_is_found(topics):
    event = topics.records[EVENTS][topics.index(EVENTS, b"o-6")]
    topics.records[TABLE] = [record for record in topics.records[TABLE] if record.key != b"o-6"]
    assert found(verified(topics)) == [("table", EVENTS, event.offset)]


def test_an_entry_that_is_deleted_is_found(topics):
    event = topics.records[EVENTS][topics.index(EVENTS, b"o-6")]
    topics.append(TABLE, b"o-6", None)
    assert found(verified(topics)) == [("table", EVENTS, event.offset)]


def test_an_entry_of_an_order_without_events_is_found(topics):
    _, entry = topics.entry("o-2")
    record = topics.append(TABLE, b"o-99", changelog.encode(entry))
    assert found(verified(topics)) == [("table", TABLE, record.offset)]


def test_an_entry_of_an_order_without_events_that_was_deleted_is_none(topics):
    _, entry = topics.entry("o-2")
    topics.append(TABLE, b"o-99", changelog.encode(entry))
    topics.append(TABLE, b"o-99", None)
    assert verified(topics).count == 0


def test_a_partition_with_outcomes_but_without_a_position_is_found(topics):
    topics.records[TABLE] = [record for record in topics.records[TABLE] if record.key != POSITION_KEY]
    report = verified(topics, now=NOW)
    assert ("position", TABLE, topics.ends[TABLE]) in found(report)


def test_a_position_that_cannot_be_decoded_is_found(topics):
    index, _ = topics.position()
    record = topics.replace(TABLE, index, value=b"\x02")
    assert found(verified(topics, now=NOW)) == [("unreadable", TABLE, record.offset)]


def test_an_outcome_of_a_command_after_the_position_is_found(topics):
    index, position = topics.position()
    topics.replace(TABLE, index, value=changelog.encode(structs.replace(position, next_offset=18)))
    event = topics.records[EVENTS][topics.index(EVENTS, b"o-1")]
    report = verified(topics, now=NOW)
    assert ("position", EVENTS, event.offset) in found(report)
    assert "The command at offset 18 has an outcome, but the position is 18" in report.findings[0].text


@pytest.mark.parametrize("topic", [EVENTS, REJECTIONS, DEAD_LETTERS, WAITING])
def test_a_topic_that_ends_before_the_recorded_end_is_found(topics, topic):
    index, position = topics.position()
    ends = Ends(*(topics.ends[name] + (name == topic) for name in (EVENTS, REJECTIONS, DEAD_LETTERS, WAITING)))
    topics.replace(TABLE, index, value=changelog.encode(structs.replace(position, ends=ends)))
    assert found(verified(topics)) == [("lost_tail", topic, topics.ends[topic])]


def test_commands_that_end_before_the_position_are_found(topics):
    topics.records[COMMANDS].pop()
    topics.ends[COMMANDS] -= 1
    assert found(verified(topics)) == [("lost_tail", COMMANDS, topics.ends[COMMANDS])]


def test_commands_that_were_deleted_before_they_were_decided_are_found(topics):
    topics.starts[COMMANDS] = topics.ends[COMMANDS] = 30
    topics.records[COMMANDS] = []
    assert found(verified(topics)) == [("position", COMMANDS, 30)]


def test_a_waiting_command_that_is_lost_is_found(topics):
    topics.drop(WAITING, -1)
    _, position = topics.position()
    index = topics.index(TABLE, POSITION_KEY)
    report = verified(topics)
    offset = topics.records[TABLE][index].offset
    assert found(report) == [("waiting", TABLE, offset), ("no_outcome", COMMANDS, position.next_offset - 1)]


def test_a_waiting_command_that_is_decided_is_found(topics):
    waiting = changelog.decode_waiting(topics.records[WAITING][0].value)
    topics.append(DEAD_LETTERS, b"o-7", b"x", [("command_offset", b"%d" % waiting.offset)])
    report = verified(topics)
    assert found(report) == [("waiting", WAITING, topics.records[WAITING][0].offset)]


def test_a_waiting_command_that_cannot_be_decoded_is_found(topics):
    record = topics.replace(WAITING, 0, value=b"\x01\x90")
    assert ("unreadable", WAITING, record.offset) in found(verified(topics))


def test_a_waiting_command_under_another_key_is_found(topics):
    record = topics.replace(WAITING, 0, key=b"o-8\0001")
    assert ("wrong_key", WAITING, record.offset) in found(verified(topics))


def test_a_waiting_command_after_the_position_is_found(topics):
    index, position = topics.position()
    waiting = changelog.decode_waiting(topics.records[WAITING][-1].value)
    changed = structs.replace(position, next_offset=waiting.offset)
    topics.replace(TABLE, index, value=changelog.encode(changed))
    assert ("waiting", WAITING, topics.records[WAITING][-1].offset) in found(verified(topics, now=NOW))


def test_commands_that_are_undecided_for_too_long_are_one_finding(topics):
    first = topics.append(COMMANDS, b"o-8", b"{}", at=LATER)
    topics.append(COMMANDS, b"o-8", b"{}", at=LATER)
    assert verified(topics, now=LATER + timedelta(seconds=50)).count == 0
    report = verified(topics, now=LATER + timedelta(seconds=70))
    assert found(report) == [("undecided", COMMANDS, first.offset)]
    assert report.findings[0].text.startswith("2 commands from this offset on have no outcome yet; this one arrived at")
    assert verified(topics, now=LATER + timedelta(seconds=70), older_than_s=600).count == 0


# How it reads


def test_what_is_not_a_repeat_has_no_outcome(topics):
    index = topics.index(COMMANDS, b"o-1", 5)  # the second payment, a repeat
    assert b"pay-1-o-1" in topics.records[COMMANDS][index].value
    record = topics.replace(COMMANDS, index, value=topics.records[COMMANDS][index].value.replace(b"pay-1", b"pay-9"))
    report = verified(topics)
    assert (found(report), report.totals.repeats) == ([("no_outcome", COMMANDS, record.offset)], 1)


def test_the_schemas_of_commands_without_an_outcome_are_looked_up(topics):
    """Perhaps only a registry knows them, and without its schema a repeat is not recognized."""
    reader = MemoryReader(topics)
    totals = verified(topics, reader=reader).totals
    assert len(reader.learned) == totals.repeats + totals.waiting > 0


def test_a_copy_of_a_waiting_command_that_a_full_room_dropped_is_a_repeat():
    topics = Topics()
    waiting = [named(create, "o-1", user_id="sam"), *[named(amend, "o-1", command_id=f"a-{n}") for n in range(31)]]
    topics.send(*waiting, waiting[-1])
    report = verified(topics)
    assert (report.findings, report.totals.waiting, report.totals.repeats) == ([], 32, 1)


def test_a_command_that_was_refused_for_a_time_only_has_an_outcome_each_time_it_is_sent():
    topics = Topics()
    late = named(create, "o-1", decide_by=NOW - timedelta(hours=1))
    topics.send(late)
    topics.send(late)
    topics.drop(REJECTIONS, 1)
    report = verified(topics)
    assert (found(report), report.totals.repeats) == ([("no_outcome", COMMANDS, 1)], 0)


def test_a_command_that_is_decided_meanwhile_is_not_undecided():
    topics = Topics()
    topics.send(named(create, "o-1"), named(create, "o-2"))
    shown = dict(topics.ends)
    topics.send(named(pay, "o-2"))
    topics.send(named(ship, "o-1"))
    full = dict(topics.ends)
    topics.ends = shown | {EVENTS: full[EVENTS], COMMANDS: full[COMMANDS]}
    reader = MemoryReader(topics, lambda: topics.ends.update(full))
    assert verified(topics, now=LATER, reader=reader).findings == []


def test_an_intact_log_is_not_read_on(topics):
    async def fail(_seconds):
        pytest.fail("it waits")

    assert verified(topics, sleep=fail).count == 0


def test_a_repeat_of_a_command_whose_rejection_is_visible_later_is_no_finding():
    topics = Topics()
    topics.send(named(create, "o-1"))
    shown = topics.ends[REJECTIONS]
    topics.send(named(ship, "o-1"), named(ship, "o-1"))
    full = dict(topics.ends)
    topics.ends = full | {REJECTIONS: shown}
    reader = MemoryReader(topics, lambda: topics.ends.update(full))
    report = verified(topics, reader=reader)
    assert (report.findings, report.totals.repeats) == ([], 1)


def test_topics_with_different_partition_counts_are_not_verified(topics):
    reader = MemoryReader(topics)
    reader.partition_counts[TABLE] = 2
    with pytest.raises(TopicsError, match=f"the same number of partitions: .*{TABLE} has 2"):
        verified(topics, reader=reader)


def test_a_transaction_that_is_visible_in_one_topic_first_is_no_finding():
    topics = Topics()
    topics.send(named(create, "o-1"))
    shown = dict(topics.ends)
    topics.send(named(pay, "o-1"))
    full = dict(topics.ends)
    topics.ends = shown | {EVENTS: full[EVENTS]}
    reader = MemoryReader(topics, lambda: topics.ends.update(full))
    waited_s = []

    async def sleep(seconds):
        waited_s.append(seconds)

    assert verified(topics, reader=reader, sleep=sleep).count == 0
    assert waited_s == [SETTLED_S], "so long until the transaction is visible in all of them"


@pytest.mark.parametrize("first", [EVENTS, TABLE])
@pytest.mark.parametrize("command", [named(pay, "o-2"), named(create, "o-3")], ids=["a change", "a new order"])
def test_a_transaction_that_is_still_visible_in_one_topic_only_is_no_finding(first, command):
    topics = Topics()
    topics.send(named(create, "o-1"), named(create, "o-2"))
    shown = dict(topics.ends)
    topics.send(named(pay, "o-1"))
    middle = dict(topics.ends)
    topics.send(command)
    full = dict(topics.ends)
    topics.ends = shown | {EVENTS: middle[EVENTS]}
    reader = MemoryReader(topics, lambda: topics.ends.update(middle | {first: full[first]}))
    assert verified(topics, reader=reader).findings == []


def test_a_difference_that_stays_is_found_although_other_orders_change():
    topics = Topics()
    topics.send(named(create, "o-1"), named(create, "o-2"))
    index, entry = topics.entry("o-1")
    record = topics.replace(TABLE, index, value=changelog.encode(structs.replace(entry, accepted=())))
    reader = MemoryReader(topics, lambda: topics.send(named(pay, "o-2")))
    assert found(verified(topics, reader=reader)) == [("table", TABLE, record.offset)]


def test_a_damaged_batch_is_found_and_its_partition_is_not_compared(topics):
    reader = MemoryReader(topics)
    reader.error = DamagedError(TopicPartition(TABLE, 0), 3)
    report = verified(topics, reader=reader)
    assert found(report) == [("unreadable", TABLE, 3)]
    assert report.not_checked == [
        f"The topics of partition 0 are not compared: {TABLE} cannot be read from offset 3 on."
    ]


def test_in_a_mirror_the_offsets_of_commands_are_not_compared(topics):
    for topic, records in topics.records.items():
        topics.records[topic] = [moved(record, 1000) for record in records]
        topics.starts[topic], topics.ends[topic] = 1000, topics.ends[topic] + 1000
    topics.starts[EVENTS] = 0
    assert verified(topics).count > 0
    report = verified(topics, now=LATER + timedelta(hours=1), is_mirror=True)
    assert report.findings == []
    assert len(report.not_checked) == 1


@pytest.mark.parametrize("topic", [REJECTIONS, DEAD_LETTERS, COMMANDS])
def test_in_a_mirror_a_missing_record_of_these_topics_is_said_to_be_not_noticed(topics, topic):
    topics.drop(topic, 0)
    report = verified(topics, now=LATER, is_mirror=True)
    assert report.findings == []
    assert "A missing command, rejection or dead letter is not noticed" in report.not_checked[0]


@pytest.mark.parametrize("topic", [EVENTS, WAITING])
def test_in_a_mirror_a_missing_event_or_waiting_command_is_found(topics, topic):
    topics.drop(topic, -1)
    assert verified(topics, now=LATER, is_mirror=True).count == 1


def test_only_the_first_findings_are_kept_and_all_are_counted():
    topics = Topics()
    topics.send(*[named(create, f"o-{number}") for number in range(9)])
    topics.records[TABLE] = [record for record in topics.records[TABLE] if record.key == POSITION_KEY]
    report = verified(topics, limit=4)
    assert (len(report.findings), report.count, report.counts) == (4, 9, {"table": 9})


def operated(topics, at=NOW, **fields):
    """Record that an operator resumed the lane."""
    act = LaneResumed(id="op-1", at=at, actor="user:alice", reason="disk", **fields)
    return topics.append(OPERATIONS, b"op-1", operations.encode(act), at=at)


def skip_last(topics):
    """Send two commands that no lane decides, and move the position behind them."""
    first = topics.append(COMMANDS, b"o-9", b"damaged").offset
    topics.append(COMMANDS, b"o-9", b"damaged")
    index, position = topics.position()
    moved_to = structs.replace(position, next_offset=first + 2, read_to=first + 2, end_offset=first + 2)
    topics.replace(TABLE, index, value=changelog.encode(moved_to))
    return first


def test_commands_that_an_operator_has_skipped_need_no_outcome(topics):
    first = skip_last(topics)
    places = [("no_outcome", COMMANDS, first), ("no_outcome", COMMANDS, first + 1)]
    assert found(verified(topics, now=LATER)) == places
    operated(topics, previous_position=first, position=first + 1)
    report = verified(topics, now=LATER)
    assert found(report) == places[1:]
    [line] = report.operations
    assert f"skipped the commands from offset {first} to {first} (user:alice, " in line


def test_outcomes_before_the_position_moved_back_have_offsets_of_the_previous_topic(topics):
    assert verified(topics, now=LATER).count == 0
    index, position = topics.position()
    topics.records[COMMANDS].clear()
    topics.starts[COMMANDS] = 0
    topics.ends[COMMANDS] = 0
    topics.records[WAITING].clear()
    topics.replace(
        TABLE, index, value=changelog.encode(structs.replace(position, next_offset=0, end_offset=0, waiting_count=0))
    )
    kinds = verified(topics, now=LATER).counts
    assert set(kinds) == {"position"}
    operated(topics, at=LATER, previous_position=position.next_offset, position=0)
    report = verified(topics, now=LATER)
    assert report.count == 0
    assert "position moved back" in report.operations[0]


def test_an_accepted_loss_is_listed(topics):
    operated(topics, previous_position=1, position=1, lost={EVENTS: (3, 5)})
    [line] = verified(topics, now=LATER).operations
    assert f"accepted a loss: {EVENTS} from offset 3 to 4" in line


def test_an_operation_that_cannot_be_decoded_is_a_finding(topics):
    record = topics.append(OPERATIONS, b"op-1", b"{}")
    assert found(verified(topics, now=LATER)) == [("unreadable", OPERATIONS, record.offset)]
