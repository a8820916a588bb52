"""A process that is told to end closes what it has opened, whatever its event loop runs just then."""

import asyncio
import os
import signal

import pytest

from order_service import signals
from order_service.signals import SIGNALS, run_until_told


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
        run_until_told(work())
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
        run_until_told(work())
    assert ended.value.code == 0


def test_work_that_is_done_gives_its_result_and_the_next_signal_still_ends_the_process():
    assert run_until_told(asyncio.sleep(0, "done")) == "done"
    with pytest.raises(SystemExit) as ended:
        os.kill(os.getpid(), signal.SIGTERM)
    assert ended.value.code == 0


def test_work_that_a_library_has_cancelled_is_no_end_in_order():
    async def work():
        raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        run_until_told(work())
