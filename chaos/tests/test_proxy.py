"""The proxy before a server that speaks in frames and is no Kafka: what passes, and every fault."""

import asyncio
import contextlib
import queue
import socket
import socketserver
import struct
import threading
import time
import warnings
from typing import Any
from unittest.mock import MagicMock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chaos.faults.proxy import (
    ANSWER_HEAD,
    FRAME_BYTES_MAX,
    REQUEST_HEAD,
    Api,
    Faults,
    Frames,
    Link,
    NotKafkaError,
    Peer,
    Proxy,
)
from order_service.local.broker import HOST, free_port
from tests.support.service import until

PATIENCE_S = 20.0
PAUSE_S = 0.3
FLOOD = 77
"""An api key of our server's own: its answer has as many bytes as the body says."""
TOGETHER = 78
"""Another one: its answer comes in one piece with the next."""


def request_frame(api_key, correlation_id, body=b""):
    return REQUEST_HEAD.pack(8 + len(body), api_key, 1, correlation_id) + body


def answer_frame(correlation_id, body=b""):
    return ANSWER_HEAD.pack(4 + len(body), correlation_id) + body


def read_exactly(connection, size):
    data = bytearray()
    while len(data) < size:
        received = connection.recv(min(size - len(data), 1 << 20))
        if not received:
            raise EOFError
        data += received
    return bytes(data)


def read_frame(connection):
    return read_exactly(connection, struct.unpack(">i", read_exactly(connection, 4))[0])


class Handler(socketserver.BaseRequestHandler):
    """Notes each request, and answers with its body or with a flood."""

    server: Any

    def handle(self):
        self.server.connections.append(self.request)
        before = b""
        with contextlib.suppress(EOFError, OSError):
            while True:
                api_key, _, correlation_id, body = parse(read_frame(self.request))
                self.server.requests.put((api_key, correlation_id, body))
                if api_key == Api.END_TXN:
                    body = body[:10]  # its answer is short whatever was asked
                if api_key == FLOOD:
                    body = bytes(int(body))
                    self.request.settimeout(1.0)  # it gives up when it cannot send everything
                answer = before + answer_frame(correlation_id, body)
                before = answer if api_key == TOGETHER else b""
                self.request.sendall(b"" if before else answer)
                self.server.answered.put(correlation_id)
        self.server.connections.remove(self.request)


def parse(frame):
    return *struct.unpack_from(">hhi", frame), frame[8:]


class Server(socketserver.ThreadingTCPServer):
    """A broker that only notes and answers."""

    allow_reuse_address = True
    daemon_threads = True

    def __init__(self, port=0):
        super().__init__((HOST, port), Handler)
        self.port = self.server_address[1]
        self.requests: queue.Queue[tuple[int, int, bytes]] = queue.Queue()
        self.answered: queue.Queue[int] = queue.Queue()
        self.connections: list[socket.socket] = []
        self._thread = threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self.shutdown()
        self._thread.join()
        for connection in list(self.connections):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self.server_close()

    def next_request(self):
        return self.requests.get(timeout=PATIENCE_S)


class Client:
    """A connection to the proxy, and what may come back on it."""

    def __init__(self, port):
        self.socket = socket.create_connection((HOST, port), timeout=PATIENCE_S)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()

    def send(self, api_key, correlation_id, body=b""):
        self.socket.sendall(request_frame(api_key, correlation_id, body))

    def answer(self):
        frame = read_frame(self.socket)
        return struct.unpack_from(">i", frame)[0], frame[4:]

    def ask(self, api_key, correlation_id, body=b""):
        self.send(api_key, correlation_id, body)
        return self.answer()

    def is_closed(self):
        try:
            return self.socket.recv(1) == b""
        except ConnectionError:
            return True


@pytest.fixture
def server():
    with Server() as server:
        yield server


@pytest.fixture
def proxy(server):
    with Proxy(server.port) as proxy:
        yield proxy


@pytest.fixture
def client(proxy):
    with Client(proxy.port) as client:
        yield client


