"""How a process ends on SIGTERM or Ctrl-C."""

import asyncio
import os
import signal
import threading
from collections.abc import Callable, Coroutine
from typing import Any, Final, NoReturn, TypeVar

from order_service.runtime.watchdog import end_after, write_at_once

SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)
CLOSE_WITHIN_S: Final = 10.0
"""How long a process may take after a signal to close what it has opened."""
CUT_WITHIN_S: Final = 2.0
"""How long it may run after that: Python waits without limit for a thread that waits for a database."""
_T = TypeVar("_T")


def exit_on_signal() -> None:
    """Handle SIGTERM and Ctrl-C by exiting with 0, while nothing runs yet. Faust replaces these handlers by its own."""
    for number in SIGNALS:
        signal.signal(number, _exit)


def run_until_signal(work: Coroutine[Any, Any, _T], end_process: Callable[[int], object] = os._exit) -> _T:
    """Run a coroutine in its own event loop. On a signal, cancel it and exit with 0.

    A signal handler that raises would do so in any code that the loop runs at that moment. That may be a task of a
    library, which would end without closing what it has opened, or code where Python drops the exception.
    A second signal does not interrupt the closing. Closing is cut off after `CLOSE_WITHIN_S`; its errors are raised.
    A process that still runs `CUT_WITHIN_S` later, because a thread hangs, is ended by `end_process`.
    """
    is_signalled = False

    async def main() -> _T:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()

        def end() -> None:
            nonlocal is_signalled
            if not is_signalled and task is not None:
                is_signalled = True
                force_exit_after(CLOSE_WITHIN_S + CUT_WITHIN_S, end_process)
                task.cancel()
                loop.call_later(CLOSE_WITHIN_S, task.cancel)

        for number in SIGNALS:
            loop.add_signal_handler(number, end)
        return await work

    try:
        result = asyncio.run(main())
    except asyncio.CancelledError:
        if not is_signalled:
            raise
    finally:
        exit_on_signal()  # a closed loop leaves the default handlers
    if is_signalled:
        raise SystemExit(0)
    return result


def force_exit_after(within_s: float, end_process: Callable[[int], object] = os._exit) -> None:
    """Exit with 0 in `within_s` seconds if the process still runs. All data is already saved."""

    def report() -> None:
        hanging = [thread.name for thread in threading.enumerate() if not thread.daemon]
        reason = f"it received a signal {within_s:g} s ago and still runs"
        write_at_once("This process ends.", exit_code=0, reason=reason, threads=hanging)

    timer = threading.Timer(within_s, end_after, ((report,), 0, end_process))
    timer.daemon = True  # it does not keep a process that ends by itself
    timer.start()


def _exit(*_: object) -> NoReturn:
    raise SystemExit(0)
