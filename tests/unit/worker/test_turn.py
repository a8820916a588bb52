"""The turn without a broker: what may happen between two slices of a turn that the loop is given."""

import asyncio
import time
from typing import Any

import pytest
from msgspec import structs
from structlog.testing import capture_logs

from order_service.domain.decision import UserCheck
from order_service.errors import Fenced, HistoryError, StoreDamaged, StoreUnavailable, Stuck, TurnRefused
from order_service.wire.changelog import RELEASE_KEY, Position, WaitingCommand, encode
from order_service.worker import metrics
from order_service.worker.bounds import Bound
from order_service.worker.clock import Clock
from order_service.worker.inbox import Inbox
from order_service.worker.lane import DUE, Lane
from order_service.worker.table import Table
from order_service.worker.turn import AT_A_TIME, TurnLoop
from tests.support.samples import NOW, ORDER_ID, but, cancel, create, entry_after, pay, ship, short_of
from tests.support.tables import table_of
from tests.unit.worker.blocking import DEADLINE_S, block_loop, shorten
from tests.unit.worker.lane_turns import NAMES, POLICY, Written, lane_with, received


class BrokenLane(Lane):
    """A lane that one of its commands breaks."""

    def decide(self, received, now):
        super().decide(received, now)
        raise HistoryError("version 3 of an order cannot follow on version 1")


def turns_over(
    lanes,
    written,
    failpoint,
    park=lambda *_: None,
    named=(),
    leaving=(),
    fetch_before=lambda _at: None,
    turn_s=0.001,
    **bounds,
) -> tuple[TurnLoop, Inbox]:
    """Make what takes turns over these lanes, and the inbox that it takes from."""
    inbox = Inbox(lambda _partition: None, lambda _partition: None)
    turns = TurnLoop(
        written,
        NAMES,
        inbox,
        named=set() if named == () else named,
        leaving=set(leaving),
        turn_s=turn_s,
        clock=Clock(60),
        end_of=lambda _partition: 0,
        fetch_before=fetch_before,
        park=park,
        failpoint=failpoint,
        **bounds,
    )
    for lane in lanes:
        inbox.open(lane.partition)
        turns.lanes[lane.partition] = lane
    turns.wake()
    return turns, inbox


async def test_a_lane_that_cannot_decide_parks_and_the_others_go_on():
    broken = BrokenLane(1, POLICY, lambda _user_id: UserCheck.ACTIVE, lambda _user_id: None)
    whole = lane_with(0, {})
    written: Any = Written()
    parked = []

    def park(partition, _reason, error):
        parked.append((partition, type(error)))
        del turns.lanes[partition]

    turns: TurnLoop

    def failpoint(name):
        if name == "turn.committed":
            turns.stop()

    turns, inbox = turns_over([broken, whole], written, failpoint, park)
    inbox.put(0, [received(create, 0, 0)])
    inbox.put(1, [received(create, 0, 1)])
    async with asyncio.timeout(30):
        await turns.run()
    assert parked == [(1, HistoryError)]
    assert (written.facts(0), written.facts(1)) == (["OrderCreated"], [])


@pytest.mark.parametrize("error", [StoreDamaged("a block"), StoreUnavailable("no space")])
async def test_a_committed_turn_that_cannot_be_saved_stops_its_lane_only(monkeypatch, error):
    async def save(table, *_):
        if table is broken.table:
            raise error

    written: Any = Written()
    broken, whole = lane_with(1, {}), lane_with(0, {})
    store: Any = object()
    broken.table.store = whole.table.store = store
    monkeypatch.setattr(Table, "get", lambda *_: None)
    monkeypatch.setattr(Table, "save", save)
    parked = []
    turns: TurnLoop

    def park(partition, _reason, why):
        parked.append((partition, why))
        del turns.lanes[partition]
        turns.stop()

    turns, inbox = turns_over([broken, whole], written, lambda _name: None, park)
    inbox.put(0, [received(create, 0, 0)])
    inbox.put(1, [received(create, 0, 1)])
    async with asyncio.timeout(30):
        await turns.run()
    assert parked == [(1, error)]
    assert {partition for topic, partition, _ in written.records if topic == NAMES.table} == {0, 1}