@given(st.lists(st.binary(max_size=40)), st.data())
def test_frames_are_found_however_the_stream_is_cut(bodies, data):
    frames = [request_frame(26, number, body) for number, body in enumerate(bodies)]
    stream = b"".join(frames)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)))))
    finder, passed, found = Frames(REQUEST_HEAD), b"", []
    for first, last in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        piece = finder.feed(stream[first:last])
        found += [(len(passed) + start, head[3]) for start, head in piece.heads]
        passed += piece.data
    assert passed == stream
    assert found == [(len(b"".join(frames[:number])), number) for number in range(len(frames))]


@pytest.mark.parametrize("size", [-1, 0, 7, FRAME_BYTES_MAX + 1])
def test_a_size_that_no_request_has_is_refused(size):
    with pytest.raises(NotKafkaError, match=f"not {size}$"):
        Frames(REQUEST_HEAD).feed(REQUEST_HEAD.pack(size, 0, 0, 0))


def test_a_client_that_does_not_speak_in_frames_is_turned_away(client, proxy):
    client.socket.sendall(b"GET / HTTP/1.1\r\n\r\n")
    assert client.is_closed()
    assert proxy.happened == {}


def test_what_passes_is_what_came(client, server):
    assert client.ask(Api.PRODUCE, 1, b"one") == (1, b"one")
    client.socket.sendall(request_frame(Api.FETCH, 2, b"two") + request_frame(Api.FETCH, 3))
    assert [client.answer(), client.answer()] == [(2, b"two"), (3, b"")]
    assert [server.next_request() for _ in range(3)] == [
        (Api.PRODUCE, 1, b"one"),
        (Api.FETCH, 2, b"two"),
        (Api.FETCH, 3, b""),
    ]


def test_a_request_that_comes_byte_by_byte_passes(client):
    for byte in request_frame(Api.END_TXN, 7, b"slow"):
        client.socket.sendall(bytes([byte]))
    assert client.answer() == (7, b"slow")


