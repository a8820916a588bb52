"""What a connection may hold while its request is served: a caller that sends too much, or takes nothing, is cut."""

import asyncio
import logging
import socket
from contextlib import asynccontextmanager, closing, suppress
from io import BytesIO

import pytest
from aiohttp import ClientSession, web

from order_service.local.broker import free_port
from order_service.web.http.connections import HEAD_WITHIN_S, listen
from order_service.web.http.requests import MAX_BODY_BYTES

BIG = bytes(20_000_000)
"""More than the kernel keeps for a connection."""
WITHIN_S = 20.0


class Busy:
    """A server that serves each `POST /busy` until it is told to end, and of its body reads nothing."""

    runner: web.AppRunner
    port: int

    def __init__(self):
        self.begun, self.end = asyncio.Event(), asyncio.Event()
        self.application = web.Application(client_max_size=MAX_BODY_BYTES)
        self.application.router.add_post("/busy", self._wait)
        self.application.router.add_post("/read", self._read)
        self.application.router.add_get("/big", self._send)

    async def _wait(self, _):
        self.begun.set()
        await self.end.wait()
        return web.Response()

    async def _read(self, request):
        await request.read()
        return web.Response()

    async def _send(self, _):
        return web.Response(body=BytesIO(BIG))


@asynccontextmanager
async def listening(application, keep_alive_s=60.0, **limits):
    """Take connections as the process does; give the runner and the port."""
    runner, port = web.AppRunner(application, handler_cancellation=True, shutdown_timeout=1), free_port()
    await runner.setup()
    listener = await listen(runner, "127.0.0.1", port, 40, keep_alive_s=keep_alive_s, **limits)
    try:
        yield runner, port
    finally:
        listener.close()
        await runner.cleanup()


@pytest.fixture
async def server():
    """Provide a server; its runner and its port are in it."""
    server = Busy()
    async with listening(server.application) as (server.runner, server.port):
        yield server
        server.end.set()


async def test_aiohttp_logs_no_request_with_its_path_at_any_level(server, caplog):
    caplog.set_level(logging.DEBUG)
    async with ClientSession() as session, session.post(f"http://127.0.0.1:{server.port}/read?user_id=dana") as answer:
        assert answer.status == 200
    assert "dana" not in caplog.text


