"""Faust's consumer, changed to fetch runs from the positions of our lanes, and to track no offsets of its own.

faust-streaming 0.15.3 seeks to the group's committed offsets, marks gaps in offsets as processed, drops records that it
believes to have read, and ignores a failed commit: commands are lost whenever partitions move. So it only fetches, is
a member of the group and reports assignments. Our code controls position, order and commit. Names with an underscore
are not public; the exact pin in pyproject.toml and the tests on a real broker guard against changes.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping
from concurrent.futures import CancelledError
from dataclasses import replace
from typing import Any, Final, TypeVar

import faust
import structlog
from aiokafka.errors import (
    CorruptRecordException,
    IllegalStateError,
    KafkaConnectionError,
    KafkaError,
    NoOffsetForPartitionError,
    OffsetOutOfRangeError,
    TopicAuthorizationFailedError,
)
from aiokafka.protocol.group import LeaveGroupRequest
from aiokafka.structs import OffsetAndMetadata, TopicPartition
from faust.tables.manager import TableManager
from faust.transport.drivers import aiokafka as driver
from faust.types import TP

from order_service.errors import GroupError, KafkaAwayError
from order_service.kafka.connection import Consumer, knows_leader, missing_right
from order_service.kafka.record_batches import damaged_partition
from order_service.runtime.tasks import failure_of
from order_service.runtime.watchdog import write_at_once
from order_service.worker.faust.paced_fetcher import LEAD_S, PacedFetcher
from order_service.worker.inbox import Run
from order_service.worker.membership import LaneAssignor, Member, Membership, members_of, reason_of, twin_of

log = structlog.get_logger()

FETCH_WAIT_MS: Final = 250
PARTITION_FETCH_BYTES: Final = 1024 * 1024
ALL_FETCH_BYTES: Final = 96 * 1024 * 1024
"""The size of fetched records of all partitions that are not yet delivered. Each may have `PARTITION_FETCH_BYTES`."""
LEAST_FETCH_BYTES: Final = 256 * 1024
"""With less, many batches would be larger. Kafka returns only the first of those in a response."""
METADATA_AGE_MS: Final = 5_000
"""How long a changed partition count stays undetected. Until then, commands are read whose keys have moved."""
STARTS: Final = 60
CLOSE_WITHIN_S: Final = 5.0
"""How long a stop waits for the consumer to leave the group; a turn in flight has its own deadline before that."""
LEAVE_WITHIN_S: Final = 1.0
CHECK_EVERY_S: Final = 0.5
OFFER_AFTER_S: Final = 1.0
"""The rebalance in which it is noticed must be over."""
PARKING: Final = (OffsetOutOfRangeError, NoOffsetForPartitionError)
"""Errors of one partition that no retry resolves: its lane parks, the others continue."""

_FAUST_LOG: Final = logging.getLogger("faust.app")
_T = TypeVar("_T")


class Partitions(set[TP]):
    """The partitions to deliver. It is true even when empty, since aiokafka treats an empty set as all partitions."""

    def __bool__(self) -> bool:
        return True


class FetchThread(driver.AIOKafkaConsumerThread):
    """The thread that fetches. It delivers one Faust record per fetch: a dict with the run of each partition.

    It numbers the runs of a partition since its seek.
    """

    logger = _FAUST_LOG
    consumer: "RunConsumer"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._seeks: dict[TopicPartition, int] = {}
        self._numbers: dict[TopicPartition, int] = {}
        self._delivered = Partitions()
        self._checking: asyncio.Task[None] | None = None
        self._has_joined = False
        self._has_offered = False
        self._last_member_id = ""

    def _create_worker_consumer(self, transport: object) -> Consumer:  # noqa: ARG002, Faust's signature
        conf = self.app.conf
        return Consumer(
            **self.consumer.app.connection,
            client_id=self.membership.client_id,
            group_id=self.membership.group_id,
            group_instance_id=self.membership.instance_id,
            partition_assignment_strategy=[LaneAssignor],
            enable_auto_commit=False,
            auto_offset_reset="none",
            isolation_level="read_committed",
            fetch_max_wait_ms=FETCH_WAIT_MS,
            max_partition_fetch_bytes=PARTITION_FETCH_BYTES,
            metadata_max_age_ms=METADATA_AGE_MS,
            max_poll_interval_ms=int(conf.broker_max_poll_interval * 1000),
            session_timeout_ms=int(conf.broker_session_timeout * 1000),
            heartbeat_interval_ms=int(conf.broker_heartbeat_interval * 1000),
            rebalance_timeout_ms=int(conf.broker_rebalance_timeout * 1000),
            request_timeout_ms=int(conf.broker_request_timeout * 1000),
        )

    async def on_start(self) -> None:
        """Start the consumer. Try again while Kafka is unavailable and this worker is not stopped."""
        for _ in range(STARTS):
            try:
                await super().on_start()
            except KafkaConnectionError as error:
                log.warning("Kafka does not answer yet; trying again.", error=repr(error))
                await self._ensure_consumer().stop()
                await asyncio.sleep(1.0)
                if self.should_stop:
                    return
            else:
                self._fetcher.__class__ = PacedFetcher
                self.start_checking()
                return
        raise KafkaAwayError(f"Kafka does not answer after {STARTS} attempts")

    def start_checking(self) -> None:
        """Start the task that checks the membership and the fetching."""
        self._checking = asyncio.create_task(self._check_until_it_fails(), name="check")
        self._checking.add_done_callback(self._checked)

    def _checked(self, task: "asyncio.Task[None]") -> None:
        """End the process when the check itself fails: without it, an error of the group stays undetected."""
        if (error := failure_of(task, is_stopping=self._checking is None)) is not None:
            self.fail(error)

    async def on_thread_stop(self) -> None:
        """Close the consumer, or abandon it if Kafka is unavailable: aiokafka then waits, or raises a CancelledError.

        If that reached Faust, it would wait for this thread forever. The group notices the missing heartbeats anyway.
        """
        checking, self._checking = self._checking, None
        if checking is not None:
            checking.cancel()
        coordinator = self.coordinator
        if coordinator is not None and not self.membership.is_named:
            coordinator._group_instance_id = None  # noqa: SLF001, so that aiokafka leaves the group
        closing = asyncio.ensure_future(super().on_thread_stop())
        done, _ = await asyncio.wait({closing}, timeout=CLOSE_WITHIN_S)
        if not done or closing.cancelled():
            closing.cancel()
            log.warning("The consumer could not be closed; the group removes it when its session expires.")
        else:
            closing.result()

    @property
    def _fetcher(self) -> Any:
        return self._ensure_consumer()._fetcher  # noqa: SLF001

    def fetch_before(self, at: float) -> None:
        """Send the next fetch shortly before this time of the monotonic clock. May be called from any thread."""
        self._fetcher.wait_until(at - LEAD_S)

    @property
    def coordinator(self) -> Any | None:
        """The group coordinator of aiokafka, or None before the consumer has reached Kafka."""
        return None if self._consumer is None else self._consumer._coordinator  # noqa: SLF001

    @property
    def membership(self) -> Membership:
        """The group id, instance id and client id of this worker as a member of the group."""
        return self.consumer.app.membership

    async def _check_until_it_fails(self) -> None:
        """End the process with a reason when the group refuses this worker, or when fetching has stopped.

        aiokafka keeps such an error until a caller of its public methods consumes it, and does nothing until then;
        Faust calls none of them. Errors that aiokafka retries by itself do not appear here.
        """
        while (failed := self._failed()) is None:  # noqa: ASYNC110, aiokafka has no event for it
            await asyncio.sleep(CHECK_EVERY_S)
        error, is_of_the_group = failed
        if is_of_the_group:
            coordinator = self._ensure_consumer()._coordinator  # noqa: SLF001
            send, member_id = coordinator._send_req, coordinator.member_id  # noqa: SLF001
            self.fail(GroupError(await reason_of(error, self.membership, send, member_id)))
        else:
            self.fail(GroupError(f"the fetching of commands has ended: {error!r}"))

    def _failed(self) -> tuple[BaseException, bool] | None:
        """Return the error that ended the membership or the fetching, and whether it is one of the group."""
        consumer = self._ensure_consumer()
        coordinator, fetcher = consumer._coordinator, consumer._fetcher  # noqa: SLF001
        if coordinator._pending_exception is not None:  # noqa: SLF001
            return coordinator._pending_exception, True  # noqa: SLF001
        if coordinator._coordination_task.done():  # noqa: SLF001
            return _error_of(coordinator._coordination_task), True  # noqa: SLF001
        if fetcher.error_future.done():
            return _error_of(fetcher.error_future), False
        return None

    def fail(self, error: BaseException) -> None:
        """End the process, in the thread of its main loop."""
        self.app.loop.call_soon_threadsafe(self.consumer.app.end, error)

    async def check_twin(self) -> None:
        """End the process if another one has its instance id; called before each join."""
        coordinator = self._ensure_consumer()._coordinator  # noqa: SLF001
        if coordinator.member_id:
            return
        is_first, self._has_joined = not self._has_joined, True
        reason = await twin_of(
            self.membership,
            coordinator._send_req,  # noqa: SLF001
            is_first=is_first,
            own_member_id=self._last_member_id,
        )
        if reason is not None:
            self.fail(GroupError(reason))
            await asyncio.get_running_loop().create_future()  # never join: the main loop ends the process

    async def members(self) -> list[Member]:
        """Return the members of the group. Raises KafkaError if the coordinator does not answer or refuses."""
        return await members_of(self.membership.group_id, self._ensure_consumer()._coordinator._send_req)  # noqa: SLF001

    def offer_standbys(self) -> None:
        """Join once more, once per process, if the assignment does not say for what this worker stands by."""
        if LaneAssignor.lacks_standbys and not self._has_offered:
            self._has_offered = True
            coordinator = self._ensure_consumer()._coordinator  # noqa: SLF001
            asyncio.get_running_loop().call_later(OFFER_AFTER_S, coordinator.request_rejoin)

    def remember_member(self) -> None:
        """Record the member id of this process: aiokafka drops it when its generation is over."""
        self._last_member_id = self._ensure_consumer()._coordinator.member_id  # noqa: SLF001

    async def leave(self) -> None:
        """Leave the group, unless the restarted process is to keep its membership."""
        coordinator = self.coordinator
        if coordinator is not None and coordinator.member_id and not self.membership.stays_after_a_fault:
            await coordinator._send_req(LeaveGroupRequest(coordinator.group_id, coordinator.member_id))  # noqa: SLF001

    def hold(self, partitions: Iterable[TopicPartition]) -> None:
        """Pause new partitions until their lanes run. Offset 0 is a placeholder: `open` seeks after the claim."""
        consumer, partitions = self._ensure_consumer(), list(partitions)
        consumer._fetcher._max_partition_fetch_bytes = fetch_bytes(len(partitions))  # noqa: SLF001
        self._delivered.clear()
        for partition in partitions:
            consumer.pause(partition)
            consumer.seek(partition, 0)

    async def open(self, partition: TopicPartition, offset: int, seek: int) -> None:
        """Fetch a partition from `offset` on, if it is still ours; its runs carry the number of this seek."""
        consumer = self._ensure_consumer()
        if partition in consumer.assignment():
            consumer.seek(partition, offset)
            consumer.resume(partition)
            self._delivered.add(partition)
            self._seeks[partition] = seek
            self._numbers[partition] = 0

    def pause(self, partition: TopicPartition) -> None:
        """Stop delivering a partition for now. Prefetched records stay: aiokafka's own pause would drop them."""
        self._delivered.discard(partition)

    def resume(self, partition: TopicPartition) -> None:
        """Deliver a partition again, starting at once with the records that were fetched already."""
        self._delivered.add(partition)
        fetcher = self._ensure_consumer()._fetcher  # noqa: SLF001
        for waiter in list(fetcher._fetch_waiters):  # noqa: SLF001
            fetcher._notify(waiter)  # noqa: SLF001

    async def reached(self, partition: TopicPartition) -> tuple[int, int | None, int]:
        """Return the next offset to fetch of a partition, the seek, and the number of runs delivered since."""
        offset = await self._ensure_consumer().position(partition)
        return offset, self._seeks.get(partition), self._numbers.get(partition, 0)

    async def _fetch_records(
        self,
        consumer: Consumer,
        active_partitions: object,  # noqa: ARG002, partitions that are not fetched are paused
        timeout: float | None = None,  # noqa: ASYNC109, Faust's signature
        max_records: int | None = None,
    ) -> dict[TP, list[Any]]:
        try:
            fetched = await super()._fetch_records(consumer, self._delivered, timeout=timeout, max_records=max_records)
        except PARKING as error:
            partitions = _partitions_of(error)
            if not partitions:
                raise
            for partition in partitions:
                self._park(partition, repr(error))
            return {}
        except CorruptRecordException as error:
            self._stop_delivering(error)
            return {}
        except TopicAuthorizationFailedError as error:
            self.fail(GroupError(missing_right(error)))
            return {}
        except Exception as error:
            self._distrust_positions()
            if not isinstance(error, KafkaError) or self._failed() is None:
                raise
            return {}  # an error of the group is raised here too; the check ends the process and logs the reason
        return self._as_one_record(fetched) if fetched else {}

    def _stop_delivering(self, error: CorruptRecordException) -> None:
        """Stop delivering, and report the partition with a damaged batch: all partitions are opened again."""
        damaged = damaged_partition(error)
        self._distrust_positions()
        if damaged is None:
            raise error
        self.app.loop.call_soon_threadsafe(self.consumer.app.on_damaged, damaged.partition, str(error))

    def _distrust_positions(self) -> None:
        """Stop delivering, and make `reached` confirm no position, until the partitions are opened again.

        aiokafka drains one partition after the other. On an error it drops the records that it has already drained, and
        its positions are past them: a lane that adopted such a position would never decide them.
        """
        self._delivered.clear()
        self._seeks.clear()

    def _as_one_record(self, fetched: Mapping[TP, list[Any]]) -> dict[TP, list[Any]]:
        """Return the runs of all partitions as one record of Faust, so that the same turn can take all of them."""
        self._fetcher.pause()
        runs = {partition.partition: self._as_run(partition, records) for partition, records in fetched.items()}
        partition, records = next(iter(fetched.items()))
        return {partition: [replace(records[-1], value=runs)]}

    def _as_run(self, partition: TopicPartition, records: list[Any]) -> Run:
        number = self._numbers.get(partition, 0)
        self._numbers[partition] = number + 1
        return Run(self._seeks.get(partition, -1), number, records)

    def _park(self, partition: TopicPartition, reason: str) -> None:
        self._ensure_consumer().pause(partition)
        self.app.loop.call_soon_threadsafe(self.consumer.app.on_unreadable, partition.partition, reason)

    async def _commit(self, offsets: Mapping[TP, int]) -> bool:
        """Commit our positions to the group. Only lag monitoring uses them."""
        positions = {
            TopicPartition(partition.topic, partition.partition): OffsetAndMetadata(offset, "")
            for partition, offset in offsets.items()
            if partition in self.assignment()
        }
        try:
            await self._ensure_consumer().commit(positions)
        except (KafkaError, IllegalStateError) as error:
            log.warning("Offset commit for lag monitoring failed.", error=repr(error))
            return False
        return True


