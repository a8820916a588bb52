"""What the thread that fetches does around its membership: a start without Kafka, an end, a twin."""

import asyncio
import threading
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka import TopicPartition
from aiokafka.errors import CorruptRecordException, GroupCoordinatorNotAvailableError, UnsupportedCodecError

from order_service.errors import GroupError, LoopHung
from order_service.local.broker import free_port
from order_service.runtime.admin import AdminServer
from order_service.runtime.watchdog import Watchdog, end_after
from order_service.settings import Settings
from order_service.worker.clock import Clock
from order_service.worker.faust.app import build, end_process
from order_service.worker.membership import Membership
from order_service.worker.monitoring.end_offsets import LogEnds
from tests.unit.worker.ended_tasks import cancelled_from_within, until_told

DEADLINE_S = 20.0
PARTITION = TopicPartition("orders.commands.v1", 1)


class Ended(threading.Event):
    """Takes the exit code instead of ending the process."""

    code = 0

    def __call__(self, code):
        self.code = code
        self.set()


@pytest.fixture
async def app():
    """Build an app whose Kafka is away and whose thread does not run."""
    settings = Settings(kafka_bootstrap_servers=f"127.0.0.1:{free_port()}", admin_port=0)
    app = build(settings, AdminServer("127.0.0.1", 0, list), Clock(30.0), {})
    yield app
    if not thread_of(app).thread_loop.is_closed():
        thread_of(app).thread_loop.close()


def thread_of(app) -> Any:
    return app.consumer.thread


def join(app, send) -> None:
    """Make the worker a member, whose requests go to `send`."""
    coordinator = SimpleNamespace(member_id="m-1", group_id="orders", _send_req=send)
    thread_of(app)._consumer = SimpleNamespace(_coordinator=coordinator)


async def refuse(_request):
    raise GroupCoordinatorNotAvailableError


async def give_up(_request):
    raise asyncio.CancelledError


async def test_records_are_delivered_between_the_end_of_a_rebalance_and_the_next_start(app):
    delivers = [app.delivers.is_set()]
    for step in (app.on_rebalance_start, app.on_rebalance_end, app.on_rebalance_start):
        step()
        delivers.append(app.delivers.is_set())
    assert delivers == [False, False, True, False]


class Draining:
    """An aiokafka consumer that drains ten records of a partition, and then fails with an error or hands them on.

    As in aiokafka, its position is behind the records either way.
    """

    def __init__(self, error):
        self.error = error
        self._closed = False
        self._coordinator = SimpleNamespace(_pending_exception=None, _coordination_task=asyncio.Future())
        self._fetcher = SimpleNamespace(
            _closed=False,
            _fetch_waiters=set(),
            _subscriptions=SimpleNamespace(fetch_context=nullcontext),
            error_future=asyncio.Future(),
            fetched_records=self._fetched_records,
            pause=lambda: None,
        )
        self._position = 0

    async def _fetched_records(self, _partitions, *, timeout, max_records):  # noqa: ASYNC109, as in aiokafka
        self._position += 10
        if self.error is not None:
            raise self.error
        return {PARTITION: [Record(timeout, max_records)]}

    def assignment(self):
        return {PARTITION}

    def seek(self, _partition, offset):
        self._position = offset

    def resume(self, _partition):
        pass

    async def position(self, _partition):
        return self._position


@dataclass
class Record:
    timeout: float
    max_records: int
    value: Any = None


DAMAGE = CorruptRecordException("Invalid CRC - TopicPartition(topic='orders.commands.v1', partition=0)")


