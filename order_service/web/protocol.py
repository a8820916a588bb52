"""The connections of callers: how many there are, how long each may take, and what they hear who speak no HTTP.

Slow callers hold a connection and nothing else, and each of these bounds ends one: 5 s for the head of a request,
15 s for its body (`requests.BODY_WITHIN_S`), 2 s for a body that nobody reads, 20 s in which an answer is not taken.
"""

import asyncio
import resource
from typing import Any, Final

import structlog
from aiohttp import web

from order_service.web.problems import Problem, Trouble
from order_service.web.server import harden

log = structlog.get_logger()

HEAD_WITHIN_S: Final = 5.0
"""How long a connection may have no request. aiohttp counts from its start, and from each answer, to the end of the
next head, however slowly that comes: half a head is no request. A test holds it to that."""
TAKEN_WITHIN_S: Final = 20.0
TAKEN_MIN: Final = 64 * 1024
"""How much of an answer a caller must take in that time, if not all."""
LINGER_S: Final = 2.0
"""How long we throw away the rest of a body that we refuse, so that its sender reads why and not of a broken pipe."""
HEADERS_MAX: Final = 64
"""How many fields a head may have, each of at most 8 KiB (as aiohttp has it): room for proxies and a token."""
BACKLOG: Final = 1024
"""How many callers may come at once: one who finds no room here tries again after a second."""
FILES_BESIDE: Final = 128
"""Open files that are no connections of callers: the database, Kafka, the admin port, the log."""


class Connection(web.RequestHandler):
    """A connection as aiohttp serves it, but it repeats and logs nothing of what came, and ends if nobody reads."""

    _look: asyncio.TimerHandle

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin; from the first byte that waits for the caller, we want to know."""
        super().connection_made(transport)
        assert self.transport is not None
        self.transport.set_write_buffer_limits(0)

    def pause_writing(self) -> None:
        """Watch how the caller takes what waits for it: closing, too, would wait for that, and for ever."""
        super().pause_writing()
        assert self.transport is not None
        self._watch(self.transport)

    def resume_writing(self) -> None:
        """Watch no longer: it has taken all."""
        super().resume_writing()
        self._look.cancel()

    def _watch(self, transport: asyncio.Transport) -> None:
        waiting = transport.get_write_buffer_size()
        self._look = asyncio.get_running_loop().call_later(TAKEN_WITHIN_S, self._end_if_stuck, transport, waiting)

    def _end_if_stuck(self, transport: asyncio.Transport, before: int) -> None:
        if before - transport.get_write_buffer_size() < TAKEN_MIN:
            transport.abort()
        else:
            self._watch(transport)

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """Send an answer. One that aiohttp made beside our middleware (417) repeats a header of the request."""
        answer = Problem(Trouble.BAD_REQUEST).response() if isinstance(resp, web.HTTPException) else resp
        if answer.headers.get("Connection") == "close":
            answer.force_close()  # the header alone closes nothing
        return await super().finish_response(request, answer, start_time)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,  # noqa: ARG002, it quotes the request
    ) -> web.StreamResponse:
        """Answer to what is no HTTP. An answer that has begun already can only end."""
        if request.writer.output_size > 0:
            raise ConnectionResetError
        self.log_exception(exc_info=exc)
        answer = Problem(Trouble.BAD_REQUEST if status == 400 else Trouble.INTERNAL).response()
        harden(answer)
        answer.headers["Server"] = "orders"  # without it aiohttp names itself, its version and Python's
        answer.force_close()
        return answer

    def log_exception(self, *_: Any, exc_info: BaseException | None = None, **__: Any) -> None:
        """Say what kind of error ends this connection; its traceback would quote the request."""
        log.info("A connection is closed: what came over it cannot be read.", error=type(exc_info).__name__)


class Refused(asyncio.Protocol):
    """A connection too many."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Close it at once: its caller may find another process, and need not wait for us."""
        transport.close()


async def listen(runner: web.AppRunner, host: str, port: int, connections_max: int) -> asyncio.Server:
    """Take connections for a runner that is set up, at most `connections_max` at a time. Raises OSError."""
    server, loop = runner.server, asyncio.get_running_loop()
    assert server is not None

    def connection() -> asyncio.Protocol:
        if len(server.connections) >= connections_max:
            return Refused()
        return Connection(
            server,
            loop=loop,
            keepalive_timeout=HEAD_WITHIN_S,
            lingering_time=LINGER_S,
            max_headers=HEADERS_MAX,
            auto_decompress=False,  # what is small here can be huge there; `requests.read_body` refuses it
        )

    return await loop.create_server(connection, host, port, backlog=BACKLOG)


def connections_possible(wanted: int) -> int:
    """Raise the limit of open files as far as this process may, and say how many connections it leaves room for."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    possible = wanted + FILES_BESIDE
    if soft != resource.RLIM_INFINITY and soft < possible:
        soft = possible if hard == resource.RLIM_INFINITY else min(possible, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        possible = soft
    return possible - FILES_BESIDE
