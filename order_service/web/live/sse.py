"""Server-sent events: a connection that stays open, gets each event once and in order, and resumes where it broke off.

Source: HTML standard, "Server-sent events".
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final, Protocol, cast

from aiohttp import web
from sqlalchemy.exc import SQLAlchemyError

from order_service.views.order_view import OrderView
from order_service.views.queries import Offsets, StoredEvent, Views
from order_service.web.access.auth import Caller
from order_service.web.http import requests
from order_service.web.http.cursors import read_places, write_places
from order_service.web.http.problems import Problem, Trouble
from order_service.web.http.responses import encode, event_json
from order_service.web.live.subscriptions import Streams, Subject
from order_service.web.live.view_poller import ViewPoller

HEARTBEAT_S: Final = 15.0
WRITE_WITHIN_S: Final = 10.0
"""How long a reader may leave its socket full; then it is cut off."""
LIFE_S: Final = 3600.0
"""How long a connection may live: whoever resumes shows its token again."""
PAGE: Final = 100
USERS_SHARE: Final = 0.01
"""Of all streams, how many one user may open."""


class StreamPosition(Protocol):
    """Where the reader of a stream is."""

    @property
    def id(self) -> str:
        """By which its reader resumes here."""

    async def page(self) -> Sequence[StoredEvent]:
        """Read what comes next in the views; nothing if that is all."""

    def take(self, recorded: StoredEvent) -> bool:
        """Go behind an event; False if it has been passed."""

    def reach(self, places: Offsets) -> None:
        """Go on to where nothing is left between for this reader."""


class InOrder:
    """Behind a version of an order."""

    def __init__(self, views: Views, order_id: str, version: int) -> None:
        self._views = views
        self._order_id = order_id
        self._version = version

    @property
    def id(self) -> str:
        """The version."""
        return str(self._version)

    async def page(self) -> Sequence[StoredEvent]:
        """Read the next events of the order."""
        return await asyncio.to_thread(self._views.history, self._order_id, after_version=self._version, limit=PAGE)

    def take(self, recorded: StoredEvent) -> bool:
        """Go behind an event; False if it has been passed."""
        if recorded.event.version <= self._version:
            return False
        self._version = recorded.event.version
        return True

    def reach(self, places: Offsets) -> None:
        """Stay: the version says it all."""


class InAll:
    """In the log of all events, of which a user gets its own."""

    def __init__(self, views: Views, topic: str, user_id: str | None, places: Offsets) -> None:
        self._views = views
        self._topic = topic
        self._user_id = user_id
        self._places = places

    @property
    def id(self) -> str:
        """The next offset of each partition."""
        return write_places(self._places)

    async def page(self) -> Sequence[StoredEvent]:
        """Read the next events that the reader may see; where there are none, it is where the views are."""
        known = await asyncio.to_thread(self._views.offsets)
        found = await asyncio.to_thread(self._views.events_of, self._places, user_id=self._user_id, limit=PAGE)
        if not found:
            self.reach(known)
        return found

    def take(self, recorded: StoredEvent) -> bool:
        """Go behind an event; False if it has been passed."""
        place = self._topic, recorded.partition
        if recorded.offset < self._places.get(place, 0):
            return False
        self._places[place] = recorded.offset + 1
        return True

    def reach(self, places: Offsets) -> None:
        """Go on to where nothing is left between: else who rarely orders would read all others' again."""
        for place, offset in places.items():
            if place[0] == self._topic:
                self._places[place] = max(offset, self._places.get(place, 0))


