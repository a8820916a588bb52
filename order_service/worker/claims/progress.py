"""How the claims of a worker share its event loop, and how each tells what it does or waits for."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Final

from aiokafka import TopicPartition

PATIENCE_S: Final = 5.0
"""A claim that gets no further for so long waits for somebody else; another one works meanwhile."""
RUNBOOK_HINT: Final = "if no program ends it, see docs/operations/hanging-transactions.md"


class ClaimSlots:
    """Bounds how many claims work at the same time, and lets one of them at a time hold the event loop."""

    def __init__(self, count: int, *, patience_s: float = PATIENCE_S) -> None:
        self.free = asyncio.Semaphore(count)
        self.patience_s = patience_s
        self._slices = asyncio.Lock()

    @asynccontextmanager
    async def slice(self) -> AsyncIterator[None]:
        """Hold the loop for a few milliseconds of work without an await, then give it to all others once."""
        async with self._slices:
            yield
            await asyncio.sleep(0)


class Progress:
    """What one claim does now, and since when. It holds a place while it works, and lends it while it waits.

    `open_transactions` are those that keep records from the claim: the partition, and the offset of the first record.
    """

    def __init__(self, places: ClaimSlots) -> None:
        self.step = "other claims"
        self.failure = ""
        self.has_place = False
        self.has_begun = False
        self.open_transactions: dict[TopicPartition, int] = {}
        self._places = places
        self._loop = asyncio.get_running_loop()
        self._since = self._loop.time()
        self._lending: asyncio.TimerHandle | None = None

    def slice(self) -> AbstractAsyncContextManager[None]:
        """Hold the loop for a few milliseconds of work without an await."""
        return self._places.slice()

    async def at(self, step: str) -> None:
        """Begin a step, named by what it waits for if it takes long."""
        await self.moved()
        self.step = step

    async def moved(self) -> None:
        """Note that the claim gets on; wait for a place if it has none, or has lent it."""
        self.open_transactions = {}
        if not self.has_place:
            await self._places.free.acquire()
            self.has_place = self.has_begun = True
            self._lending = self._loop.call_later(self._places.patience_s, self._lend)
        self._since = self._loop.time()

    def leave(self) -> None:
        """Give the place back: the claim is done, or has failed."""
        self.open_transactions = {}
        if self._lending is not None:
            self._lending.cancel()
            self._lending = None
        if self.has_place:
            self.has_place = False
            self._places.free.release()

    def waits_s(self) -> float:
        """Return for how many seconds the claim has got no further."""
        return self._loop.time() - self._since

    def waits_for(self) -> str:
        """Return what the claim waits for and how long, or why it is tried again; an empty string while it works."""
        if self.failure and not self.open_transactions:
            return f"it failed and is tried again: {self.failure}"
        waits_s = self.waits_s()
        return f"it has waited {waits_s:.0f} s for {self._awaited()}" if waits_s >= self._places.patience_s else ""

    def open_for(self) -> dict[TopicPartition, float]:
        """Return for how many seconds the claim has waited for each open transaction; empty while it works."""
        waits_s = self.waits_s()
        return dict.fromkeys(self.open_transactions, waits_s) if waits_s >= self._places.patience_s else {}

    def _awaited(self) -> str:
        if not self.open_transactions:
            return self.step
        transactions = " and ".join(
            f"a transaction that is open on {place.topic} partition {place.partition} from offset {offset}"
            for place, offset in sorted(self.open_transactions.items())
        )
        return f"{transactions}; {RUNBOOK_HINT}"

    def _lend(self) -> None:
        left_s = self._places.patience_s - self.waits_s()
        if left_s > 0:
            self._lending = self._loop.call_later(left_s, self._lend)
        else:
            self.has_place = False
            self._places.free.release()
