"""How a client opens, replaces and closes its connections to a broker that only says which requests it knows."""

import asyncio
from contextlib import asynccontextmanager

import pytest
from aiokafka.errors import RequestTimedOutError
from aiokafka.protocol.admin import ApiVersionRequest
from aiokafka.structs import BrokerMetadata

from order_service.kafka.connection import _NoCreationClient


class Broker:
    """Answers ApiVersions, and holds every other request until `go_on` is set."""

    def __init__(self):
        self.go_on, self.held, self.ended = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self.answers_at_once = True
        self.connections = 0
        self.server: asyncio.Server

    async def serve(self, reader, writer):
        """Answer the requests of one connection: an error code 0 and an empty list fit ApiVersions."""
        self.connections += 1
        try:
            while True:
                size = int.from_bytes(await reader.readexactly(4))
                request = await reader.readexactly(size)
                if request[:2] != b"\0\x12" or not self.answers_at_once:
                    self.held.set()
                    await self.go_on.wait()
                writer.write(b"\0\0\0\x0a" + request[4:8] + b"\0\0\0\0\0\0")
        except (asyncio.IncompleteReadError, ConnectionError):
            self.ended.set()
        finally:
            writer.close()

    async def stop(self):
        """Accept no more connections; those that are open stay."""
        self.server.close()


@asynccontextmanager
async def client_of(broker):
    """Yield a client that knows the broker as node 1."""
    broker.server = await asyncio.start_server(broker.serve, "127.0.0.1", 0)
    port = broker.server.sockets[0].getsockname()[1]
    client = _NoCreationClient(bootstrap_servers=f"127.0.0.1:{port}")
    client.cluster._brokers = {1: BrokerMetadata(1, "127.0.0.1", port, None)}
    try:
        yield client
    finally:
        broker.go_on.set()
        await client.close()
        await broker.stop()


async def test_a_connection_is_used_until_its_session_is_about_to_end():
    broker = Broker()
    async with client_of(broker) as client:
        first = await client._get_conn(1)
        assert await client._get_conn(1) is first
        first._renew_at = 0.0
        second, same = await asyncio.gather(client._get_conn(1), client._get_conn(1))
        assert second is not first
        assert second is same
        assert broker.connections == 2
        await broker.ended.wait()
        assert not first.connected()
        assert second.connected()


async def test_a_connection_that_is_replaced_first_gets_its_responses():
    broker = Broker()
    async with client_of(broker) as client:
        first = await client._get_conn(1)
        answered = asyncio.ensure_future(first._send_sasl_token(b"\0\0\0\0\0\0\0\1"))
        await broker.held.wait()
        first._renew_at = 0.0
        assert await client._get_conn(1) is not first
        assert first.connected()
        assert not answered.done()
        broker.go_on.set()
        assert await answered == b"\0\0\0\1\0\0\0\0\0\0"
        await broker.ended.wait()
        assert not first.connected()


async def test_a_connection_that_cannot_be_replaced_is_used_on():
    broker = Broker()
    async with client_of(broker) as client:
        first = await client._get_conn(1)
        first._renew_at = 0.0
        await broker.stop()
        assert await client._get_conn(1) is first
        assert not first.is_expiring


async def test_a_connection_whose_successor_hangs_is_used_on():
    broker = Broker()
    async with client_of(broker) as client:
        client._renew_within_s = 0.2
        first = await client._get_conn(1)
        first._renew_at = 0.0
        broker.answers_at_once = False
        async with asyncio.timeout(5.0):
            assert await client._get_conn(1) is first
        assert broker.connections == 2
        assert first.connected()
        assert not first.is_expiring


async def test_a_connection_that_has_failed_is_not_used_on():
    broker = Broker()
    async with client_of(broker) as client:
        first = await client._get_conn(1)
        await broker.stop()
        await first.close()
        assert await client._get_conn(1) is None


async def test_a_client_that_closes_also_closes_what_it_has_replaced():
    broker = Broker()
    async with client_of(broker) as client:
        first = await client._get_conn(1)
        asked = asyncio.ensure_future(first._send_sasl_token(b"\0\0\0\0\0\0\0\1"))
        await broker.held.wait()
        first._renew_at = 0.0
        second = await client._get_conn(1)
        await client.close()
        assert not first.connected()
        assert not second.connected()
        await asyncio.wait([asked])
        assert asked.exception() is not None


async def test_a_connection_that_opens_while_its_client_closes_is_closed():
    broker = Broker()
    broker.answers_at_once = False
    async with client_of(broker) as client:
        opening = asyncio.create_task(client._get_conn(1))
        await broker.held.wait()
        await client.close()
        broker.go_on.set()
        assert await opening is None
        await broker.ended.wait()


async def test_a_broker_that_is_lost_does_not_delay_connections_to_others():
    lost, broker = Broker(), Broker()
    lost.answers_at_once = False
    async with client_of(lost) as other, client_of(broker) as client:
        client.cluster._brokers[2] = other.cluster._brokers[1]
        opening = asyncio.create_task(client._get_conn(2))
        await lost.held.wait()
        assert await client._get_conn(1) is not None
        assert not opening.done()
        lost.go_on.set()
        assert await opening is not None


async def test_a_request_without_a_response_closes_its_own_connection_only():
    broker = Broker()
    async with client_of(broker) as client:
        first = await client._get_conn(1)
        first._request_timeout = 0.2
        broker.answers_at_once = False
        asked = asyncio.create_task(client.send(1, ApiVersionRequest()))
        await broker.held.wait()
        broker.answers_at_once = True
        first._renew_at = 0.0
        second = await client._get_conn(1)
        with pytest.raises(RequestTimedOutError):
            await asked
        assert not first.connected()
        assert second.connected()
