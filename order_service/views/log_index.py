"""The views as an index of the log: the offsets of an order's records, so that its partition need not be read."""

import asyncio
from collections.abc import Collection, Iterable, Mapping
from typing import Final

from aiokafka.structs import TopicPartition

from order_service.errors import DatabaseError
from order_service.kafka.topics import topic_names
from order_service.runtime.library_logger import library_logger
from order_service.sdk.log_index import Ranges
from order_service.settings import Settings
from order_service.views.queries import Views
from order_service.views.tables import database_of, open_views

log = library_logger("order_service.views")

GAP: Final = 500
"""Offsets this close are read as one range: fewer records than a fetch returns anyway."""
RANGES_MAX: Final = 200
"""Above this number of ranges in a partition, the log is read from the first one on."""


class ViewsIndex:
    """Where the records of orders are, according to the views of ORDERS_DATABASE_URL."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    async def ranges(self, order_ids: Collection[str], ends: Mapping[TopicPartition, int]) -> Ranges | None:
        """Return where the records of these orders are; None, with a warning, if the views cannot be read.

        Also None if the views are ahead of the log: they are of another one.
        """
        try:
            return await asyncio.to_thread(self._ranges, order_ids, ends)
        except DatabaseError as error:
            log.warning("The views cannot be used as an index; the log is read from its start.", error=str(error))
            return None

    def _ranges(self, order_ids: Collection[str], ends: Mapping[TopicPartition, int]) -> Ranges | None:
        settings = self._settings
        with open_views(database_of(settings), settings.database_schema) as engine:
            views = Views(engine, topic_names(settings.topic_prefix))
            positions = views.offsets()  # first: every record before them has a row
            offsets = views.offsets_of(order_ids)
        if any(positions.get(partition, 0) > end for partition, end in ends.items()):
            return None
        return {
            partition: ranges(offsets.get(partition, ()), positions.get(partition, 0), end)
            for partition, end in ends.items()
        }


def ranges(offsets: Iterable[int], position: int, end: int) -> list[tuple[int, int]]:
    """Return ranges that cover these offsets, and all from `position` to `end`."""
    covered: list[tuple[int, int]] = []
    single = [(offset, offset + 1) for offset in sorted(offsets) if offset < position]
    for first, behind in [*single, (position, end)]:
        if covered and first - covered[-1][1] < GAP:
            covered[-1] = covered[-1][0], max(covered[-1][1], behind)
        elif first < behind:
            covered.append((first, behind))
    return covered if len(covered) <= RANGES_MAX else [(covered[0][0], end)]
