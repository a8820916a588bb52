"""Distributes new events from the views to the open event streams whose subject they match."""

import asyncio
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from msgspec import Struct

from order_service.views.queries import Offsets, StoredEvent, ViewChanges
from order_service.web.live.view_poller import ViewPoller

QUEUE_MAX: Final = 512
"""Maximum number of events queued for one reader; a reader further behind continues from the views."""
POLL_INTERVAL_S: Final = 0.05


class Subject(Struct, frozen=True):
    """What events are about: an order, all orders of a user, or all orders if neither is set."""

    order_id: str | None = None
    user_id: str | None = None


class Subscription:
    """The queue of events for one reader."""

    def __init__(self) -> None:
        self._queue: asyncio.Queue[StoredEvent | None] = asyncio.Queue(QUEUE_MAX)
        self.is_behind = True
        """Whether the views hold events for this reader that are not in the queue."""

    @property
    def is_drained(self) -> bool:
        """Whether the reader has taken every event up to now."""
        return not self.is_behind and self._queue.empty()

    def put(self, recorded: StoredEvent | None) -> None:
        """Add an event, or None to wake the reader; if the queue is full, drop it and mark the reader as behind."""
        try:
            self._queue.put_nowait(recorded)
        except asyncio.QueueFull:
            self.is_behind = True

    def restart(self) -> None:
        """Start with an empty queue: the reader now reads all earlier events from the views."""
        self._queue = asyncio.Queue(QUEUE_MAX)
        self.is_behind = False

    async def next(self, within_s: float) -> StoredEvent | None:
        """Return the next event, or None if none arrives within `within_s` seconds."""
        try:
            async with asyncio.timeout(within_s):
                return await self._queue.get()
        except TimeoutError:
            return None


class Streams:
    """The open subscriptions by subject."""

    def __init__(self, poller: ViewPoller) -> None:
        self._subscriptions: defaultdict[Subject, set[Subscription]] = defaultdict(set)
        self.reached: Offsets = {}
        """The next offset of each partition after the events that all subscriptions have received."""
        poller.add(self)

    @property
    def poll_interval_s(self) -> float | None:
        """The poll interval in seconds; None without subscriptions."""
        return POLL_INTERVAL_S if self._subscriptions else None

    def on_changes(self, changes: ViewChanges) -> None:
        """Add each event to the subscriptions that it matches."""
        for recorded in changes.events:
            for subject in (Subject(), Subject(order_id=recorded.event.order_id), Subject(user_id=recorded.user_id)):
                for subscription in self._subscriptions.get(subject, ()):
                    subscription.put(recorded)
        self.reached = changes.offsets

    @contextmanager
    def subscription(self, subject: Subject) -> Iterator[Subscription]:
        """Subscribe for the length of a block; after `ViewPoller.wake` no event is missed."""
        subscription = Subscription()
        self._subscriptions[subject].add(subscription)
        try:
            yield subscription
        finally:
            self._subscriptions[subject].discard(subscription)
            if not self._subscriptions[subject]:
                del self._subscriptions[subject]

    def stop(self) -> None:
        """Wake all readers: no more events will come."""
        for subscriptions in self._subscriptions.values():
            for subscription in subscriptions:
                subscription.put(None)
