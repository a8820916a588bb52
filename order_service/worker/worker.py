"""The worker: what one process does with the partitions that the group assigns to it.

Each assignment gets an owner id, a producer and turns of its own; its lanes start one by one as their claims are done.
What an earlier assignment held is used again if the log says that nobody else has written since.
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

CLAIMS_AT_ONCE: Final = 16
"""Each restores a table; one that waits for somebody else lends its place to another."""
PASS_EVERY_S: Final = 5.0
"""So often a lane's position is written if it could say more, at most: see `Lane.has_news`."""
_SEEKS: Final = itertools.count(1)
WATCH_EVERY_S: Final = 0.5
AGAIN_AFTER_S: Final = 60.0
"""A worker whose turns are refused more often, for a reason that names no lane, ends."""
SUSPECT_S: Final = 3600.0
"""A lane is parked if Kafka refuses it within this time again with an answer that aiokafka does not know."""
START_DEADLINE_S: Final = 60.0


class Fetching(Protocol):
    """What a worker needs of the consumer, all of it about the commands topic."""

    async def open(self, partition: int, offset: int, seek: int) -> None:
        """Fetch a partition from an offset on; its runs carry the number of this seek."""

    def pause(self, partition: int) -> None:
        """Fetch no more of a partition for now."""

    def resume(self, partition: int) -> None:
        """Fetch a partition again."""

    async def reached(self, partition: int) -> tuple[int, int | None, int]:
        """Tell the next offset to fetch, the seek, and the runs handed on since."""

    async def end(self, partition: int) -> int:
        """Ask the broker for the end of a partition, uncommitted records included."""

    def end_of(self, partition: int) -> int:
        """Tell the end as of the last fetch."""

    def stable_end_of(self, partition: int) -> int:
        """Return the last stable offset as the broker last reported it."""

    def partition_count(self) -> int | None:
        """Tell how many partitions there are now, as far as is known."""


