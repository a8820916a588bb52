"""Two HTTP servers over the same views, whose commands a test decides and projects when it wants to: no Kafka."""

import asyncio
from collections.abc import AsyncIterator, Collection
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from datetime import datetime
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from aiohttp import ClientResponse
from aiohttp.test_utils import TestClient, TestServer
from aiokafka.structs import TopicPartition
from sqlalchemy import Engine, make_url

from order_service.domain.decision import UserCheck, reject
from order_service.domain.entry import Entry
from order_service.domain.messages import Command, Event, Rejection
from order_service.domain.refusals import Reason, Refusal
from order_service.errors import KafkaAwayError
from order_service.kafka.reader import OutcomeRecord
from order_service.kafka.topics import topic_names
from order_service.settings import Settings
from order_service.views.projector import Projection
from order_service.views.queries import Offsets, Views
from order_service.views.stopped import BadRecord
from order_service.views.tables import open_database, prepare
from order_service.web.access.auth import Everybody
from order_service.web.access.rate_limit import Limits
from order_service.web.api.id_searches import IdSearches
from order_service.web.api.routes import Api
from order_service.web.live.command_results import CommandResults
from order_service.web.live.log_ends import LogEnds
from order_service.web.live.overview_watch import OverviewWatch
from order_service.web.live.sse import HEARTBEAT_S, Live
from order_service.web.live.subscriptions import Streams
from order_service.web.live.view_poller import ViewPoller
from order_service.web.server import Server
from tests.support.event_log import EVENTS, START, after
from tests.support.samples import NOW, digest_of, take

if TYPE_CHECKING:
    from order_service.runtime.spans import Spans


class Arrived(NamedTuple):
    """What a producer says of a command that it has sent."""

    partition: int
    offset: int


class Answer(NamedTuple):
    """What a server answered."""

    status: int
    body: Any
    headers: Any


