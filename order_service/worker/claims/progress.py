"""How the claims of a worker share its event loop, and how each reports what it does or waits for."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Final

from aiokafka import TopicPartition

PATIENCE_S: Final = 5.0
"""A claim without progress for so long is waiting for another process; another claim works in the meantime."""
RUNBOOK_HINT: Final = "if no program ends it, see docs/operations/hanging-transactions.md"


class ClaimSlots:
    """The limit of concurrent claims. Only one of them at a time holds the event loop."""

    def __init__(self, count: int, *, patience_s: float = PATIENCE_S) -> None:
        self.free = asyncio.Semaphore(count)
        self.patience_s = patience_s
        self._slices = asyncio.Lock()

    @asynccontextmanager
    async def slice(self) -> AsyncIterator[None]:
        """Hold the event loop for a few milliseconds of work without an await, then yield to all other tasks once."""
        async with self._slices:
            yield
            await asyncio.sleep(0)


class Progress:
    """The current step of one claim, and since when. A claim holds a slot while it works, and lends it while it waits.

    `open_transactions` has those that hide records from the claim: the partition, and the offset of the first record.
    """

    def __init__(self, slots: ClaimSlots) -> None:
        self.step = "other claims"
        self.failure = ""
        self.reading = ""
        """How far the table is restored."""
        self.has_slot = False
        self.has_begun = False
        self.open_transactions: dict[TopicPartition, int] = {}
        self._slots = slots
        self._loop = asyncio.get_running_loop()
        self._since = self._loop.time()
        self._lending: asyncio.TimerHandle | None = None

    def slice(self) -> AbstractAsyncContextManager[None]:
        """Hold the event loop for a few milliseconds of work without an await."""
        return self._slots.slice()

    async def at(self, step: str) -> None:
        """Begin a step. `step` is what the claim waits for if the step takes long."""
        await self.moved()
        self.step = step

    async def moved(self) -> None:
        """Record progress of the claim. Wait for a slot if the claim does not hold one, or has lent it."""
        self.open_transactions = {}
        if not self.has_slot:
            await self._slots.free.acquire()
            self.has_slot = self.has_begun = True
            self._lending = self._loop.call_later(self._slots.patience_s, self._lend)
        self._since = self._loop.time()

    def leave(self) -> None:
        """Release the slot: the claim is done, or has failed."""
        self.open_transactions = {}
        if self._lending is not None:
            self._lending.cancel()
            self._lending = None
        if self.has_slot:
            self.has_slot = False
            self._slots.free.release()

    def waits_s(self) -> float:
        """Return for how many seconds the claim has made no progress."""
        return self._loop.time() - self._since

    def waits_for(self) -> str:
        """Return what the claim waits for and how long, or why it is tried again; an empty string while it works."""
        if self.failure and not self.open_transactions:
            return f"it failed and is tried again: {self.failure}"
        waits_s = self.waits_s()
        return f"it has waited {waits_s:.0f} s for {self._awaited()}" if waits_s >= self._slots.patience_s else ""

    def text(self) -> str:
        """Return what the claim waits for, or else how far it is."""
        return self.waits_for() or self.reading

    def open_for(self) -> dict[TopicPartition, float]:
        """Return for how many seconds the claim has waited for each open transaction; empty while it works."""
        waits_s = self.waits_s()
        return dict.fromkeys(self.open_transactions, waits_s) if waits_s >= self._slots.patience_s else {}

    def _awaited(self) -> str:
        if not self.open_transactions:
            return self.step
        transactions = " and ".join(
            f"a transaction that is open on {partition.topic} partition {partition.partition} from offset {offset}"
            for partition, offset in sorted(self.open_transactions.items())
        )
        return f"{transactions}; {RUNBOOK_HINT}"

    def _lend(self) -> None:
        left_s = self._slots.patience_s - self.waits_s()
        if left_s > 0:
            self._lending = self._loop.call_later(left_s, self._lend)
        else:
            self.has_slot = False
            self._slots.free.release()
