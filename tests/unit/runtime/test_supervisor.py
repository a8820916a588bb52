from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

import order_service
from order_service.runtime.supervisor import Child, Restarts, Supervisor
from order_service.runtime.watcher import kill_group, watched

ROOT = Path(order_service.__file__).parent.parent
QUICK = Restarts(wait_initial_s=0.01, wait_max_s=0.05, quick_max=2)
DEADLINE_S = 20.0

# Says its pid, then runs until it is told to stop.
OBEYS = "import os, time; print(os.getpid(), flush=True); time.sleep(600)"
# The same, but SIGTERM does not end it.
STUBBORN = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); " + OBEYS

PARENT = """
import asyncio, sys
from order_service.runtime.supervisor import Child, Supervisor
children = [Child(name=str(n), command=(sys.executable, "-c", code)) for n, code in enumerate(sys.argv[1:])]
sys.exit(asyncio.run(Supervisor(children, stop_within_s=6.0).run(lambda: print("ready", flush=True))))
"""


def python(name, code, **more):
    return Child(name=name, command=(sys.executable, "-c", code), **more)


def is_alive(pid):
    """Return whether a process lives; a zombie that is not yet reaped is dead."""
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return bool(state.stdout.strip()) and not state.stdout.strip().startswith("Z")


def wait_until_gone(pids):
    deadline = time.monotonic() + DEADLINE_S
    while any(is_alive(pid) for pid in pids):
        assert time.monotonic() < deadline, [pid for pid in pids if is_alive(pid)]


class Lines(list[str]):
    """What a supervisor writes, and a way to wait for a line that holds some words."""

    def __init__(self):
        super().__init__()
        self._news = asyncio.Event()

    def write(self, line):
        self.append(line)
        self._news.set()

    async def until(self, words, times=1):
        await self._until(lambda: sum(words in line for line in self) >= times)
        return next(line for line in self if words in line)

    async def pids(self, count):
        await self._until(lambda: len(self._pids()) >= count)
        return self._pids()

    def _pids(self):
        return [int(pid) for line in self if (pid := line.split("|")[1].strip()).isdigit()]

    async def _until(self, condition):
        async with asyncio.timeout(DEADLINE_S):
            while not condition():
                self._news.clear()
                await self._news.wait()


async def run(*children, lines, restarts=QUICK, stop_within_s=6.0, on_ready=lambda: None, beside=None):
    supervisor = Supervisor(children, restarts=restarts, stop_within_s=stop_within_s, out=lines.write, err=lines.write)
    async with asyncio.timeout(DEADLINE_S):
        return await supervisor.run(on_ready, beside)


async def stop(task):
    os.kill(os.getpid(), signal.SIGTERM)
    return await task


@pytest.mark.parametrize(
    ("code", "quick_ends", "wait_s"),
    [
        pytest.param(1, 1, 1.0, id="the first end costs a second"),
        pytest.param(10, 2, 2.0, id="the wait doubles"),
        pytest.param(137, 5, 16.0, id="a killed child comes back too"),
        pytest.param(0, 1, 1.0, id="a child that just leaves is not done"),
        pytest.param(14, 6, 30.0, id="the wait has a bound"),
        pytest.param(1, 11, None, id="too many quick ends in a row are given up"),
        pytest.param(13, 1, None, id="wrong topics are not mended by a restart"),
    ],
)
def test_when_a_child_is_started_again(code, quick_ends, wait_s):
    assert Restarts().wait_s(code, quick_ends) == wait_s


def test_a_child_that_ran_for_a_minute_starts_the_count_anew():
    assert Restarts().count(quick_ends=4, lasted_s=61.0) == 1
    assert Restarts().count(quick_ends=4, lasted_s=1.0) == 5


async def test_what_a_child_left_is_removed_before_each_start_and_after_the_last_end():
    cleaned: list[float] = []
    child = python("x", "raise SystemExit(3)", clean=lambda: cleaned.append(time.monotonic()))
    assert await run(child, lines=Lines()) == 3
    starts = QUICK.quick_max + 1
    assert len(cleaned) == starts + 1


