"""An HTTP server in a thread, with empty views and a Kafka that is never asked: for all tests that need no order."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from aiohttp import web

from order_service.kafka.command_producer import CommandsTopic
from order_service.kafka.topics import topic_names
from order_service.local.broker import free_port
from order_service.settings import Settings
from order_service.views.queries import Views
from order_service.views.tables import database_of, open_database, prepare
from order_service.web.access.auth import Everybody
from order_service.web.access.rate_limit import Limits
from order_service.web.api.id_searches import IdSearches
from order_service.web.api.routes import Api
from order_service.web.http.problems import Problem
from order_service.web.live.command_results import CommandResults
from order_service.web.live.log_ends import LogEnds, ends_of_events
from order_service.web.live.overview_watch import OverviewWatch
from order_service.web.live.sse import Live
from order_service.web.live.subscriptions import Streams
from order_service.web.live.view_poller import ViewPoller
from order_service.web.server import Server, Site


@contextmanager
def server_alone(directory: Path) -> Iterator[int]:
    """Serve on a free port of loopback, and give it."""
    port, loop = free_port(), asyncio.new_event_loop()
    started, ended = threading.Event(), asyncio.Event()

    async def serve() -> None:
        with application_alone(directory) as application:
            runner = web.AppRunner(application)
            await runner.setup()
            await web.TCPSite(runner, "127.0.0.1", port).start()
            started.set()
            await ended.wait()
            await runner.cleanup()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),), daemon=True)
    thread.start()
    try:
        assert started.wait(30), "the server starts"
        yield port
    finally:
        loop.call_soon_threadsafe(ended.set)
        thread.join(30)
        loop.close()


@contextmanager
def application_alone(
    directory: Path, settings: Settings | None = None, not_ready: Callable[[], Problem | None] = lambda: None
) -> Iterator[web.Application]:
    """Make the application as the process does, with SQLite in this directory; this needs a running loop."""
    settings, names = (settings or Settings()).model_copy(update={"data_dir": directory}), topic_names()
    engine = open_database(database_of(settings), writes=True)
    try:
        prepare(engine)
        views = Views(engine, names)
        poller = ViewPoller(views)
        streams = Streams(poller)
        outcomes = CommandResults(views, poller, CommandsTopic(settings), waiting_max=10)
        live = Live(views, poller, streams, names.events, 10, LogEnds(ends_of_events(settings)))
        overview = OverviewWatch(settings)
        api = Api(views, poller, outcomes, streams, live, IdSearches(settings), overview, settings.http_base_path)
        site = Site.of(settings)
        yield Server(api, Everybody(), Limits(50), not_ready, names, partitions=4, site=site).application()
    finally:
        engine.dispose()
