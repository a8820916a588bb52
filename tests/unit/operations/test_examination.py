"""What a damaged batch means for a parked lane depends on its topic: the examination names the way on."""

from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiokafka import TopicPartition
from aiokafka.errors import CorruptRecordException
from msgspec.structs import replace

from order_service.errors import OperationRefused
from order_service.operations.lanes.examination import _examine
from order_service.operations.lanes.resume import Plan, Wanted, plan_of
from order_service.wire.changelog import POSITION_KEY, encode
from order_service.worker.claims.progress import ClaimSlots, Progress
from tests.support.samples import create
from tests.unit.worker.claims.topics import BARRIER, ENTRY, EVENT, NAMES, Topics, at


class Damaged(Topics):
    """The topics of a partition as the reader of a claim and its clients, with a damaged batch in one topic."""

    def __init__(self, topics, damaged):
        super().__init__(topics)
        self._damaged = TopicPartition(damaged, 0)

    @asynccontextmanager
    async def reader(self):
        yield self

    async def getmany(self, *places, timeout_ms, max_records):
        if self._damaged in places:
            raise CorruptRecordException(f"Invalid CRC - {self._damaged}")
        return await super().getmany(*places, timeout_ms=timeout_ms, max_records=max_records)


async def examined(damaged):
    """Examine a partition whose position is 4, with two records in each outcome topic since that position."""
    position = replace(at(4), last_timestamp_ms=0)
    topics: Any = Damaged(
        {
            NAMES.table: [(create.order_id.encode(), encode(ENTRY), []), (POSITION_KEY, encode(position), [])],
            NAMES.waiting: [BARRIER],
            NAMES.commands: [BARRIER] * 10,
            NAMES.events: [EVENT, EVENT],
            NAMES.rejections: [BARRIER] * 2,
            NAMES.dead_letters: [BARRIER] * 2,
        },
        damaged,
    )
    progress = Progress(ClaimSlots(1))
    found = await _examine(topics, NAMES, 0, progress)
    progress.leave()
    [fault] = found.faults
    assert fault.startswith("damaged_batch: a record cannot be read")
    assert f"in {damaged} at " in fault
    return found


@pytest.mark.parametrize("damaged", [NAMES.rejections, NAMES.dead_letters])
async def test_damaged_rejections_and_dead_letters_can_be_accepted_as_lost(damaged):
    found = await examined(damaged)
    with pytest.raises(OperationRefused, match="If they cannot be restored, accept the loss with --accept-loss"):
        plan_of(0, found, Wanted(), NAMES)
    assert plan_of(0, found, Wanted(accepts_loss=True), NAMES) == Plan(4, 4, {damaged: (0, 2)})


@pytest.mark.parametrize(
    ("damaged", "wanted", "line"),
    [
        pytest.param(NAMES.events, Wanted(), "Neither a resume nor a rebuild can go on without", id="events"),
        pytest.param(NAMES.events, Wanted(accepts_loss=True), "Neither a resume nor a rebuild can", id="accepted"),
        pytest.param(NAMES.table, Wanted(), "Only new changelogs help: see `order-service rebuild 0`", id="table"),
        pytest.param(NAMES.commands, Wanted(), "Choose with --from where to continue", id="commands"),
    ],
)
async def test_other_damage_names_its_own_way_on(damaged, wanted, line):
    with pytest.raises(OperationRefused, match=line):
        plan_of(0, await examined(damaged), wanted, NAMES)
