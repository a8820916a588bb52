"""The tasks of a worker and of its assignments: none ends without a sign."""

import asyncio
import importlib
import time
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import structlog
from aiokafka.errors import KafkaError
from msgspec.structs import replace

from order_service.domain.order import Cancelled
from order_service.errors import (
    Fenced,
    HistoryError,
    LaneParked,
    ParkingReason,
    StoreDamaged,
    StoreUnavailable,
    TurnRefused,
)
from order_service.kafka.admin_requests import TopicIdentity
from order_service.kafka.registry_client import Ids
from order_service.kafka.topics import topic_names
from order_service.sdk.testing import samples
from order_service.settings import Settings
from order_service.users.client import CallPolicy, UserClient
from order_service.wire.changelog import RELEASE_KEY, Position, WaitingCommand, encode
from order_service.worker import metrics
from order_service.worker.assignment import Assignment, Context, Owner
from order_service.worker.claims.changelog_reader import ChangelogState
from order_service.worker.claims.claim import Claimed, Claimer
from order_service.worker.claims.progress import ClaimSlots, Progress
from order_service.worker.clock import Clock
from order_service.worker.inbox import Run
from order_service.worker.lane import RESTORED_AT_A_TIME, Lane
from order_service.worker.payment_deadlines import PaymentDeadlines
from order_service.worker.store import MEGABYTE, Stores
from order_service.worker.table import Table
from order_service.worker.worker import SUSPECT_S, Worker
from tests.support.samples import NOW, ORDER_ID, SHOP, but, cancel, create, entry_after
from tests.unit.worker.ended_tasks import cancelled_from_within, until_told
from tests.unit.worker.lane_turns import Written, lane_with, received
from tests.unit.worker.lookup_world import users_that_wait

ORDERS = 100_000
ENTRY = entry_after([create])
UNUSED: Any = None
TRACE_ID = samples.TRACEPARENT.split("-")[1]


@pytest.fixture
def ended():
    return []


@pytest.fixture
def context(ended):
    unused = dict.fromkeys(("pause", "resume", "end_of", "end", "announce"), print)
    fetching: Any = type("Fetching", (), unused)()
    fetching.releasing_owners = fetching.standbys = frozenset
    fetching.fetch_before = lambda _at: None
    servers = {"bootstrap_servers": "127.0.0.1:1"}
    users = UserClient(CallPolicy.from_settings(Settings()))
    return Context(
        Settings(), topic_names(), {}, servers, fetching, users, Ids(None), ended.append, Clock(60), lambda _step: None
    )


async def test_a_claim_that_was_cancelled_from_within_ends_the_process(context, ended):
    assignment = Assignment(context, {0}, UNUSED, UNUSED, UNUSED)
    assignment._spawn(cancelled_from_within(), "claim")
    await until_told(ended)
    assert str(ended[0]) == "the task claim was cancelled from within"
    assignment._spawn(asyncio.sleep(60), "payments")
    await assignment.stop()
    assert len(ended) == 1


async def test_a_second_claim_that_was_cancelled_from_within_ends_the_process(context, ended):
    worker = Worker(context)
    worker._start(cancelled_from_within())
    await until_told(ended)
    assert str(ended[0]) == "the task claim again was cancelled from within"
    await worker.stop()


async def test_the_tasks_that_a_worker_cancels_when_it_stops_do_not_end_the_process(context, ended):
    worker = Worker(context)
    worker.start()
    await worker.stop()
    assert all(task.cancelled() for task in worker._tasks)
    assert not ended


@pytest.mark.parametrize(
    ("reached", "read_to"),
    [
        pytest.param((160, 7, 0), 160, id="all that was fetched is decided"),
        pytest.param((160, 7, 1), 151, id="a run is on its way"),
        pytest.param((160, None, 0), 151, id="a fetch has failed"),
    ],
)
async def test_what_was_read_once_stays_read(context, reached, read_to):
    """Else a claim would find commands missing that were none: the start of the log may lie behind old markers."""

    async def reached_now(_partition):
        return reached

    context.fetching.reached = reached_now
    assignment = Assignment(context, {0}, UNUSED, UNUSED, UNUSED)
    lane = lane_with(0, {})
    lane.next_offset, lane.read_to, lane.seek, lane.next_run = 100, 151, 7, 0
    assert await assignment.read_to(lane) == read_to
    await assignment.stop()


@pytest.fixture
async def worker(context, monkeypatch):
    """Make a worker with partitions 0 to 2, whose claims are not done."""
    monkeypatch.setattr(Assignment, "start", lambda _assignment: None)
    made: Any = Worker(context)
    await made.assigned({0, 1, 2})
    yield made
    await made.stop()


