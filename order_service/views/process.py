"""The projector process: its database, its Kafka client and its admin port."""

import asyncio
import time
from collections.abc import Collection, Mapping
from typing import Final, NoReturn

import structlog
from aiokafka.structs import TopicPartition
from prometheus_client import Gauge
from sqlalchemy import URL

from order_service.errors import SetupError
from order_service.kafka.connection import Admin, ask_admin, connection
from order_service.kafka.reader import Reader
from order_service.kafka.topics import topic_names
from order_service.runtime.admin import AdminServer
from order_service.runtime.build_info import report_build
from order_service.runtime.garbage_collector import collect_less_often
from order_service.runtime.readiness import NotReady, ReadinessFault
from order_service.runtime.tracing import recording
from order_service.runtime.watchdog import Watchdog, silence_limit_s
from order_service.settings import Settings
from order_service.views.projector import Projection, follow
from order_service.views.share import Share, Unread
from order_service.views.stopped import BadRecord
from order_service.views.tables import database_of, open_database, prepare, translate_errors

log = structlog.get_logger()

LOG_EVERY_S: Final = 5.0
NAMED_MAX: Final = 10
"""The number of unread partitions that the log names."""
STOPPED: Final = Gauge(
    "orders_views_stopped",
    "1 for each partition that is stopped at a bad record.",
    ["topic", "partition"],
)
UNREAD: Final = Gauge(
    "orders_views_unread_partitions",
    "Partitions of the events and rejections that no running projector reads.",
)
BEHIND: Final = Gauge(
    "orders_views_lag_offsets",
    "Offsets of events and rejections, in the partitions of this projector, that are not in the views yet.",
)


class BuildProgress:
    """The distance of the views to the log, as of the start and as of now."""

    def __init__(self) -> None:
        self.is_starting = True
        self._left: int | None = None
        self._logged_at = 0.0
        self._lag: int | None = 0
        self._bad: dict[TopicPartition, BadRecord] = {}
        self._leaderless: frozenset[TopicPartition] = frozenset()
        self._unread = Unread()

    def report_left(self, left: int) -> None:
        """Record the number of offsets that are left of the log as of the start; log it every few seconds.

        Offsets of stopped partitions do not count.
        """
        is_built = left == 0
        self.is_starting = self.is_starting and not is_built
        if is_built and self._left != 0:
            log.info("The views are built.")
        elif not is_built and time.monotonic() - self._logged_at > LOG_EVERY_S:
            log.info("The views are being built.", offsets_left=left)
            self._logged_at = time.monotonic()
        self._left = left

    def report_lag(self, lag: int | None) -> None:
        """Record the number of offsets that the views are behind the log, or None if unknown; set the metric."""
        if lag is not None:
            BEHIND.set(lag)
        elif self._lag is not None:
            log.warning("Kafka does not answer: the views are not updated.")
        self._lag = lag

    def report_stopped(self, records: Mapping[TopicPartition, BadRecord]) -> None:
        """Record the stopped partitions, each with its bad record; log every change and set the metric."""
        for (topic, partition), record in records.items():
            if self._bad.get(TopicPartition(topic, partition)) != record:
                where = {"topic": topic, "partition": partition, "offset": record.offset}
                log.error("The views of a partition are stopped.", **where, reason=record.reason)
                STOPPED.labels(topic, str(partition)).set(1)
        for topic, partition in self._bad.keys() - records.keys():
            log.info("The views of a partition continue.", topic=topic, partition=partition)
            STOPPED.remove(topic, str(partition))
        self._bad = dict(records)

    def report_leaderless(self, partitions: Collection[TopicPartition]) -> None:
        """Record the partitions without a leader; log when a partition loses its leader and when it has one again."""
        now = frozenset(partitions)
        for topic, partition in sorted(now - self._leaderless):
            log.warning("A partition has no leader: its views are not updated.", topic=topic, partition=partition)
        for topic, partition in sorted(self._leaderless - now):
            log.info("A partition has a leader again.", topic=topic, partition=partition)
        self._leaderless = now

    def report_unread(self, unread: Unread) -> None:
        """Record the partitions that no projector reads, of all shares; log every change and set the metric."""
        if unread.partitions and unread != self._unread:
            names = [f"{topic}-{partition}" for topic, partition in unread.partitions[:NAMED_MAX]]
            log.error(
                "No projector reads these partitions: their views are not updated.",
                count=len(unread.partitions),
                first=names,
                missing_projector_indexes=list(unread.indexes),
            )
        elif self._unread.partitions and not unread.partitions:
            log.info("Projectors read all partitions again.")
        UNREAD.set(len(unread.partitions))
        self._unread = unread

    def faults(self) -> list[ReadinessFault]:
        """Return why the views should not be read yet, and which partitions are stopped, unread or without a leader."""
        stopped = [
            NotReady.VIEWS_STOPPED.fault(partition=partition, topic=topic, offset=record.offset, why=record.reason)
            for (topic, partition), record in self._bad.items()
        ]
        leaderless = [
            NotReady.VIEWS_LEADERLESS.fault(partition=partition, topic=topic)
            for topic, partition in sorted(self._leaderless)
        ]
        return self._faults() + stopped + leaderless + self._unread_faults()

    def _unread_faults(self) -> list[ReadinessFault]:
        if not self._unread.partitions:
            return []
        topic, partition = self._unread.partitions[0]
        indexes = ", ".join(map(str, self._unread.indexes))
        count = len(self._unread.partitions)
        return [NotReady.VIEWS_UNREAD.fault(count=count, partition=partition, topic=topic, indexes=indexes)]

    def _faults(self) -> list[ReadinessFault]:
        match self._left:
            case None:
                return [NotReady.VIEWS_OPENED.fault()]
            case 0:
                return [] if self._lag is not None else [NotReady.VIEWS_WAIT_FOR_KAFKA.fault()]
            case left:
                return [NotReady.VIEWS_BUILT_BY_THIS_PROCESS.fault(offsets=f"{left:,}")]


