"""The table of one partition: the entry of each order, and the entries that the current turn has changed."""

from collections.abc import ItemsView

from order_service.domain.entry import Entry


class Table:
    """Entries by order id. They are immutable: a change replaces the entry and records it for the next write."""

    def __init__(self, entries: dict[str, Entry] | None = None) -> None:
        self._entries = {} if entries is None else entries
        self._changed: dict[str, Entry] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, order_id: str) -> bool:
        return order_id in self._entries

    def get(self, order_id: str) -> Entry | None:
        """Return the entry of an order, or None if the order does not exist."""
        return self._entries.get(order_id)

    def put(self, order_id: str, entry: Entry) -> None:
        """Replace the entry of an order."""
        self._entries[order_id] = self._changed[order_id] = entry

    def take_changes(self) -> dict[str, Entry]:
        """Return the newest entry of each order that changed since the last call."""
        changed, self._changed = self._changed, {}
        return changed

    def items(self) -> ItemsView[str, Entry]:
        """Return a view of all orders. Do not iterate over it while orders change."""
        return self._entries.items()