def fetch_bytes(partition_count: int) -> int:
    """Return how many bytes to fetch of each of so many partitions at a time."""
    return max(LEAST_FETCH_BYTES, min(PARTITION_FETCH_BYTES, ALL_FETCH_BYTES // max(1, partition_count)))


def _error_of(task: "asyncio.Task[Any]") -> BaseException:
    if task.cancelled():
        return asyncio.CancelledError()
    return task.exception() or RuntimeError("the task returned")


def _partitions_of(error: Exception) -> list[TopicPartition]:
    """Return the partitions of an aiokafka error: its argument is one, or a dict with partitions as keys."""
    about = error.args[0] if error.args else None
    return [
        partition
        for partition in (about if isinstance(about, dict) else [about])
        if isinstance(partition, TopicPartition)
    ]


class RebalanceListener(driver.ConsumerRebalanceListener):
    """A listener that pauses partitions on assignment, before a record is fetched from a committed offset."""

    _thread: FetchThread

    def on_partitions_revoked(self, revoked: Iterable[TopicPartition]) -> Awaitable[None]:
        """Notify Faust and the worker, then check whether this process may join again."""
        return self._revoked(super().on_partitions_revoked(revoked))

    async def _revoked(self, revoking: Awaitable[None]) -> None:
        await revoking
        await self._thread.check_twin()

    async def on_partitions_assigned(self, assigned: Iterable[TopicPartition]) -> None:
        """Hold the partitions, then notify Faust and the worker."""
        partitions = list(assigned)
        LaneAssignor.on_generation_assignment(self._thread._ensure_consumer()._coordinator.generation)  # noqa: SLF001
        self._thread.remember_member()
        self._thread.offer_standbys()
        self._thread.hold(partitions)
        await super().on_partitions_assigned(partitions)


class NoReadOffsets(dict[TP, None]):
    """An always empty record of read offsets: Faust drops records below the offset that it last read."""

    def __getitem__(self, _partition: TP) -> None:
        return None

    def __setitem__(self, _partition: TP, _offset: object) -> None:
        pass


class RunConsumer(driver.Consumer):
    """Faust's consumer, which here neither seeks nor commits on its own."""

    logger = _FAUST_LOG
    RebalanceListener = RebalanceListener
    _thread: FetchThread
    app: "RunApp"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._read_offset = NoReadOffsets()  # type: ignore[assignment]

    def _new_consumer_thread(self) -> FetchThread:
        return FetchThread(self, loop=self.loop, beacon=self.beacon)

    async def _wait_next_records(self, timeout: float) -> tuple[Any, None]:  # noqa: ASYNC109, Faust's signature
        """Return the next runs. All fetched records are delivered, even of a partition that was paused meanwhile."""
        if not self.flow_active:
            await self.wait(self.can_resume_flow.wait())
        return await self._getmany(active_partitions=None, timeout=timeout), None

    def leave_group(self) -> None:
        """Leave the group before the process ends by itself. Call this from a thread other than the fetching one.

        It does not use the log: the thread that caused the end of the process may hang in it.
        """
        thread = self._thread
        if thread.coordinator is None or thread.thread_loop.is_closed():
            return
        leaving = asyncio.run_coroutine_threadsafe(thread.leave(), thread.thread_loop)
        try:
            leaving.result(LEAVE_WITHIN_S)
        except (TimeoutError, CancelledError, KafkaError) as error:
            write_at_once("The worker could not leave its group.", level="warning", error=repr(error))

    async def perform_seek(self) -> None:
        """Keep the positions of the lanes: the group's committed offsets are not used."""

    async def commit(self, topics: object = None, start_new_transaction: bool = True) -> bool:  # noqa: ARG002
        """Commit the positions of the lanes, for lag monitoring."""
        offsets = self.app.positions()
        return bool(offsets) and await self._commit(offsets)

    async def run_in_fetch_thread(self, work: Coroutine[Any, Any, _T]) -> _T:
        """Run `work` in the event loop of the fetching thread, the only one that may use its consumer."""
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, self._thread.thread_loop))

    def call_soon_in_fetch_thread(self, work: Callable[[TopicPartition], None], partition: TopicPartition) -> None:
        """Schedule `work` on a partition in the fetching thread. It is skipped if the partition was revoked before."""
        self._thread.thread_loop.call_soon_threadsafe(self._if_assigned, work, partition)

    def _if_assigned(self, work: Callable[[TopicPartition], None], partition: TopicPartition) -> None:
        if partition in self._thread._ensure_consumer().assignment():  # noqa: SLF001
            work(partition)

    def partition_count(self, topic: str) -> int | None:
        """Return the current number of partitions of a topic, or None if it is not known."""
        consumer = self._thread._consumer  # noqa: SLF001
        partitions = consumer.partitions_for_topic(topic) if consumer is not None else None
        return len(partitions) if partitions else None

    async def stable_ends(self) -> dict[TopicPartition, int | None]:
        """Return the last stable offsets of our partitions, which are before the first open transaction.

        None for a partition without a leader: aiokafka would wait for it before it returns any other.
        """
        consumer = self._thread._consumer  # noqa: SLF001
        if consumer is None:
            return {}
        held = consumer.assignment()
        led = [partition for partition in held if knows_leader(consumer, partition)]
        ends = await self.run_in_fetch_thread(consumer.end_offsets(led)) if led else {}
        return {partition: ends.get(partition) for partition in held}

    async def members(self) -> list[Member]:
        """Return the members of the group, read from the broker."""
        return [] if self._thread.coordinator is None else await self.run_in_fetch_thread(self._thread.members())

    def end_of(self, partition: TopicPartition) -> int:
        """Return the end of a partition as of the last fetch, 0 before that."""
        consumer = self._thread._consumer  # noqa: SLF001
        if consumer is None or partition not in consumer.assignment():
            return 0
        return consumer.highwater(partition) or 0

    @property
    def thread(self) -> FetchThread:
        """The thread that fetches records."""
        return self._thread