@pytest.mark.parametrize(
    "error",
    [DAMAGE, CorruptRecordException("Invalid CRC"), UnsupportedCodecError("zstd"), ValueError("a bug")],
    ids=lambda error: str(error)[:40],
)
async def test_records_drained_before_an_error_are_not_taken_for_read(app, error):
    thread = thread_of(app)
    app.loop, app.on_damaged = asyncio.get_running_loop(), lambda _partition, _reason: None
    app.consumer.can_resume_flow.set()
    app.consumer.flow_active = True
    thread._consumer = consumer = Draining(error)
    await thread.open(PARTITION, 0, 7)
    assert await thread.reached(PARTITION) == (0, 7, 0)
    with nullcontext() if error is DAMAGE else pytest.raises(type(error)):
        assert await thread._fetch_records(consumer, set(), 1.0, 10) == {}
    assert await thread.reached(PARTITION) == (10, None, 0)
    consumer.error = None
    thread.resume(PARTITION)  # by a lane whose queue was long: it has not heard of the error yet
    [fetched] = (await thread._fetch_records(consumer, set(), 1.0, 10))[PARTITION]
    assert fetched.value[PARTITION.partition].seek == -1
    await thread.open(PARTITION, 0, 8)
    [fetched] = (await thread._fetch_records(consumer, set(), 1.0, 10))[PARTITION]
    run = fetched.value[PARTITION.partition]
    assert (run.seek, run.number) == (8, 0)
    assert await thread.reached(PARTITION) == (10, 8, 1)


async def test_a_worker_told_to_end_while_kafka_is_away_tries_no_more_and_closes(app):
    thread = thread_of(app)
    starting = asyncio.create_task(thread.on_start())
    thread._stopped.set()
    async with asyncio.timeout(DEADLINE_S):
        await starting
        await thread.on_thread_stop()


@pytest.mark.parametrize("send", [refuse, give_up])
async def test_a_worker_ends_though_it_cannot_leave_its_group(app, send):
    join(app, send)
    loop = thread_of(app).thread_loop
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    ended = Ended()
    end_process(GroupError("x"), app.leave_group, ended)
    loop.call_soon_threadsafe(loop.stop)
    thread.join(DEADLINE_S)
    assert ended.code == GroupError.exit_code


async def test_a_log_that_hangs_does_not_keep_the_watchdog_from_ending_the_process(app, monkeypatch, capfd):
    """The thread that hangs may hold the lock of the log's handler."""
    log_goes_on, ended = threading.Event(), Ended()
    monkeypatch.setattr(
        "order_service.worker.faust.consumer.log", SimpleNamespace(warning=lambda *_, **__: log_goes_on.wait(60))
    )
    join(app, refuse)
    loop = thread_of(app).thread_loop
    threads = [
        threading.Thread(target=loop.run_forever),
        threading.Thread(target=end_after, args=((app.leave_group,), LoopHung.exit_code, ended)),
    ]
    for thread in threads:
        thread.start()
    has_ended = ended.wait(30)
    log_goes_on.set()
    loop.call_soon_threadsafe(loop.stop)
    for thread in threads:
        thread.join(DEADLINE_S)
    assert has_ended
    assert '"event": "The worker could not leave its group.", "level": "warning"' in capfd.readouterr().err


OWN_ID = "w-1-0f8fad5b-d9cb-469f-a165-70867728950e"


def member_of_a_group(app, monkeypatch, member_id, reasons):
    """Make it a member whose generation is over; the group lists one member of its instance id."""

    async def send(_request):
        return SimpleNamespace(groups=[(0, "orders", "Stable", "", "", [(member_id, "x", "/10.0.0.7", b"", b"")], 0)])

    thread = thread_of(app)
    membership = Membership("orders", "w-1", is_named=True, client_id="x", session_timeout_s=2.0)
    monkeypatch.setattr(app, "membership", membership)
    monkeypatch.setattr(thread, "fail", reasons.append)
    join(app, send)
    coordinator = thread._consumer._coordinator
    coordinator.member_id = OWN_ID
    thread.remember_member()
    coordinator.member_id, thread._has_joined = "", True
    return thread


async def test_a_worker_that_lost_its_generation_does_not_take_itself_for_a_twin(app, monkeypatch):
    reasons: list[GroupError] = []
    thread = member_of_a_group(app, monkeypatch, OWN_ID, reasons)
    async with asyncio.timeout(DEADLINE_S):
        await thread.check_twin()
    assert reasons == []


