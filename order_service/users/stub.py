"""A User Service for tests and the embedded run. Its answers depend on the id, and on a mode for all ids.

`GET /v1/users/{id}`: any id is an active user, except `unknown…` (404), `inactive…`, `slow-<ms>-…` (answers after that
time), `flaky…` (503 every other time) and `status-<code>-…` (answers with that status). `PUT /mode {"mode": "hang"}`
makes it fail for all ids until the next mode.
"""

from __future__ import annotations

import asyncio
import re
import socket
import struct
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from enum import StrEnum

import msgspec
from aiohttp import web

SLOW = re.compile(r"slow-(\d{1,6})(?:-|$)")
STATUS = re.compile(r"status-([2-5]\d\d)(?:-|$)")
USERS_MAX = 100_000
HUGE = 64 * 1024 * 1024
RESET = struct.pack("ii", 1, 0)  # SO_LINGER with 0 s: closing sends RST


class Mode(StrEnum):
    """The response of the stub to every lookup."""

    OK = "ok"
    HANG = "hang"  # accepts and never answers
    RESET = "reset"  # breaks the connection
    ERROR = "500"
    TOO_MANY = "429"  # with Retry-After
    UNAUTHORIZED = "401"
    FORBIDDEN = "403"
    REDIRECT = "redirect"
    GARBAGE = "garbage"  # 200 and a page of HTML
    HUGE = "huge"  # 200 and 64 MiB of JSON
    DRIP = "drip"  # 200 and one byte of a right answer every 0.2 s


class ModeBody(msgspec.Struct, forbid_unknown_fields=True):
    """The JSON body of `PUT /mode`."""

    mode: Mode
    retry_after_s: int = 1


class Stub:
    """The state of the stub: its mode, and the number of requests for each user."""

    def __init__(self, *, latency_ms: int = 0) -> None:
        self.latency_ms = latency_ms
        self.mode = Mode.OK
        self.retry_after_s = 1
        self.requests: OrderedDict[str, int] = OrderedDict()

    def app(self) -> web.Application:
        """Return the web application that serves this stub."""
        app = web.Application()
        app.router.add_get("/v1/users/{id:[^/]+}", self._get_user)
        app.router.add_get("/mode", self._get_mode)
        app.router.add_put("/mode", self._put_mode)
        return app

    async def _get_mode(self, _: web.Request) -> web.Response:
        return web.json_response({"mode": self.mode, "retry_after_s": self.retry_after_s})

    async def _put_mode(self, request: web.Request) -> web.Response:
        try:
            body = msgspec.json.decode(await request.read(), type=ModeBody)
        except msgspec.DecodeError as error:
            raise web.HTTPUnprocessableEntity(text=f"{error}; modes: {', '.join(Mode)}\n") from error
        self.mode, self.retry_after_s = body.mode, body.retry_after_s
        return await self._get_mode(request)

    async def _get_user(self, request: web.Request) -> web.StreamResponse:
        user_id = request.match_info["id"]
        count = self._count(user_id)
        slow = SLOW.match(user_id)
        await asyncio.sleep((self.latency_ms + (int(slow[1]) if slow else 0)) / 1000)
        if self.mode in FAULTS:
            return await FAULTS[self.mode](self, request)
        if self.mode is not Mode.OK:  # a status
            return web.Response(status=int(self.mode))
        if user_id.startswith("unknown"):
            return web.json_response({"error": "no such user"}, status=404)
        if user_id.startswith("flaky") and count % 2:
            return web.Response(status=503)
        status = STATUS.match(user_id)
        return web.Response(status=int(status[1])) if status else web.json_response(user(user_id))

    def _count(self, user_id: str) -> int:
        count = self.requests.get(user_id, 0) + 1
        self.requests[user_id] = count
        if len(self.requests) > USERS_MAX:
            self.requests.popitem(last=False)
        return count


def user(user_id: str) -> dict[str, str]:
    """Return the JSON object of a user."""
    return {"id": user_id, "status": "inactive" if user_id.startswith("inactive") else "active"}


async def _hang(_: Stub, __: web.Request) -> web.StreamResponse:
    await asyncio.Event().wait()  # until the client goes away, or the server stops
    raise AssertionError("the event is never set")


async def _reset(_: Stub, request: web.Request) -> web.StreamResponse:
    if request.transport is not None:
        request.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        request.transport.abort()
    return web.Response()


async def _too_many(stub: Stub, _: web.Request) -> web.StreamResponse:
    return web.Response(status=429, headers={"Retry-After": str(stub.retry_after_s)})


async def _redirect(_: Stub, __: web.Request) -> web.StreamResponse:
    return web.Response(status=302, headers={"Location": "/v1/users/elsewhere"})


async def _garbage(_: Stub, __: web.Request) -> web.StreamResponse:
    return web.Response(text="<html>Back in five minutes</html>", content_type="text/html")


async def _huge(_: Stub, request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "application/json", "Content-Length": str(HUGE)})
    await response.prepare(request)
    for _chunk in range(HUGE // 65536):
        await response.write(b" " * 65536)
    return response


async def _drip(_: Stub, request: web.Request) -> web.StreamResponse:
    body = msgspec.json.encode(user(request.match_info["id"]))
    response = web.StreamResponse(headers={"Content-Type": "application/json", "Content-Length": str(len(body))})
    await response.prepare(request)
    for byte in body:
        await response.write(bytes((byte,)))
        await asyncio.sleep(0.2)
    return response


FAULTS: dict[Mode, Callable[[Stub, web.Request], Awaitable[web.StreamResponse]]] = {
    Mode.HANG: _hang,
    Mode.RESET: _reset,
    Mode.TOO_MANY: _too_many,
    Mode.REDIRECT: _redirect,
    Mode.GARBAGE: _garbage,
    Mode.HUGE: _huge,
    Mode.DRIP: _drip,
}


@asynccontextmanager
async def running(stub: Stub, host: str = "127.0.0.1", port: int = 0) -> AsyncIterator[str]:
    """Serve `stub` and yield its URL. Port 0 takes a free port. Leaving does not wait for lookups that hang."""
    runner = web.AppRunner(stub.app(), access_log=None, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port).start()
        bound_host, bound_port = runner.addresses[0][:2]
        yield f"http://[{bound_host}]:{bound_port}" if ":" in bound_host else f"http://{bound_host}:{bound_port}"
    finally:
        await runner.cleanup()


async def serve_stub(host: str, port: int, *, latency_ms: int = 0, ready: Callable[[str], None] | None = None) -> None:
    """Serve a stub until cancelled. `ready` is called with its URL once it accepts connections."""
    async with running(Stub(latency_ms=latency_ms), host, port) as url:
        if ready is not None:
            ready(url)
        await asyncio.Event().wait()
