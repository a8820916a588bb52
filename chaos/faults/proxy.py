"""A proxy before one Kafka broker that does harm at a chosen moment: a request or an answer lost, late or held up.

It knows of the protocol what it needs for that: where a frame begins, which request it is, and which answer belongs to
it. All else passes as it came, in pieces, so that an answer of many MiB is never held whole. Nobody waits for a fault:
one is armed, and happens to the next request of its kind, or is replaced or disarmed before.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
from collections import Counter
from collections.abc import Callable, Coroutine
from enum import IntEnum
from typing import NamedTuple, Self

from msgspec import Struct

from order_service.local.broker import HOST

PIECE_BYTES = 256 * 1024
"""As much as asyncio takes from a socket at once; twice as much waits at most for a slow reader, per direction."""

FRAME_BYTES_MAX = 256 * 1024 * 1024
"""More is no frame: we have lost our place in the stream. Kafka's own limit for requests is 100 MiB."""

REQUEST_HEAD = struct.Struct(">ihhi")
"""Size of what follows, api key, version, correlation id. Source: Kafka protocol guide, request header."""

ANSWER_HEAD = struct.Struct(">ii")
"""Size of what follows, correlation id. Source: Kafka protocol guide, response header; all its versions begin so."""


class Api(IntEnum):
    """The requests at which a fault is worth while. Source: Kafka protocol guide, API keys."""

    PRODUCE = 0
    FETCH = 1
    LIST_OFFSETS = 2
    METADATA = 3
    OFFSET_COMMIT = 8
    OFFSET_FETCH = 9
    FIND_COORDINATOR = 10
    JOIN_GROUP = 11
    HEARTBEAT = 12
    LEAVE_GROUP = 13
    SYNC_GROUP = 14
    INIT_PRODUCER_ID = 22
    ADD_PARTITIONS_TO_TXN = 24
    ADD_OFFSETS_TO_TXN = 25
    END_TXN = 26
    TXN_OFFSET_COMMIT = 28


class LoseRequest(Struct, frozen=True, tag=True):
    """The broker never hears of it."""


class LoseAnswer(Struct, frozen=True, tag=True):
    """The broker has done it, and the client does not know."""


class DelayAnswer(Struct, frozen=True, tag=True):
    """The client hears of it late."""

    seconds: float


class DelayRequest(Struct, frozen=True, tag=True):
    """The broker hears of it when the client has long gone on by another connection."""

    seconds: float


Fault = LoseRequest | LoseAnswer | DelayAnswer | DelayRequest


class NotKafkaError(ConnectionError):
    """A size that no frame has: the connection ends."""


class Piece(NamedTuple):
    """Bytes of a stream, and the frames that begin in them: where, and the numbers of their heads."""

    data: bytes
    heads: list[tuple[int, tuple[int, ...]]]


class Frames:
    """Finds where frames begin in a stream that comes in pieces; holds back no more than a part of one head."""

    def __init__(self, head: struct.Struct) -> None:
        self._head = head
        self._rest = b""
        self._to_next = 0

    def feed(self, received: bytes) -> Piece:
        """Take bytes as they come and give those whose heads are whole; raises NotKafkaError."""
        data = self._rest + received
        at, heads = self._to_next, []
        while at + self._head.size <= len(data):
            head = self._head.unpack_from(data, at)
            heads.append((at, head))
            at += 4 + self._checked(head[0])
        self._rest = data[at:]
        self._to_next = max(0, at - len(data))
        return Piece(data[:at], heads)

    def _checked(self, size: int) -> int:
        if not self._head.size - 4 <= size <= FRAME_BYTES_MAX:
            raise NotKafkaError(f"a frame has {self._head.size - 4} to {FRAME_BYTES_MAX} bytes, not {size}")
        return size


