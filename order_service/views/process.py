"""The projector as a process: its database, its Kafka, its admin port."""

import asyncio
import time
from typing import Final, NoReturn

import structlog
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from order_service.admin import AdminServer
from order_service.errors import DatabaseError
from order_service.reading import Reader
from order_service.settings import Settings
from order_service.views.projector import Projection, follow
from order_service.views.tables import database_of, open_database, prepare

log = structlog.get_logger()

TELL_EVERY_S: Final = 5.0


class Building:
    """How far the views are from what the log held when they were opened."""

    def __init__(self) -> None:
        self._left: int | None = None
        self._told_at = 0.0

    def tell(self, left: int) -> None:
        """Hear how many offsets are left."""
        is_news = self._left != 0 if left == 0 else time.monotonic() - self._told_at > TELL_EVERY_S
        if is_news:
            log.info("The views are built." if left == 0 else "The views are being built.", offsets_left=left)
            self._told_at = time.monotonic()
        self._left = left

    def faults(self) -> list[str]:
        """Say why nobody should read the views yet."""
        match self._left:
            case None:
                return ["the views are being opened"]
            case 0:
                return []
            case left:
                return [f"the views are being built: {left:,} offsets are left"]


async def run(settings: Settings) -> NoReturn:
    """Keep the views until cancelled.

    Raises DatabaseError if their database does not serve us, and what `follow` raises.
    """
    building = Building()
    engine = open_database(database_of(settings), writes=True)
    admin = AdminServer(settings.host, settings.admin_port, building.faults)
    await admin.start()
    try:
        await asyncio.to_thread(prepare, engine)
        async with Reader(settings) as reader:
            await follow(reader, Projection(engine), building.tell)
    except SQLAlchemyError as error:
        # Not its message: a driver's may hold values of rows.
        kind = type(error.orig if isinstance(error, DBAPIError) else error).__name__
        raise DatabaseError(f"the database of ORDERS_DATABASE_URL does not serve us: {kind}") from error
    finally:
        await admin.stop()
        engine.dispose()