class NoProducer(driver.Producer):
    """A producer for Faust that does nothing: all records are written by our own transactional producers."""

    logger = _FAUST_LOG

    async def on_start(self) -> None:
        """Start nothing."""

    async def on_stop(self) -> None:
        """Stop nothing."""

    async def flush(self) -> None:
        """Flush nothing."""


class RunTransport(driver.Transport):
    """Faust's transport with our consumer, and no producer."""

    Consumer = RunConsumer
    Producer = NoProducer


class RawSchema(faust.Schema[Any, Any]):
    """A schema that leaves keys and values unchanged: the worker decodes each run."""

    def compile(
        self,
        app: Any,
        *,
        on_key_decode_error: object = None,  # noqa: ARG002, Faust's signature
        on_value_decode_error: object = None,  # noqa: ARG002
        default_propagate: bool = False,
    ) -> Callable[..., Coroutine[Any, Any, faust.Event]]:
        """Return a decoder that wraps a record in an event, unchanged."""

        async def decode(message: Any, *, propagate: bool = default_propagate) -> faust.Event:  # noqa: ARG001
            return faust.Event(app, message.key, message.value, None, message)

        return decode


class NoTables(TableManager):
    """Faust's manager of tables, which we do not use: it starts without its delay of a second."""

    logger = _FAUST_LOG

    async def on_start(self) -> None:
        """Start the service that reports all tables as ready to the app."""
        await self._update_channels()
        await self.recovery.start()


