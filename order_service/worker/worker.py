"""The worker: how one process handles the partitions that the consumer group assigns to it.

Each assignment has its own owner id, producer and turn loop. Its lanes start one by one, as their claims finish. Lanes
of the previous assignment are reused if the log shows that no other worker has written since.
"""

import asyncio
import itertools
import math
import time
from collections.abc import Callable, Coroutine
from typing import Any, Final, Protocol
from uuid import uuid4

import structlog
from aiokafka import TopicPartition
from aiokafka.errors import KafkaError
from msgspec import Struct

from order_service.domain.decision import UserCheck
from order_service.domain.messages import CreateOrder
from order_service.domain.validation import is_id
from order_service.errors import (
    DecodeError,
    OrderServiceError,
    RunLost,
    Stuck,
    TopicsError,
    TurnRefused,
    WorkerError,
)
from order_service.kafka.registry_client import Ids
from order_service.kafka.topics import TopicNames
from order_service.runtime.deadline import deadline
from order_service.runtime.tasks import failure_of
from order_service.settings import Settings
from order_service.users.client import UserClient
from order_service.wire.changelog import Ends
from order_service.wire.commands import decode_command
from order_service.worker import metrics
from order_service.worker.claims.claim import Claimed, Claimer, HeldLane, claim_until_done
from order_service.worker.claims.clients import ClaimClients
from order_service.worker.claims.progress import ClaimSlots, Progress
from order_service.worker.clock import Clock
from order_service.worker.inbox import Inbox, Received, Run
from order_service.worker.lane import Lane, LanePolicy
from order_service.worker.monitoring.stall_watch import StallWatch
from order_service.worker.monitoring.topic_watch import TopicWatch
from order_service.worker.schema_lookups import SchemaLookups
from order_service.worker.transactions import TurnProducer, stop
from order_service.worker.turn import TurnLoop
from order_service.worker.user_lookups import UserLookups

log = structlog.get_logger()

MAX_CONCURRENT_CLAIMS: Final = 16
"""Each restores a table. A claim that waits for another process lends its slot to another claim."""
POSITION_EVERY_S: Final = 5.0
"""How often stale positions of lanes are written: see `Lane.is_position_stale`."""
_SEEKS: Final = itertools.count(1)
WATCH_EVERY_S: Final = 0.5
RESTART_INTERVAL_S: Final = 60.0
"""A worker ends if Kafka refuses two turns within this time for a reason that names no lane."""
SUSPECT_S: Final = 3600.0
"""A lane is parked if Kafka refuses it twice within this time with an error that aiokafka does not know."""
START_DEADLINE_S: Final = 60.0


class Fetching(Protocol):
    """The consumer of the commands topic, as a worker uses it."""

    async def open(self, partition: int, offset: int, seek: int) -> None:
        """Start fetching a partition at an offset. Its runs carry the number of this seek."""

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


class Context(Struct, frozen=True):
    """The objects shared by all assignments of a worker. `in_sync` has `min.insync.replicas` by topic, as last read."""

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


