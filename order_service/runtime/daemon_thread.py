"""Runs a blocking call beside the event loop, without keeping the process from ending."""

import asyncio
from collections.abc import Callable
from concurrent.futures import Future
from threading import Thread
from typing import TypeVar

_T = TypeVar("_T")


async def in_daemon_thread(work: Callable[[], _T]) -> _T:
    """Return what `work` returns, or raise what it raises. If the caller is cancelled, the thread is left behind.

    With `asyncio.to_thread`, a process cannot end before the call returns, and a driver may wait for a server for ever.
    """
    future: Future[_T] = Future()

    def run() -> None:
        future.set_running_or_notify_cancel()
        try:
            future.set_result(work())
        except Exception as error:  # noqa: BLE001, it is raised in the task that waits
            future.set_exception(error)

    Thread(target=run, name="blocking call", daemon=True).start()
    return await asyncio.wrap_future(future)
