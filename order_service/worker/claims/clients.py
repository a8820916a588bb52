"""The Kafka clients that the claims of one assignment share.

A client costs connections and some 30 ms of this process, so there are few: a reader per claim that is under way, one
client that asks for offsets, and one fence per owner.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

from aiokafka import TopicPartition

from order_service.kafka.connection import Consumer
from order_service.worker.transactions import fence

FETCH_BYTES: Final = 2 * 1024 * 1024
_SHARED: Final = {"enable_auto_commit": False, "auto_offset_reset": "earliest", "fetch_max_wait_ms": 100}


class ClaimClients:
    """Readers, offsets and fences for the claims of one assignment."""

    def __init__(self, connection: dict[str, Any]) -> None:
        self._connection = connection
        self._idle: list[Consumer] = []
        self._offsets: Consumer | None = None
        self._starting = asyncio.Lock()
        self._fences: dict[str, asyncio.Task[None]] = {}

    @asynccontextmanager
    async def reader(self) -> AsyncIterator[Consumer]:
        """Lend a committed reader to one claim; one that a claim failed with is not used again."""
        reader = self._idle.pop() if self._idle else await self._started(committed=True)
        try:
            yield reader
        except BaseException:
            await reader.stop()
            raise
        reader.pause(*reader.assignment())
        self._idle.append(reader)

    async def starts(self, places: Sequence[TopicPartition]) -> dict[TopicPartition, int]:
        """Ask where what is kept begins."""
        return dict(await (await self._asker()).beginning_offsets(places))

    async def ends(self, places: Sequence[TopicPartition]) -> dict[TopicPartition, int]:
        """Ask where partitions end, with what is not committed."""
        return dict(await (await self._asker()).end_offsets(places))

    async def fence(self, owner: str) -> None:
        """Fence an owner once for all claims: aborts its open transaction, and lets it write no more.

        An owner's producer is started once, before any claim names it, and never again. So whichever partition a claim
        knows the owner from, and however long ago another claim has fenced it, that fence holds.
        """
        fencing = self._fences.get(owner)
        if fencing is None or (fencing.done() and (fencing.cancelled() or fencing.exception() is not None)):
            fencing = self._fences[owner] = asyncio.create_task(fence(owner, self._connection), name=f"fence {owner}")
        await asyncio.shield(fencing)

    async def close(self) -> None:
        """Close all clients; the claims have ended before."""
        for fencing in self._fences.values():
            fencing.cancel()
        await asyncio.gather(*self._fences.values(), return_exceptions=True)
        clients = [*self._idle, *([] if self._offsets is None else [self._offsets])]
        self._idle, self._offsets = [], None
        await asyncio.gather(*(client.stop() for client in clients), return_exceptions=True)

    async def _asker(self) -> Consumer:
        async with self._starting:
            if self._offsets is None:
                self._offsets = await self._started(committed=False)
            return self._offsets

    async def _started(self, *, committed: bool) -> Consumer:
        client = Consumer(
            **self._connection,
            **_SHARED,
            isolation_level="read_committed" if committed else "read_uncommitted",
            max_partition_fetch_bytes=FETCH_BYTES,
        )
        try:
            await client.start()
        except BaseException:
            await client.stop()
            raise
        return client