async def test_a_worker_has_started_when_each_of_its_partitions_runs_or_is_parked(context, worker):
    assert Worker(context).is_starting()
    for partition in (0, 1, 2):
        assert worker.is_starting()
        worker._assignment.park(partition, ParkingReason.DAMAGED_BATCH, "why")
    assert not worker.is_starting()


async def test_a_claim_begins_with_what_the_standby_of_this_worker_has_read(context, worker):
    context.fetching.standbys = lambda: frozenset({2, 3, 4})
    await worker.assigned({0, 1, 2})
    standbys = worker._standbys
    assert standbys._partitions == {3, 4}, "not for its own"
    state = standbys._states[3] = ChangelogState(is_followed=True)
    context.fetching.standbys = lambda: frozenset({4})
    await worker.assigned({0, 1, 2, 3})
    assert worker._assignment.interrupted == {3: state}
    assert (standbys._partitions, standbys._states) == ({4}, {})


async def test_an_interrupted_claim_goes_on_with_what_it_has_read_itself(context, worker):
    own = worker._assignment.interrupted[0] = ChangelogState()
    worker._standbys._states[0] = ChangelogState(is_followed=True)
    await worker.assigned({0, 1, 2})
    assert worker._assignment.interrupted == {0: own}


def reasons(assignment):
    """Return why each partition is parked, as readiness shows it."""
    return {partition: str(why) for partition, why in assignment.parked.items()}


async def until_claimed_again(worker):
    await asyncio.wait_for(asyncio.gather(*worker._restarts), 30)


async def test_each_way_to_park_names_its_reason(context, worker):
    context.fetching.partition_count = lambda: 3
    worker._assignment.lanes.update({partition: SimpleNamespace(accept=lambda _run: True) for partition in (0, 1)})
    unusable: Any = SimpleNamespace(offset=7, headers=())
    worker._deliver(0, Run(0, 0, [unusable]))
    worker.unreadable(1, "OffsetOutOfRangeError")
    worker.damaged(2, "the CRC is wrong")
    await until_claimed_again(worker)
    assert worker.faults()[:3] == [
        "partition 0 is parked: cannot_decode: the command at offset 7 cannot be decoded: AttributeError",
        "partition 1 is parked: commands_out_of_range: OffsetOutOfRangeError",
        "partition 2 is parked: damaged_batch: a batch of orders.commands.v1-2 is damaged: the CRC is wrong",
    ]


async def test_a_lane_that_kafka_refuses_stays_parked_for_the_reason_over_further_claims(worker):
    for partition in (0, 2):
        worker._on_refused(worker._assignment, TurnRefused("why", {partition: "too large"}))
        await until_claimed_again(worker)
    assert reasons(worker._assignment) == {0: "refused_by_kafka: too large", 2: "refused_by_kafka: too large"}


async def test_a_lane_whose_commands_cannot_be_decided_is_parked_for_that(worker):
    worker._assignment.turns._park(1, "the command at offset 3 cannot be decided", HistoryError("version 2"))
    parked = "cannot_decide: the command at offset 3 cannot be decided: version 2"
    assert reasons(worker._assignment) == {1: parked}


async def test_the_log_says_which_trace_the_command_has_for_which_a_lane_parks(worker):
    traced: Any = SimpleNamespace(accept=lambda _run: True, trace_id=TRACE_ID)
    worker._assignment.lanes.update({0: traced, 1: traced})
    unusable: Any = SimpleNamespace(offset=7, headers=[("traceparent", samples.TRACEPARENT.encode())])
    with structlog.testing.capture_logs() as logged:
        worker._deliver(0, Run(0, 0, [unusable]))
        worker._assignment.turns._park(1, "the command at offset 3 cannot be decided", HistoryError("version 2"))
        worker.unreadable(2, "OffsetOutOfRangeError")
        worker._assignment.park(2, ParkingReason.DAMAGED_BATCH, "not about one command")
    assert [(line["partition"], line.get("trace_id")) for line in logged] == [(0, TRACE_ID), (1, TRACE_ID), (2, None)]


async def parked_after(worker, *suspects):
    """Return the parked partitions after answers that aiokafka does not know, each for these partitions."""
    for partitions in suspects:
        await worker._claim_again(None, TurnRefused("why", {}, suspects=dict.fromkeys(partitions, "why")))
    return worker._assignment.parked.keys()


@pytest.mark.parametrize(
    ("suspects", "parked"),
    [
        pytest.param([{0}, {1}, {2}], set(), id="one answer parks no lane"),
        pytest.param([{0}, {0}], {0}, id="the second answer parks the lane"),
        pytest.param([{0}, {1}, {0}], {0}, id="two lanes that are refused in turn do not hide each other"),
        pytest.param([{0, 1}, {1, 2}], {1}, id="the count is kept per lane"),
    ],
)
async def test_an_unknown_answer_parks_a_lane_when_it_comes_twice(worker, suspects, parked):
    assert await parked_after(worker, *suspects) == parked


