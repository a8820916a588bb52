"""Server-sent events: a connection that stays open, gets each event once and in order, and resumes where it broke off.

Source: HTML standard, "Server-sent events".
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final, cast

from aiohttp import web
from sqlalchemy.exc import SQLAlchemyError

from order_service.views.queries import Places, Recorded, Views
from order_service.web import requests
from order_service.web.answers import encode, event_json
from order_service.web.auth import Caller
from order_service.web.cursors import read_places, write_places
from order_service.web.problems import Problem, Trouble
from order_service.web.pulse import Pulse
from order_service.web.streams import Streams, TooSlow

HEARTBEAT_S: Final = 15.0
WRITE_WITHIN_S: Final = 10.0
"""How long a reader may leave its socket full; then it is cut off."""
LIFE_S: Final = 3600.0
"""How long a connection may live: whoever resumes shows its token again."""
PAGE: Final = 500


class Live:
    """Serves the events of an order, and of all orders, to at most `connections_max` readers."""

    def __init__(self, views: Views, pulse: Pulse, streams: Streams, topic: str, connections_max: int) -> None:
        self._views = views
        self._pulse = pulse
        self._streams = streams
        self._topic = topic
        self._connections_max = connections_max
        self._open: set[asyncio.Task[object]] = set()

    def stop(self) -> None:
        """End all connections: their readers resume at another process."""
        for task in self._open:
            task.cancel()

    async def of_order(self, request: web.Request, order_id: str) -> web.StreamResponse:
        """Send the history of an order behind `Last-Event-ID` (a version), and then what comes."""
        given = requests.last_event_id(request.headers) or "0"
        if not (given.isascii() and given.isdigit() and len(given) < 10):
            raise requests.bad_last_event_id()
        version = int(given)

        async def catch_up(wire: Wire) -> None:
            nonlocal version
            while page := await asyncio.to_thread(self._views.history, order_id, after_version=version, limit=PAGE):
                version = page[-1].event.version
                for recorded in page:
                    await wire.event(recorded, str(recorded.event.version))

        def is_new(recorded: Recorded) -> str | None:
            nonlocal version
            if recorded.event.version <= version:
                return None
            version = recorded.event.version
            return str(version)

        return await self._serve(request, order_id, given, catch_up, is_new)

    async def of_all(self, request: web.Request, caller: Caller) -> web.StreamResponse:
        """Send the events that the caller may see, behind `Last-Event-ID`, or from now on; in order for each order."""
        given = requests.last_event_id(request.headers)
        known = await asyncio.to_thread(self._views.places)
        places: Places = {place: offset for place, offset in known.items() if place[0] == self._topic}
        if given is not None:
            resumed = read_places(given, self._topic)
            if resumed is None or resumed.keys() - places.keys():
                raise requests.bad_last_event_id()
            places |= resumed
        user_id = None if caller.is_service else caller.subject

        async def catch_up(wire: Wire) -> None:
            while page := await asyncio.to_thread(self._views.events_of, places, user_id=user_id, limit=PAGE):
                for recorded in page:
                    places[self._topic, recorded.partition] = recorded.offset + 1
                    await wire.event(recorded, write_places(places))

        def is_new(recorded: Recorded) -> str | None:
            place = self._topic, recorded.partition
            if recorded.offset < places.get(place, 0) or not caller.sees(recorded.user_id):
                return None
            places[place] = recorded.offset + 1
            return write_places(places)

        return await self._serve(request, None, write_places(places), catch_up, is_new)

    async def _serve(
        self,
        request: web.Request,
        order_id: str | None,
        start: str,
        catch_up: Callable[[Wire], Awaitable[None]],
        is_new: Callable[[Recorded], str | None],
    ) -> web.StreamResponse:
        if len(self._open) >= self._connections_max:
            raise Problem(Trouble.TOO_MANY_REQUESTS, "Too many streams are open.", headers={"Retry-After": "5"})
        wire = Wire(request)
        task = cast("asyncio.Task[object]", asyncio.current_task())
        self._open.add(task)
        try:
            async with asyncio.timeout(LIFE_S):
                await wire.open(start)
                await catch_up(wire)  # it may be a long way: what comes meanwhile must not overflow the queue
                with self._streams.subscription(order_id) as coming:
                    await self._pulse.wake()
                    await catch_up(wire)
                    while True:
                        recorded = await coming.next(HEARTBEAT_S)
                        event_id = None if recorded is None else is_new(recorded)
                        if recorded is None:
                            await wire.heartbeat()
                        elif event_id is not None:
                            await wire.event(recorded, event_id)
        except (TooSlow, TimeoutError, ConnectionError, SQLAlchemyError):
            wire.cut()  # the answer has begun, so its end is all that can be said; its reader resumes
        finally:
            self._open.discard(task)
        return wire.response


class Wire:
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

    async def event(self, recorded: Recorded, event_id: str) -> None:
        """Send an event under the id by which its reader resumes behind it."""
        name = type(recorded.event.fact).__name__
        head = f"id: {event_id}\nevent: {name}\ndata: ".encode()
        await self._write(head + encode(event_json(recorded)) + b"\n\n")

    async def heartbeat(self) -> None:
        """Send a comment: whoever does not get it knows that the connection is gone."""
        await self._write(b": still here\n\n")

    def cut(self) -> None:
        """End the connection, and what is not sent of it."""
        if self._request.transport is not None:
            self._request.transport.abort()

    async def _write(self, data: bytes) -> None:
        async with asyncio.timeout(WRITE_WITHIN_S):
            await self.response.write(data)