async def test_lines_of_children_carry_their_names():
    lines = Lines()
    one = python("worker", "print('hello'); import time; time.sleep(600)".replace("'hello'", "'hello', flush=True"))
    two = python("web", "import sys, time; print('w\\xf6rld', file=sys.stderr, flush=True); time.sleep(600)")
    task = asyncio.create_task(run(one, two, lines=lines))
    assert await lines.until("hello") == "worker | hello\n"
    assert await lines.until("rld") == "web    | wörld\n"
    assert await stop(task) == 0


async def test_a_line_without_end_stops_nobody():
    lines = Lines()
    endless = "import sys; sys.stdout.write('x' * 1_000_000 + '\\nthe end'); sys.stdout.flush(); sys.exit(13)"
    assert await run(python("web", endless), lines=lines) == 13
    assert "web | the end\n" in lines
    assert sum(line.count("x") for line in lines) >= 1_000_000


async def test_a_child_that_ends_is_started_again():
    lines = Lines()
    task = asyncio.create_task(run(python("worker", OBEYS), lines=lines))
    [first] = await lines.pids(1)
    os.kill(first, signal.SIGKILL)
    assert "exit code 137, restarting it in 0.01 s" in await lines.until("ended")
    [_, second] = await lines.pids(2)
    assert second != first
    assert await stop(task) == 0
    wait_until_gone([first, second])


async def test_a_child_that_keeps_failing_is_given_up_with_a_clear_line():
    lines = Lines()
    assert await run(python("worker", "raise SystemExit(10)"), lines=lines) == 10
    assert sum("restarting it in" in line for line in lines) == 2
    assert "worker | ended with exit code 10, not restarting it\n" in lines


async def test_wrong_topics_end_everything_with_their_code():
    lines = Lines()
    ready = []
    other = python("users", OBEYS, ready=lambda: bool(lines._pids()))  # it has told its pid before the next one begins
    wrong = python("worker", "raise SystemExit(13)", ready=lambda: False, why=lambda: "see doctor")
    assert await run(other, wrong, lines=lines, on_ready=lambda: ready.append(1)) == 13
    assert ready == []
    assert "worker | ended with exit code 13, not restarting it: see doctor\n" in lines
    wait_until_gone(await lines.pids(1))


async def test_a_command_that_does_not_exist_is_given_up():
    lines = Lines()
    assert await run(Child(name="x", command=("/no/such/command",)), lines=lines) == 1
    assert "x | /no/such/command cannot be started: No such file or directory\n" in lines


async def test_the_next_child_starts_when_the_one_before_is_ready(tmp_path):
    lines = Lines()
    mark = tmp_path / "mark"
    first = python("first", f"open({str(mark)!r}, 'w'); {OBEYS}", ready=mark.exists)
    second = python("second", f"import os; print(os.path.exists({str(mark)!r}), flush=True); {OBEYS}")
    task = asyncio.create_task(run(first, second, lines=lines, on_ready=lambda: lines.write("ready | \n")))
    await lines.until("ready | ")
    assert await lines.until("second | ") == "second | True\n"
    assert await stop(task) == 0


async def test_what_runs_beside_begins_when_all_are_ready_and_ends_before_the_children():
    lines = Lines()

    async def beside(on_ready):
        lines.write("beside | begins")
        on_ready()
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            lines.write("beside | ends")

    ends = "import signal, sys; signal.signal(signal.SIGTERM, lambda *_: sys.exit(print('child ends', flush=True)));"
    child = python("worker", f"{ends} {OBEYS}")
    task = asyncio.create_task(run(child, lines=lines, on_ready=lambda: lines.write("run | ready"), beside=beside))
    await lines.until("run | ready")
    await lines.pids(1)
    assert await stop(task) == 0
    others = [line for line in lines if not line.startswith("worker")]
    assert others == ["beside | begins", "run | ready", "beside | ends"]
    assert lines.index("beside | ends") < lines.index("worker | child ends\n")


