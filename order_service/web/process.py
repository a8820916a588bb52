"""The HTTP server process: its database, its Kafka producer, its port for callers and its admin port."""

import asyncio
import signal
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from typing import Any, Final, NoReturn

import structlog
from aiohttp import web
from sqlalchemy.exc import SQLAlchemyError

from order_service.errors import cannot_listen
from order_service.kafka.command_producer import CommandsTopic
from order_service.kafka.registry_client import adopt_when_available
from order_service.kafka.topics import topic_names
from order_service.runtime.admin import AdminServer
from order_service.runtime.build_info import report_build
from order_service.runtime.garbage_collector import freeze_objects
from order_service.runtime.readiness import NotReady, ReadinessFault
from order_service.runtime.signals import force_exit_after
from order_service.runtime.tracing import recording
from order_service.runtime.watchdog import Watchdog, silence_limit_s
from order_service.settings import Settings
from order_service.views.database_watch import DatabaseWatch
from order_service.views.queries import Views
from order_service.views.tables import database_of, describe, open_database
from order_service.web.access.auth import Everybody, Tokens, authentication
from order_service.web.access.rate_limit import Limits
from order_service.web.api.id_searches import IdSearches
from order_service.web.api.routes import Api
from order_service.web.http.connections import connections_possible, listen
from order_service.web.http.problems import Problem, Trouble
from order_service.web.live.command_results import CommandResults
from order_service.web.live.log_ends import LogEnds, ends_of_events
from order_service.web.live.overview_watch import OverviewWatch
from order_service.web.live.sse import Live
from order_service.web.live.subscriptions import Streams
from order_service.web.live.view_poller import ViewPoller
from order_service.web.server import Server, Site

log = structlog.get_logger()

CHECK_INTERVAL_S: Final = 1.0
END_WITHIN_S: Final = 5.0
ENDED_WITHIN_S: Final = 25.0
"""How long after the first signal the process ends, even if something hangs; supervisors must not kill it earlier."""


class Readiness:
    """Whether the views can be read, as of the last check."""

    def __init__(self, views: Views, clock: Callable[[], float] = time.monotonic) -> None:
        self._views = views
        self._database = DatabaseWatch(clock)
        self._faults = [NotReady.VIEWS_OPENED.fault()]
        self._database_faults: list[ReadinessFault] = []
        self._thread = ThreadPoolExecutor(1, "readiness")  # its own: it must report when callers' queries hang

    def faults(self) -> list[ReadinessFault]:
        """Return why the views cannot be read, or an empty list."""
        return self._unavailable() or self._faults

    def problem(self) -> Problem | None:
        """Return the problem for requests that come while the views cannot be read, or None."""
        if faults := self._database.faults():
            return _problem(Trouble.SERVICE_UNAVAILABLE, faults[0])
        if self._database_faults:  # what the server said is not for callers
            return _problem(Trouble.SERVICE_UNAVAILABLE, "the database is unavailable")
        return _problem(Trouble.VIEWS_NOT_READY, self._faults[0]) if self._faults else None

    async def check(self) -> None:
        """Check the views in the database."""
        try:
            with self._database.query():
                self._faults = await asyncio.get_running_loop().run_in_executor(self._thread, self._views.faults)
        except SQLAlchemyError as error:
            self._report([NotReady.DATABASE_AWAY.fault(error=describe(error))])
        else:
            self._report([])

    def _report(self, faults: list[ReadinessFault]) -> None:
        if faults and faults != self._database_faults:
            log.warning("Database cannot be used.", why=faults[0])
        elif not faults and self._database_faults:
            log.info("Database can be used again.")
        self._database_faults = faults

    async def run(self) -> NoReturn:
        """Check regularly until cancelled."""
        while True:
            await self.check()
            await asyncio.sleep(CHECK_INTERVAL_S)

    def _unavailable(self) -> list[ReadinessFault]:
        return self._database.faults() or self._database_faults


def _problem(kind: Trouble, text: str) -> Problem:
    return Problem(kind, f"{text[:1].upper()}{text[1:]}.", headers={"Retry-After": "5"})


