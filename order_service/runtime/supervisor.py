"""Keep child processes running: start them in order, show their output, restart them, stop them in reverse.

Every child runs under a watcher (`watcher.py`), so none outlives this process, however it ends.
"""

from __future__ import annotations

import asyncio
import fcntl
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import BinaryIO, Protocol

from msgspec import Struct

from order_service.errors import EmbeddedError, TopicsError
from order_service.runtime.watcher import kill_group, watched

CLI = (sys.executable, "-P", "-m", "order_service.cli")
"""Our command line, as the command of a child. `-P`: a file in the current directory must not replace a module."""
Write = Callable[[str], object]
Beside = Callable[[Callable[[], object]], Awaitable[object]]
"""Work in this process, beside the children; it gets what to call when it has begun."""

POLL_S = 0.05
"""How often to check whether a child is ready, and whether it has ended."""
RESERVE_S = 2.0
"""The time to stop that is reserved for each child that stops later."""
LINE_MAX = 64 * 1024
"""A longer line of a child is shown in pieces, so that no output can stop it."""


def write_out(line: str) -> None:
    """Write a line to stdout and flush it, because stdout may be a pipe."""
    sys.stdout.write(line)
    sys.stdout.flush()


def write_err(line: str) -> None:
    """Write a line to stderr and flush it."""
    sys.stderr.write(line)
    sys.stderr.flush()


class Child(Struct, frozen=True, kw_only=True):
    """A process to keep running.

    Without `env` it has our environment. With `log_path` its output is appended to that file, and with
    `inherits_output` it writes to our stdout and stderr itself. Otherwise its output is shown line by line after its
    name. `ready` is called in a thread until it returns True; then the next child starts. `why` explains an end.
    `clean` removes what a process left behind; it is called in a thread before each start and after the last end.
    """

    name: str
    command: tuple[str, ...]
    env: Mapping[str, str] | None = None
    directory: Path | None = None
    log_path: Path | None = None
    inherits_output: bool = False
    ready: Callable[[], bool] | None = None
    ready_within_s: float = 60.0
    why: Callable[[], str] | None = None
    clean: Callable[[], object] | None = None


class Restarts(Struct, frozen=True, kw_only=True):
    """The policy that decides when a child that ended is restarted."""

    wait_initial_s: float = 1.0
    wait_max_s: float = 30.0
    quick_s: float = 60.0
    """An end within this time after the start is a quick one; a later end resets the count to 1."""
    quick_max: int = 10
    final_codes: frozenset[int] = frozenset({TopicsError.exit_code})
    """Exit codes that a restart cannot repair."""

    def count(self, quick_ends: int, lasted_s: float) -> int:
        """Return the number of quick ends in a row, including this one."""
        return quick_ends + 1 if lasted_s < self.quick_s else 1

    def wait_s(self, code: int, quick_ends: int) -> float | None:
        """Return how long to wait before the next start, or None to give the child up."""
        if code in self.final_codes or quick_ends > self.quick_max:
            return None
        return float(min(self.wait_initial_s * 2.0 ** (quick_ends - 1), self.wait_max_s))


def open_log(path: Path) -> BinaryIO:
    """Open a log for appending, and lock it while a process writes to it.

    The lock belongs to the open file, which a child inherits as its stdout. It is released only when the child has
    ended, in any way. Two Kafkas would destroy a shared data directory, because Kafka checks for another one too late.
    """
    log = path.open("ab")
    try:
        fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        log.close()
        raise EmbeddedError(
            f"another run uses {path.parent}: stop it, or set ORDERS_DATA_DIR to another directory"
        ) from error
    return log


class Reports(Protocol):
    """What a supervisor reports about its children."""

    def started(self, child: Child) -> None:
        """Report that the process of a child has been started, perhaps again."""

    def ended(self, child: Child, code: int, wait_s: float | None) -> None:
        """Report an end without a request, and the seconds before the next start; None if the child is given up."""

    def not_ready(self, child: Child, within_s: float) -> None:
        """Report that a child was not ready in time, and is stopped."""

    def killed(self, child: Child, within_s: float) -> None:
        """Report that a child did not stop in time, and is killed."""


