"""The turn: what came in over all lanes is decided, and written in one transaction.

While one turn commits, the next is decided; its commit, and everything that tells of it, waits for the first.
Whatever fails in a turn or its commit ends the process: what was decided in memory is then not what is in the log.
"""

import asyncio
import time
from collections.abc import Callable
from datetime import datetime
from typing import Final

import structlog
from msgspec import Struct

from order_service.errors import Stuck
from order_service.kafka.topics import TopicNames
from order_service.runtime.deadline import deadline
from order_service.wire import changelog
from order_service.wire.changelog import POSITION_KEY, Ends, Position
from order_service.worker import metrics
from order_service.worker.clock import Clock
from order_service.worker.inbox import Inbox, Received
from order_service.worker.lane import Changes, Lane, Record
from order_service.worker.transactions import DEADLINE_S, Sent, TurnProducer

log = structlog.get_logger()

MOST_COMMANDS: Final = 2_000
"""In one turn: some 50 ms of deciding, so that nobody waits long behind a backlog."""


MOST_BYTES: Final = 4 * 1024 * 1024
"""Of outcomes in one turn and lane, before what else waits stays for the next: a commit has a deadline."""
AT_A_TIME: Final = 200
"""Commands decided before the loop gets its turn: some 5 ms."""


class Turn(Struct, frozen=True):
    """What one turn has decided, per lane, and when it began."""

    changes: list[tuple[Lane, Changes]]
    began_at: float

    @property
    def decided(self) -> int:
        """How many commands got their outcome."""
        return sum(changes.decided for _, changes in self.changes)

    @property
    def kept(self) -> int:
        """How many commands went into the waiting room."""
        return sum(changes.kept for _, changes in self.changes)


