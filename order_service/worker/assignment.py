"""The assignment: the lanes that a worker holds from one rebalance to the next.

A worker writes as one owner, from its first assignment until a turn fails. Lanes that stay with it over a rebalance run
on. It releases those that go, and claims those that come: these start one by one, as their claims finish. A claim that
a rebalance interrupts is continued by the next assignment.
"""

import asyncio
import itertools
import time
from collections.abc import Callable, Coroutine, Mapping
from contextlib import closing
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, Protocol
from uuid import uuid4

import structlog
from aiokafka import TopicPartition
from aiokafka.errors import KafkaError
from msgspec import Struct

from order_service.errors import (
    Fenced,
    LaneParked,
    OrderServiceError,
    ParkingReason,
    StoreError,
    Stuck,
    TurnRefused,
    WorkerError,
)
from order_service.kafka.registry_client import Ids
from order_service.kafka.topics import TopicNames
from order_service.runtime.deadline import deadline
from order_service.runtime.readiness import NotReady, ReadinessFault
from order_service.runtime.tasks import failure_of
from order_service.settings import Settings
from order_service.users.client import UserClient
from order_service.worker import metrics
from order_service.worker.claims.changelog_reader import ChangelogState
from order_service.worker.claims.claim import RELEASE_POLL_S, Claimed, Claimer, claim_until_done
from order_service.worker.claims.clients import ClaimClients
from order_service.worker.claims.progress import ClaimSlots, Progress
from order_service.worker.clock import Clock
from order_service.worker.closed_orders import ClosedOrders
from order_service.worker.inbox import Inbox, Run
from order_service.worker.lane import Lane, LanePolicy
from order_service.worker.monitoring.resume_watch import ENDS_READ_WITHIN_S
from order_service.worker.payment_deadlines import PaymentDeadlines
from order_service.worker.schema_lookups import SchemaLookups
from order_service.worker.store import Stores
from order_service.worker.transactions import TurnProducer, stop
from order_service.worker.turn import TurnLoop
from order_service.worker.user_lookups import UserLookups

if TYPE_CHECKING:
    from order_service.worker.command_spans import CommandSpans

log = structlog.get_logger()

MAX_CONCURRENT_CLAIMS: Final = 16
"""Each restores a table. A claim that waits for another process lends its slot to another claim."""
POSITION_EVERY_S: Final = 5.0
"""How often stale positions of lanes are written: see `Lane.is_position_stale`."""
_SEEKS: Final = itertools.count(1)
START_DEADLINE_S: Final = 60.0


class Fetching(Protocol):
    """The consumer of the commands topic, as a worker uses it."""

    async def open(self, partition: int, offset: int, seek: int) -> None:
        """Start fetching a partition at an offset. Its runs carry the number of this seek."""

    def fetch_before(self, at: float) -> None:
        """Fetch shortly before this time of the monotonic clock, when the next turn begins."""

    def pause(self, partition: int) -> None:
        """Pause fetching of a partition."""

    def resume(self, partition: int) -> None:
        """Resume fetching of a partition."""

    async def reached(self, partition: int) -> tuple[int, int | None, int]:
        """Return the next offset to fetch, the seek, and the number of runs delivered since."""

    async def end(self, partition: int) -> int:
        """Ask the broker for the end offset of a partition, including uncommitted records."""

    def end_of(self, partition: int) -> int:
        """Return the last known end offset."""

    def stable_end_of(self, partition: int) -> int:
        """Return the last stable offset as the broker last reported it."""

    def partition_count(self) -> int | None:
        """Return the current number of partitions, or None if it is not known."""

    def announce(self, owner: str) -> None:
        """Send this owner id to the other members of the group, with the next rebalance."""

    def releasing_owners(self) -> frozenset[str]:
        """Return the owner ids of the other members of the group, as of the last rebalance."""

    def standbys(self) -> frozenset[int]:
        """Return the partitions for which this worker stands by, as of the last rebalance."""


class Context(Struct, frozen=True):
    """The objects shared by all assignments of a worker. `in_sync` has `min.insync.replicas` by topic, as last read.

    `spans` is None if tracing is off.
    """

    settings: Settings
    names: TopicNames
    in_sync: dict[str, int]
    connection: dict[str, Any]
    fetching: Fetching
    users: UserClient
    ids: Ids
    end_process: Callable[[BaseException], None]
    clock: Clock
    failpoint: Callable[[str], None]
    stores: Stores | None = None
    spans: "CommandSpans | None" = None