async def test_a_worker_whose_place_is_taken_never_joins(app, monkeypatch):
    reasons: list[GroupError] = []
    thread = member_of_a_group(app, monkeypatch, "w-1-7c9e6679-7425-40de-944b-e07fc1f90ae7", reasons)
    monkeypatch.setattr("order_service.worker.faust.consumer.CLOSE_WITHIN_S", 0.0)
    joining = asyncio.create_task(thread.check_twin())
    done, _ = await asyncio.wait({joining}, timeout=0.2)
    joining.cancel()
    assert not done
    assert len(reasons) == 1


def broken():
    raise TypeError("a bug")


def cancelled():
    raise asyncio.CancelledError


@pytest.mark.parametrize(
    ("failed", "reason"),
    [(broken, "TypeError('a bug')"), (cancelled, "RuntimeError('the task check was cancelled from within')")],
)
async def test_a_check_of_the_group_that_fails_itself_ends_the_process(app, monkeypatch, failed, reason):
    """Nobody else would see that the group refuses this worker, or that nothing is fetched any more."""
    reasons: list[BaseException] = []
    thread = thread_of(app)
    monkeypatch.setattr(thread, "fail", reasons.append)
    monkeypatch.setattr(thread, "_failed", failed)
    thread.start_checking()
    await until_told(reasons)
    assert [repr(error) for error in reasons] == [reason]
    await thread.on_thread_stop()


async def test_a_check_of_the_group_that_is_stopped_does_not_end_the_process(app, monkeypatch):
    reasons: list[BaseException] = []
    thread = thread_of(app)
    monkeypatch.setattr(thread, "fail", reasons.append)
    monkeypatch.setattr(thread, "_failed", lambda: None)
    thread.start_checking()
    checking = thread._checking
    await thread.on_thread_stop()
    await asyncio.wait({checking}, timeout=DEADLINE_S)
    await asyncio.sleep(0)  # the callbacks of the task run
    assert checking.cancelled()
    assert reasons == []


async def return_at_once():
    pass


@asynccontextmanager
async def reading_ends(app, monkeypatch, work):
    """Start what lives beside the stream, with this instead of the reading of the ends; give what ends the process."""
    reasons: list[BaseException] = []
    monkeypatch.setattr(app, "end", reasons.append)
    monkeypatch.setattr(LogEnds, "run", lambda _ends: work())
    monkeypatch.setattr(Watchdog, "start", lambda _watchdog: None)
    await app.before_start()
    try:
        yield reasons
    finally:
        await app.before_leaving()
        await app.on_before_shutdown.send()
        await asyncio.sleep(0)  # the callbacks of the tasks run


@pytest.mark.parametrize(
    ("work", "reason"),
    [(cancelled_from_within, "the task ends was cancelled from within"), (return_at_once, "the task ends has ended")],
)
async def test_a_worker_whose_ends_are_read_no_more_ends(app, monkeypatch, work, reason):
    async with reading_ends(app, monkeypatch, work) as reasons:
        await until_told(reasons)
    assert [str(error) for error in reasons] == [reason]


async def test_a_worker_that_is_told_to_end_reads_no_ends_and_does_not_fail(app, monkeypatch):
    async with reading_ends(app, monkeypatch, lambda: asyncio.sleep(60)) as reasons:
        pass
    assert reasons == []


async def test_a_worker_ends_before_it_has_reached_kafka(app):
    thread_of(app)._consumer = SimpleNamespace(_coordinator=None)
    app.leave_group()


async def test_a_worker_ends_after_its_thread(app):
    join(app, refuse)
    thread_of(app).thread_loop.close()
    app.leave_group()


def fail():
    raise RuntimeError("Event loop is closed")


def test_the_process_ends_whatever_fails_before(capfd):
    ended = Ended()
    end_process(GroupError("x"), fail, ended)
    assert ended.code == GroupError.exit_code
    assert "Event loop is closed" in capfd.readouterr().err


def test_the_watchdog_ends_the_process_whatever_fails_before(capfd):
    ended = Ended()

    async def main():
        Watchdog(0.1, fail, ended, tick_s=0.01).start()

    asyncio.run(main())
    assert ended.wait(DEADLINE_S)
    assert ended.code == LoopHung.exit_code
    assert "Event loop is closed" in capfd.readouterr().err