async def test_an_unknown_answer_of_long_ago_does_not_count(worker):
    await parked_after(worker, {0})
    worker._suspected_at[0] -= SUSPECT_S
    assert not await parked_after(worker, {0})
    assert await parked_after(worker, {0}) == {0}


@pytest.fixture
def claim(context, monkeypatch):
    """Claim partition 0, whose waiting room cannot be restored for this reason, if any; gives the assignment."""

    async def claimed(*_):
        return Claimed(Position(0, "me", 0, None), Table(), [])

    asking: Any = SimpleNamespace(ask=print)

    async def run(error=None) -> Any:
        def restoring(*_):
            if error is not None:
                raise error
            yield True

        monkeypatch.setattr("order_service.worker.assignment.claim_until_done", claimed)
        monkeypatch.setattr(Lane, "restoring", restoring)
        assignment = Assignment(context, {0}, asking, UNUSED, UNUSED)
        assignment._claims[0] = Progress(ClaimSlots(1))
        assignment._spawn(assignment._claim(UNUSED, 0, assignment._claims[0]), "claim")
        await asyncio.wait(assignment._tasks, timeout=10)
        await assignment.stop()
        return assignment

    return run


async def test_a_partition_that_cannot_be_restored_for_a_bug_is_parked_and_nothing_ends(claim, ended):
    """Its heirs would all end by it, one after the other."""
    error = TypeError("a bug")
    with structlog.testing.capture_logs() as logged:
        assignment = await claim(error)
    assert not ended
    assert reasons(assignment) == {0: "cannot_claim: the partition cannot be claimed: TypeError"}
    assert assignment.claiming() == []
    assert [line["exc_info"] for line in logged] == [error]


async def test_a_bug_at_the_start_of_fetching_parks_the_partition_and_ends_nothing(claim, context, ended):
    error = TypeError("a bug")

    async def fail(*_):
        raise error

    context.fetching.open = fail
    with structlog.testing.capture_logs() as logged:
        assignment = await claim()
    assert not ended
    assert reasons(assignment) == {0: "cannot_fetch: its commands cannot be fetched: TypeError"}
    assert not assignment.lanes
    assert [line["exc_info"] for line in logged] == [error]


@pytest.mark.parametrize(
    ("error", "reason", "detail"),
    [
        (LaneParked(ParkingReason.TABLE_LOST, "it is lost"), "table_lost", "it is lost"),
        (TurnRefused("too large", {0: "too large"}), "refused_by_kafka", "too large"),
        (HistoryError("it is damaged"), "cannot_claim", "the partition cannot be claimed: it is damaged"),
    ],
)
async def test_a_partition_whose_log_does_not_allow_a_claim_is_parked_without_a_traceback(claim, error, reason, detail):
    with structlog.testing.capture_logs() as logged:
        assignment = await claim(error)
    assert reasons(assignment) == {0: f"{reason}: {detail}"}
    assert [(line["reason"], line["detail"], line["exc_info"]) for line in logged] == [(reason, detail, None)]


@pytest.mark.parametrize("error", [Fenced("by another"), KafkaError(), OSError()])
async def test_an_error_that_is_not_of_the_partition_ends_the_process(claim, ended, error):
    assignment = await claim(error)
    assert ended == [error]
    assert not assignment.parked


class CountedOrders(Table):
    """The orders of a claim, and how many of them have got their timer."""

    timed = 0

    def items(self) -> Any:
        for order in super().items():
            self.timed += 1
            yield order


async def test_the_payments_due_of_a_large_table_are_restored_in_slices(context):
    context = replace(context, settings=Settings(payment_due_s=86_400))
    assignment = Assignment(context, {0}, SimpleNamespace(ask=print), UNUSED, UNUSED)  # type: ignore[arg-type]
    orders, value = CountedOrders(), encode(entry_after([create]))
    for number in range(ORDERS):
        orders.restore(f"order-{number}", value)
    claimed = Claimed(Position(0, "me", 0, None), orders, [])
    slices: list[int] = []

    async def watch():
        """Note how many timers were set each time before the loop gets to others."""
        last = 0
        while True:
            slices.append(orders.timed - last)
            last = orders.timed
            await asyncio.sleep(0)

    watching = asyncio.create_task(watch())
    lane = await assignment._restore_lane(0, claimed, Progress(ClaimSlots(1)))
    await asyncio.sleep(0)
    watching.cancel()
    await assignment.stop()
    assert (len(lane._timers), sum(slices)) == (ORDERS, ORDERS)
    assert max(slices) <= RESTORED_AT_A_TIME