class Peer:
    """One side of a link: pieces come from it, bytes go to it; leaving the block closes it at once."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, head: struct.Struct) -> None:
        self._reader = reader
        self._writer = writer
        self._frames = Frames(head)
        # What was written is in the kernel's hands when `write` returns: backpressure, and closing loses nothing.
        writer.transport.set_write_buffer_limits(high=0)

    async def read(self) -> Piece | None:
        """Return the next piece; None when the other side has closed."""
        received = await self._reader.read(PIECE_BYTES)
        return self._frames.feed(received) if received else None

    async def write(self, data: bytes) -> None:
        """Hand bytes over; waits while the other side does not read."""
        self._writer.write(data)
        await self._writer.drain()

    async def close(self) -> None:
        """Close the connection; it may be closed already."""
        self._writer.transport.abort()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


async def welcome(connection: socket.socket) -> Peer:
    """Take a client that has connected."""
    return Peer(*await asyncio.open_connection(sock=connection, limit=PIECE_BYTES), REQUEST_HEAD)


async def connect(port: int) -> Peer:
    """Connect to a broker; OSError if it is away."""
    return Peer(*await asyncio.open_connection(HOST, port, limit=PIECE_BYTES), ANSWER_HEAD)


class Gate:
    """Lets all through, except while it is closed."""

    def __init__(self, happened: Counter[str]) -> None:
        self._happened = happened
        self._open = asyncio.Event()
        self._open.set()
        self._held_up = False
        self._timer: asyncio.TimerHandle | None = None

    def close(self, seconds: float) -> None:
        """Stay closed for so long from now on, whatever was said before."""
        if self._timer is not None:
            self._timer.cancel()
        self._open.clear()
        self._timer = asyncio.get_running_loop().call_later(seconds, self._reopen)

    async def passed(self) -> None:
        """Wait while it is closed."""
        if not self._open.is_set():
            self._held_up = True
            await self._open.wait()

    def _reopen(self) -> None:
        if self._held_up:
            self._happened["freeze"] += 1
        self._held_up = False
        self._open.set()


class Faults:
    """What is armed, by api key, and what has happened, by name; all links of a proxy share it."""

    def __init__(self) -> None:
        self.armed: dict[int, Fault] = {}
        self.happened: Counter[str] = Counter()
        self.gate = Gate(self.happened)


class Late(NamedTuple):
    """A request that the broker gets in so many seconds."""

    seconds: float
    correlation_id: int
    request: bytes


class Link:
    """A client's connection and the broker's for it: one task for the requests, one for the answers.

    It ends with the first of both. A late request alone keeps the broker's side open longer.
    """

    def __init__(self, client: Peer, broker: Peer, faults: Faults) -> None:
        self._client = client
        self._broker = broker
        self._faults = faults
        self._marked: dict[int, tuple[int, LoseAnswer | DelayAnswer]] = {}
        self._late: Late | None = None
        self._tasks: list[asyncio.Task[None]] = []

    async def run(self) -> None:
        """Pass on what comes until either side or a fault ends it."""
        self._tasks = [
            asyncio.create_task(_until_it_breaks(passing)) for passing in (self._pass_requests, self._pass_answers)
        ]
        try:
            await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self.cut()
            await asyncio.wait(self._tasks)
            for api_key, fault in self._marked.values():  # the connection went before the answer came
                self._faults.armed.setdefault(api_key, fault)
        if self._late is not None:
            await self._client.close()
            await self._deliver(self._late)
        for task in self._tasks:
            if not task.cancelled():
                task.result()

    def cut(self) -> bool:
        """End it, and say whether there was something to end; a late request is no longer the link's."""
        return sum(task.cancel() for task in self._tasks) > 0

    async def _pass_requests(self) -> None:
        while piece := await self._client.read():
            for start, (size, api_key, _, correlation_id) in piece.heads:
                match self._faults.armed.pop(api_key, None):
                    case None:
                        pass
                    case LoseAnswer() | DelayAnswer() as fault:
                        self._marked[correlation_id] = api_key, fault
                    case LoseRequest():
                        await self._pass(self._broker, piece.data[:start])
                        self._faults.happened["lose_request"] += 1
                        return
                    case DelayRequest(seconds=seconds):
                        await self._pass(self._broker, piece.data[:start])
                        request = await self._whole(piece.data[start : start + 4 + size], 4 + size)
                        self._late = Late(seconds, correlation_id, request)
                        return
            await self._pass(self._broker, piece.data)

    async def _pass_answers(self) -> None:
        while piece := await self._broker.read():
            passed = 0
            for start, (_, correlation_id) in piece.heads:
                match self._marked.pop(correlation_id, None):
                    case None:
                        pass
                    case _, LoseAnswer():
                        await self._pass(self._client, piece.data[passed:start])
                        self._faults.happened["lose_answer"] += 1
                        return
                    case _, DelayAnswer(seconds=seconds):
                        await self._pass(self._client, piece.data[passed:start])
                        await asyncio.sleep(seconds)
                        self._faults.happened["delay_answer"] += 1
                        passed = start
            await self._pass(self._client, piece.data[passed:])

    async def _pass(self, peer: Peer, data: bytes) -> None:
        await self._faults.gate.passed()
        await peer.write(data)

    async def _whole(self, request: bytes, size: int) -> bytes:
        parts, missing = [request], size - len(request)
        while missing > 0:
            piece = await self._client.read()
            if piece is None:
                raise ConnectionResetError("the client has gone before its request was whole")
            parts.append(piece.data[:missing])
            missing -= len(parts[-1])
        return b"".join(parts)

    async def _deliver(self, late: Late) -> None:
        """Deliver a late request; it has happened when the broker has answered, and answers before it are dropped.

        Closing before would let unread answers reset the connection, and the request be thrown away.
        """
        await asyncio.sleep(late.seconds)
        await self._pass(self._broker, late.request)
        while piece := await self._broker.read():
            if any(correlation_id == late.correlation_id for _, (_, correlation_id) in piece.heads):
                self._faults.happened["delay_request"] += 1
                return