class TurnLoop:
    """Takes turns over the running lanes of one assignment, as the owner that their claims have named.

    `failpoint` is called after each step; `end_of` gives the last known end of a lane's commands; `park` stops a lane.
    """

    def __init__(
        self,
        producer: TurnProducer,
        names: TopicNames,
        inbox: Inbox,
        *,
        turn_s: float,
        clock: Clock,
        end_of: Callable[[int], int],
        park: Callable[[int, str, Exception], None],
        failpoint: Callable[[str], None],
    ) -> None:
        self.lanes: dict[int, Lane] = {}
        self.unavailable: dict[int, str] = {}
        self._producer = producer
        self._names = names
        self._inbox = inbox
        self._turn_s = turn_s
        self._clock = clock
        self._end_of = end_of
        self._park = park
        self._failpoint = failpoint
        self._wake = asyncio.Event()
        self._stopping = False
        self._flight: asyncio.Task[None] | None = None
        self._due: dict[int, list[str]] = {}

    def wake(self) -> None:
        """Let the next turn begin: something came in, was answered or is due."""
        self._wake.set()

    def cancel_unpaid(self, partition: int, order_ids: list[str]) -> None:
        """Let the next turn cancel these orders, if they are still unpaid."""
        self._due.setdefault(partition, []).extend(order_ids)
        self.wake()

    def look_for_leaders(self) -> None:
        """Leave lanes out whose topics cannot be written to: one of them in a transaction would stop all the others."""
        reasons = self._producer.unavailable()
        unavailable = {partition: reason for partition, reason in reasons.items() if partition in self.lanes}
        for partition in unavailable.keys() - self.unavailable.keys():
            log.error("A lane waits for Kafka.", partition=partition, reason=unavailable[partition])
        for partition in self.unavailable.keys() - unavailable.keys():
            log.info("A lane no longer waits for Kafka.", partition=partition)
        if unavailable != self.unavailable:
            self.unavailable = unavailable
            self.wake()

    async def run(self) -> None:
        """Take turns until told to stop; returns when the last of them is committed."""
        while not self._stopping:
            await self._until_there_is_work()
            began_at = time.monotonic()
            turn = await self._decide(began_at)
            await self._landed()
            if turn is not None:
                self._flight = asyncio.create_task(self._commit(turn), name="commit of a turn")
                await asyncio.sleep(max(0.0, began_at + self._pace(turn) - time.monotonic()))
        await self._landed()
        await self._write_last_positions()

    def _pace(self, turn: Turn) -> float:
        """Tell how long after its begin the next turn may begin: sooner if this one had hardly anything to do.

        A transaction costs the same whatever is in it, so under load fewer are better; with little to do, sooner is.
        """
        return self._turn_s if turn.decided + turn.kept > 1 else self._turn_s / 4

    def stop(self) -> None:
        """Let `run` return after the turn in flight."""
        self._stopping = True
        self._wake.set()

    async def _write_last_positions(self) -> None:
        """Write how far the lanes have read past records that are not commands, for the claims that come next."""
        passed = [lane for lane in self.lanes.values() if lane.has_passed() and lane.partition not in self.unavailable]
        if passed:
            await self._commit(Turn([(lane, lane.take_changes()) for lane in passed], time.monotonic()))

    async def _landed(self) -> None:
        """Wait for the commit in flight; its error is ours."""
        if self._flight is not None:
            await self._flight
            self._flight = None

    async def _until_there_is_work(self) -> None:
        """Wait for a wake-up, the end of the commit in flight (to see its error at once), or the next deadline."""
        if self._inbox.has_any(self._closed()) or any(lane.room.has_answers() for lane in self._available()):
            return
        wake = asyncio.create_task(self._wake.wait())
        try:
            await asyncio.wait(
                {wake, self._flight} if self._flight is not None else {wake},
                timeout=self._until_deadline(),
                return_when=asyncio.FIRST_COMPLETED,
            )
        finally:
            wake.cancel()
        self._wake.clear()

    def _until_deadline(self) -> float | None:
        """Tell in how many seconds a waiting command must be decided at the latest."""
        deadlines = [deadline for lane in self._available() if (deadline := lane.room.next_deadline()) is not None]
        if not deadlines:
            return None
        return max(0.0, (min(deadlines) - self._clock.now()).total_seconds()) + 0.001

    async def _decide(self, began_at: float) -> Turn | None:
        """Decide what waits and is answered, what is due, and what came in, in this order.

        In between, the loop gets its turn: so the commit in flight goes on meanwhile.
        """
        self.look_for_leaders()
        taken = self._inbox.take(MOST_COMMANDS, self._closed())
        lanes = self._available()
        # What gets due from here on may wait for a payment in `taken`.
        due = {lane.partition: self._due.pop(lane.partition, []) for lane in lanes}
        self._failpoint("turn.taken")
        now = self._clock.now()
        for lane in lanes:
            try:
                await self._decide_lane(lane, taken.get(lane.partition, []), due[lane.partition], now)
            except Exception as error:  # noqa: BLE001, one record must not end every worker that reads it in turn
                self._park(lane.partition, f"the commands from offset {lane.next_offset} on cannot be decided", error)
        changes = [
            (lane, changed)
            for lane in lanes
            if self.lanes.get(lane.partition) is lane and (changed := lane.take_changes())
        ]
        if not changes:
            return None
        self._failpoint("turn.decided")
        return Turn(changes, began_at)

    async def _decide_lane(self, lane: Lane, received: list[Received], due: list[str], now: datetime) -> None:
        while lane.change_bytes < MOST_BYTES and lane.settle(now):  # noqa: ASYNC110, the loop gets its turn
            await asyncio.sleep(0)
        lane.cancel_unpaid(due, now)
        for start in range(0, len(received), AT_A_TIME):
            lane.decide(received[start : start + AT_A_TIME], now)
            await asyncio.sleep(0)

    def _closed(self) -> set[int]:
        """Return the partitions that take no more commands for now."""
        return {partition for partition, lane in self.lanes.items() if lane.is_full()} | self.unavailable.keys()

    def _available(self) -> list[Lane]:
        return [lane for partition, lane in self.lanes.items() if partition not in self.unavailable]

    async def _commit(self, turn: Turn) -> None:
        try:
            async with deadline(DEADLINE_S):
                await self._write(turn)
        except TimeoutError as error:
            raise Stuck(
                f"a commit of {self._producer.transactional_id} takes longer than {DEADLINE_S:.0f} s"
            ) from error
        _count(turn)

    async def _write(self, turn: Turn) -> None:
        """Write all of a turn in one transaction; it is committed when every batch has arrived."""
        await self._producer.begin()
        self._failpoint("turn.begun")
        sent: list[Sent] = []
        last: list[tuple[Lane, Position, dict[str, int]]] = []
        for lane, changes in turn.changes:
            position = self._position(lane, changes)
            places: dict[str, int] = {}
            for topic, records in self._records(changes, position):
                sent += await self._producer.send_all(topic, lane.partition, records)
                places[topic] = len(sent) - 1
            last.append((lane, position, places))
        await self._producer.arrive(sent)
        self._failpoint("turn.produced")
        arrived = await self._producer.commit(sent)
        self._failpoint("turn.committed")
        self._clock.compare(arrived[places[self._names.table]] for _, _, places in last)
        for lane, position, places in last:
            offsets = {topic: arrived[place].offset for topic, place in places.items()}
            lane.log_offset = offsets[self._names.table]
            lane.ends = self._ends(lane.ends, offsets)
            lane.written = position

    def _ends(self, before: Ends, offsets: dict[str, int]) -> Ends:
        """Return where the topics of a lane end at least, from the offset of the last batch that arrived in each."""
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
        table: list[Record] = [
            (order_id.encode(), changelog.encode(entry), []) for order_id, entry in changes.table.items()
        ]
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


def _count(turn: Turn) -> None:
    metrics.TURN_SECONDS.observe(time.monotonic() - turn.began_at)
    metrics.TURN_COMMANDS.observe(turn.decided)
    for _, changes in turn.changes:
        for (command, outcome, reason), count in changes.outcomes.items():
            metrics.COMMANDS.labels(command, outcome, reason).inc(count)
        for reason, count in changes.dead_reasons.items():
            metrics.DEAD_LETTERS.labels(reason).inc(count)