class Refusing(Written):
    """A producer whose transactions Kafka refuses."""

    async def begin(self):
        raise TurnRefused("Kafka has forgotten the transactional id", {})


async def with_lane(context, producer=Written):
    """Make an assignment of partitions 0 and 1 whose turns run, with a lane of one order for partition 0."""
    context.fetching.end_of = lambda _partition: 0
    assignment = Assignment(context, {0, 1}, UNUSED, lambda *_: None, UNUSED)
    assignment.turns._producer = producer()
    lane = lane_with(0, {ORDER_ID: entry_after([create])})
    assignment.lanes[0] = lane
    assignment._spawn(assignment.turns.run(), "turns")
    return assignment, lane


@pytest.mark.parametrize(
    ("producer", "is_continued"),
    [pytest.param(Written, True, id="committed"), pytest.param(Refusing, False, id="refused")],
)
async def test_a_lane_runs_on_after_a_rebalance_only_if_its_last_turn_was_committed(
    context, endless_claims, producer, is_continued
):
    """An order that cancelled itself in a refused turn is not cancelled in the log, at the same position."""
    assignment, lane = await with_lane(context, producer)
    assignment.turns.cancel_unpaid(0, [ORDER_ID])
    async with asyncio.timeout(30):
        while type(lane.table.get(ORDER_ID).order) is not Cancelled:  # noqa: ASYNC110, what is looked at has no event
            await asyncio.sleep(0)
    await assignment.stop()
    assert assignment.is_clean is is_continued
    after = Assignment(context, {0, 1}, UNUSED, UNUSED, UNUSED, previous=assignment)
    assert (after.owner is assignment.owner) is is_continued
    written: Any = Written()
    after.turns._producer = written
    after.start()
    await until_begun(endless_claims, 1 if is_continued else 2)
    await after.stop()
    await after.close()
    assert sorted(partition for partition, _ in endless_claims) == ([1] if is_continued else [0, 1])
    assert after.lanes == ({0: lane} if is_continued else {})


async def test_an_assignment_whose_owner_has_not_started_is_not_continued(context):
    assignment = Assignment(context, {0}, UNUSED, UNUSED, UNUSED)
    await assignment.stop()
    assert not assignment.is_clean


async def test_partitions_that_go_are_released_if_their_changelog_may_name_the_owner(context, endless_claims):
    assignment, _ = await with_lane(context)
    assignment.owner.named |= {0, 1}
    await assignment.stop()
    after = Assignment(context, {1, 2}, UNUSED, UNUSED, UNUSED, previous=assignment)
    written: Any = Written()
    after.turns._producer = written
    after.start()
    await until_begun(endless_claims, 2)
    async with asyncio.timeout(30):
        while 0 in after.owner.named:  # noqa: ASYNC110, what is looked at has no event
            await asyncio.sleep(0)
    await after.stop()
    await after.close()
    owner = written.transactional_id.encode()
    assert written.records == [(topic_names().table, 0, (RELEASE_KEY, owner, []))]
    assert after.owner.named == {1}


class FencedLater(Written):
    """A producer that another worker fences after some transactions."""

    left = 0

    async def begin(self):
        self.left -= 1
        if self.left < 0:
            raise Fenced("another worker has fenced it")


@pytest.mark.parametrize(
    ("commits", "away", "expected"),
    [
        pytest.param(0, {}, TurnRefused, id="while it was away from its group"),
        pytest.param(1, {}, Fenced, id="later"),
        pytest.param(
            1, {2: "orders.table.v1-2 has no leader"}, TurnRefused, id="since it could not release a partition"
        ),
    ],
)
async def test_a_worker_that_is_fenced_after_a_rebalance_claims_its_partitions_again(
    context, ended, endless_claims, commits, away, expected
):
    assignment, _ = await with_lane(context)
    assignment.owner.named |= {0, 1, 2, 3}
    await assignment.stop()
    refused: list[Exception] = []
    after = Assignment(context, {0, 1}, UNUSED, lambda _, error: refused.append(error), UNUSED, previous=assignment)
    producer: Any = FencedLater()
    producer.left, producer.away = commits, away
    after.turns._producer = producer
    after.start()
    async with asyncio.timeout(30):
        while not refused + ended:
            after.turns.cancel_unpaid(0, [ORDER_ID])
            await asyncio.sleep(0)
    await after.stop()
    assert [type(error) for error in refused + ended] == [expected]


