"""What a resume may change: the plan for what was found, or the line of a refusal."""

from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka.coordinator.protocol import ConsumerProtocolMemberAssignment
from aiokafka.structs import TopicPartition
from msgspec.structs import replace

from order_service.errors import OperationRefused
from order_service.kafka.topics import topic_names
from order_service.operations.lanes import resume
from order_service.operations.lanes.examination import WAITING_COUNT, Examination, lost_tails
from order_service.operations.lanes.lanes import rows_of
from order_service.operations.lanes.resume import Plan, Preview, Skipped, Wanted, plan_of, position_of
from order_service.operations.positions import NewestPosition
from order_service.settings import Settings
from order_service.wire.changelog import REBUILDING, Ends, Position
from order_service.wire.commands import decode_command
from order_service.worker.lane_states import LaneState
from order_service.worker.membership import Member
from tests.support.samples import NOW
from tests.unit.operations.topics_in_memory import COMMANDS, MemoryReader, honest

NAMES = topic_names()
POSITION = Position(40, "one", 50, 1, 42, Ends(10, 5, 3, 7), 2)
FOUND = Examination(POSITION, 99, None, 2, 5, 60, Ends(10, 5, 3, 7))
CUT = replace(FOUND, commands_fault="the commands end at 60, they ended at 80", waiting_count=0)
LOST = replace(FOUND, loss_fault="its last records are lost.", lost={NAMES.rejections: (4, 5)})
DERIVED = "Run `order-service rebuild 3`, which derives the waiting commands from the commands"
HOLE = replace(LOST, lost={NAMES.events: (9, 10)})


def refused(found, wanted):
    """Return the line of the refusal."""
    with pytest.raises(OperationRefused) as error:
        plan_of(3, found, wanted, NAMES)
    return str(error.value)


@pytest.mark.parametrize(
    ("found", "wanted", "plan"),
    [
        pytest.param(FOUND, Wanted(), Plan(42), id="a plain resume changes no position"),
        pytest.param(FOUND, Wanted(50), Plan(42, 50), id="skips commands"),
        pytest.param(FOUND, Wanted(60), Plan(42, 60), id="skips all commands"),
        pytest.param(FOUND, Wanted(42), Plan(42, 42), id="stays at its position"),
        pytest.param(CUT, Wanted(5), Plan(42, 5), id="moves back after the topic was cut"),
        pytest.param(LOST, Wanted(None, True), Plan(42, 42, LOST.lost), id="accepts a loss"),
        pytest.param(LOST, Wanted(50, True), Plan(42, 50, LOST.lost), id="accepts a loss and skips commands"),
        pytest.param(replace(FOUND, position=None), Wanted(), Plan(None), id="has no position yet"),
    ],
)
def test_the_plan_of_a_resume(found, wanted, plan):
    assert plan_of(3, found, wanted, NAMES) == plan


@pytest.mark.parametrize(
    ("found", "wanted", "line"),
    [
        pytest.param(
            replace(FOUND, changelog_fault="damaged."), Wanted(), "damaged. Only new changelogs help", id="table"
        ),
        pytest.param(replace(FOUND, changelog_fault="damaged."), Wanted(50, True), "rebuild 3", id="table, any option"),
        pytest.param(LOST, Wanted(), "--accept-loss", id="a loss that is not accepted"),
        pytest.param(LOST, Wanted(50), "--accept-loss", id="a loss that is not accepted, with an offset"),
        pytest.param(HOLE, Wanted(), "Restore the events, or run `order-service rebuild 3`", id="events"),
        pytest.param(HOLE, Wanted(None, True), "a hole in the versions", id="events, accepted"),
        pytest.param(replace(LOST, lost={NAMES.waiting: (6, 7)}), Wanted(None, True), DERIVED, id="waiting room"),
        pytest.param(replace(LOST, lost={WAITING_COUNT: (1, 2)}), Wanted(None, True), DERIVED, id="waiting commands"),
        pytest.param(replace(LOST, lost=LOST.lost | {NAMES.waiting: (6, 7)}), Wanted(50, True), DERIVED, id="two"),
        pytest.param(replace(LOST, lost={}), Wanted(), DERIVED, id="an empty waiting room"),
        pytest.param(FOUND, Wanted(None, True), "there is no loss to accept", id="no loss"),
        pytest.param(CUT, Wanted(), "Choose with --from where to continue", id="the commands do not match"),
        pytest.param(FOUND, Wanted(4), "must be from 5 to 60", id="before the start"),
        pytest.param(FOUND, Wanted(61), "must be from 5 to 60", id="after the end"),
        pytest.param(FOUND, Wanted(41), "are decided already", id="back in an intact topic"),
        pytest.param(replace(CUT, waiting_count=1), Wanted(5), "or name an offset from 42 on", id="commands wait"),
        pytest.param(
            replace(CUT, waiting_count=1, commands_end=41),
            Wanted(5),
            "1 commands wait with offsets of the previous topic: restore the commands, or wait until the topic ends at"
            " 42, then name an offset from 42 on",
            id="commands wait, and the topic ends before the position",
        ),
        pytest.param(replace(FOUND, position=None), Wanted(5), "no position yet", id="no position to move"),
    ],
)
def test_a_resume_that_cannot_help_is_refused(found, wanted, line):
    assert line in refused(found, wanted)


