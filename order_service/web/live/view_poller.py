"""Polls the views for new rows while a listener waits for some.

All that a web process knows comes from the views. So a response holds what every other process can read at that point,
and what was decided while this process was away is found in the same way.
"""

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Final, Protocol, TypeVar

import structlog
from sqlalchemy.exc import SQLAlchemyError

from order_service.views.checkpoints import Checkpoint
from order_service.views.queries import Offsets, ViewChanges, Views
from order_service.views.tables import describe

log = structlog.get_logger()

EAGER_S: Final = 0.005
"""Poll interval while a request waits for an outcome."""
RETRY_S: Final = 1.0
"""Pause before the next poll after the database has failed."""
CHECKPOINT_EVERY_S: Final = 1.0
"""How often to look for a new checkpoint."""

_T = TypeVar("_T")


class ViewListener(Protocol):
    """A receiver of new rows of the views."""

    @property
    def poll_interval_s(self) -> float | None:
        """The poll interval in seconds that this listener needs; None while it waits for nothing."""

    def on_changes(self, changes: ViewChanges) -> None:
        """Handle new rows; some of them may be older than the listener."""


class ViewPoller:
    """Polls the views for its listeners, at the shortest interval that one of them needs."""

    def __init__(self, views: Views) -> None:
        self._views = views
        self._listeners: list[ViewListener] = []
        self._offsets: Offsets | None = None
        self.checkpoint: Checkpoint | None = None
        """The newest checkpoint, as of the last look."""
        self._look_at = 0.0
        self._is_due = asyncio.Event()
        # A thread of its own: slow queries of callers must not delay the requests that wait for an outcome.
        self._thread = ThreadPoolExecutor(1, "view-poller")

    def add(self, listener: ViewListener) -> None:
        """Send all later changes to `listener`."""
        self._listeners.append(listener)

    async def wake(self) -> None:
        """Start to poll: listeners receive every row that is not yet in the views when this returns."""
        if self._offsets is None:
            offsets = await self._query(self._views.offsets)
            if self._offsets is None:  # else another caller was faster
                self._offsets = offsets
        self._is_due.set()

    async def run(self) -> None:
        """Poll until cancelled."""
        while True:
            interval_s = self._interval_s()
            if interval_s is None:
                self._offsets = None
                await self._is_due.wait()
            else:
                await self._sleep(interval_s)
            self._is_due.clear()
            try:
                await self._poll()
            except SQLAlchemyError as error:
                log.warning("Views cannot be read; retrying.", why=describe(error))
                await asyncio.sleep(RETRY_S)

    def _interval_s(self) -> float | None:
        intervals = (listener.poll_interval_s for listener in self._listeners)
        return min((interval_s for interval_s in intervals if interval_s is not None), default=None)

    async def _sleep(self, seconds: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._is_due.wait()

    async def _poll(self) -> None:
        if self._offsets is None:
            return
        changes = await self._query(self._views.changes_since, self._offsets)
        self._offsets = changes.offsets
        if not changes.is_all:
            self._is_due.set()
        if changes.events or changes.refusals:
            for listener in self._listeners:
                listener.on_changes(changes)
        if time.monotonic() >= self._look_at:
            self._look_at = time.monotonic() + CHECKPOINT_EVERY_S
            self.checkpoint = await self._query(self._views.newest_checkpoint)

    async def _query(self, query: Callable[..., _T], *arguments: Offsets) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, query, *arguments)