@pytest.fixture
def endless_claims(context, monkeypatch):
    """Make claims that read one entry and then wait; gives the partition and the orders that each began with."""
    begun = []

    async def claim(_claimer, partition, state, _progress):
        begun.append((partition, [order_id for order_id, _ in state.table.items()]))
        state.table.restore(f"read by claim {len(begun)}", encode(ENTRY))
        await asyncio.Event().wait()

    async def start(_owner, _context):
        pass

    async def opened(*_):
        pass

    context.fetching.open = opened
    monkeypatch.setattr("order_service.worker.assignment.claim_until_done", claim)
    monkeypatch.setattr(Owner, "start", start)
    return begun


async def until_begun(claims, count):
    async with asyncio.timeout(30):
        while len(claims) < count:  # noqa: ASYNC110, what is looked at has no event
            await asyncio.sleep(0)


async def test_a_claim_continues_what_the_claim_before_the_rebalance_has_read(context, endless_claims):
    worker = Worker(context)
    for count, partitions in enumerate(({0}, {0}, {1}, {0}), 1):
        await worker.assigned(partitions)
        await until_begun(endless_claims, count)
    await worker.stop()
    assert endless_claims == [
        (0, []),
        (0, ["read by claim 1"]),
        (1, []),
        (0, []),  # another worker had it in between
    ]


async def test_a_claim_continues_after_a_turn_of_another_lane_was_refused(context, endless_claims):
    worker = Worker(context)
    await worker.assigned({0})
    await until_begun(endless_claims, 1)
    await worker._claim_again(worker._assignment, TurnRefused("why", {}))
    await until_begun(endless_claims, 2)
    await worker.stop()
    assert endless_claims[1] == (0, ["read by claim 1"])


async def test_a_lane_that_runs_is_not_claimed_with_what_its_claim_had_read(claim, context):
    async def opened(*_):
        pass

    context.fetching.open = opened
    assignment = await claim()
    assert assignment.lanes
    assert not assignment.interrupted


async def test_a_resumed_lane_is_claimed_again_after_its_release_and_the_other_lanes_run_on(context, endless_claims):
    assignment, lane = await with_lane(context)
    assignment.owner.named |= {0, 1}
    written: Any = assignment.turns._producer
    claimer: Any = object()
    assignment._claimer = claimer
    assignment.park(1, ParkingReason.DAMAGED_BATCH, "damaged")
    since = assignment.parked_at[1]
    assignment.claim_again(1)
    assert (endless_claims, assignment.claiming()) == ([], [1]), "the release comes first"
    await asyncio.sleep(0)
    assert assignment._claims[1].step == "the release of the parked lane"
    await until_begun(endless_claims, 1)
    assert written.records == [(topic_names().table, 1, (RELEASE_KEY, written.transactional_id.encode(), []))]
    assert endless_claims == [(1, [])]
    assert assignment.lanes == {0: lane}
    assert assignment.parked_at == {1: since}, "it has not run since"
    await assignment.stop()
    await assignment.close()


@pytest.mark.parametrize("error", [StoreDamaged("a block"), StoreUnavailable("no space")])
async def test_a_lane_whose_store_cannot_be_used_is_claimed_again_and_the_others_run_on(
    context, endless_claims, error, tmp_path
):
    stores = Stores(tmp_path, MEGABYTE, TopicIdentity(topic_names().table, "cluster", "topic"))
    assignment, lane = await with_lane(replace(context, stores=stores))
    assignment.owner.named |= {0, 1}
    claimer: Any = Claimer("g", "me", set(), frozenset(), topic_names(), {}, UNUSED, UNUSED, print, stores)
    assignment._claimer = claimer
    await stores.open(1, 0, 0)
    assignment.turns._park(1, "the command at offset 3 cannot be decided", error)
    assert (assignment.parked, assignment.claiming()) == ({}, [1])
    assert (tmp_path / f"{topic_names().table}-1").exists() == isinstance(error, StoreUnavailable)
    await until_begun(endless_claims, 1)
    assert endless_claims == [(1, [])]
    assert assignment.lanes == {0: lane}
    await assignment.stop()
    await assignment.close()
    stores.close_all()


async def test_a_restore_that_is_interrupted_does_not_keep_its_store_open(context, tmp_path):
    stores = Stores(tmp_path, 16 * MEGABYTE, TopicIdentity(topic_names().table, "cluster", "topic"))
    position = Position(0, "me", 0, None)
    table = Table(await stores.open(0, 0, 0))
    for number in range(2 * RESTORED_AT_A_TIME):
        table.restore(f"order-{number}", encode(ENTRY))
    await table.save_claimed(position, 9, time.time())
    has_begun = asyncio.Event()

    @asynccontextmanager
    async def endless():
        yield
        has_begun.set()
        await asyncio.get_running_loop().create_future()

    asking: Any = SimpleNamespace(ask=print, slice=endless)
    assignment = Assignment(replace(context, settings=Settings(payment_due_s=60)), {0}, asking, UNUSED, UNUSED)
    restoring = asyncio.create_task(assignment._restore_lane(0, Claimed(position, table, []), asking))
    await asyncio.wait_for(has_begun.wait(), 30)
    restoring.cancel()
    await asyncio.wait({restoring})
    assert Table(await stores.open(0, 0, 10)).get("order-1") == ENTRY
    await assignment.stop()
    stores.close_all()


