"""What a damaged batch means for a parked lane depends on its topic: the examination says what to do next."""

from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiokafka import TopicPartition
from aiokafka.errors import CorruptRecordException
from msgspec.structs import replace

from order_service.errors import OperationRefused
from order_service.operations.lanes.examination import _examine
from order_service.operations.lanes.resume import Plan, Wanted, plan_of
from order_service.wire import avro
from order_service.wire.changelog import POSITION_KEY, encode
from order_service.wire.headers import rejection_headers
from order_service.worker.claims.progress import ClaimSlots, Progress
from tests.support.samples import but, create, order_created, ship_refused
from tests.unit.worker.claims.topics import BARRIER, ENTRY, EVENT, NAMES, Made, Topics, at


class Damaged(Topics):
    """The topics of a partition as the reader of a claim and its clients, with a damaged record in some topics.

    A fetch that reaches a damage raises an error and drops the records before it, as aiokafka does.
    """

    def __init__(self, topics, damages):
        super().__init__(topics)
        self._damages = {TopicPartition(topic, 0): offset for topic, offset in damages.items()}

    @asynccontextmanager
    async def reader(self):
        yield self

    async def getmany(self, *places, timeout_ms, max_records):
        for place in places:
            if self._at[place] <= self._damages.get(place, -1) < self._at[place] + max_records:
                raise CorruptRecordException(f"Invalid CRC - {place}")
        return await super().getmany(*places, timeout_ms=timeout_ms, max_records=max_records)


async def examined(damages, **outcomes):
    """Examine a partition whose position is 4, with two records in each outcome topic since that position."""
    position = replace(at(4), last_timestamp_ms=0)
    written = {"events": [EVENT, EVENT], "rejections": [BARRIER] * 2, "dead_letters": [BARRIER] * 2} | outcomes
    topics: Any = Damaged(
        {
            NAMES.table: [(create.order_id.encode(), encode(ENTRY), []), (POSITION_KEY, encode(position), [])],
            NAMES.waiting: [BARRIER],
            NAMES.commands: [BARRIER] * 10,
            **{getattr(NAMES, name): records for name, records in written.items()},
        },
        damages,
    )
    progress = Progress(ClaimSlots(1))
    found = await _examine(topics, NAMES, 0, progress)
    progress.leave()
    return found


async def damaged_at_first(damaged):
    """Examine a partition with damage at the first offset that is read of a topic."""
    first = 3 if damaged == NAMES.commands else 0
    found = await examined({damaged: first})
    [fault] = found.faults
    assert fault.startswith("damaged_batch: a record cannot be read")
    assert f"in {damaged} at {first}" in fault
    return found


@pytest.mark.parametrize("damaged", [NAMES.rejections, NAMES.dead_letters])
async def test_damaged_rejections_and_dead_letters_can_be_accepted_as_lost(damaged):
    found = await damaged_at_first(damaged)
    with pytest.raises(OperationRefused, match="If they cannot be restored, accept the loss with --accept-loss"):
        plan_of(0, found, Wanted(), NAMES)
    assert plan_of(0, found, Wanted(accepts_loss=True), NAMES) == Plan(4, 4, {damaged: (0, 2)})


async def test_two_damaged_topics_are_both_accepted_from_their_damage_on():
    found = await examined({NAMES.rejections: 1, NAMES.dead_letters: 0})
    lost = {NAMES.rejections: (1, 2), NAMES.dead_letters: (0, 2)}
    assert plan_of(0, found, Wanted(accepts_loss=True), NAMES) == Plan(4, 4, lost)


UNKNOWN: Made = (b"order", avro.encode_event(but(order_created, order_id="unknown")), [])
LATER: Made = (b"order", avro.encode_rejection(ship_refused), rejection_headers(ship_refused, None, 4))


@pytest.mark.parametrize(
    ("damages", "outcomes"),
    [
        pytest.param({NAMES.rejections: 0}, {"events": [UNKNOWN]}, id="an event"),
        pytest.param({NAMES.dead_letters: 0}, {"events": [EVENT, UNKNOWN]}, id="the last event"),
        pytest.param({NAMES.dead_letters: 0}, {"rejections": [LATER]}, id="a rejection"),
        pytest.param({NAMES.rejections: 0, NAMES.dead_letters: 0}, {"events": [UNKNOWN]}, id="two damages"),
        pytest.param({NAMES.rejections: 1}, {"rejections": [LATER, BARRIER]}, id="a rejection before the damage"),
    ],
)
async def test_a_damaged_topic_hides_no_outcome_that_the_table_has_lost(damages, outcomes):
    found = await examined(damages, **outcomes)
    assert "table_lost_tail: " in found.changelog_fault
    with pytest.raises(OperationRefused, match="Only new changelogs help"):
        plan_of(0, found, Wanted(accepts_loss=True), NAMES)


@pytest.mark.parametrize(
    ("damaged", "wanted", "line"),
    [
        pytest.param(NAMES.events, Wanted(), "Neither a resume nor a rebuild can go on without", id="events"),
        pytest.param(NAMES.events, Wanted(accepts_loss=True), "Neither a resume nor a rebuild can", id="accepted"),
        pytest.param(NAMES.table, Wanted(), "Only new changelogs help: see `order-service rebuild 0`", id="table"),
        pytest.param(NAMES.commands, Wanted(), "Choose with --from where to continue", id="commands"),
    ],
)
async def test_other_damage_has_its_own_remedy(damaged, wanted, line):
    with pytest.raises(OperationRefused, match=line):
        plan_of(0, await damaged_at_first(damaged), wanted, NAMES)
