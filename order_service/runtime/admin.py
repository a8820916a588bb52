"""The admin port: liveness, readiness and metrics of the process.

It has its own thread and event loop, so it answers before Kafka is up, and while the process is busy or ends.
"""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from threading import Thread
from typing import Final, Self

import msgspec
from aiohttp import web
from msgspec import Struct
from prometheus_client import REGISTRY
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from order_service.errors import cannot_listen
from order_service.runtime.readiness import ReadinessFault

STOP_WITHIN_S: Final = 5.0


class AdminServer:
    """Serves `/health/live`, `/health/ready` and `/metrics`, and a worker's `/lanes`; used with `with`.

    `faults` returns why the process is not ready. `is_starting` returns whether it has not begun its work yet: a
    process may work and have faults. `lanes` returns the state of each lane, and only workers have it. All of them may
    be replaced at any time, and are called from another thread. With a `socket_path`, it listens there and not on
    the port.
    """

    def __init__(
        self, host: str, port: int, faults: Callable[[], list[ReadinessFault]], *, socket_path: Path | None = None
    ) -> None:
        self.faults = faults
        self.is_starting: Callable[[], bool] = lambda: True
        self.lanes: Callable[[], Sequence[Struct]] | None = None
        self._host = host
        self._port = port
        self._socket_path = socket_path
        self._loop = asyncio.new_event_loop()
        self._stop_requested = asyncio.Event()
        self._thread = Thread(target=self._run, name="admin", daemon=True)
        self._listening: Future[None] = Future()

    def __enter__(self) -> Self:
        """Start to listen. Raises PortTakenError, with the reason and the setting, if that fails."""
        self._thread.start()
        self._listening.result()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop listening, and wait up to `STOP_WITHIN_S` for the thread."""
        self._loop.call_soon_threadsafe(self._stop_requested.set)
        self._thread.join(STOP_WITHIN_S)

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        app = web.Application()
        app.add_routes(
            [
                web.get("/health/live", self._live),
                web.get("/health/ready", self._ready),
                web.get("/metrics", self._metrics),
                web.get("/lanes", self._lanes),
            ]
        )
        runner = web.AppRunner(app, keepalive_timeout=5, access_log=None)
        try:
            await self._listen(runner)
        except Exception as error:  # noqa: BLE001, `__enter__` raises it in the thread that waits
            self._listening.set_exception(error)
        else:
            self._listening.set_result(None)
            await self._stop_requested.wait()
        finally:
            await runner.cleanup()

    async def _listen(self, runner: web.AppRunner) -> None:
        await runner.setup()
        if self._socket_path is not None:
            await web.UnixSite(runner, self._socket_path).start()
            return
        try:
            await web.TCPSite(runner, self._host, self._port).start()
        except OSError as error:
            raise cannot_listen(self._host, self._port, "ORDERS_ADMIN_PORT", error) from error

    async def _live(self, _request: web.Request) -> web.Response:
        return web.json_response({"live": True})

    async def _ready(self, _request: web.Request) -> web.Response:
        faults = self.faults()
        return self._readiness(faults, is_starting=bool(faults) and self.is_starting())

    def _readiness(self, faults: list[ReadinessFault], *, is_starting: bool) -> web.Response:
        body = {"ready": not faults, "starting": is_starting, "faults": faults}
        return web.json_response(body, status=503 if faults else 200)

    async def _lanes(self, _request: web.Request) -> web.Response:
        if self.lanes is None:
            raise web.HTTPNotFound
        return web.Response(body=msgspec.json.encode({"lanes": self.lanes()}), content_type="application/json")

    async def _metrics(self, request: web.Request) -> web.Response:
        body, content_type = encoded_metrics(request.headers.get("Accept", ""), REGISTRY)
        return web.Response(body=body, headers={"Content-Type": content_type})


def encoded_metrics(accept: str, metrics: Collector) -> tuple[bytes, str]:
    """Return metrics in the format that `accept` asks for, and its content type: OpenMetrics, or else plain text.

    Only OpenMetrics has exemplars.
    """
    encode, content_type = choose_encoder(accept)
    return encode(metrics), content_type
