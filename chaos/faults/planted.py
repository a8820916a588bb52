"""Workers with a fault planted: `python -m chaos.faults.planted NAME [STEP COUNT SIGNAL]`.

Each removes one safeguard. The checker must find what happens without it (`test_planted`).
A claim's look at the outcomes would notice what five of them do, and park the lane. Those five remove it too: the
position in the transaction, the fence, the ends of the changelogs, the waiting room's changelog and the lock.
"""

import asyncio
import sys
from collections.abc import Callable, Iterable
from contextlib import AbstractAsyncContextManager
from typing import Any, Final
from uuid import uuid4

import structlog
from aiokafka import AIOKafkaConsumer
from aiokafka.producer.sender import Sender
from aiokafka.structs import RecordMetadata
from msgspec import structs

from order_service.wire.changelog import POSITION_KEY
from order_service.worker.assignment import Assignment, Owner
from order_service.worker.claims import claim, clients
from order_service.worker.claims.changelog_reader import Changelogs
from order_service.worker.claims.checks import Checks
from order_service.worker.clock import Clock
from order_service.worker.faust.consumer import FetchThread
from order_service.worker.inbox import Run
from order_service.worker.lane import Lane
from order_service.worker.transactions import TurnProducer
from order_service.worker.turn import Turn, TurnLoop
from order_service.worker.worker import Worker
from tests.support import worker

log = structlog.get_logger()

# mypy: disable-error-code="method-assign,assignment,attr-defined"

BETWEEN_TOPICS_S: Final = 1.0
LOST_KEY: Final = b"order-lost"
RUN_LOST: Final = "A run is lost."


def position_outside_the_transaction() -> None:
    """Move the position in a transaction of its own, before the one of the outcomes."""
    write = TurnLoop._write

    async def position_first(self: TurnLoop, turn: Turn) -> None:
        producer = self._producer
        await producer.begin()
        for lane, changes in turn.changes:
            topic, table = self._records(changes, self._position(lane, changes))[0]
            position = [record for record in table if record[0] == POSITION_KEY]
            await producer.wait_for_acks(await producer.send_all(topic, lane.partition, position))
        await producer.commit([])
        await write(self, turn)

    TurnLoop._write = position_first
    claim_without_its_look_at_the_outcomes()


def claim_without_its_fence() -> None:
    """Take a partition over and leave the one who had it able to write."""

    async def nobody(_transactional_id: str, _connection: dict[str, Any]) -> None:
        """Fence no producer."""

    clients.fence = nobody
    claim_without_its_look_at_the_outcomes()


def claim_without_the_ends_of_its_changelogs() -> None:
    """Take the end that a committed reader is told for the end, and write the position after whatever is there."""
    take_ends = Checks.take_ends

    async def stable_ends(self: Checks) -> dict[Any, int]:
        await take_ends(self)
        return self._logs.read_to

    Checks.take_ends = stable_ends
    position_after_anything()
    claim_without_its_look_at_the_outcomes()


def position_after_anything() -> None:
    """Write the position of a claim after records that it has not read."""

    def accept(_self: Changelogs, _offsets: dict[Any, int]) -> None:
        """Compare nothing."""

    Changelogs.check_end = accept


def claim_without_its_look_at_the_outcomes() -> None:
    """Believe what the changelogs say, whatever has happened since."""

    async def believe(_self: Checks) -> None:
        """Compare nothing."""

    Checks.outcomes = believe


def lanes_run_on_under_a_new_owner() -> None:
    """Continue the lanes that stay after a rebalance under an owner that no claim can have fenced."""

    async def renew(self: Assignment, staying: list[Lane]) -> None:
        self.owner = Owner(self._context)
        await self.owner.start(self._context)
        self.turns._producer = self.owner.producer
        for lane in staying:
            self._spawn(self._fetch(lane, "Lane runs on."), "fetch")
        await self.turns.run()

    Assignment._continue = renew
    write_no_position_of_its_own()


def a_release_counts_for_every_owner() -> None:
    """Fence no owner of a partition that was released once, also not one that has claimed it since."""
    apply = Changelogs._apply

    def remember(self: Changelogs, record: Any) -> None:
        was_released = self.state.is_released
        apply(self, record)
        self.state.is_released |= was_released

    Changelogs._apply = remember


def write_no_position_of_its_own() -> None:
    """Keep an idle lane from writing: a worker that wakes up then joins again, and has no turn that is refused."""

    async def nothing(_self: Assignment) -> None:
        """Pass nothing on."""

    Assignment._write_positions = nothing


def a_commit_does_not_wait_for_its_batches() -> None:
    """Commit what has arrived until now, and think of the rest as arrived, too."""

    async def wait_for_acks(_self: TurnProducer, sent: list[Any]) -> list[Any]:
        futures = [batch.future for batch in sent]
        if futures:
            await asyncio.wait(futures)
        return [future.result() if future.exception() is None else _Nowhere for future in futures]

    async def commit(self: TurnProducer, sent: list[Any]) -> list[Any]:
        acknowledged = await self.wait_for_acks(sent)
        await self.commit_transaction()
        return acknowledged

    TurnProducer.commit = commit
    TurnProducer.wait_for_acks = wait_for_acks


