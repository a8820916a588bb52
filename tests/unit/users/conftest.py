from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest

from order_service.users.client import CallPolicy, UserClient
from order_service.users.stub import Stub, running


@pytest.fixture
def stub():
    return Stub()


@pytest.fixture
async def url(stub):
    async with running(stub) as url:
        yield url


@pytest.fixture
async def open_client(url, clock) -> AsyncIterator[Callable[..., Any]]:
    """Make clients of the stub, or of `url=`, that are quick to give up."""
    async with AsyncExitStack() as stack:

        async def make(**changes):
            quick = {"url": url, "total_s": 0.9, "probe_every_s": 1.0, "wait_initial_s": 0.001, "wait_max_s": 0.002}
            return await stack.enter_async_context(UserClient(CallPolicy(**(quick | changes)), clock=clock))

        yield make


@pytest.fixture
async def users(open_client):
    return await open_client()


@pytest.fixture
def bytes_server():
    """Serve the same bytes to every request; yields the URL and the request lines seen."""

    @asynccontextmanager
    async def serve(answer: bytes):
        heads: list[bytes] = []

        async def talk(reader, writer):
            try:
                heads.append(await reader.readuntil(b"\r\n\r\n"))
                writer.write(answer)
                await writer.drain()
            except (ConnectionError, asyncio.IncompleteReadError):
                pass  # the client has gone: that is what some tests are about
            finally:
                writer.close()

        server = await asyncio.start_server(talk, "127.0.0.1", 0)
        async with server:
            host, port = server.sockets[0].getsockname()
            yield f"http://{host}:{port}", heads

    return serve