async def test_disks_that_are_slow_neither_fail_a_commit_nor_wait_for_each_other(monkeypatch):
    shorten(monkeypatch, "turn")
    lanes = [lane_with(0, {}), lane_with(1, {})]
    store: Any = object()
    saving, are_caught_up = [], asyncio.Event()

    async def save(*_):
        saving.append("begun")
        if len(saving) == len(lanes):
            asyncio.get_running_loop().call_later(5 * DEADLINE_S, are_caught_up.set)
        await are_caught_up.wait()
        saving.append("done")
        turns.stop()

    for lane in lanes:
        lane.table.store = store
    monkeypatch.setattr(Table, "get", lambda *_: None)
    monkeypatch.setattr(Table, "save", save)
    turns: TurnLoop
    turns, inbox = turns_over(lanes, Written(), lambda _name: None)
    for partition in (0, 1):
        inbox.put(partition, [received(create, 0, partition)])
    async with asyncio.timeout(30):
        await turns.run()
    assert saving == ["begun", "begun", "done", "done"]


async def test_a_lane_whose_store_is_slow_is_left_out_of_turns_and_the_others_go_on(monkeypatch):
    slow, fast = (lane_with(partition, {ORDER_ID: entry_after([create])}) for partition in (1, 0))
    store: Any = object()
    slow.table.store = fast.table.store = store
    written: Any = Written()
    saves, commits = [], []
    is_writable = asyncio.Event()
    turns: TurnLoop

    async def save(table, *_):
        if table is not slow.table:
            return
        saves.append("begun")
        if len(saves) == 1:
            for partition in (0, 1):
                inbox.put(partition, [received(ship, 1, partition)])
            turns.wake()
        await is_writable.wait()
        saves.append("done")

    def failpoint(name):
        if name == "turn.committed":
            commits.append((written.facts(0)[-1], written.facts(1)[-1]))
            if len(commits) == 2:
                is_writable.set()
            if commits[-1] == ("OrderShipped", "OrderShipped"):
                turns.stop()

    monkeypatch.setattr(Table, "save", save)
    turns, inbox = turns_over([slow, fast], written, failpoint)
    for partition in (0, 1):
        inbox.put(partition, [received(pay, 0, partition)])
    async with asyncio.timeout(30):
        await turns.run()
    assert commits == [("OrderPaid", "OrderPaid"), ("OrderShipped", "OrderPaid"), ("OrderShipped", "OrderShipped")]
    assert saves == ["begun", "done", "begun", "done"]


async def test_a_turn_that_fails_ends_the_writes_to_stores_that_are_under_way(monkeypatch):
    """Else they would use stores that the next claims have opened."""
    lanes = [lane_with(partition, {ORDER_ID: entry_after([create])}) for partition in (0, 1)]
    store: Any = object()
    lanes[0].table.store = store
    steps = []

    async def save(*_):
        inbox.put(1, [received(pay, 0, 1)])
        turns.wake()
        try:
            await asyncio.Event().wait()
        finally:
            steps.append("save ended")

    def failpoint(name):
        steps.append(name)
        if steps.count("turn.begun") == 2:
            raise Fenced("another worker has fenced this one")

    monkeypatch.setattr(Table, "save", save)
    turns: TurnLoop
    turns, inbox = turns_over(lanes, Written(), failpoint)
    inbox.put(0, [received(pay, 0, 0)])
    with pytest.raises(Fenced):
        async with asyncio.timeout(30):
            await turns.run()
    assert steps[-1] == "save ended"


async def test_after_a_write_to_a_store_that_failed_nothing_more_is_written_to_it(monkeypatch):
    """Else the store would seem to have all up to the later turn, without what the failed one decided."""
    lane = lane_with(0, {})
    saves = []

    async def save(*_):
        saves.append("begun")
        await asyncio.sleep(0)
        raise ValueError("no error of a store")

    monkeypatch.setattr(Table, "save", save)
    turns, _ = turns_over([lane], Written(), lambda _: None)
    position: Any = None
    tasks = [turns._start_save(lane, lane.take_changes(), position, offset) for offset in (1, 2)]
    assert [str(error) for error in await asyncio.gather(*tasks, return_exceptions=True)] == ["no error of a store"] * 2
    assert saves == ["begun"]