def test_big_frames_pass_both_ways(client):
    body = bytes(range(256)) * (32 * 1024 * 1024 // 256)
    assert client.ask(Api.PRODUCE, 1, body) == (1, body)


def test_a_client_that_does_not_read_holds_the_broker_up(client, server):
    client.send(FLOOD, 1, str(100 * 1024 * 1024).encode())
    server.next_request()
    until(lambda: not server.connections, "the server gives up", within_s=PATIENCE_S)
    assert server.answered.empty()


def test_cut_all_closes_every_connection(proxy, server):
    with Client(proxy.port) as one, Client(proxy.port) as other:
        one.ask(Api.FETCH, 1)
        other.ask(Api.FETCH, 1)
        proxy.cut_all()
        assert one.is_closed()
        assert other.is_closed()
        until(lambda: not server.connections, "the broker's sides are closed, too", within_s=PATIENCE_S)
    with Client(proxy.port) as again:
        assert again.ask(Api.FETCH, 1) == (1, b"")
    assert proxy.happened == {"cut_all": 1}


def test_cutting_nothing_has_not_happened(proxy):
    proxy.cut_all()
    with Client(proxy.port) as client:
        assert client.ask(Api.FETCH, 1) == (1, b"")
    assert proxy.happened == {}


def test_a_lost_request_does_not_arrive_and_those_before_it_do(client, proxy, server):
    proxy.lose_request(Api.END_TXN)
    client.socket.sendall(
        request_frame(Api.PRODUCE, 1, b"before") + request_frame(Api.END_TXN, 2) + request_frame(Api.PRODUCE, 3)
    )
    with contextlib.suppress(EOFError, ConnectionError):
        client.answer()
        client.answer()
    assert client.is_closed()
    assert server.next_request()[1] == 1
    with Client(proxy.port) as again:
        assert again.ask(Api.END_TXN, 4) == (4, b"")
    assert server.next_request()[1] == 4
    assert proxy.happened == {"lose_request": 1}


def test_a_lost_answer_was_a_request_that_arrived(client, proxy, server):
    proxy.lose_answer(Api.END_TXN)
    client.socket.sendall(request_frame(TOGETHER, 1, b"before") + request_frame(Api.END_TXN, 2, b"commit"))
    assert client.answer() == (1, b"before")
    assert client.is_closed()
    assert [server.next_request()[1], server.next_request()[1]] == [1, 2]
    assert proxy.happened == {"lose_answer": 1}
    with Client(proxy.port) as again:
        assert again.ask(Api.END_TXN, 3) == (3, b"")


def test_a_fault_waits_for_its_own_request(client, proxy):
    proxy.lose_answer(Api.END_TXN)
    assert client.ask(Api.HEARTBEAT, 1) == (1, b"")
    assert proxy.happened == {}
    assert list(proxy.armed) == [Api.END_TXN]


def test_a_fault_whose_answer_never_came_waits_for_the_next_request(proxy, server):
    proxy.lose_answer(TOGETHER)
    with Client(proxy.port) as client:
        client.send(TOGETHER, 1)
        server.next_request()
    until(lambda: TOGETHER in proxy.armed, "it is armed again", within_s=PATIENCE_S)
    assert proxy.happened == {}


def test_a_disarmed_fault_does_not_happen(client, proxy):
    proxy.lose_answer(Api.END_TXN)
    proxy.lose_request(Api.PRODUCE)
    proxy.disarm()
    assert client.ask(Api.END_TXN, 1) == (1, b"")
    assert client.ask(Api.PRODUCE, 2) == (2, b"")
    assert (proxy.happened, proxy.armed) == ({}, {})


def test_a_fault_replaces_the_one_before(client, proxy, server):
    proxy.lose_request(Api.END_TXN)
    proxy.lose_answer(Api.END_TXN)
    client.send(Api.END_TXN, 1)
    assert client.is_closed()
    assert server.next_request() == (Api.END_TXN, 1, b"")
    assert proxy.happened == {"lose_answer": 1}


def test_a_delayed_answer_keeps_its_place(client, proxy):
    proxy.delay_answer(Api.FETCH, PAUSE_S)
    started = time.monotonic()
    client.socket.sendall(
        request_frame(TOGETHER, 1) + request_frame(Api.FETCH, 2, b"late") + request_frame(Api.HEARTBEAT, 3)
    )
    assert client.answer() == (1, b"")
    with Client(proxy.port) as other:
        assert other.ask(Api.FETCH, 1) == (1, b"")
    assert proxy.happened == {}
    assert [client.answer(), client.answer()] == [(2, b"late"), (3, b"")]
    assert time.monotonic() - started >= PAUSE_S
    assert proxy.happened == {"delay_answer": 1}
    assert client.ask(Api.FETCH, 4) == (4, b"")


@pytest.mark.parametrize("size", [0, 5 * 1024 * 1024])
def test_a_delayed_request_arrives_after_those_of_the_next_connection(client, proxy, server, size):
    proxy.delay_request(Api.END_TXN, PAUSE_S)
    client.socket.sendall(
        request_frame(Api.PRODUCE, 1) + request_frame(Api.END_TXN, 2, bytes(size)) + request_frame(Api.PRODUCE, 9)
    )
    with contextlib.suppress(EOFError, ConnectionError):
        client.answer()
    assert client.is_closed()
    assert server.next_request()[1] == 1
    with Client(proxy.port) as again:
        assert again.ask(Api.END_TXN, 3, b"again") == (3, b"again")
    assert [server.next_request()[1], server.next_request()[1]] == [3, 2]
    until(lambda: proxy.happened == {"delay_request": 1}, "it has happened", within_s=PATIENCE_S)
    until(lambda: not server.connections, "its connection is closed", within_s=PATIENCE_S)
    assert server.requests.empty()


def test_a_cut_does_not_stop_what_is_on_its_way(client, proxy, server):
    proxy.delay_request(Api.END_TXN, PAUSE_S)
    client.send(Api.END_TXN, 1)
    assert client.is_closed()
    proxy.cut_all()
    assert server.next_request() == (Api.END_TXN, 1, b"")
    until(lambda: proxy.happened == {"delay_request": 1}, "it alone has happened", within_s=PATIENCE_S)


def test_a_freeze_holds_up_all_and_loses_nothing(client, proxy, server):
    with Client(proxy.port) as other:
        client.ask(Api.FETCH, 1)
        server.next_request()
        started = time.monotonic()
        proxy.freeze(PAUSE_S)
        client.send(Api.END_TXN, 2)
        other.send(Api.END_TXN, 3)
        assert {server.next_request()[1], server.next_request()[1]} == {2, 3}
        assert time.monotonic() - started >= PAUSE_S
        assert client.answer() == (2, b"")
        assert other.answer() == (3, b"")
    assert proxy.happened == {"freeze": 1}


def test_the_last_freeze_says_when_it_ends(client, proxy):
    proxy.freeze(600.0)
    client.send(Api.FETCH, 1)
    proxy.freeze(0.0)
    assert client.answer() == (1, b"")


def test_a_client_is_turned_away_while_the_broker_is_away():
    port = free_port()
    with Proxy(port) as proxy:
        with Client(proxy.port) as client:
            assert client.is_closed()
        with Server(port), Client(proxy.port) as client:
            assert client.ask(Api.METADATA, 1) == (1, b"")
        with Client(proxy.port) as client:
            assert client.is_closed()
        with Server(port), Client(proxy.port) as client:
            assert client.ask(Api.METADATA, 2) == (2, b"")


def test_a_broker_that_goes_takes_its_clients_connections_along(client, server):
    client.ask(Api.METADATA, 1)
    [connection] = server.connections
    connection.shutdown(socket.SHUT_RDWR)
    assert client.is_closed()


def test_a_client_that_goes_takes_its_connection_to_the_broker_along(proxy, server):
    with Client(proxy.port) as client:
        client.ask(Api.METADATA, 1)
    until(lambda: not server.connections, "the broker's side is closed", within_s=PATIENCE_S)


def test_the_port_may_be_known_beforehand(server):
    port = free_port()
    with Proxy(server.port, port) as proxy, Client(port) as client:
        assert proxy.port == port
        assert client.ask(Api.METADATA, 1) == (1, b"")


def test_a_taken_port_is_told_to_the_caller(server):
    with pytest.raises(OSError, match="in use"):
        Proxy(server.port, server.port).__enter__()


def test_the_end_closes_all_and_leaves_no_thread(server):
    before = threading.active_count() - len(server.connections)
    with Proxy(server.port) as proxy:
        with Client(proxy.port) as late:
            proxy.delay_request(Api.END_TXN, 600.0)
            late.send(Api.END_TXN, 1)
            assert late.is_closed()
        client = Client(proxy.port)
        client.ask(Api.FETCH, 2)
        proxy.freeze(600.0)
        client.send(Api.FETCH, 3)
    with client:
        assert client.is_closed()
    until(lambda: threading.active_count() <= before, "all threads have ended", within_s=PATIENCE_S)
    with pytest.raises(ConnectionRefusedError):
        Client(proxy.port)


def test_who_comes_as_it_ends_is_closed_too(server):
    clients = []
    for _ in range(20):
        with Proxy(server.port) as proxy:
            clients += [Client(proxy.port) for _ in range(3)]
    for client in clients:
        with client:
            assert client.is_closed()


def test_a_link_that_is_cut_before_it_has_begun_leaves_nothing_behind():
    async def run_and_cut():
        reader, writer = asyncio.StreamReader(), MagicMock()
        link = Link(Peer(reader, writer, REQUEST_HEAD), Peer(reader, writer, ANSWER_HEAD), Faults())
        running = asyncio.create_task(link.run())
        await asyncio.sleep(0)  # it has made its tasks, and they have not begun
        assert link.cut()
        await running

    with warnings.catch_warnings(record=True) as left:
        warnings.simplefilter("always")
        asyncio.run(run_and_cut())
    assert not left