class Context(Struct, frozen=True):
    """What every assignment of a worker shares. `in_sync`: `min.insync.replicas` by topic, as last compared."""

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
    """The lanes of one assignment, under an owner id that no other assignment has or will have."""

    def __init__(
        self,
        context: Context,
        partitions: set[int],
        asking: UserLookups,
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
        kept = previous.kept() if previous is not None else {}
        self._kept = {partition: kept[partition] for partition in partitions & kept.keys()}
        self._asking = asking
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
        """The lanes that run."""
        return self.turns.lanes

    def claiming(self) -> list[int]:
        """Return the partitions whose claims are under way."""
        return sorted(self.partitions - self.lanes.keys() - self.parked.keys())

    def claims(self) -> list[str]:
        """Return a line for each claim that is under way, with what it waits for."""
        lines = []
        for partition in self.claiming():
            progress = self._claims.get(partition)
            waits_for = "" if progress is None else progress.waits_for()
            lines.append(f"partition {partition} is being claimed" + (f": {waits_for}" if waits_for else ""))
        return lines

    def open_transactions(self) -> dict[TopicPartition, float]:
        """Return for how many seconds claims have waited for each open transaction."""
        return {place: open_s for progress in self._claims.values() for place, open_s in progress.open_for().items()}

    def start(self) -> None:
        """Begin to claim what is not parked; returns at once, since a rebalance waits for us."""
        self._spawn(self._claim_all(), "claims")

    async def stop(self) -> None:
        """Finish the turn in flight and end; unclean if anything is unresolved then."""
        self._stopping = True
        self.turns.stop()
        started = [task for task in self._tasks if task.get_name() == "turns"]
        for task in self._tasks.difference(started):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._clients.close()
        await stop(self._producer)
        self.is_clean = all(not task.cancelled() and task.exception() is None for task in started)

    def kept(self) -> dict[int, tuple[Lane, HeldLane]]:
        """Give the lanes whose memory is as new as their log, if all of our commits are known to have succeeded."""
        if not self.is_clean:
            return {}
        return {
            partition: (lane, HeldLane(self.owner, lane.log_offset, lane.next_offset, len(lane.room)))
            for partition, lane in self.lanes.items()
        }

    def park(self, partition: int, reason: str, error: Exception | None = None) -> None:
        """Stop one lane until an operator acts; the others go on. A bug is logged with its traceback."""
        if error is not None:
            reason = f"{reason}: {error if isinstance(error, OrderServiceError) else type(error).__name__}"
        bug = None if isinstance(error, OrderServiceError) else error
        log.error("A lane is parked.", partition=partition, reason=reason, exc_info=bug)
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
            raise Stuck(f"the producer {self.owner} does not start") from error
        self._spawn(self.turns.run(), "turns")
        self._spawn(self._watch_payments(), "payments")
        self._spawn(self._pass_on(), "positions")
        places = ClaimSlots(CLAIMS_AT_ONCE)
        for partition in sorted(self.partitions - self.parked.keys()):
            self._claims[partition] = Progress(places)
            self._spawn(self._claim(partition, self._claims[partition]), "claim")

    async def _claim(self, partition: int, progress: Progress) -> None:
        context = self._context
        claimer = Claimer(
            context.settings.group_id, self.owner, context.names, context.connection, self._clients, context.failpoint
        )
        lane, kept = self._kept.pop(partition, (None, None))
        began_at = time.monotonic()
        try:
            claimed = await claim_until_done(claimer, partition, kept, progress)
            lane = await self._lane(partition, lane, claimed, progress)
            await self._open(lane, claimed)
        except (WorkerError, KafkaError, OSError):  # not of this partition
            raise
        except Exception as error:  # noqa: BLE001, one partition must not end every worker that claims it in turn
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

    async def _lane(self, partition: int, kept: Lane | None, claimed: Claimed, progress: Progress) -> Lane:
        if kept is not None and claimed.state is None:
            kept.put_back_due()
            return kept
        settings = self._context.settings
        policy = LanePolicy(
            partition_count=settings.partitions,
            commands_topic=self._context.names.commands,
            user_deadline_s=settings.user_deadline_s,
            waiting_max=settings.waiting_max,
            payment_due_s=settings.payment_due_s,
        )
        lane = Lane(partition, policy, self._context.users.known, self._asking.ask)
        entries, waiting = claimed.state or ({}, [])
        restoring = lane.restoring(entries, waiting, claimed.position)
        is_restored = False
        while not is_restored:
            async with progress.slice():
                is_restored = next(restoring, True) is True
        return lane

    async def _open(self, lane: Lane, claimed: Claimed) -> None:
        """Let a claimed lane run: from here its runs are decided."""
        lane.log_offset = claimed.log_offset
        lane.written = claimed.position
        lane.ends = claimed.position.ends or Ends()
        self.inbox.open(lane.partition)
        lane.follow(next(_SEEKS))
        self.lanes[lane.partition] = lane
        metrics.PARKED.labels(lane.partition).set(0)
        await self._context.fetching.open(lane.partition, lane.resume_at, lane.seek)
        if self.lanes.get(lane.partition) is not lane:  # it was parked meanwhile
            self._context.fetching.pause(lane.partition)
            return
        log.info(
            "A lane runs.",
            partition=lane.partition,
            offset=lane.next_offset,
            orders=len(lane.table),
            waiting=len(lane.room),
            kept=claimed.state is None,
        )
        self._ask_about(lane)
        self.turns.wake()

    def _ask_about(self, lane: Lane) -> None:
        """Ask about the users that orders wait for; some are known, whose answer came before the lane could hear it."""
        for user_id in lane.room.users():
            check = self._context.users.known(user_id)
            if check is None:
                self._asking.ask(user_id)
            else:
                lane.room.answered(user_id, check)

    async def _watch_payments(self) -> None:
        """Look for orders whose payment is due, and let each be cancelled once no earlier payment can be in the log."""
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
        """Wait until the lane has read past the end that the commands had after the orders were due."""
        try:
            end = await self._context.fetching.end(lane.partition)
            while not await self._has_read(lane, end):  # noqa: ASYNC110, the broker is asked, there is no event of it
                await asyncio.sleep(0.05)
        except KafkaError as error:
            log.warning("No end of the commands is to be had; payments due wait.", error=repr(error))
            lane.put_back_due()
        else:
            self.turns.cancel_unpaid(lane.partition, order_ids)
        finally:
            self._cancelling.discard(lane.partition)

    async def _pass_on(self) -> None:
        """Write the positions that could say more, so that a claim does not take what was read for what was lost."""
        while True:
            await asyncio.sleep(PASS_EVERY_S)
            news = [lane for lane in self.lanes.values() if lane.has_news()]
            for lane in news:
                lane.write_position()
            if news:
                self.turns.wake()

    async def _has_read(self, lane: Lane, end: int) -> bool:
        """Tell whether all before `end` is decided; what is no command (control records) is skipped by the fetch.

        Of a lane that was parked meanwhile nothing more is read: its timers are set anew by its next claim.
        """
        if lane.next_offset >= end or self.lanes.get(lane.partition) is not lane:
            return True
        return await self.read_to(lane) >= end

    async def read_to(self, lane: Lane) -> int:
        """Tell before which offset nothing is left to decide: past control records and aborted commands, too."""
        offset, seek, runs = await self._context.fetching.reached(lane.partition)
        is_all = (seek, runs) == (lane.seek, lane.next_run) and self.inbox.is_empty(lane.partition)
        return max(offset, lane.resume_at) if is_all else lane.resume_at

    def has_more(self, lane: Lane) -> bool:
        """Return whether the broker has commands for a lane that waits for nothing else."""
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
        """End the process when a task has failed."""
        error = failure_of(task, is_stopping=self._stopping)
        if isinstance(error, TurnRefused):
            self._on_refused(self, error)
        elif error is not None:
            self._context.end_process(error)
        elif task.get_name() in {"payments due", "schema lookup"}:
            self._tasks.discard(task)


class Worker:
    """Follows the group: an assignment at a time, its lanes fed with what is received."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._asking = UserLookups(
            context.users, self._wanted, self._answered, concurrency=context.settings.user_service_concurrency
        )
        self._assignment: Assignment | None = None
        self._last: Assignment | None = None
        self._moving = asyncio.Lock()
        self._leaving = False
        self._restarts: set[asyncio.Task[None]] = set()
        self._restarted_at = -math.inf
        self._suspected_at: dict[int, float] = {}
        self._topics = TopicWatch(context.settings, context.in_sync)
        self._stalls = StallWatch(context.names.commands)
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Begin to ask about users and to measure."""
        self._tasks = [
            asyncio.create_task(self._asking.run(), name="asking"),
            asyncio.create_task(self._watch(), name="watch"),
            asyncio.create_task(self._topics.run(), name="topics"),
        ]
        for task in self._tasks:
            task.add_done_callback(self._ended)

    async def stop(self) -> None:
        """Finish the turn in flight and end."""
        self._leaving = True
        await self.revoked()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def assigned(self, partitions: set[int]) -> None:
        """Take over partitions; returns before their claims are done. Who is leaving takes nothing over."""
        await self.revoked()
        if self._leaving:
            return
        self._assignment = self._new_assignment(partitions, self._last)
        self._last = None
        log.info("Partitions are assigned.", partitions=sorted(partitions), owner=self._assignment.owner)
        self._assignment.start()

    async def revoked(self) -> None:
        """Finish the turn in flight and let go of all partitions; what is in memory is kept in case they come back."""
        async with self._moving:  # whoever asks second waits for the same turn in flight
            assignment, self._assignment = self._assignment, None
            if assignment is not None:
                try:
                    await assignment.stop()
                except WorkerError as error:  # not by way of Faust, which knows no exit codes of ours
                    self._context.end_process(error)
                self._last = assignment
                metrics.LAG.clear()  # whoever has these partitions next tells of them
                metrics.PARKED.clear()

    def damaged(self, partition: int, reason: str) -> None:
        """Park the lane of a partition that holds a damaged batch; the others are claimed, and fetched, again."""
        message = f"a batch of {self._context.names.commands}-{partition} is damaged: {reason}"
        self._start(self._claim_again(None, TurnRefused(message, {partition: message})))

    def _on_refused(self, assignment: Assignment, error: TurnRefused) -> None:
        now = time.monotonic()
        if not (error.lanes or error.suspects) and now - self._restarted_at < AGAIN_AFTER_S:
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

        What they hold in memory is ahead of the log by the turn that was refused, so all of it is restored. Without an
        assignment, the current one is meant.
        """
        async with self._moving:
            assignment = self._assignment
            if assignment is None or refused not in {None, assignment}:  # revoked: the next owner finds out for itself
                return
            log.warning("The partitions are claimed again.", reason=str(error))
            await assignment.stop()
            again = self._suspected_again(error.suspects)
            lanes = {
                partition: reason for partition, reason in error.lanes.items() if partition in assignment.partitions
            }
            parked = assignment.parked | lanes | again
            self._assignment = self._new_assignment(assignment.partitions)
            for partition, reason in parked.items():
                self._assignment.park(partition, reason)
            self._assignment.start()

    def _suspected_again(self, suspects: dict[int, str]) -> dict[int, str]:
        """Return those of the suspects that were suspected within `SUSPECT_S` before, and remember all of them."""
        now = time.monotonic()
        again = {
            partition: reason
            for partition, reason in suspects.items()
            if now - self._suspected_at.get(partition, -math.inf) < SUSPECT_S
        }
        self._suspected_at.update(dict.fromkeys(suspects, now))
        return again

    def _new_assignment(self, partitions: set[int], previous: Assignment | None = None) -> Assignment:
        return Assignment(self._context, partitions, self._asking, self._on_refused, self._deliver, previous=previous)

    def receive(self, partition: int, run: Run) -> None:
        """Queue a run for the next turn, once the schema ids in it are known; other partitions do not wait for that."""
        if self._assignment is not None:
            self._assignment.lookups.receive(partition, run)

    def _deliver(self, partition: int, run: Run) -> None:
        """Decode a run, ask ahead about the users of its creates, and queue it for the next turn."""
        assignment = self._assignment
        lane = assignment.lanes.get(partition) if assignment is not None else None
        if assignment is None or lane is None or not self._accepts(lane, run):
            return
        try:
            received = [_decoded(record) for record in run.records]
        except Exception as error:  # noqa: BLE001, one record must not end every worker that reads it in turn
            assignment.park(partition, f"the records from offset {run.records[0].offset} on cannot be decoded", error)
            return
        for _, command in received:
            if type(command) is CreateOrder and is_id(command.user_id):  # of no other id an answer is needed
                self._asking.ask(command.user_id)
        assignment.inbox.put(partition, received)
        assignment.turns.wake()

    def _accepts(self, lane: Lane, run: Run) -> bool:
        try:
            return lane.accept(run)
        except RunLost as error:  # not by way of the agent: Faust knows no exit codes of ours
            self._context.end_process(error)
            return False

    def unreadable(self, partition: int, reason: str) -> None:
        """Park a lane whose commands cannot be fetched, if it runs: what is said of an earlier assignment is old."""
        if self._assignment is not None and partition in self._assignment.lanes:
            self._assignment.park(partition, reason)

    def positions(self) -> dict[int, int]:
        """Tell up to where each running lane has read, for the group."""
        assignment = self._assignment
        lanes = [] if assignment is None else list(assignment.lanes.values())
        return {lane.partition: lane.resume_at for lane in lanes}

    def is_starting(self) -> bool:
        """Return whether partitions are not assigned yet, or are being claimed; a parked one is neither."""
        assignment = self._assignment
        return assignment is None or bool(assignment.claiming())

    def faults(self) -> list[str]:
        """Tell why this worker is not ready; empty if it is."""
        assignment = self._assignment
        if assignment is None:
            return ["no partitions are assigned yet"]
        if self._context.fetching.partition_count() is None:
            return [f"the topic {self._context.names.commands} is not there"]
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

    def _wanted(self, user_id: str) -> bool:
        return self._assignment is not None and any(
            lane.room.waits_for(user_id) for lane in self._assignment.lanes.values()
        )

    def _answered(self, user_id: str, check: UserCheck) -> None:
        if self._assignment is None:
            return
        for lane in self._assignment.lanes.values():
            lane.room.answered(user_id, check)
            if lane.room.has_answers():
                self._assignment.turns.wake()

    async def _watch(self) -> None:
        """Measure, and see whether the topic still has the partitions that we began with."""
        while True:
            await self._measure_lag()
            self._measure()
            expected, actual = self._context.settings.partitions, self._context.fetching.partition_count()
            if actual is not None and actual != expected:
                raise TopicsError(
                    f"{self._context.names.commands} has {actual} partitions now, it had {expected}: keys move"
                )
            await asyncio.sleep(WATCH_EVERY_S)

    async def _measure_lag(self) -> None:
        """Measure the lag, and how far the lanes have read: a transaction's end behind the last command is no lag."""
        assignment = self._assignment
        for partition, lane in list(assignment.lanes.items()) if assignment is not None else []:
            end = self._context.fetching.end_of(partition)
            if assignment is not None and lane.next_offset < end:
                try:
                    lane.read_to = await assignment.read_to(lane)
                except KafkaError:  # it is ours no more
                    return
            if assignment is None or self._assignment is not assignment:
                return
            metrics.LAG.labels(partition).set(max(0, end - lane.resume_at))
            self._stalls.note(partition, lane.resume_at, has_more=assignment.has_more(lane))
        self._stalls.keep(set() if assignment is None else set(assignment.lanes))

    def _measure(self) -> None:
        assignment = self._assignment
        lanes = {} if assignment is None else assignment.lanes
        unavailable = 0
        if assignment is not None:
            assignment.turns.look_for_leaders()
            unavailable = len(assignment.turns.unavailable)
        metrics.LANES.labels("running").set(len(lanes) - unavailable)
        metrics.LANES.labels("unavailable").set(unavailable)
        metrics.LANES.labels("claiming").set(0 if assignment is None else len(assignment.claiming()))
        metrics.LANES.labels("parked").set(0 if assignment is None else len(assignment.parked))
        for topic in self._context.names.written:
            metrics.FOREIGN_TRANSACTION.remove_by_labels({"topic": topic})
        for place, open_s in ({} if assignment is None else assignment.open_transactions()).items():
            metrics.FOREIGN_TRANSACTION.labels(place.topic, place.partition).set(open_s)
        metrics.WAITING.set(sum(len(lane.room) for lane in lanes.values()))
        oldest = min((since for lane in lanes.values() if (since := lane.room.oldest()) is not None), default=None)
        metrics.WAITING_OLDEST.set(0 if oldest is None else (self._context.clock.now() - oldest).total_seconds())

    def _ended(self, task: "asyncio.Task[None]") -> None:
        if (error := failure_of(task, is_stopping=self._leaving)) is not None:
            self._context.end_process(error)


def _decoded(record: Any) -> Received:
    """Decode a record.

    The error is made anew: a raised one holds the frames it came through, and they hold it and a record of up to 1 MiB,
    until the garbage collector comes by. 3,000 of them took 3 GB.
    """
    try:
        return record, decode_command(record.value)
    except DecodeError as error:
        return record, DecodeError(error.reason, error.detail)
