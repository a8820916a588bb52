"""What a claim compares before it names itself, on the made-up topics of one partition."""

from collections.abc import Mapping
from typing import Any

import pytest
from msgspec.structs import replace

from order_service.errors import LaneParked
from order_service.wire import avro
from order_service.wire.changelog import POSITION_KEY, REBUILDING, Ends, Position, WaitingCommand, encode, waiting_key
from order_service.wire.headers import rejection_headers
from order_service.worker.claims.changelog_reader import Changelogs, ChangelogState
from order_service.worker.claims.checks import Checks
from order_service.worker.claims.progress import ClaimSlots, Progress
from tests.support.samples import NOW, but, create, entry_after, order_created, order_paid, pay, ship_refused
from tests.unit.worker.claims.topics import BARRIER, CREATED, ENTRY, EVENT, NAMES, Made, Topics, at

ANOTHER = avro.encode_event(but(order_created, command_id="create-2"))
WAITS = WaitingCommand(create, 3, NOW, None)
REJECTION = (b"order", avro.encode_rejection(ship_refused), rejection_headers(ship_refused, None, 3))
DEAD_LETTER = (
    b"order",
    b"no command",
    [("dl_topic", NAMES.commands.encode()), ("dl_partition", b"0"), ("command_offset", b"3")],
)


async def check(
    position: Position, outcomes: Mapping[str, list[Made]], *, entry: Any = ENTRY, waits: bool = False, deleted: int = 0
) -> None:
    """Restore a partition with this position, table and waiting room, and compare it as a claim does."""
    table: list[Made] = [] if entry is None else [(create.order_id.encode(), encode(entry), [])]
    room: list[Made] = [(waiting_key(create.order_id, WAITS.offset), encode(WAITS), [])] if waits else []
    topics: Any = Topics(
        {
            NAMES.table: [*table, (POSITION_KEY, encode(position), [])],
            NAMES.waiting: [BARRIER, *room],
            NAMES.commands: [BARRIER] * 10,
            **outcomes,
        }
    )
    topics.first_offsets[NAMES.commands] = deleted
    progress = Progress(ClaimSlots(1))
    logs = Changelogs(0, NAMES, topics, ChangelogState(), progress)
    await logs.read_to_end()
    checks = Checks(0, NAMES, topics, logs)
    await checks.take_ends()
    await checks.position("next", len(logs.waiting))
    await checks.outcomes()
    progress.leave()


async def test_a_partition_whose_topics_agree_with_its_position_passes():
    await check(at(4), {NAMES.events: [EVENT]})
    await check(at(3, waiting_count=1), {}, entry=None, waits=True)


@pytest.mark.parametrize(
    ("topic", "outcome"),
    [(NAMES.events, EVENT), (NAMES.rejections, REJECTION), (NAMES.dead_letters, DEAD_LETTER)],
)
@pytest.mark.parametrize(
    ("position", "waits", "why"),
    [
        pytest.param(at(3), False, "command 3 has an outcome, the position is 3", id="position"),
        pytest.param(
            at(4, waiting_count=1),
            True,
            f"command 3 has an outcome, and it waits in {NAMES.waiting}",
            id="waits",
        ),
    ],
)
async def test_an_outcome_of_a_command_that_is_not_decided_parks_the_lane(topic, outcome, position, waits, why):
    with pytest.raises(LaneParked, match=f"^table_lost_tail: .*{topic} offset 0: {why}"):
        await check(position, {topic: [outcome]}, waits=waits)


@pytest.mark.parametrize(
    ("entry", "event", "why"),
    [
        pytest.param(None, CREATED, "it is version 1 of an order that the table has at version 0", id="no order"),
        pytest.param(
            ENTRY,
            avro.encode_event(but(order_paid, version=2)),
            "it is version 2 of an order that the table has at version 1",
            id="an older version",
        ),
        pytest.param(
            ENTRY, ANOTHER, "it is version 1 of an order, and the table has a different event", id="another event"
        ),
    ],
)
async def test_an_event_that_is_not_in_the_table_parks_the_lane(entry, event, why):
    with pytest.raises(LaneParked, match=f"^table_lost_tail: .*{NAMES.events} offset 0: {why}"):
        await check(at(4), {NAMES.events: [(b"order", event, EVENT[2])]}, entry=entry)


@pytest.mark.parametrize(
    ("position", "topics", "deleted", "reason"),
    [
        pytest.param(at(4), {}, 5, "commands_deleted: commands from 4 to 4 are deleted", id="deleted commands"),
        pytest.param(at(11), {}, 0, "commands_truncated: the commands end at 10", id="fewer commands"),
        pytest.param(replace(at(4), last_timestamp_ms=1), {}, 0, "commands_recreated: command 3 ", id="other commands"),
        pytest.param(at(4), {NAMES.table: [], NAMES.events: [EVENT]}, 0, "table_lost: ", id="no position"),
        pytest.param(at(4), {NAMES.waiting: []}, 0, "waiting_lost: ", id="no waiting room"),
        pytest.param(
            at(4),
            {NAMES.table: [(b"order", b"\x09", [])]},
            0,
            f"changelog_unreadable: {NAMES.table} partition 0 offset 0 ",
            id="a record of a later version",
        ),
    ],
)
async def test_topics_that_do_not_match_the_position_park_the_lane(position, topics, deleted, reason):
    with pytest.raises(LaneParked, match=f"^{reason}"):
        await check(position, topics, deleted=deleted)


async def test_an_event_of_an_earlier_version_than_the_table_has_passes():
    await check(at(4), {NAMES.events: [EVENT]}, entry=entry_after([create, pay]))


async def test_outcomes_before_the_recorded_ends_are_not_compared():
    await check(at(4, ends=Ends(events=1)), {NAMES.events: [(b"order", ANOTHER, EVENT[2])]})


@pytest.mark.parametrize("log", ["events", "rejections", "dead_letters", "waiting"])
async def test_a_topic_that_ends_before_its_recorded_end_parks_the_lane(log):
    topic = getattr(NAMES, log)
    whole = {NAMES.events: [EVENT], NAMES.rejections: [REJECTION], NAMES.dead_letters: [DEAD_LETTER]}
    await check(at(4, ends=Ends(1, 1, 1, 1)), whole)
    recorded = Ends(**{"events": 1, "rejections": 1, "dead_letters": 1, "waiting": 1, log: 2})
    reason = "waiting_lost_tail" if log == "waiting" else "outcomes_lost_tail"
    why = f"^{reason}: {topic} partition 0 ends at 1, it ended at 2: its last records are lost"
    with pytest.raises(LaneParked, match=why):
        await check(at(4, ends=recorded), whole)


async def test_a_partition_whose_rebuild_was_interrupted_parks_the_lane():
    with pytest.raises(LaneParked, match=r"^rebuild_unfinished: a rebuild was interrupted"):
        await check(at(4, waiting_count=REBUILDING), {})


@pytest.mark.parametrize(
    ("expected", "waits", "actual"),
    [pytest.param(1, False, 0, id="a lost one"), pytest.param(0, True, 1, id="a lost deletion")],
)
async def test_another_number_of_waiting_commands_than_the_position_says_parks_the_lane(expected, waits, actual):
    why = (
        f"^waiting_differs: {NAMES.waiting} partition 0 holds {actual} waiting commands,"
        f" the position in {NAMES.table} counts {expected}"
    )
    with pytest.raises(LaneParked, match=why):
        await check(at(4, waiting_count=expected), {}, entry=None, waits=waits)
