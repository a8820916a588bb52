"""The worker: how one process handles the partitions that the consumer group assigns to it."""

import asyncio
import math
import time
from collections.abc import Collection, Coroutine, Mapping
from typing import Any, Final

import structlog
from aiokafka.errors import KafkaError

from order_service.domain.decision import UserCheck
from order_service.domain.messages import CreateOrder
from order_service.domain.validation import is_foreign_id
from order_service.errors import (
    LaneParked,
    ParkingReason,
    RunLost,
    TopicsError,
    TurnRefused,
    WorkerError,
)
from order_service.runtime.readiness import NotReady, ReadinessFault
from order_service.runtime.tasks import failure_of
from order_service.wire.trace_context import TraceContext, trace_context_of
from order_service.worker import metrics
from order_service.worker.assignment import Assignment, Context
from order_service.worker.claims.changelog_reader import ChangelogState
from order_service.worker.claims.clients import ClaimClients
from order_service.worker.inbox import Run, decode_record
from order_service.worker.lane import Lane
from order_service.worker.lane_states import LaneState
from order_service.worker.monitoring.resume_watch import CommittedEnds, ResumeWatch
from order_service.worker.monitoring.stall_watch import StallWatch
from order_service.worker.monitoring.topic_watch import TopicWatch
from order_service.worker.standbys.standbys import FETCH_WAIT_MS, Standbys
from order_service.worker.user_lookups import UserLookups

log = structlog.get_logger()

WATCH_EVERY_S: Final = 0.5
RESTART_INTERVAL_S: Final = 60.0
"""A worker ends if Kafka refuses two turns within this time for a reason that names no lane."""
SUSPECT_S: Final = 3600.0
"""A lane is parked if Kafka refuses it twice within this time with an error that aiokafka does not know."""


