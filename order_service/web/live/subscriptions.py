"""Live events for those who keep a connection open: what is new in the views goes to whom it concerns."""

import asyncio
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from msgspec import Struct

from order_service.views.queries import Offsets, StoredEvent, ViewChanges
from order_service.web.live.view_poller import ViewPoller

QUEUE_MAX: Final = 512
"""How many events wait for one reader; whoever is further behind reads on in the views."""
EVERY_S: Final = 0.05


class Subject(Struct, frozen=True):
    """What events are about: an order, all orders of a user, or, with neither, all there are."""

    order_id: str | None = None
    user_id: str | None = None


class Subscription:
    """The events that one reader waits for."""

    def __init__(self) -> None:
        self._queue: asyncio.Queue[StoredEvent | None] = asyncio.Queue(QUEUE_MAX)
        self.is_behind = True
        """Whether there is more in the views than waits here."""

    @property
    def has_none(self) -> bool:
        """Whether its reader has all that it was handed."""
        return not self.is_behind and self._queue.empty()

    def put(self, recorded: StoredEvent | None) -> None:
        """Hand an event over, or None to wake its reader; more than it holds are forgotten."""
        try:
            self._queue.put_nowait(recorded)
        except asyncio.QueueFull:
            self.is_behind = True

    def begin(self) -> None:
        """Wait for what comes from now on: the reader goes and reads what is there."""
        self._queue = asyncio.Queue(QUEUE_MAX)
        self.is_behind = False

    async def next(self, within_s: float) -> StoredEvent | None:
        """Wait for the next event; None if none has come."""
        try:
            return await asyncio.wait_for(self._queue.get(), within_s)
        except TimeoutError:
            return None


class Streams:
    """Who waits for the events of which subject."""

    def __init__(self, pulse: ViewPoller) -> None:
        self._of: defaultdict[Subject, set[Subscription]] = defaultdict(set)
        self.reached: Offsets = {}
        """How far the events are that all subscriptions have got."""
        pulse.add(self)

    @property
    def every_s(self) -> float | None:
        """How often to look into the views."""
        return EVERY_S if self._of else None

    def hear(self, news: ViewChanges) -> None:
        """Hand events to those who wait for them."""
        for recorded in news.events:
            for subject in (Subject(), Subject(order_id=recorded.event.order_id), Subject(user_id=recorded.user_id)):
                for subscription in self._of.get(subject, ()):
                    subscription.put(recorded)
        self.reached = news.offsets

    @contextmanager
    def subscription(self, subject: Subject) -> Iterator[Subscription]:
        """Subscribe for the length of a block; after `ViewPoller.wake` nothing is missed."""
        mine = Subscription()
        self._of[subject].add(mine)
        try:
            yield mine
        finally:
            self._of[subject].discard(mine)
            if not self._of[subject]:
                del self._of[subject]

    def stop(self) -> None:
        """Wake all who wait: nothing comes any more."""
        for subscriptions in self._of.values():
            for subscription in subscriptions:
                subscription.put(None)