class Live:
    """Serves the events of an order, and of all orders, to at most `streams_max` readers, few of them one user's."""

    def __init__(self, views: Views, pulse: ViewPoller, streams: Streams, topic: str, streams_max: int) -> None:
        self._views = views
        self._pulse = pulse
        self._streams = streams
        self._topic = topic
        self._streams_max = streams_max
        self._open: dict[asyncio.Task[object], str] = {}

    def stop(self) -> None:
        """End all connections: their readers resume at another process."""
        for task in self._open:
            task.cancel()
        self._streams.stop()

    async def of_order(self, request: web.Request, caller: Caller, view: OrderView) -> web.StreamResponse:
        """Send the history of an order behind `Last-Event-ID` (a version), and then what comes."""
        given = requests.last_event_id(request.headers) or "0"
        if not (given.isascii() and given.isdigit() and len(given) < 10) or int(given) > view.version:
            raise requests.bad_last_event_id()
        place = InOrder(self._views, view.order_id, int(given))
        return await self._serve(request, caller, Subject(order_id=view.order_id), place)

    async def of_all(self, request: web.Request, caller: Caller) -> web.StreamResponse:
        """Send the events that the caller may see, behind `Last-Event-ID`, or from now on; in order for each order."""
        given = requests.last_event_id(request.headers)
        known = await asyncio.to_thread(self._views.offsets)
        places: Offsets = {place: offset for place, offset in known.items() if place[0] == self._topic}
        if given is not None:
            resumed = read_places(given, self._topic)
            if resumed is None or any(offset > places.get(place, -1) for place, offset in resumed.items()):
                raise requests.bad_last_event_id()  # also an id of views that were made anew, from another log
            places |= resumed
        user_id = None if caller.is_service else caller.subject
        place = InAll(self._views, self._topic, user_id, places)
        return await self._serve(request, caller, Subject(user_id=user_id), place)

    async def _serve(
        self, request: web.Request, caller: Caller, subject: Subject, place: StreamPosition
    ) -> web.StreamResponse:
        wire = EventStreamResponse(request)
        with self._counted(caller):
            try:
                async with asyncio.timeout(LIFE_S):
                    await wire.open(place.id)
                    await self._send(wire, subject, place)
            except (TimeoutError, ConnectionError, SQLAlchemyError):
                wire.cut()  # the answer has begun, so its end is all that can be said; its reader resumes
        return wire.response

    async def _send(self, wire: EventStreamResponse, subject: Subject, place: StreamPosition) -> None:
        with self._streams.subscription(subject) as coming:
            await self._pulse.wake()
            while True:
                if coming.is_behind:
                    coming.begin()
                    while page := await place.page():
                        for recorded in page:
                            place.take(recorded)
                            await wire.event(recorded, place.id)
                following = await coming.next(HEARTBEAT_S)
                if following is None:
                    if coming.has_none:
                        place.reach(self._streams.reached)
                    await wire.heartbeat(place.id)
                elif place.take(following):
                    await wire.event(following, place.id)

    @contextmanager
    def _counted(self, caller: Caller) -> Iterator[None]:
        """Count a stream; Problem if there are too many."""
        task = cast("asyncio.Task[object]", asyncio.current_task())
        most = self._streams_max if caller.is_service else max(1, round(self._streams_max * USERS_SHARE))
        if len(self._open) >= self._streams_max or Counter(self._open.values())[caller.actor] >= most:
            raise Problem(Trouble.TOO_MANY_REQUESTS, "Too many streams are open.", headers={"Retry-After": "5"})
        self._open[task] = caller.actor
        try:
            yield
        finally:
            del self._open[task]


class EventStreamResponse:
    """The open answer."""

    def __init__(self, request: web.Request) -> None:
        self._request = request
        self.response = web.StreamResponse(
            headers={"Content-Type": "text/event-stream", "Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        )

    async def open(self, event_id: str) -> None:
        """Send the head, how soon to come back after a break, and behind what: it may come before any event."""
        await self.response.prepare(self._request)
        await self._write(f"id: {event_id}\nretry: 1000\n\n".encode())

    async def event(self, recorded: StoredEvent, event_id: str) -> None:
        """Send an event under the id by which its reader resumes behind it."""
        name = type(recorded.event.fact).__name__
        head = f"id: {event_id}\nevent: {name}\ndata: ".encode()
        await self._write(head + encode(event_json(recorded)) + b"\n\n")

    async def heartbeat(self, event_id: str) -> None:
        """Send a comment, and how far the reader is: whoever does not get it knows that the connection is gone."""
        await self._write(f": still here\nid: {event_id}\n\n".encode())

    def cut(self) -> None:
        """End the connection, and what is not sent of it."""
        if self._request.transport is not None:
            self._request.transport.abort()

    async def _write(self, data: bytes) -> None:
        async with asyncio.timeout(WRITE_WITHIN_S):
            await self.response.write(data)
