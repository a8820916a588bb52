"""The table of one partition: the entry of each order, and the entries that the current turn has changed."""

from collections.abc import Iterator

from order_service.domain.entry import Entry
from order_service.wire import changelog


class Table:
    """Entries by order id, as the values of their changelog records: a third of the memory of the objects.

    A value is decoded when its order has a command: 1 µs. What the current turn changes stays decoded until its end.
    """

    def __init__(self) -> None:
        self._values: dict[str, bytes] = {}
        self._changed: dict[str, Entry] = {}

    def __len__(self) -> int:
        return len(self._values)

    def get(self, order_id: str) -> Entry | None:
        """Return the entry of an order, or None if the order does not exist."""
        entry = self._changed.get(order_id)
        if entry is None and (value := self._values.get(order_id)) is not None:
            return changelog.decode_entry(value)
        return entry

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
        if value is None:
            self._values.pop(order_id, None)
        else:
            changelog.decode_entry(value)  # a damaged record must park the lane now, not when its order has a command
            self._values[order_id] = value

    def items(self) -> Iterator[tuple[str, Entry]]:
        """Return an iterator over all orders as of the last `take_changes`. Do not use it while orders change."""
        return ((order_id, changelog.decode_entry(value)) for order_id, value in self._values.items())
