"""The connections of callers: their number, their time limits, and the response to bytes that are not HTTP.

A slow caller holds a connection and little else. Each of these limits closes one: 5 s for the head of a request, 15 s
for its body (`requests.BODY_WITHIN_S`), 2 s for the rest of a refused body, 20 s in which a response is not read, 30 s
for a complete response other than a stream, and `ORDERS_HTTP_KEEP_ALIVE_S` between a response and the next head. While
a request is served, at most 64 KiB may wait behind it.
"""

import asyncio
import resource
from itertools import islice
from typing import Any, Final

import structlog
from aiohttp import EMPTY_PAYLOAD, StreamReader, web
from aiohttp.http import RawRequestMessage

from order_service.web.http.problems import Problem, Trouble
from order_service.web.server import harden

log = structlog.get_logger()

HEAD_WITHIN_S: Final = 5.0
"""How long a head may take: the first one from the start of the connection, later ones from their first byte."""
HEAD_END: Final = b"\r\n\r\n"
TAKEN_WITHIN_S: Final = 20.0
TAKEN_MIN: Final = 64 * 1024
"""Minimum number of bytes of a response that a caller must read in that time, unless less is left."""
ANSWERED_WITHIN_S: Final = 30.0
"""Time limit for a response other than a stream; pages and their files need it most, as they require no token."""
LINGER_S: Final = 2.0
"""How long the rest of a refused body is discarded, so that the sender reads the problem, not a broken pipe."""
HEADERS_MAX: Final = 64
"""Maximum number of header fields: room for proxies and a token."""
FIELD_MAX: Final = 16 * 1024
"""Maximum size of a header field. A `Last-Event-ID` that holds all offsets has 15 bytes for each partition of a billion
events; one that names a checkpoint has 200 bytes at most."""
UNSERVED_MAX: Final = 64 * 1024
"""Maximum size of a head, and of all that waits behind a request being served, with bodies. aiohttp would keep 32 heads
of half a MiB each. A caller that waits for each response has nothing there; a few small pipelined requests fit."""
FIELD_BYTES: Final = 256
"""The approximate memory overhead of a header field, beside its own bytes."""
PIECE_BYTES: Final = 8 * 1024
"""Size of the pieces that are parsed, and the maximum excess over `UNSERVED_MAX`; asyncio delivers up to 256 KiB."""
UNREAD_MAX: Final = 16 * 1024
"""How many bytes of a body may be buffered before reading pauses; aiohttp allows twice as much."""
BACKLOG: Final = 1024
"""Maximum number of connections waiting to be accepted; the client of a further one retries after a second."""
FILES_BESIDE: Final = 128
"""Open files other than the connections of callers: the database, Kafka, the admin port, the log."""


