"""Blocking calls beside the event loop."""

import asyncio
import subprocess
import sys

import pytest

from order_service.runtime.daemon_thread import in_daemon_thread


async def test_a_call_returns_and_raises_as_in_its_own_thread():
    def fail():
        raise ValueError("wrong")

    assert await in_daemon_thread(lambda: 7) == 7
    with pytest.raises(ValueError, match="wrong"):
        await in_daemon_thread(fail)


HANGS = """
import asyncio, threading
from order_service.runtime.daemon_thread import in_daemon_thread

async def wait():
    async with asyncio.timeout(0.1):
        await in_daemon_thread(threading.Event().wait)

try:
    asyncio.run(wait())
except TimeoutError:
    print("timeout")
"""


async def test_a_call_that_hangs_does_not_keep_the_process_from_ending():
    done = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-c", HANGS], capture_output=True, text=True, timeout=60, check=True
    )
    assert (done.stdout, done.stderr) == ("timeout\n", "")