def share_of(settings: Settings, url: URL) -> Share:
    """Return the share of this projector. Raises SetupError for several projectors on SQLite, or without an index.

    SQLite has one writer at a time: the orders of one projector would wait for those of another one.
    """
    if settings.projectors == 1:
        return Share()
    if url.get_backend_name() != "postgresql":
        raise SetupError(
            f"ORDERS_PROJECTORS is {settings.projectors}, but the views are in SQLite, which has one writer at a time: "
            "set it to 1, or use PostgreSQL"
        )
    if settings.projector_index is None:
        raise SetupError(
            f"ORDERS_PROJECTORS is {settings.projectors}: set ORDERS_PROJECTOR_INDEX to a number from 0 to "
            f"{settings.projectors - 1}, another one for each projector"
        )
    return Share(settings.projector_index, settings.projectors)


async def run(settings: Settings) -> NoReturn:
    """Run the projector until cancelled.

    Raises DatabaseError if the database cannot be used, and everything that `follow` raises.
    """
    collect_less_often()
    report_build("projector")
    progress = BuildProgress()
    url = database_of(settings)
    share = share_of(settings, url)
    engine = open_database(url, settings.database_schema, writes=True)
    projection = Projection(engine, topic_names(settings.topic_prefix))
    waiting = NotReady.WAITS_FOR_KAFKA.fault(servers=connection(settings)["bootstrap_servers"])
    watchdog = Watchdog(silence_limit_s(settings.session_timeout_s))
    watchdog.start()
    starting = AdminServer(
        settings.admin_address, settings.admin_port, lambda: projection.database.faults() or [waiting]
    )
    try:
        with starting as serving, recording(settings, "projector") as spans, translate_errors():
            with projection.database.query():
                await asyncio.to_thread(prepare, engine, settings.database_schema)
            await ask_admin(settings, Admin.describe_cluster)
            serving.is_starting = lambda: progress.is_starting
            serving.faults = lambda: projection.database.faults() + progress.faults()
            async with Reader(settings) as reader:
                await follow(reader, projection, progress, share, spans)
    finally:
        engine.dispose()
        watchdog.stop()