async def test_a_store_that_was_at_fault_is_no_fault_of_a_worker_that_no_longer_has_its_partition(worker):
    metrics.STORE_FAULTS.labels(2).set(1)
    await worker.revoked()
    assert next(iter(metrics.STORE_FAULTS.collect())).samples == []


async def test_a_claim_whose_fetching_opens_late_does_not_touch_the_claim_after_it(context, monkeypatch):
    begun, opened = [asyncio.Event(), asyncio.Event()], [asyncio.Event(), asyncio.Event()]
    calls = iter((0, 1))
    paused: list[int] = []
    asking: Any = SimpleNamespace(ask=print)

    async def claimed(*_):
        return Claimed(Position(0, "me", 0, None), Table(), [])

    async def open_late(*_):
        call = next(calls)
        begun[call].set()
        await opened[call].wait()

    context.fetching.open = open_late
    context.fetching.pause = paused.append
    monkeypatch.setattr("order_service.worker.assignment.claim_until_done", claimed)
    assignment = Assignment(context, {0}, asking, UNUSED, UNUSED)
    assignment._claimer = asking
    assignment._start_claim(asking, 0)
    [late] = assignment._tasks
    await begun[0].wait()
    assignment.park(0, ParkingReason.DAMAGED_BATCH, "damaged")
    assignment.claim_again(0)
    await begun[1].wait()
    paused.clear()
    opened[0].set()
    await asyncio.wait_for(late, 30)
    assert list(assignment._claims) == [0], "the second claim is still open"
    assert paused == [], "the commands of the second lane are fetched"
    await assignment.stop()


async def test_a_lane_that_parks_cancels_no_order_after_its_next_claim(context, endless_claims):
    """The new lane has not read the payments yet that came in time."""
    assignment, lane = await with_lane(context)
    cancelled: list[Any] = []
    payments = PaymentDeadlines(
        assignment.lanes, 60.0, context.clock, end=UNUSED, read_to=UNUSED, cancel=print, spawn=UNUSED
    )
    payments._end = ended_of_zero
    payments._cancel = lambda partition, order_ids: cancelled.append((partition, order_ids))
    await payments._cancel_once_read(lane, [ORDER_ID])
    assert cancelled == [(0, [ORDER_ID])]
    assignment.turns.cancel_unpaid(0, [ORDER_ID])
    assignment.park(0, ParkingReason.DAMAGED_BATCH, "damaged")
    await payments._cancel_once_read(lane, [ORDER_ID])
    assert (len(cancelled), assignment.turns._due) == (1, {})
    await assignment.stop()
    await assignment.close()


async def ended_of_zero(_partition):
    return 0


async def test_a_worker_names_the_state_of_each_of_its_lanes(context, worker):
    assignment = worker._assignment
    assignment.lanes[0] = lane_with(0, {})
    assignment.turns.unavailable = {0: "it has no leader"}
    assignment.park(2, ParkingReason.DAMAGED_BATCH, "damaged")
    states = [(lane.partition, lane.state, lane.reason) for lane in worker.lanes()]
    assert states == [(0, "running", "it has no leader"), (1, "claiming", ""), (2, "parked", "damaged_batch: damaged")]
    since = worker.lanes()[2].since
    await worker._claim_again(None, TurnRefused("why", {}))
    assert worker.lanes()[2].since == since, "a lane that stays parked keeps its time"


async def test_a_worker_says_why_its_orders_wait_for_the_user_service(context, worker):
    context.fetching.partition_count = lambda: 3
    lanes = worker._assignment.lanes
    lanes[0], lanes[1] = lane_with(0, {}), lane_with(1, {})
    for number in range(3):
        context.users._no_answers.record_no_answer("dana", float(number), "status 503")
    fault = "the User Service gives no usable answer, and orders wait: status 503"
    assert fault not in worker.faults()  # nothing waits for it
    lanes[1].room.add(WaitingCommand(create, 0, NOW, None))
    assert fault in worker.faults()
    assert [lane.reason for lane in worker.lanes()[:2]] == ["", "commands wait for the User Service: status 503"]
    context.users._no_answers.record_answer()
    assert fault not in worker.faults()
    assert worker.lanes()[1].reason == ""


