"""The pulse: while somebody waits for something, it looks again and again at what is new in the views.

All that a web process knows comes from the views. So an answer holds what every other process can read by then, and
what was decided while this one was away is found like all else.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final, Protocol, TypeVar

import structlog
from sqlalchemy.exc import SQLAlchemyError

from order_service.views.queries import Offsets, ViewChanges, Views

log = structlog.get_logger()

EAGER_S: Final = 0.005
"""How often to look while a request waits for what comes."""
AGAIN_S: Final = 1.0
"""How long the database is left alone after it has failed us."""

_T = TypeVar("_T")


class ViewListener(Protocol):
    """Who wants to hear what is new."""

    @property
    def every_s(self) -> float | None:
        """How often to look, in seconds; None while nobody waits for anything."""

    def hear(self, news: ViewChanges) -> None:
        """Take what is new; some of it may have been there before the listener was."""


class ViewPoller:
    """Looks into the views for its listeners, as often as the most eager of them wants."""

    def __init__(self, views: Views) -> None:
        self._views = views
        self._listeners: list[ViewListener] = []
        self._places: Offsets | None = None
        self._hurry = asyncio.Event()
        # Not the threads of all: slow questions of callers must not hold up who waits for an outcome.
        self._thread = ThreadPoolExecutor(1, "pulse")

    def add(self, listener: ViewListener) -> None:
        """Let a listener hear all that comes."""
        self._listeners.append(listener)

    async def wake(self) -> None:
        """Look from now on: a listener hears all that is not in the views yet when this returns."""
        if self._places is None:
            places = await self._ask(self._views.offsets)
            if self._places is None:  # else another one was faster
                self._places = places
        self._hurry.set()

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            every_s = self._every_s()
            if every_s is None:
                self._places = None
                await self._hurry.wait()
            else:
                await self._sleep(every_s)
            self._hurry.clear()
            try:
                await self._look()
            except SQLAlchemyError as error:
                log.warning("The views cannot be read; trying again.", error=type(error).__name__)
                await asyncio.sleep(AGAIN_S)

    def _every_s(self) -> float | None:
        return min((listener.every_s for listener in self._listeners if listener.every_s is not None), default=None)

    async def _sleep(self, seconds: float) -> None:
        try:
            await asyncio.wait_for(self._hurry.wait(), seconds)
        except TimeoutError:
            return

    async def _look(self) -> None:
        if self._places is None:
            return
        news = await self._ask(self._views.changes_since, self._places)
        self._places = news.offsets
        if not news.is_all:
            self._hurry.set()
        if news.events or news.refusals:
            for listener in self._listeners:
                listener.hear(news)

    async def _ask(self, question: Callable[..., _T], *about: Offsets) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, question, *about)
