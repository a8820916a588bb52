"""The projector as a process: its database, its Kafka, its admin port."""

import asyncio
import time
from typing import Final, NoReturn

import structlog
from prometheus_client import Gauge
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from order_service.admin import AdminServer
from order_service.errors import DatabaseError
from order_service.garbage import collect_seldom
from order_service.reading import Reader
from order_service.settings import Settings
from order_service.views.projector import Projection, follow
from order_service.views.tables import database_of, open_database, prepare

log = structlog.get_logger()

TELL_EVERY_S: Final = 5.0
BEHIND: Final = Gauge("orders_views_behind", "Offsets of events and rejections that are not in the views yet.")


class Building:
    """How far the views are from what the log held when they were opened, and from what it holds now."""

    def __init__(self) -> None:
        self._left: int | None = None
        self._told_at = 0.0
        self._behind: int | None = 0
        self._stopped: str | None = None

    def tell(self, left: int) -> None:
        """Hear how many offsets are left of what there was."""
        is_built = left == 0
        if is_built and self._left != 0:
            log.info("The views are built.")
        elif not is_built and time.monotonic() - self._told_at > TELL_EVERY_S:
            log.info("The views are being built.", offsets_left=left)
            self._told_at = time.monotonic()
        self._left = left

    def tell_stopped(self, why: str | None) -> None:
        """Hear why the log cannot be read on, None when it can."""
        if why is not None and self._stopped is None:
            log.error("The views get older.", why=why)
        self._stopped = why

    def tell_behind(self, behind: int | None) -> None:
        """Hear how many offsets the views are behind the log, None if nobody knows."""
        if behind is not None:
            BEHIND.set(behind)
        elif self._behind is not None:
            log.warning("Kafka does not answer: the views get older.")
        self._behind = behind

    def faults(self) -> list[str]:
        """Say why nobody should read the views yet."""
        if self._stopped is not None:
            return [f"the views get older: {self._stopped}"]
        match self._left:
            case None:
                return ["the views are being opened"]
            case 0:
                return [] if self._behind is not None else ["Kafka does not answer: the views get older"]
            case left:
                return [f"the views are being built: {left:,} offsets are left"]


async def run(settings: Settings) -> NoReturn:
    """Keep the views until cancelled.

    Raises DatabaseError if their database does not serve us, and what `follow` raises.
    """
    collect_seldom()
    building = Building()
    engine = open_database(database_of(settings), writes=True)
    admin = AdminServer(settings.host, settings.admin_port, building.faults)
    await admin.start()
    try:
        await asyncio.to_thread(prepare, engine)
        async with Reader(settings) as reader:
            await follow(reader, Projection(engine), building)
    except SQLAlchemyError as error:
        # Not its message: a driver's may hold values of rows.
        kind = type(error.orig if isinstance(error, DBAPIError) else error).__name__
        raise DatabaseError(f"the database of ORDERS_DATABASE_URL does not serve us: {kind}") from error
    finally:
        await admin.stop()
        engine.dispose()
