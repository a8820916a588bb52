"""The connections of callers: how many there are, how long each may take, and what they hear who speak no HTTP.

Slow callers hold a connection and little else, and each of these bounds ends one: 5 s for the head of a request,
15 s for its body (`requests.BODY_WITHIN_S`), 2 s for a body that nobody reads, 20 s in which an answer is not taken,
30 s for all of an answer that is no stream. While a request is served, no more than 64 KiB may wait behind it.
"""

import asyncio
import resource
from itertools import islice
from typing import Any, Final

import structlog
from aiohttp import EMPTY_PAYLOAD, web
from aiohttp.http import RawRequestMessage

from order_service.web.http.problems import Problem, Trouble
from order_service.web.server import harden

log = structlog.get_logger()

HEAD_WITHIN_S: Final = 5.0
"""How long a connection may have no request. aiohttp counts from its start, and from each answer, to the end of the
next head, however slowly that comes: half a head is no request. A test holds it to that."""
TAKEN_WITHIN_S: Final = 20.0
TAKEN_MIN: Final = 64 * 1024
"""How much of an answer a caller must take in that time, if not all."""
ANSWERED_WITHIN_S: Final = 30.0
"""How long an answer may take that is no stream, a page with its files above all: no token is asked for there."""
LINGER_S: Final = 2.0
"""How long we throw away the rest of a body that we refuse, so that its sender reads why and not of a broken pipe."""
HEADERS_MAX: Final = 64
"""How many fields a head may have, each of at most 8 KiB (as aiohttp has it): room for proxies and a token."""
UNSERVED_MAX: Final = 64 * 1024
"""How big a head may be, and how much may wait behind a request that is served, bodies too. aiohttp would keep 32 heads
of half a MiB each. Whoever waits for an answer before asking on has nothing there; a few small requests find room."""
FIELD_BYTES: Final = 256
"""About what a field of a head takes in memory beside its own bytes."""
PIECE_BYTES: Final = 8 * 1024
"""How much we take at a time, and by how much that bound can be missed; asyncio hands over up to 256 KiB at once."""
UNREAD_MAX: Final = 16 * 1024
"""How much of a body may wait to be read before no more is taken; aiohttp allows twice as much."""
BACKLOG: Final = 1024
"""How many callers may come at once: one who finds no room here tries again after a second."""
FILES_BESIDE: Final = 128
"""Open files that are no connections of callers: the database, Kafka, the admin port, the log."""


class Connection(web.RequestHandler):
    """A connection as aiohttp serves it, but it repeats and logs nothing of what came, and ends if nobody reads."""

    _look: asyncio.TimerHandle
    _body = EMPTY_PAYLOAD
    """The body of the newest request."""
    _head_bytes = 0
    """What came since that request's head and is not of its body."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin; from the first byte that waits for the caller, we want to know."""
        super().connection_made(transport)
        assert self.transport is not None
        self.transport.set_write_buffer_limits(0)

    def data_received(self, data: bytes) -> None:
        """Take what came. The connection ends where that gets too much, and nothing is read behind what is no HTTP."""
        for start in range(0, max(1, len(data)), PIECE_BYTES):
            if self._messages and not isinstance(self._messages[-1][0], RawRequestMessage):
                break
            self._take(data[start : start + PIECE_BYTES])
            if self.transport is not None and self._head_bytes + self._waiting_bytes() > UNSERVED_MAX:
                log.info("A connection is closed: it sends more than is served.")
                self.transport.abort()  # closing would wait until what was answered so far is taken
                self.force_close()

    def _take(self, piece: bytes) -> None:
        count, read = len(self._messages), self._body.total_bytes
        super().data_received(piece)
        if len(self._messages) > count:
            self._body, self._head_bytes = self._messages[-1][1], 0
        elif not self._reading_paused:  # else it waits to become body
            self._head_bytes += max(0, len(piece) - (self._body.total_bytes - read))

    def _waiting_bytes(self) -> int:
        """Add up the requests that wait behind one that is served, or is about to be."""
        behind = islice(self._messages, 0 if self._request_in_progress else 1, None)
        return sum(_size(message) + body.total_bytes for message, body in behind)

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
        try:
            async with asyncio.timeout(ANSWERED_WITHIN_S):
                return await super().finish_response(request, answer, start_time)
        except TimeoutError:
            if self.transport is not None:
                self.transport.abort()
            raise ConnectionResetError from None

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


def _size(message: object) -> int:
    """Say about what a head takes; what is no HTTP has none."""
    if not isinstance(message, RawRequestMessage):
        return 0
    return len(message.path) + sum(FIELD_BYTES + len(name) + len(value) for name, value in message.raw_headers)


class RefusedConnection(asyncio.Protocol):
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
            return RefusedConnection()
        return Connection(
            server,
            loop=loop,
            keepalive_timeout=HEAD_WITHIN_S,
            lingering_time=LINGER_S,
            max_headers=HEADERS_MAX,
            read_bufsize=UNREAD_MAX,
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