async def test_a_lane_that_was_parked_within_a_turn_decides_and_saves_nothing_more(monkeypatch):
    """Its store is closed: a second error of the lane would start a claim, although it is parked."""
    parked = []
    turns: TurnLoop

    class Parked(Lane):
        """A lane that another task parks after its first slice."""

        def settle(self, _now):
            return self._use()

        def decide(self, _received, _now):
            self._use()

        def _use(self):
            asyncio.get_running_loop().call_soon(turns.lanes.pop, self.partition, None)
            if self in parked:
                raise StoreUnavailable("the store is closed")
            parked.append(self)
            return True

    async def save(*_):
        turns.lanes.pop(2)
        raise StoreUnavailable("the store is closed")

    decides, settles = (Parked(number, POLICY, lambda _: UserCheck.ACTIVE, lambda _: None) for number in (0, 1))
    waiting(settles)
    saves = lane_with(2, {})
    store: Any = object()
    saves.table.store = store
    monkeypatch.setattr(Table, "get", lambda *_: None)
    monkeypatch.setattr(Table, "save", save)

    def failpoint(name):
        if name == "turn.committed":
            turns.stop()

    failed = []
    turns, inbox = turns_over([decides, settles, saves], Written(), failpoint, lambda *why: failed.append(why))
    inbox.put(0, [received(create, offset, 0) for offset in range(2 * AT_A_TIME)])
    inbox.put(2, [received(create, 0, 2)])
    async with asyncio.timeout(30):
        await turns.run()
    assert ({lane.partition for lane in parked}, turns.lanes, failed) == ({0, 1}, {}, [])


def waiting(lane):
    """Make a create wait at offset 3, and its user known."""
    lane.room.add(WaitingCommand(create, 3, NOW, None))
    lane.room.add_answer(create.user_id, UserCheck.ACTIVE)


def new_after_waiting(lane):
    """Decide what waits, so that the new command of the turn is next."""
    waiting(lane)
    assert lane.settle(NOW)
    lane.cancel_unpaid([ORDER_ID], NOW)
    lane.take_changes()


@pytest.mark.parametrize(
    ("prepare", "detail"),
    [
        pytest.param(
            waiting, "the waiting command at offset 3 cannot be decided, and `--from` does not skip it", id="waits"
        ),
        pytest.param(
            lambda lane: lane.table.put(ORDER_ID, entry_after([create])),
            f"the cancellation of the unpaid order {ORDER_ID} cannot be decided, and `--from` does not skip it",
            id="due",
        ),
        pytest.param(new_after_waiting, "the command at offset 8 cannot be decided", id="new"),
    ],
)
async def test_the_text_of_a_lane_that_cannot_decide_has_what_raised_the_error(monkeypatch, prepare, detail):
    def broken(*_):
        raise TypeError("a bug")

    lane = Lane(0, POLICY, lambda _user_id: UserCheck.ACTIVE, lambda _user_id: None)
    lane.next_offset = 8
    prepare(lane)
    monkeypatch.setattr("order_service.worker.lane.answer", broken)
    written: Any = Written()
    parked = []
    turns: TurnLoop

    def park(partition, text, _error):
        parked.append(text)
        del turns.lanes[partition]
        turns.stop()

    turns, inbox = turns_over([lane], written, lambda _name: None, park)
    turns.cancel_unpaid(0, [ORDER_ID])
    inbox.put(0, [received(pay, 8, 0)])
    async with asyncio.timeout(30):
        await turns.run()
    assert parked == [detail]


def waiting_lane(partition, count):
    """Return a lane in which creates of so many orders wait for one user."""
    lane = Lane(partition, POLICY, lambda _user_id: None, lambda _user_id: None)
    lane.restore(table_of({}), [], Position(0, "owner", 0, None))
    for number in range(count):
        order_id = f"order-{partition}-{number}"
        lane.room.add(WaitingCommand(but(create, order_id=order_id, command_id=f"c-{order_id}"), number, NOW, None))
    return lane


async def test_the_outcomes_of_a_turn_are_bounded_over_all_lanes_and_each_lane_has_its_time():
    """After an outage of the User Service, the orders of all lanes become ready together."""
    lanes = [waiting_lane(partition, 60) for partition in range(40)]
    turns, _ = turns_over(lanes, Written(), lambda _name: None, released_bytes=Bound(10_000, 30_000))
    for lane in lanes:
        lane.room.add_answer(create.user_id, UserCheck.ACTIVE)
    served: list[set[int]] = []
    while any(len(lane.room) for lane in lanes):
        turn = await turns._decide(time.monotonic())
        assert turn is not None
        assert sum(changes.size for _, changes in turn.changes) < 30_000 + 10_000
        served.append({lane.partition for lane, _ in turn.changes})
    assert len(served) > 12
    assert len(set().union(*served[:8])) == 40, "no lane waits until others have decided all of theirs"


