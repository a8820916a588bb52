"""The HTTP server as a process: its database, its Kafka, its port for callers and its port for those who run it."""

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
from order_service.runtime.garbage_collector import freeze_objects
from order_service.runtime.signals import force_exit_after
from order_service.runtime.watchdog import Watchdog, silence_limit_s
from order_service.settings import Settings
from order_service.views.database_watch import DatabaseWatch
from order_service.views.queries import Views
from order_service.views.tables import database_of, open_database
from order_service.web.access.auth import authentication
from order_service.web.access.rate_limit import Limits
from order_service.web.api.routes import Api
from order_service.web.http.connections import connections_possible, listen
from order_service.web.live.command_results import CommandResults
from order_service.web.live.sse import Live
from order_service.web.live.subscriptions import Streams
from order_service.web.live.view_poller import ViewPoller
from order_service.web.server import Server

log = structlog.get_logger()

LOOK_EVERY_S: Final = 1.0
END_WITHIN_S: Final = 5.0
ENDED_WITHIN_S: Final = 25.0
"""So long after it is told to end a server is gone, whatever hangs; what starts it should not kill it before."""


class Readiness:
    """Whether there is something to read, as it was when we looked last."""

    def __init__(self, views: Views, clock: Callable[[], float] = time.monotonic) -> None:
        self._views = views
        self._database = DatabaseWatch(clock)
        self._faults = ["the views are being opened"]
        self._thread = ThreadPoolExecutor(1, "readiness")  # its own: it also tells where callers' questions hang

    def faults(self) -> list[str]:
        """Say why nothing can be read yet."""
        return self._database.faults() or self._faults

    async def look(self) -> None:
        """Look into the database."""
        try:
            with self._database.question():
                self._faults = await asyncio.get_running_loop().run_in_executor(self._thread, self._views.faults)
        except SQLAlchemyError as error:
            self._faults = [f"the database does not serve us: {type(error).__name__}"]

    async def run(self) -> NoReturn:
        """Look again and again."""
        while True:
            await self.look()
            await asyncio.sleep(LOOK_EVERY_S)


async def run(settings: Settings) -> None:
    """Serve until SIGTERM or Ctrl-C. Raises PortTakenError, DatabaseError, SetupError."""
    names = topic_names(settings.topic_prefix)
    engine = open_database(database_of(settings))
    views = Views(engine, names)
    pulse, readiness = ViewPoller(views), Readiness(views)
    topic, streams = CommandsTopic(settings), Streams(pulse)
    outcomes = CommandResults(views, pulse, topic, settings.web_waiting_max)
    live = Live(views, pulse, streams, names.events, settings.web_streams_max)
    watchdog = Watchdog(silence_limit_s(settings.session_timeout_s))
    async with AsyncExitStack() as undo:
        watchdog.start()
        undo.callback(watchdog.stop)
        undo.callback(engine.dispose)
        starting = ["the HTTP server does not listen yet"]
        serving = AdminServer(settings.host, settings.admin_port, lambda: [*readiness.faults(), *starting])
        undo.enter_context(serving)
        undo.push_async_callback(topic.stop)
        keys = authentication(settings)
        await undo.enter_async_context(keys)
        await readiness.look()
        api = Api(views, pulse, outcomes, streams, live)
        server = Server(api, keys, Limits(settings.web_rate_per_s), readiness.faults, names, settings.partitions)
        # Whoever hangs up waits no longer; its command is on its way, for that is a task of its own.
        runner = web.AppRunner(server.application(), handler_cancellation=True, shutdown_timeout=END_WITHIN_S)
        await runner.setup()
        undo.push_async_callback(runner.cleanup)
        undo.callback(live.stop)
        undo.push_async_callback(outcomes.stop)  # whoever waits is told that its command is in Kafka
        freeze_objects()
        listening = await _listen(runner, settings)
        serving.faults, serving.is_starting = readiness.faults, lambda: False
        undo.callback(listening.close)  # first: whoever comes now finds another process
        await _look_until_told_to_end(pulse, readiness, adopt_when_available(settings, names.of, _go_on_without))


def _go_on_without(why: str) -> None:
    log.warning("Commands have the ids of schemas/ until the schema registry gives its own.", why=why)


async def _look_until_told_to_end(pulse: ViewPoller, readiness: Readiness, adopting: Coroutine[Any, Any, None]) -> None:
    told = asyncio.Event()

    def tell() -> None:
        if not told.is_set():
            force_exit_after(ENDED_WITHIN_S)
            told.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, tell)
    async with asyncio.TaskGroup() as tasks:
        looking = [tasks.create_task(each) for each in (pulse.run(), readiness.run(), adopting)]
        await told.wait()
        for task in looking:
            task.cancel()


async def _listen(runner: web.AppRunner, settings: Settings) -> asyncio.Server:
    connections_max = connections_possible(settings.web_connections_max)
    if connections_max < settings.web_connections_max:
        log.warning(
            "Fewer connections are taken than ORDERS_WEB_CONNECTIONS_MAX says: too few files may be open.",
            connections_max=connections_max,
        )
    try:
        return await listen(runner, settings.host, settings.http_port, connections_max)
    except OSError as error:
        raise cannot_listen(settings.host, settings.http_port, "ORDERS_HTTP_PORT", error) from error
