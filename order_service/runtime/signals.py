"""What a process does when it is told to end, by SIGTERM or Ctrl-C."""

import asyncio
import os
import signal
import threading
from collections.abc import Callable, Coroutine
from typing import Any, Final, NoReturn, TypeVar

from order_service.runtime.watchdog import end_after, write_at_once

SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)
CLOSE_WITHIN_S: Final = 10.0
"""How long a process that is told to end may take to close what it has opened, in seconds."""
CUT_WITHIN_S: Final = 2.0
"""How long it may then run on: Python waits without limit for a thread that waits for a database."""
_T = TypeVar("_T")


def end_when_told() -> None:
    """Let SIGTERM and Ctrl-C end the process with 0, as nothing runs yet; Faust puts its own in their place."""
    for told in SIGNALS:
        signal.signal(told, _end)


def run_until_told(work: Coroutine[Any, Any, _T], end_process: Callable[[int], object] = os._exit) -> _T:
    """Run a coroutine in an event loop of its own; if the process is told to end, cancel it and end with 0.

    A signal handler that raises would do so in whatever the loop runs just then: in a task of a library, which then
    ends without closing what it has opened, or in a place where Python drops the exception. A second signal does not
    interrupt the closing; one that takes longer than `CLOSE_WITHIN_S` is cut off. What fails while closing is raised.
    A process that still runs `CUT_WITHIN_S` later, for a thread that hangs, is ended by `end_process`.
    """
    is_told = False

    async def main() -> _T:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()

        def end() -> None:
            nonlocal is_told
            if not is_told and task is not None:
                is_told = True
                end_at_last(CLOSE_WITHIN_S + CUT_WITHIN_S, end_process)
                task.cancel()
                loop.call_later(CLOSE_WITHIN_S, task.cancel)

        for number in SIGNALS:
            loop.add_signal_handler(number, end)
        return await work

    try:
        result = asyncio.run(main())
    except asyncio.CancelledError:
        if not is_told:
            raise
    finally:
        end_when_told()  # a loop that closes leaves the defaults behind
    if is_told:
        raise SystemExit(0)
    return result


def end_at_last(within_s: float, end_process: Callable[[int], object] = os._exit) -> None:
    """End the process with 0 after the seconds that it may take to end; what hangs by then holds nothing unsaved."""

    def say_why() -> None:
        hanging = [thread.name for thread in threading.enumerate() if not thread.daemon]
        reason = f"it was told to end {within_s:g} s ago and has not"
        write_at_once("This process ends.", exit_code=0, reason=reason, threads=hanging)

    last = threading.Timer(within_s, end_after, ((say_why,), 0, end_process))
    last.daemon = True  # it does not keep a process that ends by itself
    last.start()


def _end(*_: object) -> NoReturn:
    raise SystemExit(0)
