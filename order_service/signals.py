"""What a process does when it is told to end, by SIGTERM or Ctrl-C."""

import asyncio
import signal
from collections.abc import Coroutine
from typing import Any, Final, NoReturn, TypeVar

SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)
CLOSE_WITHIN_S: Final = 10.0
"""How long a process that is told to end may take to close what it has opened, in seconds."""
_T = TypeVar("_T")


def end_when_told() -> None:
    """Let SIGTERM and Ctrl-C end the process with 0, as nothing runs yet; Faust puts its own in their place."""
    for told in SIGNALS:
        signal.signal(told, _end)


def run_until_told(work: Coroutine[Any, Any, _T]) -> _T:
    """Run a coroutine in an event loop of its own; if the process is told to end, cancel it and end with 0.

    A signal handler that raises would do so in whatever the loop runs just then: in a task of a library, which then
    ends without closing what it has opened, or in a place where Python drops the exception. A second signal does not
    interrupt the closing; one that takes longer than `CLOSE_WITHIN_S` is cut off. What fails while closing is raised.
    """
    is_told = False

    async def main() -> _T:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()

        def end() -> None:
            nonlocal is_told
            if not is_told and task is not None:
                is_told = True
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


def _end(*_: object) -> NoReturn:
    raise SystemExit(0)
