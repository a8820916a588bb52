"""Live events for those who keep a connection open: what is new in the views goes to whom it concerns."""

import asyncio
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from order_service.views.queries import News, Recorded
from order_service.web.pulse import EAGER_S, Pulse

QUEUE_MAX: Final = 512
"""How many events wait for one reader; one that is slower is cut off, and resumes where it was."""
EVERY_S: Final = 0.05


class TooSlow(Exception):
    """A reader did not take its events in time."""


class Subscription:
    """The events that one reader waits for."""

    def __init__(self) -> None:
        self._queue: asyncio.Queue[Recorded] = asyncio.Queue(QUEUE_MAX)
        self._is_cut = False

    def put(self, recorded: Recorded) -> None:
        """Hand an event over; a reader whose queue is full is cut off."""
        try:
            self._queue.put_nowait(recorded)
        except asyncio.QueueFull:
            self._is_cut = True

    async def next(self, within_s: float) -> Recorded | None:
        """Wait for the next event; None if none has come. Raises TooSlow if there is a hole before it."""
        if self._is_cut:
            raise TooSlow
        try:
            return await asyncio.wait_for(self._queue.get(), within_s)
        except TimeoutError:
            return None


class Streams:
    """Who waits for the events of an order, or of all of them."""

    def __init__(self, pulse: Pulse) -> None:
        self._of_all: set[Subscription] = set()
        self._of_order: defaultdict[str, set[Subscription]] = defaultdict(set)
        self._eager = 0
        pulse.add(self)

    @property
    def every_s(self) -> float | None:
        """How often to look into the views."""
        if self._eager:
            return EAGER_S
        return EVERY_S if self._of_all or self._of_order else None

    def hear(self, news: News) -> None:
        """Hand events to those who wait for them."""
        for recorded in news.events:
            for subscription in (*self._of_all, *self._of_order.get(recorded.event.order_id, ())):
                subscription.put(recorded)

    @contextmanager
    def subscription(self, order_id: str | None = None, *, is_eager: bool = False) -> Iterator[Subscription]:
        """Subscribe to an order, or to all, for the length of a block; after `Pulse.wake` nothing is missed."""
        mine = Subscription()
        group = self._of_all if order_id is None else self._of_order[order_id]
        group.add(mine)
        self._eager += is_eager
        try:
            yield mine
        finally:
            self._eager -= is_eager
            group.discard(mine)
            if order_id is not None and not group:
                del self._of_order[order_id]
