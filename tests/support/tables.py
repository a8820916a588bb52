"""Tables that hold given orders."""

from collections.abc import Mapping

from order_service.domain.entry import Entry
from order_service.wire.changelog import encode
from order_service.worker.table import Table


def table_of(entries: Mapping[str, Entry]) -> Table:
    """Return the table that a claim restores from these entries."""
    table = Table()
    for order_id, entry in entries.items():
        table.restore(order_id, encode(entry))
    return table
