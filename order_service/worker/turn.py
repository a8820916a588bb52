"""The turn: commands of all lanes are decided and written in one transaction.

While one turn commits, the next one is decided. It is written only after the first one is committed.
A failed turn or commit ends the process, or the assignment if Kafka refused it: memory then differs from the log.
"""

import asyncio
import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from typing import TYPE_CHECKING, Final

import structlog
from msgspec import Struct

from order_service.errors import StoreError, Stuck, TurnRefused, WorkerError
from order_service.kafka.topics import TopicNames
from order_service.runtime.deadline import deadline
from order_service.wire import changelog
from order_service.wire.changelog import POSITION_KEY, RELEASE_KEY, Ends, Position
from order_service.worker import metrics
from order_service.worker.bounds import Bound
from order_service.worker.clock import Clock
from order_service.worker.inbox import Inbox, Received
from order_service.worker.lane import DUE, Changes, Lane
from order_service.worker.records import Record
from order_service.worker.transactions import DEADLINE_S, Sent, TurnProducer

if TYPE_CHECKING:
    from order_service.worker.command_spans import CommandSpan, CommandSpans

log = structlog.get_logger()

MAX_COMMANDS: Final = 2_000
"""Commands in one turn: about 50 ms of deciding, so that new commands do not wait long behind a backlog."""
RELEASED_BYTES: Final = Bound(4 * 1024 * 1024, 48 * 1024 * 1024)
"""Bytes of outcomes per turn after which no more waiting orders are released: a commit has a deadline."""
RELEASE_ALL_WITHIN_S: Final = 5.0
"""How long a worker that leaves its group tries to release its partitions."""
SAVED_WITHIN_S: Final = 0.05
"""How long a turn waits for the stores of its lanes. A lane whose store takes longer is left out of the next turns."""
AT_A_TIME: Final = 200
"""Commands decided before control returns to the event loop: about 5 ms."""


class Turn(Struct, frozen=True):
    """The changes of one turn, per lane, the partitions that it releases, and its start by the monotonic clock."""

    changes: list[tuple[Lane, Changes]]
    began_at: float
    released: frozenset[int] = frozenset()

    @property
    def decided(self) -> int:
        """The number of commands that were decided."""
        return sum(changes.decided for _, changes in self.changes)

    @property
    def queued(self) -> int:
        """The number of commands that were added to the waiting room."""
        return sum(changes.queued for _, changes in self.changes)

    @property
    def spans(self) -> list["CommandSpan"]:
        """The spans of its commands, if tracing is on."""
        return [span for _, changes in self.changes for span in changes.spans]