def _key_faults(authenticator: Everybody | Tokens) -> list[ReadinessFault]:
    """Return a fault while no token can be verified: every request would be refused."""
    why = authenticator.fault()
    return [] if why is None else [NotReady.KEYS_AWAY.fault(why=why)]


async def run(settings: Settings) -> None:
    """Serve until SIGTERM or Ctrl-C. Raises PortTakenError, DatabaseError, SetupError."""
    report_build("web")
    names = topic_names(settings.topic_prefix)
    engine = open_database(database_of(settings), settings.database_schema)
    views = Views(engine, names)
    poller, readiness = ViewPoller(views), Readiness(views)
    topic, streams = CommandsTopic(settings), Streams(poller)
    log_ends = LogEnds(ends_of_events(settings))
    live = Live(views, poller, streams, names.events, settings.web_streams_max, log_ends)
    watchdog = Watchdog(silence_limit_s(settings.session_timeout_s))
    async with AsyncExitStack() as undo:
        watchdog.start()
        undo.callback(watchdog.stop)
        undo.callback(engine.dispose)
        spans = undo.enter_context(recording(settings, "web"))
        outcomes = CommandResults(views, poller, topic, settings.web_waiting_max, spans)
        starting = [NotReady.NOT_LISTENING.fault()]
        admin = AdminServer(settings.admin_address, settings.admin_port, lambda: [*readiness.faults(), *starting])
        undo.enter_context(admin)
        undo.push_async_callback(topic.stop)
        authenticator = authentication(settings)
        await undo.enter_async_context(authenticator)
        await readiness.check()
        overview = OverviewWatch(settings)
        api = Api(views, poller, outcomes, streams, live, IdSearches(settings), overview, settings.http_base_path)
        limits = Limits(settings.web_rate_per_s)
        site = Site.of(settings)
        server = Server(api, authenticator, limits, readiness.problem, names, settings.partitions, site, spans)
        # A caller that hangs up ends its request; its command is still sent, by a separate task.
        runner = web.AppRunner(server.application(), handler_cancellation=True, shutdown_timeout=END_WITHIN_S)
        await runner.setup()
        undo.push_async_callback(runner.cleanup)
        undo.callback(live.stop)
        undo.push_async_callback(outcomes.stop)  # waiting requests get 202: their command is in Kafka
        freeze_objects()
        listening = await _listen(runner, settings)
        admin.faults = lambda: [*readiness.faults(), *_key_faults(authenticator)]
        admin.is_starting = lambda: False
        log.info("Serving HTTP.", host=settings.host, port=listening.sockets[0].getsockname()[1])
        undo.callback(listening.close)  # first, so that new callers find another process
        adopting = adopt_when_available(settings, names.of, _go_on_without)
        await _run_until_signalled(poller.run(), readiness.run(), overview.run(), adopting)


def _go_on_without(why: str) -> None:
    log.warning("Commands use the schema ids of schemas/ until the schema registry responds.", why=why)


async def _run_until_signalled(*works: Coroutine[Any, Any, None]) -> None:
    signalled = asyncio.Event()

    def on_signal() -> None:
        if not signalled.is_set():
            force_exit_after(ENDED_WITHIN_S)
            signalled.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, on_signal)
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(work) for work in works]
        await signalled.wait()
        for task in tasks:
            task.cancel()


async def _listen(runner: web.AppRunner, settings: Settings) -> asyncio.Server:
    connections_max = connections_possible(settings.web_connections_max)
    if connections_max < settings.web_connections_max:
        log.warning(
            "Connections are limited below ORDERS_WEB_CONNECTIONS_MAX: the limit of open files is too low.",
            connections_max=connections_max,
        )
    try:
        return await listen(
            runner,
            settings.host,
            settings.http_port,
            connections_max,
            keep_alive_s=settings.http_keep_alive_s,
            base_path=settings.http_base_path,
        )
    except OSError as error:
        raise cannot_listen(settings.host, settings.http_port, "ORDERS_HTTP_PORT", error) from error