class _Lines:
    """Reports as lines, after the name of the child."""

    def __init__(self, err: Write, prefixes: Mapping[str, str]) -> None:
        self._err = err
        self._prefixes = prefixes

    def started(self, child: Child) -> None:
        pass

    def ended(self, child: Child, code: int, wait_s: float | None) -> None:
        why = f": {child.why()}" if child.why is not None else ""
        action = "not restarting it" if wait_s is None else f"restarting it in {wait_s:g} s"
        self._write(child, f"ended with exit code {code}, {action}{why}")

    def not_ready(self, child: Child, within_s: float) -> None:
        self._write(child, f"was not ready within {within_s:g} s, stopping it")

    def killed(self, child: Child, within_s: float) -> None:
        self._write(child, f"did not end within {within_s:.0f} s, killing it")

    def _write(self, child: Child, text: str) -> None:
        self._err(f"{self._prefixes[child.name]}{text}\n")


class Supervisor:
    """Runs children until a signal arrives or a child is given up; `run` may be called once.

    `out` and `err` take whole lines; `reports` replaces the lines about the children. With `passes_lines`, the lines of
    children are passed on as they are, without their names. All children are stopped within `stop_within_s`, in reverse
    order or, with `stops_together`, at the same time. No process remains.
    """

    def __init__(
        self,
        children: Sequence[Child],
        *,
        restarts: Restarts | None = None,
        stop_within_s: float = 15.0,
        stops_together: bool = False,
        passes_lines: bool = False,
        out: Write = write_out,
        err: Write = write_err,
        reports: Reports | None = None,
    ) -> None:
        width = max((len(child.name) for child in children), default=0)
        prefixes = {child.name: "" if passes_lines else f"{child.name:<{width}} | " for child in children}
        reports = reports or _Lines(err, prefixes)
        self._runners = [
            _ChildRunner(child, restarts or Restarts(), prefixes[child.name], out, err, reports, grace_s=stop_within_s)
            for child in children
        ]
        self._stop_within_s = stop_within_s
        self._stops_together = stops_together

    async def run(self, on_ready: Callable[[], object] = lambda: None, beside: Beside | None = None) -> int:
        """Run until SIGINT or SIGTERM (0) or until a child is given up (its exit code), then stop all.

        `on_ready` is called once, when every child has been ready. `beside` runs from then on, and is cancelled first;
        it calls `on_ready` itself, when it has begun.
        """
        result: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        with _signals(lambda: _finish(result, 0)):
            starting = asyncio.create_task(self._start_all(on_ready, beside, result))
            starting.add_done_callback(lambda task: _settle(result, task, only_errors=True))
            try:
                return await result
            finally:
                starting.cancel()
                await self._stop_all()

    async def _start_all(
        self, on_ready: Callable[[], object], beside: Beside | None, result: asyncio.Future[int]
    ) -> int:
        for runner in self._runners:
            runner.start().add_done_callback(lambda task: _settle(result, task))
            await runner.ready.wait()
        if beside is None:
            on_ready()
        else:
            await beside(on_ready)
        return 0

    async def _stop_all(self) -> None:
        if self._stops_together:
            await asyncio.gather(*(runner.stop(self._stop_within_s - RESERVE_S) for runner in self._runners))
            return
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._stop_within_s
        for remaining, runner in reversed(list(enumerate(self._runners))):
            await runner.stop(max(deadline - loop.time() - RESERVE_S * remaining, 0.0))


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


def _finish(result: asyncio.Future[int], code: int) -> None:
    if not result.done():
        result.set_result(code)


def _settle(result: asyncio.Future[int], task: asyncio.Task[int], *, only_errors: bool = False) -> None:
    if task.cancelled():
        return
    error = task.exception()
    if error is None and not only_errors:
        _finish(result, task.result())
    elif error is not None and not result.done():
        result.set_exception(error)