class TurnLoop:
    """Takes turns over the running lanes of one assignment, as the owner that their claims have recorded.

    `named` has the partitions whose changelog may name this owner, `leaving` those of them that other workers have now.
    The first turn that can write to one of these releases it: its next claim then need not fence this owner.
    `failpoint` gets the name of each completed step. `end_of` returns the last known end of a lane's commands. `park`
    stops a lane. If tracing is on, `spans` records the turns.
    """

    def __init__(
        self,
        producer: TurnProducer,
        names: TopicNames,
        inbox: Inbox,
        *,
        named: set[int],
        leaving: set[int],
        turn_s: float,
        clock: Clock,
        end_of: Callable[[int], int],
        fetch_before: Callable[[float], None],
        park: Callable[[int, str, Exception], None],
        failpoint: Callable[[str], None],
        released_bytes: Bound = RELEASED_BYTES,
        spans: "CommandSpans | None" = None,
    ) -> None:
        self.lanes: dict[int, Lane] = {}
        self.unavailable: dict[int, str] = {}
        self._producer = producer
        self._names = names
        self._inbox = inbox
        self._turn_s = turn_s
        self._clock = clock
        self._end_of = end_of
        self._fetch_before = fetch_before
        self._park = park
        self._failpoint = failpoint
        self._wake = asyncio.Event()
        self._released_bytes = released_bytes
        self._spans = spans
        self._first_to_settle = 0
        self._stopping = False
        self._is_leaving_all = False
        self._commit_task: asyncio.Task[None] | None = None
        self._saves: dict[int, asyncio.Task[None]] = {}
        """The newest write to the store of each lane whose last turn may not be in its store yet."""
        self._due: dict[int, list[str]] = {}
        self._closed_orders: dict[int, list[str]] = {}
        self._named = named
        self._leaving = leaving
        if leaving:
            self.wake()

    def wake(self) -> None:
        """Start the next turn: a command arrived, a user was answered for, or an order is due."""
        self._wake.set()

    def cancel_unpaid(self, partition: int, order_ids: list[str]) -> None:
        """Cancel these orders in the next turn, if they are still unpaid."""
        self._due.setdefault(partition, []).extend(order_ids)
        self.wake()

    def shorten(self, partition: int, order_ids: list[str]) -> None:
        """Make these closed orders forget their commands in the next turn. The caller bounds their number."""
        self._closed_orders.setdefault(partition, []).extend(order_ids)
        self.wake()

    def is_shortening(self, partition: int) -> bool:
        """Return whether orders of a partition wait for a turn that shortens their entries."""
        return partition in self._closed_orders

    def forget(self, partition: int) -> None:
        """Drop the orders to cancel or to shorten of a lane that parks: after the next claim they are found again."""
        self._due.pop(partition, None)
        self._closed_orders.pop(partition, None)

    def update_unavailable(self) -> None:
        """Update the lanes whose topics cannot be written now. Turns skip them: one would block all others."""
        reasons = self._producer.unavailable()
        unavailable = {partition: reason for partition, reason in reasons.items() if partition in self.lanes}
        for partition in unavailable.keys() - self.unavailable.keys():
            log.error("Lane is waiting for Kafka.", partition=partition, reason=unavailable[partition])
        for partition in self.unavailable.keys() - unavailable.keys():
            log.info("Lane is no longer waiting for Kafka.", partition=partition)
        if unavailable != self.unavailable:
            self.unavailable = unavailable
            self.wake()
        if self._leaving - self._producer.unavailable(self._names.table).keys():
            self.wake()

    async def confirm(self) -> bool:
        """Commit a transaction before lanes run on: release what goes, or else write the position of a lane.

        Returns False if there is neither, or none that can be written to. Raises Fenced if another worker has claimed
        one of the partitions: the lanes may then differ from their logs.
        """
        self.update_unavailable()
        released = self._take_leaving()
        lanes = [] if released else self._available()[:1]
        if not (released or lanes):
            return False
        await self._commit(Turn([(lane, lane.take_changes()) for lane in lanes], time.monotonic(), released))
        return True

    async def run(self) -> None:
        """Take turns until `stop` is called. Returns when the last turn is committed, and in the stores."""
        try:
            while not self._stopping:
                await self._wait_for_work()
                began_at = time.monotonic()
                turn = await self._decide(began_at)
                await self._wait_for_commit()
                if turn is not None:
                    self._commit_task = asyncio.create_task(self._commit(turn), name="commit of a turn")
                    await asyncio.sleep(max(0.0, began_at + self._pace(turn.decided + turn.queued) - time.monotonic()))
            await self._wait_for_commit()
            await self._write_last_positions()
            if self._is_leaving_all:
                await self._release_all()
            await asyncio.gather(*self._saves.values())
        finally:  # after an error, the next claim reads from the changelog what is not in a store
            await _cancel(self._saves.values())

    def _pace(self, count: int) -> float:
        """Return the minimum time in seconds between the starts of a turn of `count` commands and the next.

        The cost of a transaction does not depend on its size. So under load fewer turns are better, and a turn with at
        most one command is followed sooner.
        """
        return self._turn_s if count > 1 else self._turn_s / 4

    def stop(self, *, leaves: bool = False) -> None:
        """Make `run` return after the turn in flight. If the worker `leaves`, release all of its partitions then."""
        self._stopping = True
        self._is_leaving_all = leaves
        self._wake.set()

    async def _write_last_positions(self) -> None:
        """Write the positions of lanes that have read past records that are not commands, for the next claims."""
        ahead = [
            lane for lane in self.lanes.values() if lane.has_read_ahead() and lane.partition not in self.unavailable
        ]
        if ahead:
            await self._commit(Turn([(lane, lane.take_changes()) for lane in ahead], time.monotonic()))

    async def _release_all(self) -> None:
        """Release all partitions, so that their next claims need not fence this owner. They do if this fails."""
        released = frozenset(self._named - self._producer.unavailable(self._names.table).keys())
        if not released:
            return
        try:
            async with deadline(RELEASE_ALL_WITHIN_S):
                await self._write(Turn([], time.monotonic(), released))
        except (TimeoutError, TurnRefused, WorkerError) as error:
            await self._producer.abandon()
            log.warning("The partitions could not be released; the next claims fence this worker.", error=repr(error))

    async def _wait_for_commit(self) -> None:
        """Wait for the commit in flight. Raises its error."""
        if self._commit_task is not None:
            await self._commit_task
            self._commit_task = None

    async def _wait_for_work(self) -> None:
        """Wait for a wake-up, for the commit in flight (to raise its error at once), or for the next deadline."""
        if self._inbox.has_commands(self._closed()) or any(lane.room.has_answers() for lane in self._available()):
            return
        wake = asyncio.create_task(self._wake.wait())
        try:
            await asyncio.wait(
                {wake, self._commit_task} if self._commit_task is not None else {wake},
                timeout=self._deadline_s(),
                return_when=asyncio.FIRST_COMPLETED,
            )
        finally:
            wake.cancel()
        self._wake.clear()

    def _deadline_s(self) -> float | None:
        """Return the seconds until the earliest deadline that an available lane keeps, or None."""
        deadlines = [deadline for lane in self._available() if (deadline := lane.room.next_deadline()) is not None]
        if not deadlines:
            return None
        return max(0.0, (min(deadlines) - self._clock.now()).total_seconds()) + 0.001

    async def _decide(self, began_at: float) -> Turn | None:
        """Decide waiting commands that are answered, orders that are due, and new commands, in this order.

        Control returns to the event loop in between, so that the commit in flight makes progress.
        """
        self.update_unavailable()
        self._end_saves()
        taken = self._inbox.take(MAX_COMMANDS, self._closed())
        self._fetch_before(began_at + self._pace(sum(map(len, taken.values()))))
        lanes = self._available()
        # An order that becomes due after this may have its payment in `taken`.
        due = self._take_due(lanes)
        self._failpoint("turn.taken")
        now = self._clock.now()
        await self._settle(lanes, now)
        for lane in lanes:
            if not self._runs(lane):  # it has just been parked
                continue
            try:
                await self._decide_lane(lane, taken.get(lane.partition, []), due[lane.partition], now)
            except Exception as error:  # noqa: BLE001, one record must not end each worker that reads it
                self._park(lane.partition, _fault_of(lane), error)
        changes = [(lane, lane_changes) for lane in lanes if self._runs(lane) and (lane_changes := lane.take_changes())]
        released = self._take_leaving()
        if not (changes or released):
            return None
        self._failpoint("turn.decided")
        return Turn(changes, began_at, released)

    def _take_due(self, lanes: list[Lane]) -> dict[int, list[str]]:
        """Take the orders to cancel of each lane. The next turn takes those that are left, and follows at once."""
        taken: dict[int, list[str]] = {}
        count = 0
        for lane in lanes:
            order_ids, limit = self._due.pop(lane.partition, []), DUE.left(count, len(lanes))
            taken[lane.partition] = order_ids[:limit]
            count += len(taken[lane.partition])
            if len(order_ids) > limit:
                self._due[lane.partition] = order_ids[limit:]
                self.wake()
        return taken

    def _take_leaving(self) -> frozenset[int]:
        """Take the partitions to release that can be written to."""
        released = frozenset(self._leaving - self._producer.unavailable(self._names.table).keys())
        self._leaving -= released
        return released

    async def _settle(self, lanes: list[Lane], now: datetime) -> None:
        """Decide waiting commands that are ready, evenly over the lanes. Lanes that are left come first next time."""
        ready = sorted((lane for lane in lanes if lane.room.is_ready(now)), key=lambda lane: lane.partition)
        start = bisect_left([lane.partition for lane in ready], self._first_to_settle)
        bytes_left = self._released_bytes.of_worker
        for lanes_left, lane in zip(range(len(ready), 0, -1), ready[start:] + ready[:start], strict=True):
            if bytes_left <= 0:
                self._first_to_settle = lane.partition
                return
            share = min(self._released_bytes.of_lane, max(1, bytes_left // lanes_left))
            try:
                while self._runs(lane) and lane.change_bytes < share and lane.settle(now):  # noqa: ASYNC110, others run
                    await asyncio.sleep(0)
            except Exception as error:  # noqa: BLE001, one record must not end each worker that reads it
                self._park(lane.partition, _fault_of(lane), error)
            bytes_left -= lane.change_bytes

    async def _decide_lane(self, lane: Lane, received: list[Received], due: list[str], now: datetime) -> None:
        lane.cancel_unpaid(due, now)
        for start in range(0, len(received), AT_A_TIME):
            if not self._runs(lane):  # it was parked between two slices: its store is closed
                return
            lane.decide(received[start : start + AT_A_TIME], now)
            await asyncio.sleep(0)
        closed = self._closed_orders.pop(lane.partition, [])
        for start in range(0, len(closed), AT_A_TIME):
            if self._runs(lane):
                lane.shorten(closed[start : start + AT_A_TIME], now)
            await asyncio.sleep(0)

    def _closed(self) -> set[int]:
        """Return the partitions that accept no commands for now."""
        lanes = self.lanes
        waiting_bytes = sum(lane.room.size_bytes for lane in lanes.values())
        full = {partition for partition, lane in lanes.items() if lane.is_full(waiting_bytes, len(lanes))}
        return full | self._left_out()

    def _runs(self, lane: Lane) -> bool:
        """Return whether a lane still runs. It may have been parked, and even claimed again, while others ran."""
        return self.lanes.get(lane.partition) is lane

    def _available(self) -> list[Lane]:
        left_out = self._left_out()
        return [lane for partition, lane in self.lanes.items() if partition not in left_out]

    def _left_out(self) -> set[int]:
        """Return the partitions that turns leave out: Kafka cannot write to them, or their stores are slow."""
        return self.unavailable.keys() | {partition for partition, save in self._saves.items() if not save.done()}

    async def _commit(self, turn: Turn) -> None:
        try:
            async with deadline(DEADLINE_S):
                positions = await self._write(turn)
        except TimeoutError as error:
            raise Stuck(
                f"a commit of {self._producer.transactional_id} takes longer than {DEADLINE_S:.0f} s"
            ) from error
        exemplar = self._spans.committed(turn.spans, turn.began_at, turn.decided) if self._spans is not None else None
        _update_metrics(turn, self._clock.now(), exemplar)
        saves = [
            self._start_save(lane, changes, *positions[lane.partition])
            for lane, changes in turn.changes
            if lane.table.store is not None
        ]
        if saves:  # the commit is done, so its deadline does not count a disk that is slow
            await asyncio.wait(saves, timeout=SAVED_WITHIN_S)

    async def _write(self, turn: Turn) -> dict[int, tuple[Position, int]]:
        """Write a turn in one transaction. It is committed when the broker has acknowledged every batch.

        Return the position of each lane, and its offset in the changelog.
        """
        await self._producer.begin()
        self._failpoint("turn.begun")
        sent: list[Sent] = []
        owner = self._producer.transactional_id.encode()
        for partition in turn.released:
            sent += await self._producer.send_all(self._names.table, partition, [(RELEASE_KEY, owner, [])])
        last: list[tuple[Lane, Position, dict[str, int]]] = []
        for lane, changes in turn.changes:
            position = self._position(lane, changes)
            batches: dict[str, int] = {}
            for topic, records in self._records(changes, position):
                sent += await self._producer.send_all(topic, lane.partition, records)
                batches[topic] = len(sent) - 1
            last.append((lane, position, batches))
        await self._producer.wait_for_acks(sent)
        self._failpoint("turn.produced")
        acknowledged = await self._producer.commit(sent)
        self._failpoint("turn.committed")
        self._clock.compare(acknowledged[batches[self._names.table]] for _, _, batches in last)
        for lane, position, batches in last:
            offsets = {topic: acknowledged[index].offset for topic, index in batches.items()}
            lane.committed(position, self._ends(lane.ends, offsets))
        self._named -= turn.released
        positions = {}
        for lane, position, batches in last:
            index = batches[self._names.table]
            positions[lane.partition] = position, acknowledged[index].offset + sent[index].record_count - 1
        return positions

    def _start_save(self, lane: Lane, changes: Changes, position: Position, offset: int) -> "asyncio.Task[None]":
        """Start to write what a lane has committed to its store. Turns leave the lane out until it is written."""
        before = self._saves.get(lane.partition)  # the next turn is decided before this one is in the store
        save = asyncio.create_task(self._save(lane, changes, position, offset, before), name="save of a turn")
        save.add_done_callback(lambda _: self.wake())
        self._saves[lane.partition] = save
        return save

    def _end_saves(self) -> None:
        """Forget the writes that are done. Raises the error of one that failed."""
        for partition, save in list(self._saves.items()):
            if save.done():
                del self._saves[partition]
                save.result()

    async def _save(
        self, lane: Lane, changes: Changes, position: Position, offset: int, before: "asyncio.Task[None] | None"
    ) -> None:
        """Write what a lane has committed to the store of its table, if the lane still runs."""
        if before is not None:
            await before  # if it failed, this one fails too: the store would have a hole
        if not self._runs(lane):
            return
        try:
            await lane.table.save(changes.table, position, offset)
        except StoreError as error:
            if self._runs(lane):  # else it was parked while the write waited, which has closed the store
                self._park(lane.partition, "the store of its table cannot be written", error)

    def _ends(self, before: Ends, offsets: dict[str, int]) -> Ends:
        """Return lower bounds of a lane's end offsets, from the offset of the last acknowledged batch per topic."""
        names = self._names
        topics = (names.events, names.rejections, names.dead_letters, names.waiting)
        known = (before.events, before.rejections, before.dead_letters, before.waiting)
        return Ends(*(offsets.get(topic, end - 1) + 1 for topic, end in zip(topics, known, strict=True)))

    def _position(self, lane: Lane, changes: Changes) -> Position:
        return Position(
            next_offset=changes.next_offset,
            owner=self._producer.transactional_id,
            end_offset=max(self._end_of(lane.partition), changes.next_offset),
            last_timestamp_ms=changes.last_timestamp_ms,
            read_to=changes.read_to,
            ends=lane.ends,
            waiting_count=changes.waiting_count,
        )

    def _records(self, changes: Changes, position: Position) -> list[tuple[str, list[Record]]]:
        table: list[Record] = [(order_id.encode(), value, []) for order_id, value in changes.table.items()]
        table.append((POSITION_KEY, changelog.encode(position), []))
        waiting: list[Record] = [(key, value, []) for key, value in changes.waiting.items()]
        by_topic = [
            (self._names.table, table),
            (self._names.waiting, waiting),
            (self._names.events, changes.events),
            (self._names.rejections, changes.rejections),
            (self._names.dead_letters, changes.dead_letters),
        ]
        return [(topic, records) for topic, records in by_topic if records]


async def _cancel(tasks: Iterable["asyncio.Task[None]"]) -> None:
    """Cancel those tasks that are not done, and wait for their ends."""
    if left := [task for task in tasks if not task.done()]:
        for task in left:
            task.cancel()
        await asyncio.wait(left)


def _fault_of(lane: Lane) -> str:
    """Return what a lane could not decide."""
    if isinstance(lane.deciding, str):
        return f"{lane.deciding} cannot be decided, and `--from` does not skip it"
    if lane.deciding is None:
        return "the lane cannot decide"
    return f"the command at offset {lane.deciding} cannot be decided"


def _update_metrics(turn: Turn, now: datetime, exemplar: dict[str, str] | None) -> None:
    now_ms = now.timestamp() * 1000
    metrics.TURN_SECONDS.observe(time.monotonic() - turn.began_at, exemplar)
    metrics.TURN_COMMANDS.observe(turn.decided)
    for _, changes in turn.changes:
        ages_s = [max(0.0, now_ms - since_ms) / 1000 for since_ms in changes.decided_since_ms]
        metrics.COMMAND_AGE_SECONDS.observe_all(ages_s)
        if changes.spans:
            metrics.COMMAND_AGE_SECONDS.add_exemplars(_exemplars(changes.spans, now_ms))
        for (command, outcome, reason), count in changes.outcomes.items():
            metrics.COMMANDS.labels(command, outcome, reason).inc(count)
        for reason, count in changes.dead_reasons.items():
            metrics.DEAD_LETTERS.labels(reason).inc(count)
        metrics.SHORTENED.inc(changes.shortened)


def _exemplars(spans: list["CommandSpan"], now_ms: float) -> Iterator[tuple[float, dict[str, str]]]:
    """Return the age in seconds of each recorded command that is decided, and the labels that lead to its span."""
    for span in spans:
        labels = span.trace.exemplar
        if span.since_ms is not None and labels is not None:
            yield max(0.0, now_ms - span.since_ms) / 1000, labels
