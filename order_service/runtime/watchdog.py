"""A thread that ends the process when its event loop hangs.

A member whose loop hangs keeps its partitions, because another thread sends its heartbeats. The admin port answers from
its own thread, too. The watchdog counts its own ticks instead of seconds: both stand still in a stopped process
(SIGSTOP) and on a suspended machine.
"""

import asyncio
import json
import os
import select
import sys
from collections.abc import Callable, Iterable, MutableMapping
from datetime import UTC, datetime
from threading import Event, Thread, get_ident
from types import FrameType
from typing import Any, Final

from order_service.errors import LoopHung
from order_service.runtime.logs import common_fields, naming

TICK_S: Final = 0.5
SILENCE_MIN_S: Final = 10.0
FRAMES: Final = 20
STDERR: Final = 2
LINE_BYTES: Final = select.PIPE_BUF
"""How many bytes a writable pipe accepts without blocking."""


def silence_limit_s(session_timeout_s: float) -> float:
    """Return how long an event loop may make no progress: the session timeout of the group, at least 10 s."""
    return max(SILENCE_MIN_S, session_timeout_s)


class Watchdog:
    """Watches the event loop of the thread that calls `start`, and ends the process if the loop runs nothing.

    After `silence_s`, `before_end` runs in the thread of the watchdog. It must return; its errors are reported.
    """

    def __init__(
        self,
        silence_s: float,
        before_end: Callable[[], object] = lambda: None,
        end: Callable[[int], object] = os._exit,
        tick_s: float = TICK_S,
    ) -> None:
        self._silence_s = silence_s
        self._before_end = before_end
        self._end = end
        self._tick_s = tick_s
        self._ticks_left = self._ticks = max(1, round(silence_s / tick_s))
        self._stopped = Event()
        self._watched = 0

    def start(self) -> None:
        """Start to watch the running loop. Call it in the loop's thread."""
        loop = asyncio.get_running_loop()
        self._watched = get_ident()
        Thread(target=self._watch, args=(loop,), name="watchdog", daemon=True).start()

    def stop(self) -> None:
        """Stop watching, and end the thread."""
        self._stopped.set()

    def _beat(self) -> None:
        self._ticks_left = self._ticks

    def _watch(self, loop: asyncio.AbstractEventLoop) -> None:
        while not self._stopped.wait(self._tick_s):
            if self._ticks_left <= 0:
                self._bark()
                return
            self._ticks_left -= 1
            if not loop.is_closed():
                loop.call_soon_threadsafe(self._beat)

    def _bark(self) -> None:
        end_after((self._report, self._before_end), LoopHung.exit_code, self._end)

    def _report(self) -> None:
        write_at_once(
            "This process ends.",
            exit_code=LoopHung.exit_code,
            reason=f"the event loop has run nothing for {self._silence_s:g} s",
            stack=stack_of(sys._current_frames().get(self._watched)),  # noqa: SLF001, the documented way
        )


def end_after(steps: Iterable[Callable[[], object]], code: int, end: Callable[[int], object] = os._exit) -> None:
    """Run each step, report its errors, and end the process in any case."""
    try:
        for step in steps:
            _run(step)
    finally:
        end(code)


def _run(step: Callable[[], object]) -> None:
    try:
        step()
    except Exception as error:  # noqa: BLE001, a process that must end does so without this step
        write_at_once("A step before the process exit failed.", error=repr(error))


def stack_of(frame: FrameType | None) -> list[str]:
    """Return up to 20 functions of a stack, innermost first: names and lines, no values."""
    stack: list[str] = []
    while frame is not None and len(stack) < FRAMES:
        stack.append(f"{frame.f_globals.get('__name__', '?')}.{frame.f_code.co_name}:{frame.f_lineno}")
        frame = frame.f_back
    return stack


def write_at_once(event: str, *, level: str = "error", **fields: object) -> None:
    """Write one line to stderr, bypassing the log, which may hang. Write nothing if stderr is not writable."""
    entry: MutableMapping[str, Any] = {**common_fields, **fields, "event": event, "level": level}
    entry["timestamp"] = datetime.now(UTC).isoformat()
    for named in naming:
        entry = named(None, level, {**entry, "logger": __name__})  # type: ignore[assignment]
    line = json.dumps(entry).encode()[: LINE_BYTES - 1] + b"\n"
    if select.select([], [STDERR], [], 0)[1]:
        os.write(STDERR, line)