class Worker:
    """Follows the consumer group: holds one assignment at a time and delivers the received runs to its lanes."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._user_lookups = UserLookups(
            context.users,
            self._is_awaited,
            self._on_user_check,
            concurrency=context.settings.user_service_concurrency,
            spans=context.spans,
            trace_of=self._trace_of,
        )
        self._assignment: Assignment | None = None
        self._last: Assignment | None = None
        self._assignment_lock = asyncio.Lock()
        self._leaving = False
        self._restarts: set[asyncio.Task[None]] = set()
        self._end_reads: set[asyncio.Task[None]] = set()
        self._restarted_at = -math.inf
        self._suspected_at: dict[int, float] = {}
        self._topics = TopicWatch(context.settings, context.in_sync)
        self._stalls = StallWatch(context.names.commands)
        self._operations = CommittedEnds(context.connection)
        self._resumes = ResumeWatch(context.names.operations, self._operations.read)
        clients = ClaimClients(context.connection, set(), fetch_wait_ms=FETCH_WAIT_MS)
        self._standbys = Standbys(context.names, clients)
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Start the user lookups, the metrics, the topic watch and the standbys."""
        self._tasks = [
            asyncio.create_task(self._user_lookups.run(), name="user lookups"),
            asyncio.create_task(self._watch(), name="watch"),
            asyncio.create_task(self._topics.run(), name="topics"),
            asyncio.create_task(self._resume_lanes(), name="operations"),
        ]
        if self._context.settings.standbys:
            self._tasks.append(asyncio.create_task(self._standbys.run(), name="standbys"))
        for task in self._tasks:
            task.add_done_callback(self._ended)

    async def stop(self) -> None:
        """Finish the turn in flight, release all partitions, and stop."""
        self._leaving = True
        await self.revoked()
        if self._last is not None and self._last.is_clean:
            try:
                await self._last.close()
            except WorkerError as error:  # not through Faust, which does not know our exit codes
                self._context.end_process(error)
        tasks = [*self._tasks, *self._end_reads]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._operations.close()
        await self._standbys.close()
        if self._context.stores is not None:
            self._context.stores.close_all()

    async def assigned(self, partitions: set[int]) -> None:
        """Start to claim partitions. Returns before the claims are done. A worker that is stopping claims nothing."""
        await self.revoked()
        if self._leaving:
            return
        last, self._last = self._last, None
        if self._context.stores is not None:
            self._context.stores.keep(partitions)
        states = self._standbys.take(partitions)
        self._standbys.follow(self._context.fetching.standbys() - partitions)
        self._assignment = self._new_assignment(partitions, last, states)
        log.info("Partitions assigned.", partitions=sorted(partitions), owner=self._assignment.owner.id)
        self._assignment.start()

    async def revoked(self) -> None:
        """Finish the turn in flight and stop all lanes. Those that this worker is assigned again run on."""
        async with self._assignment_lock:  # a second call waits for the same turn in flight
            assignment, self._assignment = self._assignment, None
            if assignment is not None:
                try:
                    await assignment.stop(leaves=self._leaving)
                except WorkerError as error:  # not through Faust, which does not know our exit codes
                    self._context.end_process(error)
                self._last = assignment
                metrics.LAG.clear()  # the next owner reports these partitions
                metrics.PARKED.clear()
                metrics.STORE_FAULTS.clear()

    def damaged(self, partition: int, reason: str) -> None:
        """Park the lane of a partition with a damaged batch. The other partitions are fetched again."""
        message = f"a batch of {self._context.names.commands}-{partition} is damaged: {reason}"
        self._start(
            self._claim_again(None, TurnRefused(message, {partition: message}), reason=ParkingReason.DAMAGED_BATCH)
        )

    def _on_refused(self, assignment: Assignment, error: TurnRefused) -> None:
        now = time.monotonic()
        if not (error.lanes or error.suspects) and now - self._restarted_at < RESTART_INTERVAL_S:
            self._context.end_process(error)
            return
        self._start(self._claim_again(assignment, error))

    def _start(self, restart: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(restart, name="claim again")
        self._restarts.add(task)
        task.add_done_callback(self._restarts.discard)
        task.add_done_callback(self._ended)

    async def _claim_again(
        self,
        refused: Assignment | None,
        error: TurnRefused,
        *,
        reason: ParkingReason = ParkingReason.REFUSED_BY_KAFKA,
    ) -> None:
        """Claim the partitions of an assignment again, without the lanes that Kafka refused; None is the current one.

        After a refused turn, memory is ahead of the log: all lanes are restored, under a new owner id. Interrupted
        claims continue.
        """
        async with self._assignment_lock:
            assignment = self._assignment
            if assignment is None or refused not in {None, assignment}:  # revoked: the next owner will find out
                return
            if refused is not None:
                self._restarted_at = time.monotonic()
            await assignment.stop()
            log.warning(
                "Fetching the partitions again." if assignment.is_clean else "Claiming the partitions again.",
                reason=str(error),
            )
            refusals = error.lanes | self._suspected_again(error.suspects)
            parked = assignment.parked | {
                partition: LaneParked(reason, detail)
                for partition, detail in refusals.items()
                if partition in assignment.partitions
            }
            self._assignment = self._new_assignment(assignment.partitions, assignment)
            for partition, why in parked.items():
                self._assignment.park(partition, why.reason, why.detail)
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

    def _new_assignment(
        self, partitions: set[int], previous: Assignment | None, states: Mapping[int, ChangelogState] | None = None
    ) -> Assignment:
        reading_ends = asyncio.create_task(self._resumes.read_before_claims(partitions), name="operations")
        self._end_reads.add(reading_ends)
        reading_ends.add_done_callback(self._end_reads.discard)
        reading_ends.add_done_callback(self._ended)
        return Assignment(
            self._context,
            partitions,
            self._user_lookups,
            self._on_refused,
            self._deliver,
            previous=previous,
            states=states,
            reading_ends=reading_ends,
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
        received = []
        for record in run.records:
            try:
                received.append(decode_record(record))
            except Exception as error:  # noqa: BLE001, one record must not end each worker that reads it
                detail = f"the command at offset {record.offset} cannot be decoded"
                trace = trace_context_of(record.headers)
                trace_id = None if trace is None else trace.trace_id
                assignment.park(partition, ParkingReason.CANNOT_DECODE, detail, error, trace_id=trace_id)
                return
        for record, command in received:
            if type(command) is CreateOrder and is_foreign_id(command.user_id):  # other ids need no user check
                trace = None if self._context.spans is None else trace_context_of(record.headers)
                self._user_lookups.ask(command.user_id, trace)
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
            self._assignment.park(partition, ParkingReason.COMMANDS_OUT_OF_RANGE, reason)

    def positions(self) -> dict[int, int]:
        """Return the next offset of each running lane, to commit to the group."""
        assignment = self._assignment
        lanes = [] if assignment is None else list(assignment.lanes.values())
        return {lane.partition: lane.resume_at for lane in lanes}

    def is_starting(self) -> bool:
        """Return whether the worker waits for its assignment or for a claim. A parked partition does not count."""
        assignment = self._assignment
        return assignment is None or bool(assignment.claiming())

    def faults(self) -> list[ReadinessFault]:
        """Return the reasons why this worker is not ready, empty if it is."""
        assignment = self._assignment
        if assignment is None:
            return [NotReady.NO_ASSIGNMENT.fault()]
        if self._context.fetching.partition_count() is None:
            return [NotReady.NO_COMMANDS_TOPIC.fault(topic=self._context.names.commands)]
        faults = [
            NotReady.LANE_PARKED.fault(partition=partition, why=why)
            for partition, why in sorted(assignment.parked.items())
        ]
        faults += assignment.claims()
        faults += [
            NotReady.LANE_WAITS_FOR_KAFKA.fault(partition=partition, why=why)
            for partition, why in sorted(assignment.turns.unavailable.items())
        ]
        faults += [
            NotReady.LANE_WAITS_FOR_REGISTRY.fault(partition=partition) for partition in assignment.lookups.waiting
        ]
        faults += self._stalls.faults()
        faults += self._topics.faults
        return faults + self._user_faults(assignment)

    def _user_faults(self, assignment: Assignment) -> list[ReadinessFault]:
        """Return why users are not validated. Without an order that waits, an old reason may have passed."""
        users = self._context.users
        if users.problem is not None:
            return [NotReady.CREDENTIAL_REFUSED.fault(why=users.problem)]
        if users.no_answer is not None and any(len(lane.room) for lane in list(assignment.lanes.values())):
            return [NotReady.USERS_UNANSWERED.fault(why=users.no_answer)]
        return []

    def lanes(self) -> list[LaneState]:
        """Return the state of each lane that this worker holds. The thread of the admin server calls this."""
        assignment = self._assignment
        if assignment is None:
            return []
        unavailable, claiming = dict(assignment.turns.unavailable), set(assignment.claiming())
        states = [
            LaneState(partition, "running", None, unavailable.get(partition) or self._waits_for_users(lane))
            for partition, lane in list(assignment.lanes.items())
        ]
        states += [LaneState(partition, "claiming", assignment.parked_at.get(partition)) for partition in claiming]
        states += [
            LaneState(partition, "parked", assignment.parked_at.get(partition), str(why))
            for partition, why in assignment.parked.items()
        ]
        return sorted(states, key=lambda lane: lane.partition)

    def _waits_for_users(self, lane: Lane) -> str:
        """Return why commands of a lane wait, or an empty text before the third lookup without an answer."""
        users = lane.room.users()
        why = self._user_lookups.reason(users) if users else ""
        return f"commands wait for the User Service: {why}" if why else ""

    async def _resume_lanes(self) -> None:
        """Claim parked lanes again that an operator has resumed."""
        while True:
            await asyncio.sleep(WATCH_EVERY_S)
            resumed = await self._resumes.resumed(self._parked)
            if self._assignment is not None:
                for partition in resumed:
                    self._assignment.claim_again(partition)

    def _parked(self) -> Collection[int]:
        return () if self._assignment is None else self._assignment.parked.keys()

    def _is_awaited(self, user_id: str) -> bool:
        return self._assignment is not None and any(
            lane.room.waits_for(user_id) for lane in self._assignment.lanes.values()
        )

    def _trace_of(self, user_id: str) -> TraceContext | None:
        """Return the trace of an order that waits for a user, or None."""
        lanes = () if self._assignment is None else self._assignment.lanes.values()
        return next((trace for lane in lanes if (trace := lane.room.trace_of(user_id)) is not None), None)

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
                    lane.read_up_to(await assignment.read_to(lane))
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