@pytest.mark.parametrize("is_claimed_again", [False, True])
async def test_a_record_of_an_operator_resumes_a_parked_lane(context, worker, monkeypatch, is_claimed_again):
    """Also if the other lanes are claimed again, under a new owner, while the broker is asked."""
    monkeypatch.setattr("order_service.worker.worker.WATCH_EVERY_S", 0)
    asked, answered = asyncio.Event(), asyncio.Event()

    async def read_ends(partitions):
        asked.set()
        await answered.wait()
        return dict.fromkeys(partitions, 1)

    worker._resumes._ends = dict.fromkeys(range(3), 0)
    worker._resumes._read_ends = read_ends
    worker._assignment.park(2, ParkingReason.DAMAGED_BATCH, "damaged")
    resuming = asyncio.create_task(worker._resume_lanes())
    await asked.wait()
    if is_claimed_again:
        await worker._claim_again(None, TurnRefused("why", {}))
    answered.set()
    await reached(lambda: not worker._assignment.parked)
    assert worker._assignment.claiming() == [0, 1, 2]
    resuming.cancel()


async def test_an_operation_that_comes_just_after_a_claim_has_read_the_topics_resumes_the_lane(
    context, endless_claims, monkeypatch
):
    made: Any = Worker(context)
    ends, claims = [0], []

    async def claim(*_):
        claims.append(ends[0])
        if len(claims) == 1:
            ends[0] = 1  # the operator has seen the lane parked by another worker
            raise LaneParked(ParkingReason.COMMANDS_DELETED, "as the operator has not yet recorded it")
        await asyncio.Event().wait()

    monkeypatch.setattr("order_service.worker.assignment.claim_until_done", claim)
    monkeypatch.setattr("order_service.worker.worker.WATCH_EVERY_S", 0.01)
    monkeypatch.setattr("order_service.worker.monitoring.resume_watch.LOOK_EVERY_S", 0)
    made._resumes._read_ends = lambda partitions: ended_at(partitions, ends[0])
    await made.assigned({0})
    await reached(lambda: claims)
    resuming = asyncio.create_task(made._resume_lanes())
    await reached(lambda: len(claims) == 2)
    resuming.cancel()
    await made.stop()


async def test_claims_begin_although_the_operations_cannot_be_read(context, endless_claims, monkeypatch):
    made: Any = Worker(context)
    monkeypatch.setattr("order_service.worker.assignment.ENDS_READ_WITHIN_S", 0.01)
    made._resumes._read_ends = lambda _partitions: asyncio.Event().wait()
    await made.assigned({0})
    await until_begun(endless_claims, 1)
    await made.stop()


async def ended_at(partitions, end):
    return dict.fromkeys(partitions, end)


class Once:
    """Raises an error at the first call that it counts, and calls the original function otherwise."""

    def __init__(self, function, counts=lambda *_: True):
        self._function = function
        self._counts = counts
        self._left = 1

    def __call__(self, *arguments, **options):
        if self._left and self._counts(*arguments):
            self._left = 0
            raise TypeError("a bug")
        return self._function(*arguments, **options)


@pytest.fixture
async def resumable(context, endless_claims, monkeypatch):
    """Make a worker whose claims of partition 0 go on at offset 7; gives what assigns it, with turns in memory."""

    async def claimed(*_):
        return Claimed(Position(7, "me", 7, None), Table(), [])

    async def opened(*_):
        pass

    monkeypatch.setattr("order_service.worker.assignment.claim_until_done", claimed)
    context.fetching.open = opened
    made: Any = Worker(replace(context, settings=Settings(partitions=1)))
    context.fetching.end_of = lambda _partition: 0

    async def assigned():
        await made.assigned({0})
        made._assignment.turns._producer = Written()
        return made

    yield assigned
    await made.stop()


def send(worker):
    """Deliver two commands to partition 0, if its lane runs: the second one is refused."""
    lane = worker._assignment.lanes.get(0)
    if lane is not None:
        cancels = [received(but(cancel, actor=SHOP, command_id=f"cancel-{offset}"), offset, 0) for offset in (7, 8)]
        worker.receive(0, Run(lane.seek, lane.next_run, [record for record, _ in cancels]))


