"""A forked process is like another one: its arguments, its output, its exit code, the signal that killed it."""

import os
import signal
import subprocess
from pathlib import Path

import pytest

from tests.support.forking import Template
from tests.support.service import until


@pytest.fixture(scope="module")
def template():
    made = Template()
    yield made
    made.stop()


@pytest.fixture
def start(template, tmp_path):
    """Run `python -m` in a fork; its output is a file."""

    def run(*arguments, **environment):
        with (tmp_path / "output").open("wb") as output:
            return template.start(arguments, os.environ | environment, output)

    return run


def test_it_has_its_own_arguments_environment_and_output(start, tmp_path):
    process = start("timeit", "-n", "1", "-r", "1", "import os; print(os.environ['SAYS'])", SAYS="hello")
    assert process.wait(30) == 0
    assert process.poll() == 0
    assert "hello" in (tmp_path / "output").read_text()


def test_it_has_its_own_exit_code(start):
    assert start("timeit", "--no-such-option").wait(30) == 2
    assert start("no_such_module").wait(30) == 1


def test_the_signal_that_killed_it_is_its_exit_code_and_a_later_signal_is_none(start):
    process = start("timeit", "-n", "1", "import time; time.sleep(600)")
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.01)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == -signal.SIGTERM
    process.kill()
    assert process.poll() == -signal.SIGTERM


def test_one_that_nobody_waits_for_any_more_does_not_end_what_forks(start):
    dropped = start("timeit", "-n", "1", "import time; time.sleep(600)")
    dropped._answers.close()
    os.kill(dropped.pid, signal.SIGKILL)
    until(lambda: not Path(f"/proc/{dropped.pid}").exists(), "it is gone")
    assert start("timeit", "-n", "1", "pass").wait(30) == 0


def test_it_ends_with_what_forks(tmp_path):
    made = Template()
    with (tmp_path / "output").open("wb") as output:
        process = made.start(("timeit", "-n", "1", "import time; time.sleep(600)"), os.environ, output)
    assert Path(f"/proc/{process.pid}").exists()
    made.stop()
    with pytest.raises(RuntimeError, match="the process that forks has ended"):
        process.wait(30)
    until(lambda: not Path(f"/proc/{process.pid}").exists(), "it is gone")
    process._answers.close()