class RunApp(faust.App):
    """A Faust app that consumes runs. Its hooks are set by `app.build`."""

    logger = _FAUST_LOG
    connection: dict[str, Any]
    positions: Callable[[], dict[TP, int]]
    membership: Membership
    end: Callable[[BaseException], None]
    on_unreadable: Callable[[int, str], None]
    on_damaged: Callable[[int, str], None]
    before_start: Callable[[], Coroutine[Any, Any, None]]
    before_leaving: Callable[[], Coroutine[Any, Any, None]]
    delivers: asyncio.Event
    """Set while no rebalance is under way. Until then, Faust drops the records that it gets."""

    def on_rebalance_start(self) -> None:
        """Note that Faust drops records from now on."""
        super().on_rebalance_start()
        self.delivers.clear()

    def on_rebalance_end(self) -> None:
        """Note that Faust delivers records again."""
        super().on_rebalance_end()
        self.delivers.set()

    async def on_first_start(self) -> None:
        """Start the services of the stream before the first assignment, without creating Faust's own directories."""
        await self.before_start()

    def _new_transport(self) -> RunTransport:
        return RunTransport(self.conf.broker_consumer, self)

    def _new_producer_transport(self) -> RunTransport:
        return RunTransport(self.conf.broker_producer, self)

    def leave_group(self) -> None:
        """Leave the group before the process ends by itself, if this worker has a consumer."""
        if isinstance(self._consumer, RunConsumer):
            self._consumer.leave_group()

    async def _stop_consumer(self) -> None:
        """Finish the turn in flight before this worker leaves the group."""
        await self.before_leaving()
        await super()._stop_consumer()