async def test_one_lane_may_use_what_the_others_do_not_release():
    lane = waiting_lane(0, 60)
    turns, _ = turns_over([lane, *(lane_with(number, {}) for number in range(1, 40))], Written(), lambda _name: None)
    lane.room.add_answer(create.user_id, UserCheck.ACTIVE)
    turn = await turns._decide(time.monotonic())
    assert turn is not None
    assert turn.decided == 60


async def test_above_the_bound_of_a_worker_only_lanes_with_less_waiting_than_their_share_take_more():
    lanes = [waiting_lane(0, 40), waiting_lane(1, 10), waiting_lane(2, 0)]
    turns, _ = turns_over(lanes, Written(), lambda _name: None)
    size = lanes[1].room.size_bytes
    for lane in lanes:
        lane.policy = structs.replace(POLICY, waiting_bytes=Bound(100 * size, 6 * size))
    assert turns._closed() == set()
    for lane in lanes:
        lane.policy = structs.replace(POLICY, waiting_bytes=Bound(100 * size, 4 * size))
    assert turns._closed() == {0}, "a third of the bound is more than one and less than four"
    lanes[0].room.add_answer(create.user_id, UserCheck.ACTIVE)
    await turns._decide(time.monotonic())
    assert turns._closed() == set()


async def test_orders_to_cancel_that_have_piled_up_are_cancelled_over_several_turns():
    """A lane that waited for Kafka meanwhile may have any number of them."""
    lanes = [lane_with(0, {}), lane_with(1, {})]
    turns, _ = turns_over(lanes, Written(), lambda _name: None)
    turns.cancel_unpaid(0, [f"order-{number}" for number in range(DUE.of_lane + 500)])
    turns.cancel_unpaid(1, ["order-x"])
    assert {partition: len(due) for partition, due in turns._take_due(lanes).items()} == {0: DUE.of_lane, 1: 1}
    assert turns._wake.is_set()
    assert {partition: len(due) for partition, due in turns._take_due(lanes).items()} == {0: 500, 1: 0}
    assert turns._due == {}


@pytest.mark.parametrize(("count", "pause_s"), [(1, 15), (2, 60)])
async def test_the_next_fetch_is_due_when_the_next_turn_may_begin(count, pause_s):
    written: Any = Written()
    due_at: list[float] = []
    turns: TurnLoop
    turns, inbox = turns_over([lane_with(0, {})], written, lambda _name: None, fetch_before=due_at.append, turn_s=60)
    inbox.put(0, [received(but(create, command_id=f"create-{n}"), n, 0) for n in range(count)])
    began_at = time.monotonic()
    await turns._decide(began_at)
    assert due_at == [began_at + pause_s]


async def test_an_order_due_within_a_turn_is_not_cancelled_before_its_payment_there():
    long, short = lane_with(0, {}), lane_with(1, {ORDER_ID: entry_after([create])})
    written: Any = Written()

    def failpoint(name):
        if name == "turn.taken":  # nothing is queued any more: the lane seems to have read all
            asyncio.get_running_loop().call_soon(turns.cancel_unpaid, 1, [ORDER_ID])
        if name == "turn.committed":
            turns.stop()

    turns: TurnLoop
    turns, inbox = turns_over([long, short], written, failpoint)
    inbox.put(0, [received(but(create, command_id=f"create-{n}"), n, 0) for n in range(AT_A_TIME + 1)])
    inbox.put(1, [received(pay, 0, 1)])
    async with asyncio.timeout(30):
        await turns.run()
    assert written.facts(1) == ["OrderPaid"]


async def test_a_lane_whose_topics_cannot_be_written_to_is_left_out_until_they_can():
    lanes = [lane_with(0, {}), lane_with(1, {ORDER_ID: entry_after([create])})]
    written: Any = Written()
    written.away = {1: "orders.events.v1-1 has no leader"}
    commits = []

    def failpoint(name):
        if name == "turn.committed":
            commits.append((written.facts(0), written.facts(1)))
            written.away = {}
            if len(commits) == 2:
                turns.stop()

    turns: TurnLoop
    turns, inbox = turns_over(lanes, written, failpoint)
    inbox.put(0, [received(create, 0, 0)])
    inbox.put(1, [received(pay, 0, 1)])
    turns.cancel_unpaid(1, [ORDER_ID])
    async with asyncio.timeout(30):
        await turns.run()
    assert commits == [(["OrderCreated"], []), (["OrderCreated"], ["OrderCancelled"])]


