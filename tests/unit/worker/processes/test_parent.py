"""The parent of a worker with several processes."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from order_service.errors import SetupError
from order_service.local.broker import free_port
from order_service.settings import Settings
from order_service.worker.processes.parent import RESTARTS, run_processes
from tests.support.process_tree import has_ended
from tests.support.service import until

PARENT = """
import sys
from order_service.runtime import logs
from order_service.settings import Settings
from order_service.worker.processes.parent import run_processes
logs.configure("json")
settings = Settings(workers=2, admin_port=int(sys.argv[1]))
sys.exit(run_processes(settings, ["--json"], command=[sys.executable, "-c", sys.argv[2]]))
"""
# Writes a file with its pid, named after its arguments, then runs until it is told to stop.
OBEYS = """
import os, pathlib, sys, time
number = sys.argv[1].removeprefix("--process=")
assert sys.argv[2].startswith("--admin-socket=") and sys.argv[3:] == ["--json"], sys.argv
pathlib.Path(number).write_text(str(os.getpid()))
time.sleep(600)
"""


class Parent:
    """A parent with two processes, in a directory of its own."""

    def __init__(self, directory: Path, code: str) -> None:
        self.directory = directory
        self.log_path = directory / "log"
        with self.log_path.open("wb") as log:
            command = [sys.executable, "-c", PARENT, str(free_port()), code]
            self.process = subprocess.Popen(command, cwd=directory, stdout=log, stderr=log)

    def pid(self, number: int, *, other_than: int = 0) -> int:
        def read():
            file = self.directory / str(number)
            text = file.read_text() if file.exists() else ""
            return int(text) if text and int(text) != other_than else 0

        pid: int = until(read, f"process {number} runs: {self.log_path.read_text()}")
        return pid


@pytest.fixture
def parent(tmp_path):
    started = []

    def start(code=OBEYS):
        started.append(Parent(tmp_path, code))
        return started[-1]

    yield start
    for each in started:
        each.process.kill()
        each.process.wait()


def test_sigterm_stops_all_processes_and_the_exit_status_is_0(parent):
    running = parent()
    pids = [running.pid(1), running.pid(2)]
    running.process.send_signal(signal.SIGTERM)
    assert running.process.wait(30) == 0
    assert all(map(has_ended, pids))


def test_a_killed_process_is_started_again_and_the_other_runs_on(parent):
    running = parent()
    first, second = running.pid(1), running.pid(2)
    os.kill(second, signal.SIGKILL)
    assert running.pid(2, other_than=second) != second
    assert not has_ended(first)
    assert '"exit_code": 137' in running.log_path.read_text()


def test_no_process_outlives_a_parent_that_is_killed(parent):
    running = parent()
    pids = [running.pid(1), running.pid(2)]
    running.process.kill()
    until(lambda: all(map(has_ended, pids)), "the processes have ended")


@pytest.mark.parametrize("code", [2, 13])
def test_an_end_that_no_restart_repairs_ends_the_worker_with_its_status(parent, code):
    running = parent(f"import sys, time\nif sys.argv[1] == '--process=2': sys.exit({code})\ntime.sleep(600)")
    assert running.process.wait(30) == code


def test_processes_that_do_not_stop_are_killed_within_the_time_that_containers_have(parent):
    stubborn = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + OBEYS
    running = parent(stubborn)
    pids = [running.pid(1), running.pid(2)]
    began_at = time.monotonic()
    running.process.send_signal(signal.SIGTERM)
    assert running.process.wait(30) == 0
    assert all(map(has_ended, pids))
    assert time.monotonic() - began_at < 15


def test_a_temporary_folder_whose_path_is_too_long_for_a_socket_is_named(tmp_path, monkeypatch):
    folder = tmp_path / ("long" * 30)
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    with pytest.raises(SetupError, match="and that of a socket at most 103: set TMPDIR to a shorter folder"):
        run_processes(Settings(workers=2), [])


@pytest.mark.parametrize(
    ("code", "quick_ends", "wait_s"),
    [
        pytest.param(1, 1, 1.0, id="an error at the start is tried again"),
        pytest.param(10, 1, 1.0, id="a fenced process is started again"),
        pytest.param(14, 6, 30.0, id="the pauses grow"),
        pytest.param(137, 10, 30.0, id="a killed one too"),
        pytest.param(0, 1, 1.0, id="also one that an operator has stopped"),
        pytest.param(12, 11, None, id="the eleventh quick end in a row ends the worker"),
        pytest.param(2, 1, None, id="a wrong setting stays wrong"),
        pytest.param(13, 1, None, id="so do wrong topics"),
    ],
)
def test_when_a_process_is_started_again(code, quick_ends, wait_s):
    assert RESTARTS.wait_s(code, quick_ends) == wait_s