class Connection(web.RequestHandler):
    """A connection of aiohttp that never echoes or logs what it received, and closes if the caller does not read."""

    answered_within_s: float
    base_path: str
    _progress_check: asyncio.TimerHandle
    _head_check: asyncio.TimerHandle | None = None
    """Runs while the head of a request is expected or incomplete."""
    _body = EMPTY_PAYLOAD
    """The body of the newest request."""
    _head_bytes = 0
    """Bytes received since that request's head that do not belong to its body."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Start the connection, and report every unsent byte to `pause_writing`."""
        super().connection_made(transport)
        assert self.transport is not None
        self.transport.set_write_buffer_limits(0)
        self._expect_head()

    def connection_lost(self, exc: BaseException | None) -> None:
        """End the connection."""
        self._stop_head_check()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse received bytes. Abort if too many bytes wait, and read nothing after bytes that are not HTTP."""
        for start in range(0, max(1, len(data)), PIECE_BYTES):
            if self._messages and not isinstance(self._messages[-1][0], RawRequestMessage):
                break
            self._take(data[start : start + PIECE_BYTES])
            if self.transport is not None and self._head_bytes + self._waiting_bytes() > UNSERVED_MAX:
                log.info("Connection aborted: too many bytes are waiting to be served.")
                self.transport.abort()  # closing would wait until the earlier responses are read
                self.force_close()

    def _take(self, piece: bytes) -> None:
        count, read, was_in_body = len(self._messages), self._body.total_bytes, not self._body.is_eof()
        super().data_received(piece)
        if len(self._messages) > count:
            message, self._body = self._messages[-1]
            self._head_bytes = 0 if _ends_with(piece, message, self._body) else 1
            self._stop_head_check()
        elif not self._reading_paused:  # else it waits to become part of the body
            self._head_bytes += max(0, len(piece) - (self._body.total_bytes - read))
            if was_in_body and self._body.is_eof() and piece.endswith(HEAD_END):  # the last chunk, not a head
                self._head_bytes = 0
        if self._head_bytes and self._head_check is None and self._body.is_eof():
            self._expect_head()

    def _expect_head(self) -> None:
        self._head_check = asyncio.get_running_loop().call_later(HEAD_WITHIN_S, self._close_without_head)

    def _stop_head_check(self) -> None:
        if self._head_check is not None:
            self._head_check.cancel()
            self._head_check = None

    def _close_without_head(self) -> None:
        if self._waiter is not None and not self._waiter.done():  # no request is being served
            self.force_close()
        else:
            self._expect_head()

    def _waiting_bytes(self) -> int:
        """Return the size of the requests that wait behind the current one."""
        waiting = islice(self._messages, 0 if self._request_in_progress else 1, None)
        return sum(_size(message) + body.total_bytes for message, body in waiting)

    def pause_writing(self) -> None:
        """Check regularly that the caller reads: without a limit, even closing would wait for it forever."""
        super().pause_writing()
        assert self.transport is not None
        self._watch(self.transport)

    def resume_writing(self) -> None:
        """Stop the check: the caller has read everything."""
        super().resume_writing()
        self._progress_check.cancel()

    def _watch(self, transport: asyncio.Transport) -> None:
        waiting = transport.get_write_buffer_size()
        loop = asyncio.get_running_loop()
        self._progress_check = loop.call_later(TAKEN_WITHIN_S, self._abort_if_stuck, transport, waiting)

    def _abort_if_stuck(self, transport: asyncio.Transport, before: int) -> None:
        if before - transport.get_write_buffer_size() < TAKEN_MIN:
            transport.abort()
        else:
            self._watch(transport)

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """Send a response. Replace one that aiohttp made outside our middleware (417): it echoes a request header."""
        response = (
            Problem(Trouble.BAD_REQUEST).response(self.base_path) if isinstance(resp, web.HTTPException) else resp
        )
        if response.headers.get("Connection") == "close":
            response.force_close()  # the header alone does not close the connection
        try:
            async with asyncio.timeout(self.answered_within_s):
                return await super().finish_response(request, response, start_time)
        except TimeoutError:
            if self.transport is not None:
                self.transport.abort()
            raise ConnectionResetError from None

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,  # noqa: ARG002, the message quotes the request
    ) -> web.StreamResponse:
        """Respond to bytes that are not HTTP. A response that has already begun can only be cut off."""
        if request.writer.output_size > 0:
            raise ConnectionResetError
        self.log_exception(exc_info=exc)
        response = Problem(Trouble.BAD_REQUEST if status == 400 else Trouble.INTERNAL).response(self.base_path)
        harden(response)
        response.headers["Server"] = "orders"  # otherwise aiohttp sends its name, its version and that of Python
        response.force_close()
        return response

    def log_exception(self, *_: Any, exc_info: BaseException | None = None, **__: Any) -> None:
        """Log the type of the error that closes this connection; the traceback would quote the request."""
        log.info("Connection closed: the request cannot be read.", error=type(exc_info).__name__)


def _ends_with(data: bytes, message: object, body: StreamReader) -> bool:
    """Return whether `data` ends with this request, or inside its body: no part of another head follows."""
    if not body.is_eof():
        return True
    length = message.headers.get("Content-Length", "0") if isinstance(message, RawRequestMessage) else "0"
    return data[: len(data) - int(length)].endswith(HEAD_END)


def _size(message: object) -> int:
    """Return the approximate memory of a head; 0 for anything but HTTP."""
    if not isinstance(message, RawRequestMessage):
        return 0
    return len(message.path) + sum(FIELD_BYTES + len(name) + len(value) for name, value in message.raw_headers)


class RefusedConnection(asyncio.Protocol):
    """A connection over the limit."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Close the connection at once, so that its caller can try another process."""
        transport.close()


async def listen(
    runner: web.AppRunner,
    host: str,
    port: int,
    connections_max: int,
    *,
    keep_alive_s: float,
    base_path: str = "",
    answered_within_s: float = ANSWERED_WITHIN_S,
) -> asyncio.Server:
    """Accept connections for a runner that is set up, at most `connections_max` at a time. Raises OSError."""
    server, loop = runner.server, asyncio.get_running_loop()
    assert server is not None

    def accept() -> asyncio.Protocol:
        if len(server.connections) >= connections_max:
            return RefusedConnection()
        connection = Connection(
            server,
            loop=loop,
            keepalive_timeout=keep_alive_s,
            lingering_time=LINGER_S,
            max_headers=HEADERS_MAX,
            max_field_size=FIELD_MAX,
            read_bufsize=UNREAD_MAX,
            # It has paths, queries and user agents; ours is in `request_log.py`.
            access_log=None,  # type: ignore[arg-type] # aiohttp checks for None
            auto_decompress=False,  # a small body can expand to a huge one; `requests.read_body` refuses compression
        )
        connection.answered_within_s = answered_within_s
        connection.base_path = base_path
        return connection

    return await loop.create_server(accept, host, port, backlog=BACKLOG)


def connections_possible(wanted: int) -> int:
    """Raise the limit of open files up to `wanted` connections; return how many connections the limit allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    possible = wanted + FILES_BESIDE
    if soft != resource.RLIM_INFINITY and soft < possible:
        soft = possible if hard == resource.RLIM_INFINITY else min(possible, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        possible = soft
    return possible - FILES_BESIDE