async def reached(condition):
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110, what is looked at has no event
            await asyncio.sleep(0)


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        pytest.param("assignment.claim_until_done", "cannot_claim: the partition cannot be claimed", id="claim"),
        pytest.param("", "cannot_fetch: its commands cannot be fetched", id="fetch"),
        pytest.param("worker.decode_record", "cannot_decode: the command at offset 8 cannot be decoded", id="decode"),
        pytest.param("lane.answer", "cannot_decide: the command at offset 8 cannot be decided", id="decide"),
    ],
)
async def test_a_lane_that_parked_for_a_bug_decides_again_after_a_resume(
    resumable, context, monkeypatch, function, reason
):
    """Only the first attempt meets the bug, as if a version that has the fix had made the second one."""
    is_of_second = {
        "worker.decode_record": lambda record: record.offset == 8,
        "lane.answer": lambda command, *_: command.command_id == "cancel-8",
    }.get(function, lambda *_: True)
    if function:
        module, name = function.split(".")
        original = getattr(importlib.import_module(f"order_service.worker.{module}"), name)
        monkeypatch.setattr(f"order_service.worker.{function}", Once(original, is_of_second))
    else:
        context.fetching.open = Once(context.fetching.open)
    worker = await resumable()
    assignment = worker._assignment
    await reached(lambda: assignment.parked or assignment.lanes)
    send(worker)
    await reached(lambda: assignment.parked)
    assert reasons(assignment) == {0: f"{reason}: TypeError"}
    assert assignment.turns._producer.records == []
    assignment.claim_again(0)
    await reached(lambda: assignment.lanes)
    send(worker)
    await reached(lambda: len(assignment.turns._producer.rejected(0)) == 2)


class Waiting:
    """A worker of one partition, in which a create waits for its user."""

    def __init__(self, context):
        self.now = 0.0
        self.users = users_that_wait()
        self.worker: Any = Worker(replace(context, settings=Settings(partitions=1), users=self.users))
        self.worker._user_lookups._clock = lambda: self.now
        self.written: Any = Written()

    async def assign(self):
        await self.worker.assigned({0})
        self.worker._assignment.turns._producer = self.written

    async def until_asked(self, times):
        await reached(lambda: len(self.users.asked) == times and self.users.lookups)

    async def ended(self, end):
        """End the lookup, and wait until that is noted."""
        end(create.user_id)
        await reached(lambda: self.worker._user_lookups._lookup_count == 0)

    def pass_time(self):
        self.now += 60.0
        self.worker._user_lookups._wake.set()


@pytest.fixture
async def waiting(context, endless_claims, monkeypatch):
    async def claimed(*_):
        waits = WaitingCommand(but(create, actor=SHOP), 6, context.clock.now(), None)
        return Claimed(Position(7, "me", 7, None), Table(), [waits])

    monkeypatch.setattr("order_service.worker.assignment.claim_until_done", claimed)
    context.fetching.end_of = lambda _partition: 0
    made = Waiting(context)
    looking = asyncio.create_task(made.worker._user_lookups.run())
    await made.assign()
    await made.until_asked(1)
    yield made
    await made.worker.stop()
    looking.cancel()
    await asyncio.gather(looking, return_exceptions=True)


async def answered_between(waiting):
    await waiting.worker.revoked()
    await waiting.ended(waiting.users.answer)
    await waiting.assign()


async def answered_after(waiting):
    await waiting.worker.revoked()
    await waiting.assign()
    await waiting.ended(waiting.users.answer)


async def failed_between(waiting):
    await waiting.worker.revoked()
    await waiting.ended(waiting.users.fail)
    await waiting.assign()
    await waiting.until_asked(2)
    await waiting.ended(waiting.users.answer)


async def due_again_between(waiting):
    await waiting.ended(waiting.users.fail)
    await waiting.worker.revoked()
    waiting.pass_time()
    await reached(lambda: not waiting.worker._user_lookups._again)
    await waiting.assign()
    await waiting.until_asked(2)
    await waiting.ended(waiting.users.answer)


async def due_again_after(waiting):
    await waiting.ended(waiting.users.fail)
    await waiting.worker.revoked()
    await waiting.assign()
    waiting.pass_time()
    await waiting.until_asked(2)
    await waiting.ended(waiting.users.answer)


@pytest.mark.parametrize(
    "story", [answered_between, answered_after, failed_between, due_again_between, due_again_after]
)
async def test_a_create_that_waits_over_a_rebalance_is_decided_whenever_its_lookup_ends(waiting, story):
    """The lane runs on: what waits in it is not restored by a claim that would look its users up."""
    [lane] = waiting.worker._assignment.lanes.values()
    await story(waiting)
    await reached(lambda: waiting.written.facts(0) == ["OrderCreated"])
    assert list(waiting.worker._assignment.lanes.values()) == [lane]
    assert len(lane.room) == 0


async def test_a_lane_whose_next_command_was_out_of_range_decides_again_after_a_resume(resumable):
    worker = await resumable()
    assignment = worker._assignment
    await reached(lambda: assignment.lanes)
    worker.unreadable(0, "OffsetOutOfRangeError")
    assert reasons(assignment) == {0: "commands_out_of_range: OffsetOutOfRangeError"}
    assignment.claim_again(0)
    await reached(lambda: assignment.lanes)
    send(worker)
    await reached(lambda: len(assignment.turns._producer.rejected(0)) == 2)
