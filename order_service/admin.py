"""The admin port: is the process alive, is it ready, and what does it measure."""

from collections.abc import Callable

from aiohttp import web
from prometheus_client import generate_latest

from order_service.errors import PortTakenError


class AdminServer:
    """Serves `/health/live`, `/health/ready` and `/metrics`; `faults` tells why the process is not ready."""

    def __init__(self, host: str, port: int, faults: Callable[[], list[str]]) -> None:
        self._host = host
        self._port = port
        self._faults = faults
        app = web.Application()
        app.add_routes(
            [
                web.get("/health/live", self._live),
                web.get("/health/ready", self._ready),
                web.get("/metrics", self._metrics),
            ]
        )
        self._runner = web.AppRunner(app, keepalive_timeout=5, access_log=None)

    async def start(self) -> None:
        """Listen; PortTakenError names the setting where another process has the port."""
        await self._runner.setup()
        try:
            await web.TCPSite(self._runner, self._host, self._port).start()
        except OSError as error:
            raise PortTakenError(f"port {self._port} is taken: set ORDERS_ADMIN_PORT to another") from error

    async def stop(self) -> None:
        """Stop listening."""
        await self._runner.cleanup()

    async def _live(self, _request: web.Request) -> web.Response:
        return web.json_response({"live": True})

    async def _ready(self, _request: web.Request) -> web.Response:
        faults = self._faults()
        return web.json_response({"ready": not faults, "faults": faults}, status=503 if faults else 200)

    async def _metrics(self, _request: web.Request) -> web.Response:
        return web.Response(
            body=generate_latest(), headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"}
        )
