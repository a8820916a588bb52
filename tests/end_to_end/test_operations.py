"""The procedures of docs/operations: each line of a page that begins with `$` runs in one shell, on an embedded run."""

import os
import re
import signal
import subprocess
from threading import Timer

import pytest

from order_service.local.broker import free_port
from tests.support.consoles import assert_shown, page_steps
from tests.support.quick_kafka import java_options
from tests.support.service import ROOT

OPERATIONS = ROOT / "docs" / "operations"
PORTS = {"KAFKA": "9092", "ADMIN": "9100", "USERS": "8090", "HTTP": "8080"}
PATIENCE_S = 180.0
END = "--- end of the output ---"


class Shell:
    """A bash in a folder of its own, in which `.venv` is that of the clone. Ports of the documents are free ones."""

    def __init__(self, directory):
        settings = ("ORDERS_", "KAFKA_", "USER_SERVICE_")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(settings)}
        self._ports = {port: str(free_port()) for port in PORTS.values()}
        own = {f"ORDERS_{name}_PORT": self._ports[port] for name, port in PORTS.items()}
        (directory / ".venv").symlink_to(ROOT / ".venv")
        self._process = subprocess.Popen(
            ["bash", "--norc"],
            cwd=directory,
            env=kept | own | {"JDK_JAVA_OPTIONS": java_options(), "ORDERS_WORKERS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def run(self, command):
        """Return what a command prints; the shell and its children are killed if that takes too long."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        deadline = Timer(PATIENCE_S, self._kill)
        deadline.start()
        try:
            self._process.stdin.write(f"{{ {self._here(command)}\n}} </dev/null; echo '{END}'\n")
            self._process.stdin.flush()
            printed = ""
            while not printed.endswith(f"{END}\n"):
                line = self._process.stdout.readline()
                assert line, f"{command} did not end within {PATIENCE_S:.0f} s: {printed}"
                printed += line
        finally:
            deadline.cancel()
        return printed.removesuffix(f"{END}\n")

    def end(self):
        """Kill the shell and what it has started: the processes of a run end with it."""
        with self._process:
            self._kill()

    def _kill(self):
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)

    def _here(self, command):
        return re.sub(r"(?<=127\.0\.0\.1:)(\d+)", lambda port: self._ports[port[1]], command)


@pytest.fixture
def shell(tmp_path):
    made = Shell(tmp_path)
    yield made
    made.end()


@pytest.mark.timeout(900)  # each starts a Kafka, and restarts it
@pytest.mark.parametrize("page", ["drill.md", "backup.md"])
def test_what_a_procedure_shows_is_what_comes(shell, page):
    steps = page_steps(OPERATIONS / page)
    assert len(steps) > 10
    for command, shown in steps:
        assert_shown(shell.run(command), shown, command)
