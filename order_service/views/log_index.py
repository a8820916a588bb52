"""The views as an index of the log: the offsets of an order's records, so that its partition need not be read."""

import asyncio
from collections.abc import Collection
from threading import BoundedSemaphore
from typing import Final

from aiokafka.structs import TopicPartition

from order_service.errors import DatabaseError
from order_service.kafka.topics import topic_names
from order_service.runtime.daemon_thread import in_daemon_thread
from order_service.runtime.library_logger import library_logger
from order_service.sdk.log_index import IndexEntries
from order_service.settings import Settings
from order_service.views.postgresql import BUSY_S
from order_service.views.queries import Views
from order_service.views.tables import database_of, open_views

log = library_logger("order_service.views")

QUERIES_MAX: Final = 4
"""How many queries may be open: a database that never answers keeps their threads."""


class ViewsIndex:
    """An index of the log in the views of ORDERS_DATABASE_URL."""

    def __init__(self, settings: Settings, within_s: float = BUSY_S) -> None:
        self._settings = settings
        self._within_s = within_s
        self._free = BoundedSemaphore(QUERIES_MAX)

    async def find(self, order_ids: Collection[str]) -> IndexEntries | None:
        """Return where the records of these orders are. None, with a warning, if the views cannot be read in time."""
        try:
            async with asyncio.timeout(self._within_s):
                return await self._find_in_thread(order_ids)
        except DatabaseError as error:
            why = str(error)
        except TimeoutError:
            why = f"the database of ORDERS_DATABASE_URL does not answer within {self._within_s:g} s"
        log.warning("The views cannot be used as an index; the log is read from its start.", error=why)
        return None

    async def _find_in_thread(self, order_ids: Collection[str]) -> IndexEntries:
        if not self._free.acquire(blocking=False):
            raise DatabaseError(f"the database of ORDERS_DATABASE_URL has not answered {QUERIES_MAX} queries yet")

        def find() -> IndexEntries:
            try:
                return self._find(order_ids)
            finally:
                self._free.release()

        return await in_daemon_thread(find)

    def _find(self, order_ids: Collection[str]) -> IndexEntries:
        settings = self._settings
        with open_views(database_of(settings), settings.database_schema) as engine:
            views = Views(engine, topic_names(settings.topic_prefix))
            positions = views.offsets()  # first: every record before them has a row, or was skipped before
            offsets = views.offsets_of(order_ids)
            skipped = views.skipped_partitions()
        return IndexEntries(
            {TopicPartition(*key): offset_list for key, offset_list in offsets.items()},
            {TopicPartition(*key): position for key, position in positions.items() if key not in skipped},
        )