async def test_closed_orders_forget_their_commands_in_the_next_turn_also_after_a_wait_for_kafka():
    closed = entry_after([create, cancel])
    lanes = [lane_with(partition, {ORDER_ID: closed}) for partition in range(2)]
    for lane in lanes:
        lane.policy = structs.replace(POLICY, remember_closed_s=60.0)
    written: Any = Written()
    written.away = {1: "orders.table.v1-1 has no leader"}
    commits = []

    def failpoint(name):
        if name == "turn.committed":
            commits.append([partition for partition in range(2) if turns.is_shortening(partition)])
            written.away = {}
            if len(commits) == 2:
                turns.stop()

    turns: TurnLoop
    turns, _ = turns_over(lanes, written, failpoint)
    before = metrics.SHORTENED._value.get()
    turns.shorten(0, [ORDER_ID])
    turns.shorten(1, [ORDER_ID])
    async with asyncio.timeout(30):
        await turns.run()
    assert commits == [[1], []]
    short = encode(short_of(closed))
    entries = [(partition, record) for _, partition, record in written.records if record[0] == ORDER_ID.encode()]
    assert entries == [(partition, (ORDER_ID.encode(), short, [])) for partition in range(2)]
    assert metrics.SHORTENED._value.get() == before + 2


def test_a_lane_that_parks_forgets_which_orders_it_was_to_shorten():
    turns, _ = turns_over([lane_with(0, {})], Written(), lambda _name: None)
    turns.shorten(0, [ORDER_ID])
    turns.forget(0)
    assert not turns.is_shortening(0)


class Blocking(Written):
    """A producer whose commits arrive while the event loop is blocked."""

    async def commit(self, sent):
        await block_loop()
        return sent


async def test_a_commit_does_not_count_the_time_in_which_the_loop_is_blocked(monkeypatch):
    shorten(monkeypatch, "turn")
    written: Any = Blocking()

    def failpoint(name):
        if name == "turn.committed":
            turns.stop()

    turns: TurnLoop
    turns, inbox = turns_over([lane_with(0, {})], written, failpoint)
    inbox.put(0, [received(create, 0, 0)])
    async with asyncio.timeout(30):
        await turns.run()
    assert written.facts(0) == ["OrderCreated"]


async def test_a_partition_that_goes_is_released_when_it_can_be_written_to():
    written: Any = Written()
    written.away = {7: "orders.table.v1-7 has no leader"}
    named = {0, 7, 8}
    turns, _ = turns_over([lane_with(0, {})], written, lambda _step: None, named=named, leaving={7, 8})
    running = asyncio.create_task(turns.run())
    await until_equal(lambda: named, {0, 7})
    written.away = {}
    turns.update_unavailable()
    await until_equal(lambda: named, {0})
    turns.stop()
    await running
    released: Any = (RELEASE_KEY, written.transactional_id.encode(), [])
    assert written.records == [(NAMES.table, 8, released), (NAMES.table, 7, released)]


async def test_a_worker_that_leaves_releases_all_partitions_that_can_be_written_to():
    written: Any = Written()
    written.away = {7: "orders.table.v1-7 has no leader"}
    named = {0, 7, 8}
    turns, _ = turns_over([lane_with(0, {})], written, lambda _step: None, named=named)
    turns.stop(leaves=True)
    await turns.run()
    assert sorted(written.records) == [
        (NAMES.table, partition, (RELEASE_KEY, written.transactional_id.encode(), [])) for partition in (0, 8)
    ]
    assert named == {7}


class Failing(Written):
    """A producer whose transactions fail, or (without an error) do not end."""

    error: Exception | None = None
    is_abandoned = False

    async def begin(self):
        if self.error is not None:
            raise self.error
        await asyncio.get_running_loop().create_future()

    async def abandon(self):
        self.is_abandoned = True


@pytest.mark.parametrize("error", [None, Fenced("another worker"), Stuck("it failed"), TurnRefused("forgotten", {})])
async def test_a_release_that_fails_does_not_keep_a_worker_from_leaving(monkeypatch, error):
    monkeypatch.setattr("order_service.worker.turn.RELEASE_ALL_WITHIN_S", 0.01)
    written: Any = Failing()
    written.error = error
    turns, _ = turns_over([lane_with(0, {})], written, lambda _step: None, named={0})
    turns.stop(leaves=True)
    with capture_logs() as logs:
        await turns.run()
    assert [entry["event"] for entry in logs] == [
        "The partitions could not be released; the next claims fence this worker."
    ]
    assert written.is_abandoned


async def until_equal(value, expected):
    async with asyncio.timeout(30):
        while value() != expected:  # noqa: ASYNC110, what is looked at has no event
            await asyncio.sleep(0)
