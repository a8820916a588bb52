"""Workers with a fault planted: `python -m tests.faults.planted NAME [STEP COUNT SIGNAL]`.

Each takes away one thing that the promise rests on. The checker must see what comes of it (`test_planted`).
"""

import asyncio
import sys
from collections.abc import Callable
from typing import Any, Final

from aiokafka.producer.sender import Sender

from order_service.stream import claim
from order_service.stream.claim import Changelogs, Claimer
from order_service.stream.lane import Changes, Lane
from order_service.stream.producer import TurnProducer
from order_service.stream.turn import Turn, TurnTaker
from order_service.wire.changelog import POSITION_KEY
from tests import worker

# mypy: disable-error-code="method-assign,assignment,attr-defined"

BETWEEN_TOPICS_S: Final = 1.0


def position_outside_the_transaction() -> None:
    """Move the position in a transaction of its own, before the one of the outcomes."""
    write, records = TurnTaker._write, TurnTaker._records

    def without_position(self: TurnTaker, changes: Changes, partition: int) -> list[tuple[str, list[Any]]]:
        return [
            (topic, [record for record in part if record[0] != POSITION_KEY])
            for topic, part in records(self, changes, partition)
        ]

    async def position_first(self: TurnTaker, turn: Turn) -> None:
        producer = self._producer
        await producer.begin()
        for lane, changes in turn.changes:
            topic, table = records(self, changes, lane.partition)[0]
            position = [record for record in table if record[0] == POSITION_KEY]
            await producer.arrive(await producer.send_all(topic, lane.partition, position))
        await producer.commit([])
        await write(self, turn)

    TurnTaker._records = without_position
    TurnTaker._write = position_first


def claim_without_its_fence() -> None:
    """Take a partition over and leave the one who had it able to write."""

    async def nobody(_transactional_id: str, _connection: dict[str, Any]) -> None:
        """Fence nobody."""

    claim.fence = nobody


def claim_without_its_barrier() -> None:
    """Take the end that a committed reader is told for the end."""

    async def no_barrier(_self: Claimer, _lock: TurnProducer, _partitions: list[Any]) -> dict[Any, int]:
        return {}

    Claimer._barrier = no_barrier


def a_lane_is_kept_whoever_had_it_meanwhile() -> None:
    """Trust what is in memory without a look at the owner in the log."""
    Changelogs.is_still = lambda *_: True


def a_commit_does_not_wait_for_its_batches() -> None:
    """Commit what has arrived until now, and think of the rest as arrived, too."""

    async def commit(self: TurnProducer, sent: list[Any]) -> list[Any]:
        await asyncio.wait(sent)
        await self.commit_transaction()
        return [future.result() if future.exception() is None else _Nowhere for future in sent]

    async def arrive(_self: TurnProducer, _sent: list[Any]) -> list[Any]:
        return []

    TurnProducer.commit = commit
    TurnProducer.arrive = arrive


class _Nowhere:
    offset = -1


def a_commit_is_sent_again_under_the_same_id() -> None:
    """Go on after an end that was sent twice, as aiokafka does on its own.

    Every topic is written a moment after the one before it, as on a slow network: a late copy of the first end then
    finds the next transaction half written.
    """
    send_all = TurnProducer.send_all

    async def slowly(self: TurnProducer, topic: str, partition: int, records: Any) -> list[Any]:
        sent = await send_all(self, topic, partition, records)
        await self.arrive(sent)
        await asyncio.sleep(BETWEEN_TOPICS_S)
        return sent

    TurnProducer._end = lambda self, result: Sender._do_txn_commit(self._sender, result)
    TurnProducer.send_all = slowly


def the_waiting_room_is_in_memory_only() -> None:
    """Let a create wait, but do not write it down."""
    wait = Lane._wait

    def forgetful(self: Lane, *arguments: Any) -> None:
        wait(self, *arguments)
        self._changes.waiting.clear()

    Lane._wait = forgetful


PLANTED: Final[dict[str, Callable[[], None]]] = {
    fault.__name__: fault
    for fault in (
        position_outside_the_transaction,
        claim_without_its_fence,
        claim_without_its_barrier,
        a_lane_is_kept_whoever_had_it_meanwhile,
        a_commit_does_not_wait_for_its_batches,
        a_commit_is_sent_again_under_the_same_id,
        the_waiting_room_is_in_memory_only,
    )
}


def main() -> None:
    """Plant the fault, and run a worker."""
    PLANTED[sys.argv.pop(1)]()
    worker.main()


if __name__ == "__main__":
    main()
