"""Server-sent events: a connection stays open, receives each event once and in order, and resumes where it broke off.

Source: HTML standard, "Server-sent events".
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Final, cast

from aiohttp import web
from sqlalchemy.exc import SQLAlchemyError

from order_service.views.checkpoints import Checkpoint
from order_service.views.queries import Offsets, StoredEvent, Views
from order_service.web.access.caller import Caller
from order_service.web.http import requests
from order_service.web.http.problems import Problem, Trouble
from order_service.web.http.responses import encode, event_json
from order_service.web.live.log_ends import LogEnds
from order_service.web.live.positions import LogPosition, OrderPosition, StreamPosition, position_of
from order_service.web.live.subscriptions import Streams, Subject
from order_service.web.live.view_poller import ViewPoller

HEARTBEAT_S: Final = 15.0
WRITE_WITHIN_S: Final = 10.0
"""How long a reader may leave its socket full before the connection is aborted."""
LIFE_S: Final = 3600.0
"""Maximum age of a connection: a reader that resumes must send its token again."""
STREAM_HEADERS: Final = {
    "Content-Type": "text/event-stream",
    "Cache-Control": "no-store",
    "X-Accel-Buffering": "no",
}
USERS_SHARE: Final = 0.01
"""The share of all streams that one user may open."""


class Live:
    """Serves the events of one order or of all orders to at most `streams_max` readers, few of them of one user."""

    def __init__(
        self,
        views: Views,
        poller: ViewPoller,
        streams: Streams,
        topic: str,
        streams_max: int,
        log_ends: LogEnds,
        heartbeat_s: float = HEARTBEAT_S,
    ) -> None:
        self._views = views
        self._poller = poller
        self._streams = streams
        self._topic = topic
        self._log_ends = log_ends
        self._heartbeat_s = heartbeat_s
        self._streams_max = streams_max
        self._open: dict[asyncio.Task[object], str] = {}

    def stop(self) -> None:
        """Close all connections: their readers resume at another process."""
        for task in self._open:
            task.cancel()
        self._streams.stop()

    async def stream_order(
        self,
        request: web.Request,
        caller: Caller,
        order_id: str,
        version: int,
        is_visible: Callable[[], Awaitable[bool]],
    ) -> web.StreamResponse:
        """Send the history of an order after a version, then its new events.

        If the caller cannot see the order yet, wait: the stream ends after 15 s, and its reader resumes.
        """
        position = OrderPosition(self._views, order_id, version)
        return await self._serve(request, caller, Subject(order_id=order_id), position, is_visible)

    async def stream_events(self, request: web.Request, caller: Caller) -> web.StreamResponse:
        """Send the events that the caller may see, after `Last-Event-ID` or from now on; in order for each order."""
        event_id = requests.last_event_id(request.headers)
        checkpoint = await asyncio.to_thread(self._views.newest_checkpoint)  # first, so that the ends have passed it
        ends = await asyncio.to_thread(self._views.offsets)
        offsets: Offsets = {partition: offset for partition, offset in ends.items() if partition[0] == self._topic}
        if event_id is not None:
            resumed, passed = await self._resumed(event_id, offsets)
            offsets |= resumed
            checkpoint = passed or checkpoint
        user_id = None if caller.is_service else caller.subject
        position = LogPosition(self._views, self._topic, user_id, offsets, checkpoint)
        return await self._serve(request, caller, Subject(user_id=user_id), position)

    async def _resumed(self, event_id: str, ends: Offsets) -> tuple[Offsets, Checkpoint | None]:
        """Return the position of a `Last-Event-ID`, which may be past the ends of these views, but not of the log.

        Raises Problem for an id that this stream did not send. It may be from a log or a database that was replaced.
        """
        found = await asyncio.to_thread(position_of, event_id, self._views, self._topic, ends)
        if found is None or found[0].keys() - ends.keys():
            raise requests.bad_last_event_id()
        resumed, _ = found
        ahead = {partition: offset for partition, offset in resumed.items() if offset > ends[partition]}
        if ahead and not await self._log_ends.reach(ahead):
            raise requests.bad_last_event_id()
        return found

    async def _serve(
        self,
        request: web.Request,
        caller: Caller,
        subject: Subject,
        position: StreamPosition,
        is_visible: Callable[[], Awaitable[bool]] | None = None,
    ) -> web.StreamResponse:
        stream = EventStreamResponse(request)
        with self._slot(caller):
            try:
                async with asyncio.timeout(LIFE_S):
                    await stream.open(position.id)
                    await self._send(stream, subject, position, is_visible)
            except (TimeoutError, ConnectionError, SQLAlchemyError):
                stream.abort()  # the response has begun and can only end; its reader resumes
        return stream.response

    async def _send(
        self,
        stream: EventStreamResponse,
        subject: Subject,
        position: StreamPosition,
        is_visible: Callable[[], Awaitable[bool]] | None,
    ) -> None:
        with self._streams.subscription(subject) as subscription:
            await self._poller.wake()
            while is_visible is not None and not await is_visible():
                if await subscription.next(self._heartbeat_s) is None:
                    return
            while True:
                if subscription.is_behind:
                    subscription.restart()
                    while page := await position.page():
                        for recorded in page:
                            position.advance(recorded)
                            await stream.event(recorded, position.id)
                following = await subscription.next(self._heartbeat_s)
                is_new = following is not None and position.advance(following)  # before `reached`, which is past it
                reached = self._streams.reached if subscription.is_drained else {}
                position.pass_checkpoint(self._poller.checkpoint, reached)
                if following is None:
                    position.advance_to(reached)
                    await stream.heartbeat(position.id)
                elif is_new:
                    await stream.event(following, position.id)

    @contextmanager
    def _slot(self, caller: Caller) -> Iterator[None]:
        """Reserve a slot for an open stream. Raises Problem if no slot is free."""
        task = cast("asyncio.Task[object]", asyncio.current_task())
        caller_max = self._streams_max if caller.is_service else max(1, round(self._streams_max * USERS_SHARE))
        if len(self._open) >= self._streams_max or Counter(self._open.values())[caller.actor] >= caller_max:
            raise Problem(Trouble.TOO_MANY_REQUESTS, "Too many event streams are open.", headers={"Retry-After": "5"})
        self._open[task] = caller.actor
        try:
            yield
        finally:
            del self._open[task]


def come_again(after_s: float) -> web.Response:
    """Return a stream that ends at once: its reader resumes after `after_s` seconds."""
    return web.Response(text=f"retry: {round(after_s * 1000)}\n\n", headers=STREAM_HEADERS)


class EventStreamResponse:
    """An open response with server-sent events."""

    def __init__(self, request: web.Request) -> None:
        self._request = request
        self.response = web.StreamResponse(headers=STREAM_HEADERS)

    async def open(self, event_id: str) -> None:
        """Send the head, the reconnection delay and the id to resume after, which may be needed before any event."""
        await self.response.prepare(self._request)
        await self._write(f"id: {event_id}\nretry: 1000\n\n".encode())

    async def event(self, recorded: StoredEvent, event_id: str) -> None:
        """Send an event with the id that resumes after it."""
        name = type(recorded.event.fact).__name__
        head = f"id: {event_id}\nevent: {name}\ndata: ".encode()
        await self._write(head + encode(event_json(recorded)) + b"\n\n")

    async def heartbeat(self, event_id: str) -> None:
        """Send a comment and the current id; a reader that does not receive it knows that the connection is lost."""
        await self._write(f": still here\nid: {event_id}\n\n".encode())

    def abort(self) -> None:
        """Close the connection and discard unsent data."""
        if self._request.transport is not None:
            self._request.transport.abort()

    async def _write(self, data: bytes) -> None:
        async with asyncio.timeout(WRITE_WITHIN_S):
            await self.response.write(data)