async def _until_it_breaks(passing: Callable[[], Coroutine[None, None, None]]) -> None:
    # Called here, for a task that is cancelled before it began would leave its coroutine behind.
    with contextlib.suppress(OSError):
        await passing()


class Proxy:
    """A proxy in a thread of its own, so that tests can be plain functions.

    `target_port` is the broker's; while no process listens there, clients are turned away. `listen_port` is for when a
    broker has to know it beforehand; 0 takes a free one, and `port` says which. Everything here may be called from any
    thread and returns at once. One fault at a time can be armed for an api key; the next one replaces it.
    """

    def __init__(self, target_port: int, listen_port: int = 0) -> None:
        self.target_port = target_port
        self.port = listen_port
        self._faults = Faults()
        self._links: set[Link] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._started = threading.Event()
        self._stop = asyncio.Event()
        self._thread: threading.Thread | None = None

    @property
    def happened(self) -> Counter[str]:
        """How often each fault has really happened, by the name of its method."""
        return Counter(self._faults.happened)

    @property
    def armed(self) -> dict[int, Fault]:
        """What has not found its request yet, by api key."""
        return dict(self._faults.armed)

    def disarm(self) -> None:
        """Take back all that has not found its request yet."""
        self._faults.armed.clear()

    def cut_all(self) -> None:
        """Close all connections; it happened if there was one. Late requests stay on their way."""
        self._loop.call_soon_threadsafe(self._cut_all)

    def freeze(self, seconds: float) -> None:
        """Pass nothing on for so long, then everything; it happened if something was held up."""
        self._loop.call_soon_threadsafe(self._faults.gate.close, seconds)

    def lose_request(self, api_key: int) -> None:
        """Close the connection instead of passing on the next such request."""
        self._faults.armed[api_key] = LoseRequest()

    def lose_answer(self, api_key: int) -> None:
        """Pass on the next such request, and close the connection instead of passing on its answer."""
        self._faults.armed[api_key] = LoseAnswer()

    def delay_answer(self, api_key: int, seconds: float) -> None:
        """Pass on the answer to the next such request so much later, and behind it those that follow it."""
        self._faults.armed[api_key] = DelayAnswer(seconds)

    def delay_request(self, api_key: int, seconds: float) -> None:
        """Close the client's connection at the next such request, and deliver the request so much later."""
        self._faults.armed[api_key] = DelayRequest(seconds)

    def __enter__(self) -> Self:
        listener = socket.create_server((HOST, self.port), backlog=128)
        listener.setblocking(False)
        self.port = listener.getsockname()[1]
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve(listener)), name="proxy", daemon=True)
        self._thread.start()
        assert self._started.wait(10), "the proxy starts"
        return self

    def __exit__(self, *_: object) -> None:
        assert self._thread is not None
        with contextlib.suppress(RuntimeError):  # its loop is closed: it ended by an error, which its thread has told
            self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)
        assert not self._thread.is_alive(), "the proxy ends"

    async def _serve(self, listener: socket.socket) -> None:
        self._loop = asyncio.get_running_loop()
        # No `start_server`: Python 3.11 never closes a connection that comes in the moment before the server closes.
        self._loop.add_reader(listener, self._accept, listener)
        async with asyncio.TaskGroup() as self._group:
            try:
                self._started.set()
                await self._stop.wait()
            finally:
                self._loop.remove_reader(listener)
                listener.close()
                for task in self._tasks:
                    task.cancel()

    def _accept(self, listener: socket.socket) -> None:
        connection, _ = listener.accept()
        task = self._group.create_task(self._link(connection))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(lambda _: connection.close())  # cancelled before it began, the task has not

    async def _link(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError):  # one of both is away, or goes
            async with await welcome(connection) as client, await connect(self.target_port) as broker:
                link = Link(client, broker, self._faults)
                self._links.add(link)
                try:
                    await link.run()
                finally:
                    self._links.discard(link)

    def _cut_all(self) -> None:
        if sum(link.cut() for link in self._links) > 0:
            self._faults.happened["cut_all"] += 1