class Owner:
    """The transactional id of a worker, with its producer. Claims write the id into the changelogs of their partitions.

    The producer is started once, before the first claim, and never again after an error.
    """

    def __init__(self, context: Context) -> None:
        self.id = f"{context.settings.group_id}-worker-{uuid4().hex}"
        self.producer = TurnProducer(self.id, context.connection)
        self.named: set[int] = set()
        """The partitions whose changelog may name this owner."""
        context.fetching.announce(self.id)

    async def start(self, context: Context) -> None:
        """Start the producer. Raises Stuck if that takes longer than `START_DEADLINE_S`."""
        try:
            async with deadline(START_DEADLINE_S):
                await self.producer.start()
                await self.producer.follow(context.names.written, context.in_sync)
        except TimeoutError as error:
            raise Stuck(f"the producer {self.id} did not start within {START_DEADLINE_S:.0f} s") from error


class Assignment:
    """The lanes of one assignment. It continues the `previous` one if all turns of that are committed.

    `states` has what standbys have read of the partitions that this worker takes over.
    Claims wait until `reading_ends` has read the ends of the operations: see `ResumeWatch`.
    """

    def __init__(
        self,
        context: Context,
        partitions: set[int],
        user_lookups: UserLookups,
        on_refused: Callable[["Assignment", TurnRefused], None],
        deliver: Callable[[int, Run], None],
        *,
        previous: "Assignment | None" = None,
        states: Mapping[int, ChangelogState] | None = None,
        reading_ends: "asyncio.Task[None] | None" = None,
    ) -> None:
        self.partitions = partitions
        self.parked: dict[int, LaneParked] = {}
        self.parked_at: dict[int, datetime] = {}
        """Since when each lane has been parked, also while a claim tries again to start it."""
        self.is_clean = False
        self._context = context
        self._continued = previous if previous is not None and previous.is_clean else None
        self.owner: Owner = Owner(context) if self._continued is None else self._continued.owner
        read = dict(states or {}) | ({} if previous is None else previous.interrupted)
        self.interrupted: dict[int, ChangelogState] = {
            partition: read[partition] for partition in partitions & read.keys()
        }
        """What was read for each partition whose claim is not done. It outlives this assignment."""
        if previous is not None:
            self.parked_at |= {p: at for p, at in previous.parked_at.items() if p in partitions}
        self._leaving = self.owner.named - partitions
        self._releasing: set[int] = set()
        """The parked lanes whose release a turn writes."""
        self._reading_ends = reading_ends
        self._claimer: Claimer | None = None
        self._slots = ClaimSlots(MAX_CONCURRENT_CLAIMS)
        self._user_lookups = user_lookups
        self._on_refused = on_refused
        self._clients = ClaimClients(context.connection, set() if previous is None else previous.fenced)
        self._claims: dict[int, Progress] = {}
        self.inbox = Inbox(context.fetching.pause, context.fetching.resume)
        self.turns = TurnLoop(
            self.owner.producer,
            context.names,
            self.inbox,
            named=self.owner.named,
            leaving=self._leaving,
            turn_s=context.settings.turn_ms / 1000,
            clock=context.clock,
            end_of=context.fetching.end_of,
            fetch_before=context.fetching.fetch_before,
            park=self._failed,
            failpoint=context.failpoint,
            spans=context.spans,
        )
        self.lookups = SchemaLookups(context.ids, self.inbox, deliver, lambda work: self._spawn(work, "schema lookup"))
        self._tasks: set[asyncio.Task[None]] = set()
        self._stopping = False
        self._payments = PaymentDeadlines(
            self.lanes,
            context.settings.payment_due_s,
            context.clock,
            end=context.fetching.end,
            read_to=self.read_to,
            cancel=self.turns.cancel_unpaid,
            spawn=lambda work: self._spawn(work, "payments due"),
        )
        self._closed_orders = ClosedOrders(
            self.lanes,
            context.settings.remember_closed_s,
            context.clock,
            shorten=self.turns.shorten,
            is_shortening=self.turns.is_shortening,
            is_unavailable=lambda partition: partition in self.turns.unavailable,
            failed=self._failed,
        )

    @property
    def lanes(self) -> dict[int, Lane]:
        """The running lanes, by partition."""
        return self.turns.lanes

    @property
    def fenced(self) -> set[str]:
        """The owners that claims of this worker have fenced: a fence is final."""
        return self._clients.fenced

    def claiming(self) -> list[int]:
        """Return the partitions that are being claimed."""
        return sorted(self.partitions - self.lanes.keys() - self.parked.keys())

    def claims(self) -> list[ReadinessFault]:
        """Return a fault for each open claim, with what it waits for."""
        lines = []
        for partition in self.claiming():
            progress = self._claims.get(partition)
            text = "" if progress is None else progress.text()
            lines.append(NotReady.LANE_CLAIMED.fault(partition=partition, progress=f": {text}" if text else ""))
        return lines

    def open_transactions(self) -> dict[TopicPartition, float]:
        """Return the seconds for which claims have waited for each open transaction."""
        return {
            topic_partition: open_s
            for progress in self._claims.values()
            for topic_partition, open_s in progress.open_for().items()
        }

    def start(self) -> None:
        """Continue the lanes that stay, and claim the other partitions that are not parked.

        Returns at once, since the rebalance waits for this.
        """
        continued, self._continued = self._continued, None
        if continued is None:
            self._spawn(self._start_owner(), "start")
            return
        running = self.partitions - self.parked.keys()
        staying = [lane for partition, lane in continued.lanes.items() if partition in running]
        for lane in staying:
            lane.restore_due_timers()
            self._run(lane)
        self._spawn(self._continue(staying), "turns")
        self._start_claims()

    async def stop(self, *, leaves: bool = False) -> None:
        """Finish the turn in flight and stop. `is_clean` is True afterwards if the next assignment can continue.

        If the worker `leaves` its group, there is no next one: all partitions are released.
        """
        self._stopping = True
        self.turns.stop(leaves=leaves)
        turn_tasks = [task for task in self._tasks if task.get_name() == "turns"]
        for task in self._tasks.difference(turn_tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._clients.close()
        self.is_clean = bool(turn_tasks) and all(
            not task.cancelled() and task.exception() is None for task in turn_tasks
        )
        if not self.is_clean:
            self._context.fetching.announce("")  # this owner releases nothing more
            await self.close()

    async def close(self) -> None:
        """Stop the producer of a stopped assignment that no other one continues."""
        await stop(self.owner.producer)

    def park(
        self,
        partition: int,
        reason: ParkingReason,
        detail: str,
        error: Exception | None = None,
        *,
        trace_id: str | None = None,
    ) -> None:
        """Stop one lane until an operator acts; the others continue. A bug is logged with its traceback.

        `trace_id` is that of the command for which it stops.
        """
        if error is not None:
            detail = f"{detail}: {error if isinstance(error, OrderServiceError) else type(error).__name__}"
        bug = None if isinstance(error, OrderServiceError) else error
        trace = {} if trace_id is None else {"trace_id": trace_id}
        log.error("Lane parked.", partition=partition, reason=reason, detail=detail, exc_info=bug, **trace)
        self.parked[partition] = LaneParked(reason, detail)
        self.parked_at.setdefault(partition, self._context.clock.now())
        self._stop_lane(partition)
        metrics.PARKED.labels(partition).set(1)

    def _failed(self, partition: int, detail: str, error: Exception) -> None:
        """Stop a lane that cannot decide. One whose store cannot be used is claimed again, any other one parks."""
        claimer = self._claimer
        if not isinstance(error, StoreError) or claimer is None:
            lane = self.lanes.get(partition)
            trace_id = None if lane is None else lane.trace_id
            self.park(partition, ParkingReason.CANNOT_DECIDE, detail, error, trace_id=trace_id)
            return
        self._stop_lane(partition)
        claimer.drop_store(partition, ChangelogState(), error)
        self._start_claim(claimer, partition, "Lane claimed again.")

    def _stop_lane(self, partition: int) -> None:
        self.lanes.pop(partition, None)
        self.turns.forget(partition)
        self.interrupted.pop(partition, None)
        self.inbox.close(partition)
        self._context.fetching.pause(partition)
        if self._context.stores is not None:
            self._context.stores.close(partition)
        if partition in self.owner.named:  # then an operator need not fence this owner, which has other lanes
            self._releasing.add(partition)
            self._leaving.add(partition)
            self.turns.wake()

    def claim_again(self, partition: int) -> None:
        """Claim a parked partition again, because an operator has resumed it. The other lanes run on."""
        del self.parked[partition]
        if self._claimer is not None:  # else the claims have not begun yet
            self._start_claim(self._claimer, partition, "Lane claimed again.")

    async def _start_owner(self) -> None:
        await self.owner.start(self._context)
        self._spawn(self.turns.run(), "turns")
        self._start_claims()

    async def _continue(self, staying: list[Lane]) -> None:
        """Continue the lanes that stay.

        Raises TurnRefused if another worker has fenced this owner, because this worker was away from its group or has
        not released a partition in time.
        """
        is_confirmed = False
        try:
            is_confirmed = await self.turns.confirm()
            for lane in staying:
                self._spawn(self._fetch(lane, "Lane runs on."), "fetch")
            await self.turns.run()
        except Fenced as error:
            if is_confirmed and self.owner.named <= self.partitions:
                raise
            raise TurnRefused(f"{error}: it was away from its group, or slow to release a partition", {}) from error

    def _start_claims(self) -> None:
        """Start the claims of the partitions without a lane, and what else the lanes need."""
        self._spawn(self._payments.run(), "payments")
        self._spawn(self._closed_orders.run(), "closed orders")
        self._spawn(self._write_positions(), "positions")
        context = self._context
        claimer = self._claimer = Claimer(
            context.settings.group_id,
            self.owner.id,
            self.owner.named,
            context.fetching.releasing_owners(),
            context.names,
            context.connection,
            self.owner.producer.client.cluster,
            self._clients,
            context.failpoint,
            context.stores,
        )
        for partition in self.claiming():
            self._start_claim(claimer, partition)

    def _start_claim(self, claimer: Claimer, partition: int, message: str = "Lane started.") -> None:
        progress = self._claims[partition] = Progress(self._slots)
        self._spawn(self._claim(claimer, partition, progress, message), "claim")

    async def _claim(
        self, claimer: Claimer, partition: int, progress: Progress, message: str = "Lane started."
    ) -> None:
        """Claim a partition, start its lane and log the message; or park it."""
        await self._until_released(partition, progress)
        if self._reading_ends is not None:
            await asyncio.wait({self._reading_ends}, timeout=ENDS_READ_WITHIN_S)
        state = self.interrupted.setdefault(partition, ChangelogState())
        began_at = time.monotonic()
        try:
            lane, read_records = await self._claim_lane(claimer, partition, state, progress)
            self._run(lane)
            await self._fetch(lane, message, read_records=read_records)
        except (WorkerError, KafkaError, OSError):  # not specific to this partition
            raise
        except Exception as error:  # noqa: BLE001, one partition must not end each worker that claims it
            metrics.CLAIMS.labels("parked").inc()
            if isinstance(error, LaneParked):
                self.park(partition, error.reason, error.detail)
            elif isinstance(error, TurnRefused):
                self.park(partition, ParkingReason.REFUSED_BY_KAFKA, str(error))
            else:
                self.park(partition, ParkingReason.CANNOT_CLAIM, "the partition cannot be claimed", error)
            return
        finally:
            progress.leave()
            if self._claims.get(partition) is progress:  # else the partition parked, and a new claim has begun
                del self._claims[partition]
        metrics.CLAIMS.labels("restored").inc()
        metrics.CLAIM_SECONDS.observe(time.monotonic() - began_at)

    async def _claim_lane(
        self, claimer: Claimer, partition: int, state: ChangelogState, progress: Progress
    ) -> tuple[Lane, int]:
        """Claim a partition and restore its lane. Return it, and how many records were read.

        Claim it again if the store of its table turns out to be damaged.
        """
        while True:
            claimed = await claim_until_done(claimer, partition, state, progress)
            try:
                return await self._restore_lane(partition, claimed, progress), claimed.record_count
            except StoreError as error:
                claimer.drop_store(partition, state, error)

    async def _until_released(self, partition: int, progress: Progress) -> None:
        """Wait until the release of a parked lane is written. After our next position, it would release that one."""
        step, progress.step = progress.step, "the release of the parked lane"
        while partition in self._releasing & self.owner.named:  # noqa: ASYNC110, a turn removes it from both
            await asyncio.sleep(RELEASE_POLL_S)
        progress.step = step
        self._releasing.discard(partition)

    async def _restore_lane(self, partition: int, claimed: Claimed, progress: Progress) -> Lane:
        settings = self._context.settings
        policy = LanePolicy(
            partition_count=settings.partitions,
            commands_topic=self._context.names.commands,
            user_deadline_s=settings.user_deadline_s,
            waiting_max=settings.waiting_max,
            payment_due_s=settings.payment_due_s,
            remember_closed_s=settings.remember_closed_s,
        )
        lane = Lane(partition, policy, self._context.users.known, self._user_lookups.ask, self._context.spans)
        is_restored = False
        # An iterator of RocksDB that is not closed keeps its store open, so that the next claim could not open it.
        with closing(lane.restoring(claimed.table, claimed.waiting, claimed.position)) as restoring:
            while not is_restored:
                async with progress.slice():
                    is_restored = next(restoring, True) is True
        return lane

    def _run(self, lane: Lane) -> None:
        """Add a lane to the turns, which decide its runs from here on."""
        self.interrupted.pop(lane.partition, None)
        lane.follow(next(_SEEKS))
        self.inbox.open(lane.partition)
        self.lanes[lane.partition] = lane
        self.parked_at.pop(lane.partition, None)
        metrics.PARKED.labels(lane.partition).set(0)
        if lane.table.store is not None:
            metrics.STORE_FAULTS.labels(lane.partition).set(0)

    async def _fetch(self, lane: Lane, message: str, **numbers: int) -> None:
        """Fetch the commands of a running lane, look up the users that its orders wait for, and log the message."""
        try:
            await self._context.fetching.open(lane.partition, lane.resume_at, lane.seek)
        except (KafkaError, OSError):  # not specific to this partition
            raise
        except Exception as error:  # noqa: BLE001, one partition must not end each worker that fetches it
            self.park(lane.partition, ParkingReason.CANNOT_FETCH, "its commands cannot be fetched", error)
            return
        if self.lanes.get(lane.partition) is not lane:  # parked in the meantime, and perhaps claimed again
            if lane.partition not in self.lanes:
                self._context.fetching.pause(lane.partition)
            return
        log.info(
            message,
            partition=lane.partition,
            offset=lane.next_offset,
            orders=len(lane.table),
            waiting=len(lane.room),
            **numbers,
        )
        self._look_up_users(lane)
        self.turns.wake()

    def _look_up_users(self, lane: Lane) -> None:
        """Look up the users that orders wait for. An answer that came before the lane started is already cached."""
        for user_id in lane.room.users():
            check = self._context.users.known(user_id)
            if check is None:
                self._user_lookups.ask(user_id)
            else:
                lane.room.add_answer(user_id, check)

    async def _write_positions(self) -> None:
        """Write stale positions, so that a claim does not mistake offsets already read for lost records."""
        while True:
            await asyncio.sleep(POSITION_EVERY_S)
            await self._refresh_stores()
            stale = [lane for lane in self.lanes.values() if lane.is_position_stale()]
            for lane in stale:
                lane.write_position()
            if stale:
                self.turns.wake()

    async def _refresh_stores(self) -> None:
        for lane in list(self.lanes.values()):
            try:
                await lane.table.refresh()
            except StoreError as error:
                if self.lanes.get(lane.partition) is lane:
                    self._failed(lane.partition, "the store of its table cannot be written", error)

    async def read_to(self, lane: Lane) -> int:
        """Return the offset before which nothing is left to decide, also past control records and aborted commands."""
        offset, seek, runs = await self._context.fetching.reached(lane.partition)
        is_all = (seek, runs) == (lane.seek, lane.next_run) and self.inbox.is_empty(lane.partition)
        return max(offset, lane.resume_at) if is_all else lane.resume_at

    def has_more(self, lane: Lane) -> bool:
        """Return whether the broker has commands for a lane with an empty inbox and no open schema lookup."""
        waits = not self.inbox.is_empty(lane.partition) or lane.partition in self.lookups.waiting
        return not waits and lane.resume_at < self._context.fetching.stable_end_of(lane.partition)

    def _spawn(self, work: Coroutine[Any, Any, None], name: str) -> None:
        if self._stopping:
            work.close()
            return
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: "asyncio.Task[None]") -> None:
        """End the process if the task failed. If Kafka refused a turn, call `on_refused` instead."""
        error = failure_of(task, is_stopping=self._stopping)
        if isinstance(error, TurnRefused):
            self._on_refused(self, error)
        elif error is not None:
            self._context.end_process(error)
        elif task.get_name() in {"payments due", "schema lookup", "fetch"}:
            self._tasks.discard(task)