class _Nowhere:
    offset = -1
    timestamp_type = 0


def a_commit_is_sent_again_under_the_same_id() -> None:
    """Go on after an end that was sent twice, as aiokafka does on its own.

    Every topic is written a moment after the one before it, as on a slow network: a late copy of the first end then
    finds the next transaction half written.
    """
    send_all = TurnProducer.send_all

    async def slowly(self: TurnProducer, topic: str, partition: int, records: Any) -> list[Any]:
        sent = await send_all(self, topic, partition, records)
        await self.wait_for_acks(sent)
        await asyncio.sleep(BETWEEN_TOPICS_S)
        return sent

    TurnProducer._end = lambda self, result: Sender._do_txn_commit(self._sender, result)
    TurnProducer.send_all = slowly
    write_no_position_of_its_own()


def the_waiting_room_is_in_memory_only() -> None:
    """Make a create wait without writing it down."""
    wait = Lane._wait

    def forgetful(self: Lane, *arguments: Any) -> None:
        wait(self, *arguments)
        self._changes.waiting.clear()

    Lane._wait = forgetful
    claim_without_its_look_at_the_outcomes()


def claim_without_its_lock() -> None:
    """Claim under an id that no other claim has, so that an unfinished one can still name itself the owner."""
    start = claim.claiming

    def unlocked(transactional_id: str, *arguments: Any) -> AbstractAsyncContextManager[TurnProducer]:
        return start(f"{transactional_id}-{uuid4().hex}", *arguments)

    claim.claiming = unlocked
    position_after_anything()
    claim_without_its_look_at_the_outcomes()


def runs_without_numbers() -> None:
    """Take each run for the next one; the run that has `LOST_KEY` is lost on its way."""
    receive = Worker.receive

    def accept(self: Lane, run: Run) -> bool:
        self.next_run = run.number + 1
        return run.seek == self.seek

    def lose(self: Worker, partition: int, run: Run) -> None:
        if any(record.key == LOST_KEY for record in run.records):
            log.warning(RUN_LOST)
        else:
            receive(self, partition, run)

    Lane.accept = accept
    Worker.receive = lose


def commands_are_read_uncommitted() -> None:
    """Decide what a transaction has written that may yet be aborted."""
    create = FetchThread._create_worker_consumer

    def uncommitted(self: FetchThread, transport: object) -> AIOKafkaConsumer:
        consumer = create(self, transport)
        consumer._isolation_level = "read_uncommitted"
        return consumer

    FetchThread._create_worker_consumer = uncommitted


def the_end_of_the_commands_is_forgotten() -> None:
    """Go on from a position without a look at where the commands ended when it was written."""
    _check_without("position", end_offset=0)


def the_ends_of_the_outcomes_are_forgotten() -> None:
    """Go on from a position without a look at where the outcomes ended when it was written."""
    _check_without("take_ends", ends=None)


def the_count_of_waiting_commands_is_forgotten() -> None:
    """Go on with the commands that the waiting room's changelog holds, however many the position counts."""
    _check_without("outcomes", waiting_count=None)


def _check_without(name: str, **fields: Any) -> None:
    """Run one of a claim's checks on a position that does not have these fields, as one of an earlier version."""
    check = getattr(Checks, name)

    async def forgetful(self: Checks, *arguments: Any) -> Any:
        if self._logs.position is not None:
            self._logs.state.position = structs.replace(self._logs.position, **fields)
        return await check(self, *arguments)

    setattr(Checks, name, forgetful)


def the_clock_is_not_compared() -> None:
    """Decide by a wall clock, however far it is from Kafka's."""

    def believe(_self: Clock, _written: Iterable[RecordMetadata]) -> None:
        """Compare nothing."""

    Clock.compare = believe


def the_wall_clock_is_followed() -> None:
    """Decide by the wall clock, also when it steps."""
    Clock._now_s = lambda self: self._wall()


PLANTED: Final[dict[str, Callable[[], None]]] = {
    fault.__name__: fault
    for fault in (
        position_outside_the_transaction,
        claim_without_its_fence,
        claim_without_the_ends_of_its_changelogs,
        claim_without_its_look_at_the_outcomes,
        lanes_run_on_under_a_new_owner,
        a_release_counts_for_every_owner,
        a_commit_does_not_wait_for_its_batches,
        a_commit_is_sent_again_under_the_same_id,
        the_waiting_room_is_in_memory_only,
        claim_without_its_lock,
        runs_without_numbers,
        commands_are_read_uncommitted,
        the_end_of_the_commands_is_forgotten,
        the_ends_of_the_outcomes_are_forgotten,
        the_count_of_waiting_commands_is_forgotten,
        the_clock_is_not_compared,
        the_wall_clock_is_followed,
    )
}


def main() -> None:
    """Plant the fault, and run a worker."""
    PLANTED[sys.argv.pop(1)]()
    worker.main()


if __name__ == "__main__":
    main()