class _ChildRunner:
    """One child and its current process; `prefix` precedes each line of its output."""

    def __init__(
        self,
        child: Child,
        restarts: Restarts,
        prefix: str,
        out: Write,
        err: Write,
        reports: Reports,
        *,
        grace_s: float,
    ) -> None:
        self.ready = asyncio.Event()
        self._child = child
        self._restarts = restarts
        self._prefix = prefix
        self._out = out
        self._err = err
        self._reports = reports
        self._grace_s = grace_s
        self._stopping = asyncio.Event()
        self._process: Process | None = None
        self._task: asyncio.Task[int] | None = None

    def start(self) -> asyncio.Task[int]:
        self._task = asyncio.create_task(self._run())
        return self._task

    async def stop(self, within_s: float) -> None:
        self._stopping.set()
        self._close_stdin()
        if self._task is None:
            return
        _, late = await asyncio.wait([self._task], timeout=within_s)
        if late and self._process is not None:
            self._reports.killed(self._child, within_s)
            kill_group(self._process.pid)
            await asyncio.wait([self._task], timeout=RESERVE_S)

    async def _run(self) -> int:
        try:
            return await self._keep_running()
        finally:
            await self._clean()

    async def _clean(self) -> None:
        if self._child.clean is not None:
            await asyncio.to_thread(self._child.clean)

    async def _keep_running(self) -> int:
        loop = asyncio.get_running_loop()
        quick_ends = 0
        while True:
            await self._clean()
            started_at = loop.time()
            code = await self._run_once()
            if self._stopping.is_set():
                return code
            quick_ends = self._restarts.count(quick_ends, loop.time() - started_at)
            wait_s = self._restarts.wait_s(code, quick_ends)
            self._reports.ended(self._child, code, wait_s)
            if wait_s is None or await self._is_stopped_within(wait_s):
                return code

    async def _run_once(self) -> int:
        self._process = process = await self._spawn()
        self._reports.started(self._child)
        if self._stopping.is_set():
            self._close_stdin()
        try:
            async with asyncio.TaskGroup() as group:
                for stream, write in ((process.stdout, self._out), (process.stderr, self._err)):
                    if stream is not None:
                        group.create_task(self._copy(stream, write))
                readiness = group.create_task(self._wait_until_ready())
                code = await _exit_code(process)
                readiness.cancel()
        finally:
            kill_group(process.pid)
        return code

    async def _spawn(self) -> Process:
        child = self._child
        piped = nullcontext(None if child.inherits_output else PIPE)
        with piped if child.log_path is None else open_log(child.log_path) as output:
            return await asyncio.create_subprocess_exec(
                *watched(child.command, self._grace_s),
                cwd=child.directory,
                env=child.env,
                stdin=PIPE,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def _close_stdin(self) -> None:
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()

    async def _wait_until_ready(self) -> None:
        deadline = asyncio.get_running_loop().time() + self._child.ready_within_s
        while self._child.ready is not None and not await asyncio.to_thread(self._child.ready):
            if asyncio.get_running_loop().time() > deadline:
                self._reports.not_ready(self._child, self._child.ready_within_s)
                self._close_stdin()
                return
            await asyncio.sleep(POLL_S)
        self.ready.set()

    async def _copy(self, stream: asyncio.StreamReader, write: Write) -> None:
        async for line in _lines(stream):
            write(f"{self._prefix}{line}\n")

    async def _is_stopped_within(self, wait_s: float) -> bool:
        try:
            async with asyncio.timeout(wait_s):
                return await self._stopping.wait()
        except TimeoutError:
            return False


async def _exit_code(process: Process) -> int:
    """Wait until the watcher ends, and return its exit code. Kill what it left, because it can be killed, too.

    `process.wait()` alone is not enough: it also waits for the pipes, which remaining processes hold open.
    """
    while process.returncode is None:  # noqa: ASYNC110 - asyncio does not report the end alone
        await asyncio.sleep(POLL_S)
    kill_group(process.pid)
    return await process.wait()


async def _lines(stream: asyncio.StreamReader) -> AsyncIterator[str]:
    """Yield the output of a child line by line; the last line may lack its end."""
    rest = b""
    while chunk := await stream.read(LINE_MAX):
        *lines, rest = (rest + chunk).split(b"\n")
        if len(rest) > LINE_MAX:
            lines, rest = [*lines, rest], b""
        for line in lines:
            yield line.decode(errors="replace").rstrip("\r")
    if rest:
        yield rest.decode(errors="replace")
