"""The table of one partition: what is known of each order, and what a turn has changed of it."""

from collections.abc import ItemsView

from order_service.domain.decision import Entry


class Table:
    """Entries by order id. Values are immutable: a change is another value, kept in `changed` until it is written."""

    def __init__(self, entries: dict[str, Entry] | None = None) -> None:
        self._entries = {} if entries is None else entries
        self._changed: dict[str, Entry] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, order_id: str) -> bool:
        return order_id in self._entries

    def get(self, order_id: str) -> Entry | None:
        """Give the entry of an order, None for an order that does not exist."""
        return self._entries.get(order_id)

    def put(self, order_id: str, entry: Entry) -> None:
        """Replace the entry of an order."""
        self._entries[order_id] = self._changed[order_id] = entry

    def take_changes(self) -> dict[str, Entry]:
        """Give the newest entry of every order changed since the last call."""
        changed, self._changed = self._changed, {}
        return changed

    def items(self) -> ItemsView[str, Entry]:
        """Return a view of all orders; it must not be iterated over while they change."""
        return self._entries.items()
