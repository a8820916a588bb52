"""The projector as a process: its database, its Kafka, its admin port."""

import asyncio
import time
from collections.abc import Collection, Mapping
from typing import Final, NoReturn

import structlog
from aiokafka.structs import TopicPartition
from prometheus_client import Gauge

from order_service.kafka.connection import Admin, ask_admin, connection
from order_service.kafka.reader import Reader
from order_service.kafka.topics import topic_names
from order_service.runtime.admin import AdminServer
from order_service.runtime.garbage_collector import collect_less_often
from order_service.runtime.watchdog import Watchdog, silence_limit_s
from order_service.settings import Settings
from order_service.views.projector import Projection, follow
from order_service.views.stopped import BadRecord
from order_service.views.tables import database_of, open_database, prepare, said_in_one_line

log = structlog.get_logger()

TELL_EVERY_S: Final = 5.0
WAY_BACK: Final = "the way on: `order-service views --help`"
STOPPED: Final = Gauge(
    "orders_views_stopped", "1 for each partition of a topic whose record does not fit.", ["topic", "partition"]
)
BEHIND: Final = Gauge("orders_views_behind", "Offsets of events and rejections that are not in the views yet.")


class Building:
    """How far the views are from what the log held when they were opened, and from what it holds now."""

    def __init__(self) -> None:
        self.is_starting = True
        self._left: int | None = None
        self._told_at = 0.0
        self._behind: int | None = 0
        self._bad: dict[TopicPartition, BadRecord] = {}
        self._leaderless: frozenset[TopicPartition] = frozenset()

    def tell(self, left: int) -> None:
        """Take the number of offsets that are left of what the log held at the start; log it now and then.

        Those of stopped partitions are not among them.
        """
        is_built = left == 0
        self.is_starting = self.is_starting and not is_built
        if is_built and self._left != 0:
            log.info("The views are built.")
        elif not is_built and time.monotonic() - self._told_at > TELL_EVERY_S:
            log.info("The views are being built.", offsets_left=left)
            self._told_at = time.monotonic()
        self._left = left

    def tell_behind(self, behind: int | None) -> None:
        """Take the number of offsets that the views are behind the log, or None if it is unknown; set the metric."""
        if behind is not None:
            BEHIND.set(behind)
        elif self._behind is not None:
            log.warning("Kafka does not answer: the views get older.")
        self._behind = behind

    def tell_bad(self, records: Mapping[TopicPartition, BadRecord]) -> None:
        """Take the partitions that are stopped, each with its bad record; log and count what changed."""
        for place, record in records.items():
            if self._bad.get(place) != record:
                where = {"topic": place.topic, "partition": place.partition, "offset": record.offset}
                log.error("The views of a partition are stopped.", **where, reason=record.reason)
                STOPPED.labels(place.topic, str(place.partition)).set(1)
        for place in self._bad.keys() - records.keys():
            log.info("The views of a partition go on.", topic=place.topic, partition=place.partition)
            STOPPED.remove(place.topic, str(place.partition))
        self._bad = dict(records)

    def tell_leaderless(self, places: Collection[TopicPartition]) -> None:
        """Take the partitions that have no leader now; log each when it loses its leader and when it has one again."""
        now = frozenset(places)
        for place in sorted(now - self._leaderless):
            where = {"topic": place.topic, "partition": place.partition}
            log.warning("A partition has no leader: its views get older.", **where)
        for place in sorted(self._leaderless - now):
            log.info("A partition has a leader again.", topic=place.topic, partition=place.partition)
        self._leaderless = now

    def faults(self) -> list[str]:
        """Return why the views should not be read yet, and which partitions are stopped or have no leader."""
        stopped = [f"{record.text} ({WAY_BACK})" for record in self._bad.values()]
        leaderless = [
            f"partition {place.partition} of {place.topic} has no leader: its views get older"
            for place in sorted(self._leaderless)
        ]
        return self._faults() + stopped + leaderless

    def _faults(self) -> list[str]:
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
    collect_less_often()
    building = Building()
    engine = open_database(database_of(settings), writes=True)
    projection = Projection(engine, topic_names(settings.topic_prefix))
    waiting = f"waiting for Kafka at {connection(settings)['bootstrap_servers']}"
    watchdog = Watchdog(silence_limit_s(settings.session_timeout_s))
    watchdog.start()
    starting = AdminServer(settings.host, settings.admin_port, lambda: projection.database.faults() or [waiting])
    try:
        with starting as serving, said_in_one_line():
            with projection.database.question():
                await asyncio.to_thread(prepare, engine)
            await ask_admin(settings, Admin.describe_cluster)
            serving.is_starting = lambda: building.is_starting
            serving.faults = lambda: projection.database.faults() + building.faults()
            async with Reader(settings) as reader:
                await follow(reader, projection, building)
    finally:
        engine.dispose()
        watchdog.stop()
