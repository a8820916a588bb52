"""Run one command for as long as a pipe from its starter is open; end it when the pipe closes.

The kernel closes the pipe however the starter dies, kill -9 included, on every Unix. So a child never outlives its
starter, and the starter stops it cleanly in the same way: it closes the pipe.

The file runs by its path with the standard library alone (`python -I -S watcher.py SECONDS COMMAND…`), because
it starts before any import of this project, and one runs beside every child.
"""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

GRACE_S = 10.0
KILL_NOW = b"!"
"""Written into the pipe before it closes: SIGKILL without grace, like a crash."""


def watched(command: Sequence[str], grace_s: float = GRACE_S) -> list[str]:
    """Return the command line that runs `command` under a watcher.

    Start it with a pipe as stdin and `start_new_session=True`: Ctrl-C then reaches the starter only, and the
    watcher's pid is the process group of both, for `kill_group`. When the watcher has exited, so has the command.
    """
    return [sys.executable, "-I", "-S", str(Path(__file__).resolve()), str(grace_s), *command]


def kill_group(watcher_pid: int) -> None:
    """Kill a watcher and its command with SIGKILL."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(watcher_pid, signal.SIGKILL)


def watch(command: Sequence[str], grace_s: float) -> int:
    """Run `command` until it exits or the starter closes the pipe; return its exit code as a shell would."""
    # SimpleQueue: the only queue of Python that a signal handler may put into.
    ends: queue.SimpleQueue[bytes | int] = queue.SimpleQueue()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: ends.put(b""))
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL)  # noqa: S603 - the starter's own command
    threading.Thread(target=lambda: ends.put(os.read(0, 1)), daemon=True).start()
    threading.Thread(target=lambda: ends.put(child.wait()), daemon=True).start()
    return _end(child, grace_s, at_once=ends.get() == KILL_NOW)


def _end(child: subprocess.Popen[bytes], grace_s: float, *, at_once: bool) -> int:
    try:
        if at_once:
            child.kill()
        else:
            child.terminate()
        code = child.wait(grace_s)
    except subprocess.TimeoutExpired:
        child.kill()
        code = child.wait()
    if os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGTERM)  # processes that the command left; our own handler only queues the signal
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    try:
        sys.exit(watch(sys.argv[2:], float(sys.argv[1])))
    except OSError as error:
        sys.exit(f"{sys.argv[2]} cannot be started: {error.strerror}")
