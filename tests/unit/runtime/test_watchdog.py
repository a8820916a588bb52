"""A process whose event loop hangs is ended; one that only stood still is not."""

import asyncio
import os
import select
import signal
import sys
import threading

import pytest

from order_service.runtime.watchdog import Watchdog, silence_limit_s, stack_of
from tests.support.service import WorkerProcess, until, without_kafka


class Ended(threading.Event):
    """Takes the exit code instead of ending the process."""

    code = 0

    def __call__(self, code):
        self.code = code
        self.set()


def hang(until):
    """Block the loop until something has happened."""
    assert until.wait(20)


def test_a_loop_that_hangs_ends_the_process_and_says_where(capfd):
    ended, steps = Ended(), []

    async def main():
        Watchdog(0.2, lambda: steps.append("left"), ended, tick_s=0.02).start()
        await asyncio.sleep(0)
        hang(ended)

    asyncio.run(main())
    assert ended.code == 15
    assert steps == ["left"]
    line = capfd.readouterr().err
    assert '"reason": "the event loop has run nothing for 0.2 s"' in line
    assert "tests.unit.runtime.test_watchdog.hang:" in line


def test_a_loop_that_runs_is_let_be():
    ended, beats = Ended(), threading.Event()

    class Counting(Watchdog):
        left = 30

        def _beat(self):
            super()._beat()
            self.left -= 1
            if self.left == 0:
                beats.set()

    async def main():
        watchdog = Counting(5.0, ended.set, ended, tick_s=0.01)
        watchdog.start()
        await asyncio.to_thread(beats.wait, 20)
        watchdog.stop()

    asyncio.run(main())
    assert beats.is_set()
    assert not ended.is_set()


def test_a_loop_that_ended_without_its_process_is_a_hang_too():
    ended = Ended()

    async def main():
        Watchdog(0.1, lambda: None, ended, tick_s=0.01).start()

    asyncio.run(main())
    hang(ended)
    assert ended.code == 15


@pytest.mark.parametrize("command", ["web", "projector"])
def test_a_process_beside_the_worker_whose_loop_hangs_ends_too(tmp_path, command):
    """Its admin port answers from a thread of its own, so an orchestrator would not start it again."""
    environment = without_kafka(tmp_path, ORDERS_SESSION_TIMEOUT_S="2")
    process = WorkerProcess(command, environment, tmp_path, None, ("tests.support.hindered", "loop", command))
    try:
        until(lambda: process.admin("/health/live")[0] == 200, "it runs")
        process.send(signal.SIGPROF)
        assert process.wait_ended() == 15
    finally:
        process.end()
    [line] = process.lines("This process ends.")
    assert line["reason"] == "the event loop has run nothing for 10 s"
    assert "_told" in "".join(line["stack"])


@pytest.mark.parametrize(("session_timeout_s", "silence_s"), [(2.0, 10.0), (15.0, 15.0), (45.0, 45.0)])
def test_a_loop_may_be_silent_as_long_as_a_member_may(session_timeout_s, silence_s):
    assert silence_limit_s(session_timeout_s) == silence_s


def test_a_stack_names_functions_and_no_values():
    def inner(_secret):
        return stack_of(sys._current_frames()[threading.get_ident()])

    stack = inner("hunter2")
    assert stack[0].startswith("tests.unit.runtime.test_watchdog.inner:")
    assert "hunter2" not in str(stack)
    assert stack_of(None) == []


def test_a_pipe_that_nobody_reads_does_not_hold_the_watchdog_up(monkeypatch):
    reading, writing = os.pipe()
    while select.select([], [writing], [], 0)[1]:
        os.write(writing, b"x" * 4096)
    monkeypatch.setattr("order_service.runtime.watchdog.STDERR", writing)
    test_a_loop_that_ended_without_its_process_is_a_hang_too()
    os.close(reading)
    os.close(writing)
