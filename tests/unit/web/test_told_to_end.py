"""When a web server that listens is told to end."""

import asyncio
import os
import signal

import pytest

from order_service.web import process


async def forever():
    await asyncio.Event().wait()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_server_that_listens_is_ended_at_last_whatever_hangs(monkeypatch, number):
    """What ends it then is in `package/test_signals.py`."""
    ends: list[float] = []
    monkeypatch.setattr(process, "force_exit_after", ends.append)
    told = asyncio.create_task(process._run_until_signalled(forever(), forever()))
    await asyncio.sleep(0)
    os.kill(os.getpid(), number)
    os.kill(os.getpid(), number)
    async with asyncio.timeout(30):
        await told
    assert ends == [process.ENDED_WITHIN_S]
    for each in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().remove_signal_handler(each)
