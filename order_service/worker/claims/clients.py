"""The Kafka clients that the claims of one assignment share.

A client costs connections and some 30 ms of this process, so there are few: one reader per running claim, one client
that reads offsets, and one fence per owner.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

from aiokafka import TopicPartition

from order_service.kafka.connection import Consumer
from order_service.worker.transactions import fence

FETCH_BYTES: Final = 2 * 1024 * 1024
FETCH_WAIT_MS: Final = 100
_SHARED: Final = {"enable_auto_commit": False, "auto_offset_reset": "earliest"}


class ClaimClients:
    """The readers, offset client and fences that the claims of one assignment share. `fenced` has the fenced owners."""

    def __init__(self, connection: dict[str, Any], fenced: set[str], *, fetch_wait_ms: int = FETCH_WAIT_MS) -> None:
        self._connection = connection
        self._fetch_wait_ms = fetch_wait_ms
        self._idle: list[Consumer] = []
        self._offsets: Consumer | None = None
        self._starting = asyncio.Lock()
        self._fences: dict[str, asyncio.Task[None]] = {}
        self.fenced = fenced

    @asynccontextmanager
    async def reader(self) -> AsyncIterator[Consumer]:
        """Lend a read_committed reader to one claim. If the claim fails, the reader is stopped and not used again."""
        reader = self._idle.pop() if self._idle else await self._start_client(committed=True)
        try:
            yield reader
        except BaseException:
            await reader.stop()
            raise
        reader.pause(*reader.assignment())
        self._idle.append(reader)

    async def starts(self, partitions: Sequence[TopicPartition]) -> dict[TopicPartition, int]:
        """Return the first offset that the broker still has of each partition."""
        return dict(await (await self._offset_client()).beginning_offsets(partitions))

    async def ends(self, partitions: Sequence[TopicPartition]) -> dict[TopicPartition, int]:
        """Return the end offset of each partition, uncommitted records included."""
        return dict(await (await self._offset_client()).end_offsets(partitions))

    async def fence(self, owner: str) -> None:
        """Fence an owner once for all claims: abort its open transaction, and prevent any later write.

        An owner's producer is started once, before any claim names it, and never again. So one fence is final: it holds
        for every partition in which a claim reads this owner, however long ago the fence was.
        """
        if owner in self.fenced:
            return
        fencing = self._fences.get(owner)
        if fencing is None or fencing.done():
            fencing = self._fences[owner] = asyncio.create_task(fence(owner, self._connection), name=f"fence {owner}")
        await asyncio.shield(fencing)
        self.fenced.add(owner)

    async def close(self) -> None:
        """Close all clients; all claims must have ended."""
        for fencing in self._fences.values():
            fencing.cancel()
        await asyncio.gather(*self._fences.values(), return_exceptions=True)
        clients = [*self._idle, *([] if self._offsets is None else [self._offsets])]
        self._idle, self._offsets = [], None
        await asyncio.gather(*(client.stop() for client in clients), return_exceptions=True)

    async def _offset_client(self) -> Consumer:
        async with self._starting:
            if self._offsets is None:
                self._offsets = await self._start_client(committed=False)
            return self._offsets

    async def _start_client(self, *, committed: bool) -> Consumer:
        client = Consumer(
            **self._connection,
            **_SHARED,
            isolation_level="read_committed" if committed else "read_uncommitted",
            fetch_max_wait_ms=self._fetch_wait_ms,
            max_partition_fetch_bytes=FETCH_BYTES,
        )
        try:
            await client.start()
        except BaseException:
            await client.stop()
            raise
        return client