async def test_a_bug_in_what_runs_beside_ends_the_run():
    lines = Lines()

    async def beside(_on_ready):
        await lines.pids(1)
        raise TypeError("a bug")

    with pytest.raises(TypeError, match="a bug"):
        await run(python("worker", OBEYS), lines=lines, beside=beside)
    wait_until_gone(await lines.pids(1))


async def test_a_child_that_never_gets_ready_is_ended():
    lines = Lines()
    assert await run(python("worker", OBEYS, ready=lambda: False, ready_within_s=0.01), lines=lines) == 143
    assert "worker | was not ready within 0.01 s, stopping it\n" in lines


async def test_output_can_go_to_a_file(tmp_path):
    lines = Lines()
    log = tmp_path / "kafka.log"
    assert await run(python("kafka", "print('hello'); raise SystemExit(13)", log_path=log), lines=lines) == 13
    assert log.read_text() == "hello\n"
    assert not any("hello" in line for line in lines)


async def test_children_stop_in_reverse_order(tmp_path):
    lines = Lines()
    log = tmp_path / "ends"
    says = (
        "import signal, sys, time\n"
        "def end(*_):\n"
        f"    open({str(log)!r}, 'a').write(sys.argv[1])\n"
        "    sys.exit(0)\n"
        "signal.signal(signal.SIGTERM, end)\n"
        "print('up', flush=True)\n"
        "time.sleep(600)\n"
    )
    children = [Child(name=name, command=(sys.executable, "-c", says, name)) for name in "abc"]
    task = asyncio.create_task(run(*children, lines=lines))
    await lines.until("up", times=3)
    assert await stop(task) == 0
    assert log.read_text() == "cba"


async def test_a_child_that_ignores_sigterm_is_killed_in_time():
    lines = Lines()
    task = asyncio.create_task(run(python("a", STUBBORN), python("b", STUBBORN), lines=lines, stop_within_s=3.0))
    pids = await lines.pids(2)
    started = time.monotonic()
    assert await stop(task) == 0
    assert time.monotonic() - started < 6.0
    wait_until_gone(pids)


async def test_a_killed_watcher_does_not_leave_its_command():
    lines = Lines()
    task = asyncio.create_task(
        run(python("worker", OBEYS.replace("os.getpid()", "os.getppid(), os.getpid()")), lines=lines)
    )
    watcher, pid = map(int, (await lines.until("worker | ")).split("|")[1].split())
    os.kill(watcher, signal.SIGKILL)
    await lines.until("ended")
    wait_until_gone([pid])
    assert await stop(task) == 0


@contextmanager
def started(command) -> Iterator[Any]:
    """A process in a group of its own, of which nothing is left."""
    process = subprocess.Popen(
        command,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    with process:
        try:
            yield process
        finally:
            kill_group(process.pid)


@pytest.fixture
def parent():
    """A process that supervises two children, and their pids."""
    pids = []
    try:
        with started([sys.executable, "-c", PARENT, OBEYS, OBEYS]) as process:
            for line in process.stdout:
                pids += [int(line.split("|")[1])] if "|" in line else []
                if len(pids) == 2:
                    break
            yield process, pids
    finally:
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_all_and_leaves_nothing(parent, number):
    process, pids = parent
    os.kill(process.pid, number)
    assert process.wait(DEADLINE_S) == 0
    wait_until_gone(pids)


def test_children_die_with_a_parent_that_is_killed(parent):
    process, pids = parent
    os.kill(process.pid, signal.SIGKILL)
    wait_until_gone(pids)


def test_what_a_command_has_started_ends_with_it():
    starts_another = (
        f"import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', {OBEYS!r}]); time.sleep(600)"
    )
    command = watched([sys.executable, "-c", starts_another])
    with started(command) as process:
        pid = int(process.stdout.readline())
        process.stdin.close()
        process.wait(DEADLINE_S)
        wait_until_gone([pid])