class Assignment:
    """The lanes of one assignment, under an owner id that is unique to this assignment."""

    def __init__(
        self,
        context: Context,
        partitions: set[int],
        user_lookups: UserLookups,
        on_refused: Callable[["Assignment", TurnRefused], None],
        deliver: Callable[[int, Run], None],
        *,
        previous: "Assignment | None" = None,
    ) -> None:
        self.owner = f"{context.settings.group_id}-worker-{uuid4().hex}"
        self.partitions = partitions
        self.parked: dict[int, str] = {}
        self.is_clean = False
        self._context = context
        held = previous.held_lanes() if previous is not None else {}
        self._held = {partition: held[partition] for partition in partitions & held.keys()}
        self._user_lookups = user_lookups
        self._on_refused = on_refused
        self._clients = ClaimClients(context.connection)
        self._claims: dict[int, Progress] = {}
        self._producer = TurnProducer(self.owner, context.connection)
        self.inbox = Inbox(context.fetching.pause, context.fetching.resume)
        self.turns = TurnLoop(
            self._producer,
            context.names,
            self.inbox,
            turn_s=context.settings.turn_ms / 1000,
            clock=context.clock,
            end_of=context.fetching.end_of,
            park=self.park,
            failpoint=context.failpoint,
        )
        self.lookups = SchemaLookups(context.ids, self.inbox, deliver, lambda work: self._spawn(work, "schema lookup"))
        self._tasks: set[asyncio.Task[None]] = set()
        self._stopping = False
        self._cancelling: set[int] = set()

    @property
    def lanes(self) -> dict[int, Lane]:
        """The running lanes, by partition."""
        return self.turns.lanes

    def claiming(self) -> list[int]:
        """Return the partitions that are being claimed."""
        return sorted(self.partitions - self.lanes.keys() - self.parked.keys())

    def claims(self) -> list[str]:
        """Return a line for each open claim, with what it waits for."""
        lines = []
        for partition in self.claiming():
            progress = self._claims.get(partition)
            waits_for = "" if progress is None else progress.waits_for()
            lines.append(f"partition {partition} is being claimed" + (f": {waits_for}" if waits_for else ""))
        return lines

    def open_transactions(self) -> dict[TopicPartition, float]:
        """Return the seconds for which claims have waited for each open transaction."""
        return {
            topic_partition: open_s
            for progress in self._claims.values()
            for topic_partition, open_s in progress.open_for().items()
        }

    def start(self) -> None:
        """Start to claim the partitions that are not parked. Returns at once, since the rebalance waits for this."""
        self._spawn(self._claim_all(), "claims")

    async def stop(self) -> None:
        """Finish the turn in flight and stop. `is_clean` is True afterwards if every turn was committed."""
        self._stopping = True
        self.turns.stop()
        turn_tasks = [task for task in self._tasks if task.get_name() == "turns"]
        for task in self._tasks.difference(turn_tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._clients.close()
        await stop(self._producer)
        self.is_clean = all(not task.cancelled() and task.exception() is None for task in turn_tasks)

    def held_lanes(self) -> dict[int, tuple[Lane, HeldLane]]:
        """Return the lanes that match their log: all if every commit is known to have succeeded, otherwise none."""
        if not self.is_clean:
            return {}
        return {
            partition: (lane, HeldLane(self.owner, lane.log_offset, lane.next_offset, len(lane.room)))
            for partition, lane in self.lanes.items()
        }

    def park(self, partition: int, reason: str, error: Exception | None = None) -> None:
        """Stop one lane until an operator acts; the others continue. A bug is logged with its traceback."""
        if error is not None:
            reason = f"{reason}: {error if isinstance(error, OrderServiceError) else type(error).__name__}"
        bug = None if isinstance(error, OrderServiceError) else error
        log.error("Lane parked.", partition=partition, reason=reason, exc_info=bug)
        self.parked[partition] = reason
        self.lanes.pop(partition, None)
        self.inbox.close(partition)
        self._context.fetching.pause(partition)
        metrics.PARKED.labels(partition).set(1)

    async def _claim_all(self) -> None:
        try:
            async with deadline(START_DEADLINE_S):
                await self._producer.start()
                await self._producer.follow(self._context.names.written, self._context.in_sync)
        except TimeoutError as error:
            raise Stuck(f"the producer {self.owner} did not start within {START_DEADLINE_S:.0f} s") from error
        self._spawn(self.turns.run(), "turns")
        self._spawn(self._watch_payments(), "payments")
        self._spawn(self._write_positions(), "positions")
        slots = ClaimSlots(MAX_CONCURRENT_CLAIMS)
        for partition in sorted(self.partitions - self.parked.keys()):
            self._claims[partition] = Progress(slots)
            self._spawn(self._claim(partition, self._claims[partition]), "claim")

    async def _claim(self, partition: int, progress: Progress) -> None:
        context = self._context
        claimer = Claimer(
            context.settings.group_id, self.owner, context.names, context.connection, self._clients, context.failpoint
        )
        lane, held = self._held.pop(partition, (None, None))
        began_at = time.monotonic()
        try:
            claimed = await claim_until_done(claimer, partition, held, progress)
            lane = await self._restore_lane(partition, lane, claimed, progress)
            await self._open(lane, claimed)
        except (WorkerError, KafkaError, OSError):  # not specific to this partition
            raise
        except Exception as error:  # noqa: BLE001, one partition must not end each worker that claims it
            metrics.CLAIMS.labels("parked").inc()
            if isinstance(error, OrderServiceError):
                self.park(partition, str(error))
            else:
                self.park(partition, "the partition cannot be claimed", error)
            return
        finally:
            progress.leave()
            del self._claims[partition]
        metrics.CLAIMS.labels("kept" if claimed.state is None else "restored").inc()
        metrics.CLAIM_SECONDS.observe(time.monotonic() - began_at)

    async def _restore_lane(self, partition: int, held: Lane | None, claimed: Claimed, progress: Progress) -> Lane:
        if held is not None and claimed.state is None:
            held.restore_due_timers()
            return held
        settings = self._context.settings
        policy = LanePolicy(
            partition_count=settings.partitions,
            commands_topic=self._context.names.commands,
            user_deadline_s=settings.user_deadline_s,
            waiting_max=settings.waiting_max,
            payment_due_s=settings.payment_due_s,
        )
        lane = Lane(partition, policy, self._context.users.known, self._user_lookups.ask)
        entries, waiting = claimed.state or ({}, [])
        restoring = lane.restoring(entries, waiting, claimed.position)
        is_restored = False
        while not is_restored:
            async with progress.slice():
                is_restored = next(restoring, True) is True
        return lane

    async def _open(self, lane: Lane, claimed: Claimed) -> None:
        """Start a claimed lane. From here on its runs are decided."""
        lane.log_offset = claimed.log_offset
        lane.written = claimed.position
        lane.ends = claimed.position.ends or Ends()
        self.inbox.open(lane.partition)
        lane.follow(next(_SEEKS))
        self.lanes[lane.partition] = lane
        metrics.PARKED.labels(lane.partition).set(0)
        await self._context.fetching.open(lane.partition, lane.resume_at, lane.seek)
        if self.lanes.get(lane.partition) is not lane:  # parked in the meantime
            self._context.fetching.pause(lane.partition)
            return
        log.info(
            "Lane started.",
            partition=lane.partition,
            offset=lane.next_offset,
            orders=len(lane.table),
            waiting=len(lane.room),
            kept=claimed.state is None,
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

    async def _watch_payments(self) -> None:
        """Find orders whose payment is due. Each is cancelled once the log can contain no earlier payment."""
        if self._context.settings.payment_due_s is None:
            return
        while True:
            now = self._context.clock.now()
            for lane in list(self.lanes.values()):
                if lane.partition in self._cancelling:
                    continue
                due = lane.due_orders(now)
                if due:
                    self._cancelling.add(lane.partition)
                    self._spawn(self._cancel_once_read(lane, due), "payments due")
            await asyncio.sleep(WATCH_EVERY_S)

    async def _cancel_once_read(self, lane: Lane, order_ids: list[str]) -> None:
        """Wait until the lane has read the commands up to an end taken after the orders were due; then cancel them."""
        try:
            end = await self._context.fetching.end(lane.partition)
            while not await self._has_read(lane, end):  # noqa: ASYNC110, the broker offers no event for it
                await asyncio.sleep(0.05)
        except KafkaError as error:
            log.warning("Cannot read the end offset; payment timeouts are delayed.", error=repr(error))
            lane.restore_due_timers()
        else:
            self.turns.cancel_unpaid(lane.partition, order_ids)
        finally:
            self._cancelling.discard(lane.partition)

    async def _write_positions(self) -> None:
        """Write stale positions, so that a claim does not mistake offsets already read for lost records."""
        while True:
            await asyncio.sleep(POSITION_EVERY_S)
            stale = [lane for lane in self.lanes.values() if lane.is_position_stale()]
            for lane in stale:
                lane.write_position()
            if stale:
                self.turns.wake()

    async def _has_read(self, lane: Lane, end: int) -> bool:
        """Return whether all commands before `end` are decided. The fetch skips control records.

        Also True for a lane that was parked in the meantime: its next claim sets its timers again.
        """
        if lane.next_offset >= end or self.lanes.get(lane.partition) is not lane:
            return True
        return await self.read_to(lane) >= end

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
        elif task.get_name() in {"payments due", "schema lookup"}:
            self._tasks.discard(task)


class Worker:
    """Follows the consumer group: holds one assignment at a time and delivers the received runs to its lanes."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._user_lookups = UserLookups(
            context.users, self._is_awaited, self._on_user_check, concurrency=context.settings.user_service_concurrency
        )
        self._assignment: Assignment | None = None
        self._last: Assignment | None = None
        self._assignment_lock = asyncio.Lock()
        self._leaving = False
        self._restarts: set[asyncio.Task[None]] = set()
        self._restarted_at = -math.inf
        self._suspected_at: dict[int, float] = {}
        self._topics = TopicWatch(context.settings, context.in_sync)
        self._stalls = StallWatch(context.names.commands)
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Start the user lookups, the metrics and the topic watch."""
        self._tasks = [
            asyncio.create_task(self._user_lookups.run(), name="user lookups"),
            asyncio.create_task(self._watch(), name="watch"),
            asyncio.create_task(self._topics.run(), name="topics"),
        ]
        for task in self._tasks:
            task.add_done_callback(self._ended)

    async def stop(self) -> None:
        """Finish the turn in flight and stop."""
        self._leaving = True
        await self.revoked()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def assigned(self, partitions: set[int]) -> None:
        """Start to claim partitions. Returns before the claims are done. A worker that is stopping claims nothing."""
        await self.revoked()
        if self._leaving:
            return
        self._assignment = self._new_assignment(partitions, self._last)
        self._last = None
        log.info("Partitions assigned.", partitions=sorted(partitions), owner=self._assignment.owner)
        self._assignment.start()

    async def revoked(self) -> None:
        """Finish the turn in flight and release all partitions. Their lanes stay in memory in case they come back."""
        async with self._assignment_lock:  # a second call waits for the same turn in flight
            assignment, self._assignment = self._assignment, None
            if assignment is not None:
                try:
                    await assignment.stop()
                except WorkerError as error:  # not through Faust, which does not know our exit codes
                    self._context.end_process(error)
                self._last = assignment
                metrics.LAG.clear()  # the next owner reports these partitions
                metrics.PARKED.clear()

    def damaged(self, partition: int, reason: str) -> None:
        """Park the lane of a partition with a damaged batch. The other partitions are claimed and fetched again."""
        message = f"a batch of {self._context.names.commands}-{partition} is damaged: {reason}"
        self._start(self._claim_again(None, TurnRefused(message, {partition: message})))

    def _on_refused(self, assignment: Assignment, error: TurnRefused) -> None:
        now = time.monotonic()
        if not (error.lanes or error.suspects) and now - self._restarted_at < RESTART_INTERVAL_S:
            self._context.end_process(error)
            return
        self._restarted_at = now
        self._start(self._claim_again(assignment, error))

    def _start(self, restart: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(restart, name="claim again")
        self._restarts.add(task)
        task.add_done_callback(self._restarts.discard)
        task.add_done_callback(self._ended)

    async def _claim_again(self, refused: Assignment | None, error: TurnRefused) -> None:
        """Claim the partitions of an assignment again, under a new owner id and without the lanes that Kafka refused.

        Memory is ahead of the log by the refused turn, so all lanes are restored. None means the current assignment.
        """
        async with self._assignment_lock:
            assignment = self._assignment
            if assignment is None or refused not in {None, assignment}:  # revoked: the next owner will find out
                return
            log.warning("Claiming the partitions again.", reason=str(error))
            await assignment.stop()
            repeated = self._suspected_again(error.suspects)
            lanes = {
                partition: reason for partition, reason in error.lanes.items() if partition in assignment.partitions
            }
            parked = assignment.parked | lanes | repeated
            self._assignment = self._new_assignment(assignment.partitions)
            for partition, reason in parked.items():
                self._assignment.park(partition, reason)
            self._assignment.start()

    def _suspected_again(self, suspects: dict[int, str]) -> dict[int, str]:
        """Return the suspects that were already suspected within the last `SUSPECT_S`, and record all of them."""
        now = time.monotonic()
        repeated = {
            partition: reason
            for partition, reason in suspects.items()
            if now - self._suspected_at.get(partition, -math.inf) < SUSPECT_S
        }
        self._suspected_at.update(dict.fromkeys(suspects, now))
        return repeated

    def _new_assignment(self, partitions: set[int], previous: Assignment | None = None) -> Assignment:
        return Assignment(
            self._context, partitions, self._user_lookups, self._on_refused, self._deliver, previous=previous
        )

    def receive(self, partition: int, run: Run) -> None:
        """Queue a run for the next turn, once its schema ids are known. Other partitions do not wait for that."""
        if self._assignment is not None:
            self._assignment.lookups.receive(partition, run)

    def _deliver(self, partition: int, run: Run) -> None:
        """Decode a run, start the user lookups of its creates, and queue it for the next turn."""
        assignment = self._assignment
        lane = assignment.lanes.get(partition) if assignment is not None else None
        if assignment is None or lane is None or not self._accepts(lane, run):
            return
        try:
            received = [decode_record(record) for record in run.records]
        except Exception as error:  # noqa: BLE001, one record must not end each worker that reads it
            assignment.park(partition, f"the records from offset {run.records[0].offset} on cannot be decoded", error)
            return
        for _, command in received:
            if type(command) is CreateOrder and is_id(command.user_id):  # other ids need no user check
                self._user_lookups.ask(command.user_id)
        assignment.inbox.put(partition, received)
        assignment.turns.wake()

    def _accepts(self, lane: Lane, run: Run) -> bool:
        try:
            return lane.accept(run)
        except RunLost as error:  # not through the agent: Faust does not know our exit codes
            self._context.end_process(error)
            return False

    def unreadable(self, partition: int, reason: str) -> None:
        """Park a running lane whose commands cannot be fetched. A report for any other lane is outdated."""
        if self._assignment is not None and partition in self._assignment.lanes:
            self._assignment.park(partition, reason)

    def positions(self) -> dict[int, int]:
        """Return the next offset of each running lane, to commit to the group."""
        assignment = self._assignment
        lanes = [] if assignment is None else list(assignment.lanes.values())
        return {lane.partition: lane.resume_at for lane in lanes}

    def is_starting(self) -> bool:
        """Return whether the worker waits for its assignment or for a claim. A parked partition does not count."""
        assignment = self._assignment
        return assignment is None or bool(assignment.claiming())

    def faults(self) -> list[str]:
        """Return the reasons why this worker is not ready, empty if it is."""
        assignment = self._assignment
        if assignment is None:
            return ["no partitions are assigned yet"]
        if self._context.fetching.partition_count() is None:
            return [f"the topic {self._context.names.commands} does not exist"]
        faults = [
            f"partition {partition} is parked: {reason}" for partition, reason in sorted(assignment.parked.items())
        ]
        faults += assignment.claims()
        faults += [
            f"partition {partition} waits for Kafka: {reason}"
            for partition, reason in sorted(assignment.turns.unavailable.items())
        ]
        faults += [f"partition {partition} waits for the schema registry" for partition in assignment.lookups.waiting]
        faults += self._stalls.faults()
        faults += self._topics.faults
        return faults + ([self._context.users.problem] if self._context.users.problem else [])

    def _is_awaited(self, user_id: str) -> bool:
        return self._assignment is not None and any(
            lane.room.waits_for(user_id) for lane in self._assignment.lanes.values()
        )

    def _on_user_check(self, user_id: str, check: UserCheck) -> None:
        if self._assignment is None:
            return
        for lane in self._assignment.lanes.values():
            lane.room.add_answer(user_id, check)
            if lane.room.has_answers():
                self._assignment.turns.wake()

    async def _watch(self) -> None:
        """Update the metrics. Raises TopicsError if the number of partitions of the commands topic has changed."""
        while True:
            await self._measure_lag()
            self._update_metrics()
            expected, actual = self._context.settings.partitions, self._context.fetching.partition_count()
            if actual is not None and actual != expected:
                raise TopicsError(
                    f"{self._context.names.commands} has {actual} partitions now, it had {expected}: keys move"
                )
            await asyncio.sleep(WATCH_EVERY_S)

    async def _measure_lag(self) -> None:
        """Update the lag and the read offsets of the lanes. A transaction marker after the last command is not lag."""
        assignment = self._assignment
        for partition, lane in list(assignment.lanes.items()) if assignment is not None else []:
            end = self._context.fetching.end_of(partition)
            if assignment is not None and lane.next_offset < end:
                try:
                    lane.read_to = await assignment.read_to(lane)
                except KafkaError:  # the partition is no longer ours
                    return
            if assignment is None or self._assignment is not assignment:
                return
            metrics.LAG.labels(partition).set(max(0, end - lane.resume_at))
            self._stalls.note(partition, lane.resume_at, has_more=assignment.has_more(lane))
        self._stalls.keep(set() if assignment is None else set(assignment.lanes))

    def _update_metrics(self) -> None:
        assignment = self._assignment
        lanes = {} if assignment is None else assignment.lanes
        unavailable = 0
        if assignment is not None:
            assignment.turns.update_unavailable()
            unavailable = len(assignment.turns.unavailable)
        metrics.LANES.labels("running").set(len(lanes) - unavailable)
        metrics.LANES.labels("unavailable").set(unavailable)
        metrics.LANES.labels("claiming").set(0 if assignment is None else len(assignment.claiming()))
        metrics.LANES.labels("parked").set(0 if assignment is None else len(assignment.parked))
        for topic in self._context.names.written:
            metrics.FOREIGN_TRANSACTION.remove_by_labels({"topic": topic})
        for topic_partition, open_s in ({} if assignment is None else assignment.open_transactions()).items():
            metrics.FOREIGN_TRANSACTION.labels(topic_partition.topic, topic_partition.partition).set(open_s)
        metrics.WAITING.set(sum(len(lane.room) for lane in lanes.values()))
        oldest = min((since for lane in lanes.values() if (since := lane.room.oldest()) is not None), default=None)
        metrics.WAITING_OLDEST.set(0 if oldest is None else (self._context.clock.now() - oldest).total_seconds())

    def _ended(self, task: "asyncio.Task[None]") -> None:
        if (error := failure_of(task, is_stopping=self._leaving)) is not None:
            self._context.end_process(error)


def decode_record(record: Any) -> Received:
    """Return a record with its command or decode error.

    The error is a new object. A raised one references its frames, which reference a record of up to 1 MiB, until the
    garbage collector runs. 3,000 of them took 3 GB.
    """
    try:
        return record, decode_command(record.value)
    except DecodeError as error:
        return record, DecodeError(error.reason, error.detail)
