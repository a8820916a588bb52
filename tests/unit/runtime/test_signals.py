"""A process that is told to end closes what it has opened, whatever its event loop runs just then."""

import asyncio
import os
import signal
import threading

import pytest

from order_service.runtime import signals
from order_service.runtime.signals import SIGNALS, run_until_signal
from tests.support.service import WorkerProcess, until, without_kafka


def end_process(_code):
    """Stand in for the end of the process, which is this one."""


@pytest.fixture(autouse=True)
def _handlers():
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_that_comes_in_a_task_of_a_library_ends_the_process_in_order(number):
    closed = []

    async def library(closing):
        os.kill(os.getpid(), number)  # Python runs the handler here, in this task
        await closing.wait()
        os.kill(os.getpid(), number)  # somebody presses Ctrl-C again
        await asyncio.sleep(0)
        closed.append("library")

    async def work():
        closing = asyncio.Event()
        using = asyncio.create_task(library(closing))
        try:
            await asyncio.Event().wait()
        finally:
            closing.set()
            await using
            closed.append("work")

    with pytest.raises(SystemExit) as ended:
        run_until_signal(work(), end_process)
    assert ended.value.code == 0
    assert closed == ["library", "work"]


def test_work_that_does_not_come_to_its_end_when_it_closes_is_cut_off(monkeypatch):
    monkeypatch.setattr(signals, "CLOSE_WITHIN_S", 0.05)

    async def work():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            await asyncio.Event().wait()
        finally:
            await asyncio.Event().wait()

    with pytest.raises(SystemExit) as ended:
        run_until_signal(work(), end_process)
    assert ended.value.code == 0


def test_completed_work_returns_its_result_and_the_next_signal_ends_the_process():
    assert run_until_signal(asyncio.sleep(0, "done"), end_process) == "done"
    with pytest.raises(SystemExit) as ended:
        os.kill(os.getpid(), signal.SIGTERM)
    assert ended.value.code == 0


def test_work_that_a_library_has_cancelled_is_no_end_in_order():
    async def work():
        raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        run_until_signal(work(), end_process)


def test_a_thread_that_hangs_does_not_keep_a_process_that_is_told_to_end(monkeypatch, capfd):
    monkeypatch.setattr(signals, "CLOSE_WITHIN_S", 0.05)
    monkeypatch.setattr(signals, "CUT_WITHIN_S", 0.05)
    answered, codes = threading.Event(), []

    async def work():
        asking = asyncio.create_task(asyncio.to_thread(answered.wait, 30))
        await asyncio.sleep(0)
        os.kill(os.getpid(), signal.SIGTERM)
        await asking

    def end(code):
        codes.append(code)
        answered.set()

    with pytest.raises(SystemExit):
        run_until_signal(work(), end)
    assert codes == [0]
    line = capfd.readouterr().err
    assert '"reason": "it received a signal 0.1 s ago and still runs", "threads": ["MainThread", ' in line
    assert '"asyncio_0"' in line  # other tests may have left threads, too


@pytest.mark.parametrize("command", ["web", "projector"])
def test_a_process_whose_database_never_answers_says_so_and_ends_when_told(tmp_path, command):
    process = WorkerProcess(
        command, without_kafka(tmp_path), tmp_path, None, ("tests.support.hindered", "database", command)
    )
    try:
        until(lambda: "the database has not answered for 1 s" in process.faults(), "it reports its database")
        process.send(signal.SIGTERM)
        assert process.wait_ended() == 0
    finally:
        process.end()
    [line] = process.lines("This process ends.")
    assert line["reason"] == "it received a signal 0.5 s ago and still runs"
