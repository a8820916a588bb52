"""Keep the processes of `up` running: start them in order, show what they say, restart them, stop them in reverse.

Every child stands under a watcher (`watch.py`), so none outlives this process, however it ends.
"""

from __future__ import annotations

import asyncio
import fcntl
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from msgspec import Struct

from order_service.errors import EmbeddedError, TopicsError
from order_service.local.watcher import kill_group, watched

Write = Callable[[str], object]

POLL_S = 0.05
"""How often we look whether a child is ready, and whether it has ended."""
RESERVE_S = 2.0
"""What each child that stops later is left of the time to stop."""
LINE_MAX = 64 * 1024
"""A longer line of a child is shown in pieces, so that no output can stop it."""


def write_out(line: str) -> None:
    """Show a line at once, also where the output is a pipe."""
    sys.stdout.write(line)
    sys.stdout.flush()


def write_err(line: str) -> None:
    """Show a line on the standard error output."""
    sys.stderr.write(line)
    sys.stderr.flush()


class Child(Struct, frozen=True, kw_only=True):
    """A process to keep running.

    `env` None is our own. With `log_path` its output is added to that file, otherwise shown line by line after its
    name. `ready` is asked in a thread until it says yes; the next child starts then. `why` explains an end.
    """

    name: str
    command: tuple[str, ...]
    env: Mapping[str, str] | None = None
    directory: Path | None = None
    log_path: Path | None = None
    ready: Callable[[], bool] | None = None
    ready_within_s: float = 60.0
    why: Callable[[], str] | None = None


class Restarts(Struct, frozen=True, kw_only=True):
    """When a child that ended is started again, as a value that decides and does nothing."""

    wait_initial_s: float = 1.0
    wait_max_s: float = 30.0
    quick_s: float = 60.0
    """An end sooner than this after its start is a quick one; a later one starts the count anew."""
    quick_max: int = 10
    final_codes: frozenset[int] = frozenset({TopicsError.exit_code})
    """A restart does not mend these."""

    def count(self, quick_ends: int, lasted_s: float) -> int:
        """Count one more end."""
        return quick_ends + 1 if lasted_s < self.quick_s else 1

    def wait_s(self, code: int, quick_ends: int) -> float | None:
        """Say how long to wait before the next start; None: there is none."""
        if code in self.final_codes or quick_ends > self.quick_max:
            return None
        return float(min(self.wait_initial_s * 2.0 ** (quick_ends - 1), self.wait_max_s))


def open_log(path: Path) -> BinaryIO:
    """Open a log to add to, and lock it for as long as a process writes it.

    The lock belongs to the open file, which a child inherits as its stdout: it is free only when the child is gone,
    however it went. Two Kafkas on one data directory destroy it, since Kafka looks for another too late.
    """
    log = path.open("ab")
    try:
        fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        log.close()
        raise EmbeddedError(
            f"another run uses {path.parent}: end it, or set ORDERS_DATA_DIR to another place"
        ) from error
    return log


class Supervisor:
    """Runs children until a signal comes or one is given up; `run` may be called once.

    `out` and `err` take whole lines. Everything is stopped within `stop_within_s`, and no process is left.
    """

    def __init__(
        self,
        children: Sequence[Child],
        *,
        restarts: Restarts | None = None,
        stop_within_s: float = 15.0,
        out: Write = write_out,
        err: Write = write_err,
    ) -> None:
        width = max((len(child.name) for child in children), default=0)
        self._kept = [
            _Kept(child, restarts or Restarts(), _Voice(f"{child.name:<{width}} | ", out, err), grace_s=stop_within_s)
            for child in children
        ]
        self._stop_within_s = stop_within_s

    async def run(self, on_ready: Callable[[], object] = lambda: None) -> int:
        """Run until SIGINT or SIGTERM (0) or until a child is given up (its exit code), then stop all.

        `on_ready` is called once, when every child has been ready.
        """
        over: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        with _signals(lambda: _end(over, 0)):
            starting = asyncio.create_task(self._start_all(over, on_ready))
            starting.add_done_callback(lambda task: _settle(over, task, only_errors=True))
            try:
                return await over
            finally:
                starting.cancel()
                await self._stop_all()

    async def _start_all(self, over: asyncio.Future[int], on_ready: Callable[[], object]) -> int:
        for kept in self._kept:
            kept.start().add_done_callback(lambda task: _settle(over, task))
            await kept.ready.wait()
        on_ready()
        return 0

    async def _stop_all(self) -> None:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._stop_within_s
        for still_to_come, kept in reversed(list(enumerate(self._kept))):
            await kept.stop(max(deadline - loop.time() - RESERVE_S * still_to_come, 0.0))


@contextmanager
def _signals(stop: Callable[[], object]) -> Iterator[None]:
    loop = asyncio.get_running_loop()
    numbers = (signal.SIGINT, signal.SIGTERM)
    for number in numbers:
        loop.add_signal_handler(number, stop)
    try:
        yield
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)


def _end(over: asyncio.Future[int], code: int) -> None:
    if not over.done():
        over.set_result(code)