async def test_a_command_that_raises_an_error_can_be_skipped(monkeypatch):
    def decode(value):
        if value == reader.topics.records[COMMANDS][1].value:
            raise TypeError("the bug for which the lane has parked")
        return decode_command(value)

    reader: Any = MemoryReader(honest())
    monkeypatch.setattr(resume, "decode_command", decode)
    skipped = await resume._read_skipped(reader, 0, range(3))
    assert skipped == Skipped(("o-1", "o-3"), 0, "the command at offset 1 cannot be decoded: TypeError")


async def test_a_resume_of_a_partition_that_has_moved_says_that_its_worker_is_fenced(monkeypatch):
    @asynccontextmanager
    async def taken_over(*_):
        yield SimpleNamespace(newest=NewestPosition(FOUND.position_offset + 1))

    monkeypatch.setattr(resume, "taken_over", taken_over)
    reader: Any = MemoryReader(honest())
    previewed = Preview(FOUND, Plan(42, 50), Skipped())
    with pytest.raises(OperationRefused, match="its position was not changed"):
        await resume.resume(Settings(), reader, 3, previewed, "user:alice", "why")


def test_offsets_that_are_skipped_or_decided_again():
    assert (list(Plan(3, 5).skipped), list(Plan(3, 5).repeated)) == ([3, 4], [])
    assert (list(Plan(5, 3).skipped), list(Plan(5, 3).repeated)) == ([], [3, 4])
    assert (list(Plan(5).skipped), list(Plan(5).repeated)) == ([], [])


@pytest.mark.parametrize(
    ("found", "next_offset", "position"),
    [
        pytest.param(FOUND, 50, (50, None, 50), id="moved"),
        pytest.param(LOST, 42, (40, 1, 42), id="not moved: the last command is compared by the next claim"),
        pytest.param(CUT, 42, (42, None, 42), id="not moved, in a recreated topic"),
    ],
)
def test_the_position_that_a_resume_writes(found, next_offset, position):
    written = position_of(next_offset, found, "me")
    assert (written.next_offset, written.last_timestamp_ms, written.read_to) == position
    assert (written.owner, written.end_offset, written.ends, written.waiting_count) == (
        "me",
        found.commands_end,
        found.ends,
        found.waiting_count,
    )


def test_what_was_lost_has_the_actual_and_the_recorded_number():
    assert lost_tails(FOUND, NAMES) == {}
    ends = Ends(9, 5, 0, 8)
    assert lost_tails(replace(FOUND, ends=ends), NAMES) == {NAMES.events: (9, 10), NAMES.dead_letters: (0, 3)}
    assert lost_tails(replace(FOUND, waiting_count=1), NAMES) == {WAITING_COUNT: (1, 2)}
    unknown = replace(POSITION, ends=None, waiting_count=None)
    assert lost_tails(replace(FOUND, position=unknown, waiting_count=1), NAMES) == {}


def _assigned(partitions, user_data):
    return ConsumerProtocolMemberAssignment(0, [(NAMES.commands, sorted(partitions))], user_data.encode()).encode()


def test_a_row_has_what_its_worker_tells_or_else_what_kafka_tells():
    ends = {TopicPartition(NAMES.commands, partition): 50 for partition in range(4)}
    newest = dict.fromkeys(range(3), NewestPosition(9, POSITION)) | {3: NewestPosition(fault="damaged")}
    parked = LaneState(1, "parked", NOW, "a batch is damaged")
    held = _assigned({0, 1, 3}, "orders-worker-1 standbys=")
    member = Member("id", "orders-worker-host", "/10.0.0.1", held)
    other = Member("other", "orders-worker-other", "/10.0.0.2", _assigned(set(), "standbys=1,3"))
    rows = rows_of(newest, ends, {1: ("host:9100", parked)}, [member, other])
    assert [row.state for row in rows] == ["unknown", "parked", "not assigned", "unknown"]
    assert [row.worker for row in rows] == [str(member), "host:9100", None, str(member)]
    assert [row.standby for row in rows] == [None, str(other), None, str(other)]
    assert [row.reason for row in rows] == ["", "a batch is damaged", "", "damaged"]
    assert (rows[1].since, rows[1].owner, rows[1].position, rows[1].lag, rows[1].waiting) == (NOW, "one", 42, 8, 2)
    assert (rows[3].owner, rows[3].position, rows[3].lag) == (None, None, None)
    assert {row.state for row in rows_of(newest, ends, {}, None)} == {"unknown"}, "the group cannot be read"


def test_a_row_of_an_unfinished_rebuild_has_no_number_of_waiting_commands():
    newest = {0: NewestPosition(9, replace(POSITION, waiting_count=REBUILDING))}
    [row] = rows_of(newest, {TopicPartition(NAMES.commands, 0): 50}, {}, [])
    assert (row.waiting, row.position) == (None, 42)