class World:
    """One partition of commands, the outcomes of a worker, and the views of a projector, each as far as a test says."""

    name = topic_names().commands

    def __init__(self, engine: Engine) -> None:
        self.commands: list[Command] = []
        self.headers: list[object] = []
        self.projection = Projection(engine, topic_names())
        self.projection.positions(START)
        self.views = Views(engine, topic_names())
        self._engine = engine
        self._positions = dict(START)
        self._entries: dict[str, Entry] = {}
        self._decided = 0
        self._outcomes: list[OutcomeRecord] = []

    async def send(self, command: Command, headers: object) -> Arrived:
        """Take a command as the commands topic does."""
        self.commands.append(command)
        self.headers.append(headers)
        return Arrived(0, len(self.commands) - 1)

    def hold_answers(self, monkeypatch: pytest.MonkeyPatch) -> asyncio.Event:
        """Take commands as before, but tell their offsets only once the returned event is set."""
        send, may_answer = self.send, asyncio.Event()

        async def send_slowly(command: Command, headers: object) -> Arrived:
            arrived = await send(command, headers)
            await may_answer.wait()
            return arrived

        monkeypatch.setattr(self, "send", send_slowly)
        return may_answer

    def fail_to_send(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Take no more commands: Kafka is away."""

        async def send(_command: Command, _headers: object) -> Arrived:
            raise KafkaAwayError("Kafka is away")

        monkeypatch.setattr(self, "send", send)

    def elsewhere(self, engine: Engine) -> "World":
        """Return the same commands and outcomes with other views, which are projected on their own."""
        other = World(engine)
        other.commands, other._outcomes = self.commands, self._outcomes
        return other

    async def ends(self) -> Offsets:
        """Return the end of the events in the log."""
        return {EVENTS: sum(isinstance(seen.message, Event) for seen in self._outcomes)}

    async def sent(self, count: int) -> None:
        """Wait until so many commands were sent."""
        async with asyncio.timeout(30):
            while len(self.commands) < count:  # noqa: ASYNC110 - the list has no event
                await asyncio.sleep(0.005)

    def decide(
        self,
        user: UserCheck = UserCheck.ACTIVE,
        now: datetime = NOW,
        dropped: Collection[int] = (),
        too_many: Collection[int] = (),
    ) -> list[str]:
        """Decide what was sent and undecided, as a worker does; return the outcome of each.

        Commands at the offsets `too_many` came to a full waiting room and are refused. Copies at the offsets `dropped`
        have no outcome: another copy waited in it.
        """
        said = []
        for offset in range(self._decided, len(self.commands)):
            if offset in dropped:
                continue
            command = self.commands[offset]
            known = self._entries.get(command.order_id)
            message: object
            if offset in too_many:
                message, entry = reject(command, known, now, Refusal(Reason.TOO_MANY_WAITING)), known
            else:
                message, entry = take(command, known, now, user)
            said.append(_name(message))
            if entry is not None:
                self._entries[command.order_id] = entry
            if isinstance(message, Event | Rejection):
                number = sum(isinstance(seen.message, type(message)) for seen in self._outcomes)
                self._outcomes.append(OutcomeRecord(message, 0, number, digest_of(message), offset))
        self._decided = len(self.commands)
        return said

    def project(self, *places: TopicPartition) -> None:
        """Put all outcomes into the views that are not there yet, or those of these partitions only."""
        read = places or tuple(self._positions)
        outcomes = [seen for seen in self._outcomes if _place(seen) in read]
        new = [seen for seen in outcomes if seen.offset >= self._positions[_place(seen)]]
        moved = after(self._positions, new)
        if not moved:
            return
        self.projection.apply(new, self._positions, moved)
        self._positions |= moved

    def complete(self) -> None:
        """Record that no refusal of before these events is missing in the views."""
        events, rejections = START
        complete = {rejections: self._positions[events]}
        self.projection.complete(complete, self._positions)

    def stop(self, place: TopicPartition) -> None:
        """Stop the views of a partition at a record that they cannot take."""
        offset = self._positions[place]
        self.projection.apply([BadRecord(place, offset, "not Avro")], self._positions, {place: offset + 1})

    @asynccontextmanager
    async def server(self, heartbeat_s: float = HEARTBEAT_S, spans: "Spans | None" = None) -> AsyncIterator["Caller"]:
        """Serve HTTP."""
        topic: Any = self
        poller = ViewPoller(self.views)
        streams = Streams(poller)
        outcomes = CommandResults(self.views, poller, topic, waiting_max=100, spans=spans)
        log_ends = LogEnds(self.ends, ask_every_s=0.0)
        live = Live(self.views, poller, streams, topic_names().events, 10, log_ends, heartbeat_s)
        api = Api(self.views, poller, outcomes, streams, live, IdSearches(Settings()), OverviewWatch(Settings()))
        names = topic_names()
        server = Server(api, Everybody(), Limits(1000), lambda: None, names=names, partitions=1, spans=spans)
        running = asyncio.create_task(poller.run())
        async with TestClient(TestServer(server.application())) as client:
            yield Caller(client)
            await outcomes.stop()
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running


class Caller:
    """A caller of one server."""

    def __init__(self, client: "TestClient[Any, Any]") -> None:
        self._client = client

    async def ask(self, method: str, path: str, body: object = None, **headers: str) -> Answer:
        """Send a request; bytes, also in pieces, are sent as they are, any other body as JSON."""
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        content: dict[str, Any] = {"data": BytesIO(body) if isinstance(body, bytes) else body}
        if not isinstance(body, bytes | AsyncIterator):
            content = {"json": body}
        async with self._client.request(method, path, **content, headers=given) as response:
            return Answer(response.status, await response.json(), response.headers)

    @asynccontextmanager
    async def stream(self, path: str, **headers: str) -> AsyncIterator["Stream"]:
        """Open a response and read it later: an event stream, or one without a body."""
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        async with asyncio.timeout(60), self._client.get(path, headers=given) as response:
            yield Stream(response)

    def asking(self, method: str, path: str, body: object = None, **headers: str) -> "asyncio.Task[Answer]":
        """Begin to ask."""
        return asyncio.create_task(self.ask(method, path, body, **headers))


class Stream:
    """An open event stream, or the answer instead of it."""

    def __init__(self, response: ClientResponse) -> None:
        self.status = response.status
        self._content = response.content

    async def next(self) -> tuple[str, str] | None:
        """Return the id and the type of the next event, or None at the end of the stream."""
        fields: dict[str, str] = {}
        while line := (await self._content.readline()).decode():
            name, _, value = line.rstrip("\n").partition(": ")
            if not name and "event" in fields:
                return fields["id"], fields["event"]
            fields |= {name: value}
        return None

    async def text(self) -> str:
        """Return all that is left."""
        return (await self._content.read()).decode()


def _name(message: object) -> str:
    if isinstance(message, Event):
        return type(message.fact).__name__
    return message.reason if isinstance(message, Rejection) else type(message).__name__


def _place(seen: OutcomeRecord) -> Any:
    events, rejections = START
    return events if isinstance(seen.message, Event) else rejections


def empty_views(directory: Path, name: str, stack: AsyncExitStack) -> Engine:
    """Make views that are empty."""
    engine = open_database(make_url(f"sqlite:///{directory}/{name}.db"), writes=True)
    prepare(engine)
    stack.callback(engine.dispose)
    return engine


@asynccontextmanager
async def two_views(directory: Path) -> AsyncIterator[tuple[World, Caller, World, Caller]]:
    """Run two servers over one log, each with views of its own that are empty."""
    async with AsyncExitStack() as stack:
        world = World(empty_views(directory, "views", stack))
        late = world.elsewhere(empty_views(directory, "late", stack))
        first, second = [await stack.enter_async_context(each.server()) for each in (world, late)]
        yield world, first, late, second


@asynccontextmanager
async def two_servers(directory: Path) -> AsyncIterator[tuple[World, Caller, Caller]]:
    """Run two servers over views that are empty."""
    async with AsyncExitStack() as stack:
        world = World(empty_views(directory, "views", stack))
        yield world, await stack.enter_async_context(world.server()), await stack.enter_async_context(world.server())