def _settle(over: asyncio.Future[int], task: asyncio.Task[int], *, only_errors: bool = False) -> None:
    if task.cancelled():
        return
    error = task.exception()
    if error is None and not only_errors:
        _end(over, task.result())
    elif error is not None and not over.done():
        over.set_exception(error)


class _Voice(Struct, frozen=True):
    """Where the lines of a child go, and what stands before them."""

    prefix: str
    out: Write
    err: Write

    def say(self, what: str) -> None:
        self.err(f"{self.prefix}{what}\n")


class _Kept:
    """One child, its process of the moment, and how often it has ended."""

    def __init__(self, child: Child, restarts: Restarts, voice: _Voice, *, grace_s: float) -> None:
        self.ready = asyncio.Event()
        self._child = child
        self._restarts = restarts
        self._voice = voice
        self._grace_s = grace_s
        self._stopping = asyncio.Event()
        self._process: Process | None = None
        self._task: asyncio.Task[int] | None = None

    def start(self) -> asyncio.Task[int]:
        self._task = asyncio.create_task(self._keep())
        return self._task

    async def stop(self, within_s: float) -> None:
        self._stopping.set()
        self._let_go()
        if self._task is None:
            return
        _, late = await asyncio.wait([self._task], timeout=within_s)
        if late and self._process is not None:
            self._voice.say(f"did not end within {within_s:.0f} s and is killed")
            kill_group(self._process.pid)
            await asyncio.wait([self._task], timeout=RESERVE_S)

    async def _keep(self) -> int:
        loop = asyncio.get_running_loop()
        quick_ends = 0
        while True:
            started_at = loop.time()
            code = await self._run_once()
            if self._stopping.is_set():
                return code
            quick_ends = self._restarts.count(quick_ends, loop.time() - started_at)
            wait_s = self._restarts.wait_s(code, quick_ends)
            self._say_end(code, wait_s)
            if wait_s is None or await self._stops_within(wait_s):
                return code

    async def _run_once(self) -> int:
        self._process = process = await self._spawn()
        if self._stopping.is_set():
            self._let_go()
        try:
            async with asyncio.TaskGroup() as group:
                for stream, write in ((process.stdout, self._voice.out), (process.stderr, self._voice.err)):
                    if stream is not None:
                        group.create_task(self._show(stream, write))
                asking = group.create_task(self._ask_until_ready())
                code = await _exit_code(process)
                asking.cancel()
        finally:
            kill_group(process.pid)
        return code

    async def _spawn(self) -> Process:
        child = self._child
        command = watched(child.command, self._grace_s)
        if child.log_path is None:
            return await asyncio.create_subprocess_exec(
                *command,
                cwd=child.directory,
                env=child.env,
                stdin=PIPE,
                stdout=PIPE,
                stderr=PIPE,
                start_new_session=True,
            )
        with open_log(child.log_path) as log:
            return await asyncio.create_subprocess_exec(
                *command, cwd=child.directory, env=child.env, stdin=PIPE, stdout=log, stderr=log, start_new_session=True
            )

    def _let_go(self) -> None:
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()

    async def _ask_until_ready(self) -> None:
        deadline = asyncio.get_running_loop().time() + self._child.ready_within_s
        while self._child.ready is not None and not await asyncio.to_thread(self._child.ready):
            if asyncio.get_running_loop().time() > deadline:
                self._voice.say(f"is not ready within {self._child.ready_within_s:g} s and is ended")
                self._let_go()
                return
            await asyncio.sleep(POLL_S)
        self.ready.set()

    async def _show(self, stream: asyncio.StreamReader, write: Write) -> None:
        async for line in _lines(stream):
            write(f"{self._voice.prefix}{line}\n")

    async def _stops_within(self, wait_s: float) -> bool:
        try:
            async with asyncio.timeout(wait_s):
                return await self._stopping.wait()
        except TimeoutError:
            return False

    def _say_end(self, code: int, wait_s: float | None) -> None:
        why = f": {self._child.why()}" if self._child.why is not None else ""
        then = "it is given up" if wait_s is None else f"it starts again in {wait_s:g} s"
        self._voice.say(f"ended with exit code {code}, {then}{why}")


async def _exit_code(process: Process) -> int:
    """Wait for the watcher's end, and end whatever it may have left: it too can be killed.

    `process.wait()` alone would not do: it also waits for the pipes, which those who are left hold open.
    """
    while process.returncode is None:  # noqa: ASYNC110 - asyncio tells nobody of the end alone
        await asyncio.sleep(POLL_S)
    kill_group(process.pid)
    return await process.wait()


async def _lines(stream: asyncio.StreamReader) -> AsyncIterator[str]:
    """Split what a child writes into lines; a last line without an end counts too."""
    rest = b""
    while chunk := await stream.read(LINE_MAX):
        *lines, rest = (rest + chunk).split(b"\n")
        if len(rest) > LINE_MAX:
            lines, rest = [*lines, rest], b""
        for line in lines:
            yield line.decode(errors="replace").rstrip("\r")
    if rest:
        yield rest.decode(errors="replace")
