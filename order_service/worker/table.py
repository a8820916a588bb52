"""The table of one partition: the entry of each order, and the entries that the current turn has changed."""

import time
from collections.abc import Iterator
from typing import Final

from msgspec import structs

from order_service.domain.entry import Entry
from order_service.wire import changelog
from order_service.wire.changelog import Position
from order_service.worker.store import Meta, TableStore

UNSAVED_MAX: Final = 2_000
UNSAVED_BYTES: Final = 2 * 1024 * 1024
"""Restored orders that a table on disk holds before it writes them, and their size: a few milliseconds."""
UNDECODED_MAX: Final = 20_000
UNDECODED_BYTES: Final = 16 * 1024 * 1024
"""What the claim of a table on disk reads before it decodes it, to drop records that newer ones replace."""
REFRESH_S: Final = 600.0


class Table:
    """Entries by order id, as the values of their changelog records: less than half of the memory of the objects.

    A value is decoded when its order has a command: 1 µs. What the current turn changes stays decoded until its end.
    With a `store`, memory holds only what is not written to it yet.
    """

    def __init__(self, store: TableStore | None = None) -> None:
        self.store = store
        self._values: dict[str, bytes | None] = {}
        """Without a store all orders, else those that it does not have yet; None for a deleted one."""
        self._changed: dict[str, Entry] = {}
        self._restored_bytes = 0

    def __len__(self) -> int:
        return len(self._values) + (0 if self.store is None else self.store.count())

    def get(self, order_id: str) -> Entry | None:
        """Return the entry of an order, or None if the order does not exist. Raises StoreError."""
        entry = self._changed.get(order_id)
        if entry is not None:
            return entry
        value = self._values.get(order_id)
        if value is None and self.store is not None and order_id not in self._values:
            value = self.store.get(order_id)
        return None if value is None else changelog.decode_entry(value)

    def put(self, order_id: str, entry: Entry) -> None:
        """Replace the entry of an order."""
        self._changed[order_id] = entry

    def take_changes(self) -> dict[str, bytes]:
        """Return the newest value of each order that changed since the last call."""
        values = {order_id: changelog.encode(entry) for order_id, entry in self._changed.items()}
        self._values.update(values)
        self._changed = {}
        return values

    def restore(self, order_id: str, value: bytes | None) -> None:
        """Apply a changelog record: a value, or None for a deleted order. Raises HistoryError if it is damaged."""
        if value is not None:
            changelog.decode_entry(value)  # a damaged record must park the lane now, not when its order has a command
            self._values[order_id] = value
            self._restored_bytes += len(value)
        elif self.store is not None:
            self._values[order_id] = None
        else:
            self._values.pop(order_id, None)

    async def save(self, values: dict[str, bytes], position: Position, offset: int) -> None:
        """Write to the store what a committed turn has written, whose last record is the position at this offset."""
        if self.store is not None:
            meta = structs.replace(
                self.store.meta,
                next_offset=offset + 1,
                position_offset=offset,
                position=changelog.encode(position),
                as_of=time.time(),
            )
            await self._write(self.store, values, meta)

    async def save_restored(self) -> None:
        """Write restored orders to the store, once there are many. Its offset stays: the claim is not done."""
        if self.store is not None and (len(self._values) >= UNSAVED_MAX or self._restored_bytes >= UNSAVED_BYTES):
            self._restored_bytes = 0
            await self._write(self.store, dict(self._values), self.store.meta)

    async def save_claimed(self, position: Position, offset: int, as_of: float) -> None:
        """Write what the claim has restored, whose own position is at this offset; `as_of` is when it began to read."""
        if self.store is not None:
            meta = structs.replace(
                self.store.meta,
                next_offset=offset + 1,
                position_offset=offset,
                position=changelog.encode(position),
                as_of=as_of,
            )
            await self._write(self.store, dict(self._values), meta)

    async def refresh(self) -> None:
        """Record that the store of a running lane is still complete, every `REFRESH_S`: an idle one writes nothing."""
        if self.store is not None and time.time() - self.store.meta.as_of > REFRESH_S:
            await self.store.write({}, structs.replace(self.store.meta, as_of=time.time()))

    def sweep(self, count: int) -> Iterator[list[tuple[str, bytes]]]:
        """Yield the values of all orders, or of the closed ones in a store, `count` at a time. Raises StoreError.

        Orders may change between two slices.
        """
        if self.store is None:
            order_ids = list(self._values)  # 8 bytes an order, and 10 ms for a million
            for start in range(0, len(order_ids), count):
                values = ((order_id, self._values.get(order_id)) for order_id in order_ids[start : start + count])
                yield [(order_id, value) for order_id, value in values if value is not None]
            return
        last = ""
        while orders := self.store.closed_orders(last, count):
            last = orders[-1][0]
            yield [(order_id, value) for order_id, value in orders if order_id not in self._values]

    async def _write(self, store: TableStore, values: "dict[str, bytes] | dict[str, bytes | None]", meta: Meta) -> None:
        await store.write(values, meta)
        for order_id, value in values.items():
            if order_id in self._values and self._values[order_id] is value:
                del self._values[order_id]

    def items(self) -> Iterator[tuple[str, Entry]]:
        """Return an iterator over the orders as of the last `take_changes`; of those in a store, over the open ones.

        Do not use it while orders change.
        """
        for order_id, value in self._values.items():
            if value is not None:
                yield order_id, changelog.decode_entry(value)
        if self.store is not None:
            for order_id, value in self.store.open_orders():
                if order_id not in self._values:
                    yield order_id, changelog.decode_entry(value)