@pytest.fixture
async def busy(server):
    """Provide a connection whose first request is being served."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    with closing(writer):
        writer.write(post("/busy"))
        await asyncio.wait_for(server.begun.wait(), WITHIN_S)
        yield reader, writer


def post(path, *fields, body=b""):
    head = [f"POST {path} HTTP/1.1", "Host: shop", *fields, f"Content-Length: {len(body)}", "", ""]
    return "\r\n".join(head).encode() + body


def fields(count, size):
    """Make fields of a head, each of so many bytes."""
    return [f"X-{number}:".ljust(size, "1") for number in range(count)]


async def heard(reader):
    """Read until the connection ends; TimeoutError if it does not."""
    data = b""
    async with asyncio.timeout(WITHIN_S):
        with suppress(ConnectionError):
            while more := await reader.read(65536):
                data += more
    return data


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(post("/read", *fields(10, 8000)), id="a head of 80 KB"),
        pytest.param(post("/read", *fields(10, 8000))[:-30], id="a head without end"),
        pytest.param(post("/read", *fields(5, 8000)) * 3, id="big heads"),
        pytest.param(post("/read", *fields(60, 7)) * 20, id="heads of many small fields"),
        pytest.param(post(f"/read?{'1' * 8000}") * 10, id="long addresses"),
        pytest.param(post("/read", body=bytes(20_000)) * 5, id="bodies"),
        pytest.param(post("/read", "Upgrade: websocket", "Connection: Upgrade") + bytes(100_000), id="a web socket"),
    ],
)
async def test_who_sends_more_than_is_served_is_cut_off(busy, data):
    reader, writer = busy
    writer.write(data)
    assert await heard(reader) == b""


@pytest.mark.parametrize(("size", "status"), [(15_000, b"200"), (17_000, b"400")])
async def test_the_position_in_a_stream_of_a_thousand_partitions_is_accepted(server, size, status):
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    with closing(writer):
        writer.write(post("/read", f"Last-Event-ID: {'1' * size}", "Connection: close"))
        assert (await heard(reader)).split()[1] == status


async def test_what_stands_behind_a_body_is_bounded_too(server):
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    with closing(writer):
        writer.write(b"POST /busy HTTP/1.1\r\nHost: shop\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n")
        await asyncio.wait_for(server.begun.wait(), WITHIN_S)
        writer.write("\r\n".join(fields(60, 8000)).encode())
        assert await heard(reader) == b""


async def test_what_is_no_http_is_refused_after_the_answer_before_it(server, busy):
    reader, writer = busy
    writer.write(b"\x00" * 1_000_000)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(reader.read(1), 0.5)
    server.end.set()
    assert b" 400 Bad Request" in await heard(reader)


async def test_some_requests_may_wait_and_are_served(server, busy):
    reader, writer = busy
    writer.write(post("/read", body=bytes(100)) * 30 + post("/read", "Connection: close"))
    server.end.set()
    assert (await heard(reader)).count(b"HTTP/1.1 200") == 32


async def test_the_body_of_the_request_that_is_served_does_not_wait(server):
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    with closing(writer):
        for _ in range(3):
            writer.write(post("/read", *fields(3, 8000), body=bytes(MAX_BODY_BYTES)))
            assert (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), WITHIN_S)).startswith(b"HTTP/1.1 200")


async def test_a_caller_that_reads_a_response_slowly_is_cut_off():
    server, within_s = Busy(), 2.0
    async with listening(server.application, answered_within_s=within_s) as (server.runner, server.port):
        await read_slowly(server, within_s)


async def read_slowly(server, within_s):
    """Read a few bytes at a time; the connection must end after the time limit for a complete response."""
    loop, start = asyncio.get_running_loop(), asyncio.get_running_loop().time()
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.setblocking(False)
        await loop.sock_connect(connection, ("127.0.0.1", server.port))
        await loop.sock_sendall(connection, b"GET /big HTTP/1.1\r\nHost: shop\r\n\r\n")
        await asyncio.wait_for(loop.sock_recv(connection, 1), WITHIN_S)
        while server.runner.server.connections and loop.time() < start + within_s + WITHIN_S:
            await loop.sock_recv(connection, 4096)
            await asyncio.sleep(0.05)
    assert within_s - 0.5 < loop.time() - start < within_s + WITHIN_S


CHUNKED = post("/read", "Transfer-Encoding: chunked").replace(b"Content-Length: 0\r\n", b"")
REQUESTS = {
    "no body": [b"GET /nothing HTTP/1.1\r\nHost: shop\r\n\r\n"],
    "an empty body": [post("/read")],
    "a body with its head": [post("/read", body=b"1234")],
    "a body that ends like a head": [post("/read", body=b"1\r\n\r\n")],
    "a body after its head": [post("/read", body=b"1234")[:-4], b"1234"],
    "half a body with its head": [post("/read", body=b"1234")[:-2], b"34"],
    "a head in two parts": [post("/read", body=b"1234")[:20], post("/read", body=b"1234")[20:]],
    "a chunk with its head": [CHUNKED + b"4\r\n1234\r\n0\r\n\r\n"],
    "a chunk after its head": [CHUNKED, b"4\r\n1234\r\n", b"0\r\n\r\n"],
    "two requests": [post("/read") + post("/read", body=b"1234")],
}
HALF_A_HEAD = b"GET /nothing HTTP/1.1\r\nHost: sh"


async def exchange(port, parts):
    """Send the parts of a request one by one, and return the connection when it was answered."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for part in parts:
        writer.write(part)
        await writer.drain()
        with suppress(TimeoutError):
            async with asyncio.timeout(0.05):  # so that each part arrives by itself
                await reader.readuntil(b"\r\n\r\n")
    return reader, writer


async def test_an_idle_connection_stays_open_and_one_with_half_a_head_does_not(server):
    """A proxy may send its next request at any time, but a slow caller must not hold a connection for as long."""
    idle = {name: await exchange(server.port, parts) for name, parts in REQUESTS.items()}
    start = asyncio.get_running_loop().time()
    bare = [await exchange(server.port, []), await exchange(server.port, [HALF_A_HEAD])]
    started = [await exchange(server.port, [*parts[:-1], parts[-1] + HALF_A_HEAD]) for parts in REQUESTS.values()]
    for reader, writer in bare + started:
        await heard(reader)
        writer.close()
    assert HEAD_WITHIN_S - 1 < asyncio.get_running_loop().time() - start < HEAD_WITHIN_S + 5
    for name, (reader, writer) in idle.items():
        writer.write(post("/read", "Connection: close"))
        assert b"HTTP/1.1 200 OK" in await heard(reader), name
        writer.close()


async def test_a_connection_that_is_idle_for_longer_than_the_setting_is_closed():
    server = Busy()
    async with listening(server.application, keep_alive_s=0.2) as (server.runner, server.port):
        reader, writer = await exchange(server.port, [post("/read")])
        with closing(writer):
            await heard(reader)
