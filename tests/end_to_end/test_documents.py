"""The consoles of the README and the HTTP reference: each line that begins with `$` prints what is shown under it.

Of `make run`, the README shows what it prints of the commands in these consoles.
"""

import os
import re
import shlex
import signal
import subprocess

import pytest

from order_service.local.broker import free_port
from tests.support.consoles import HTTP, README, assert_shown, block, output_of, steps
from tests.support.quick_kafka import java_options
from tests.support.service import ROOT, until


@pytest.fixture
def environment(tmp_path):
    settings = ("ORDERS_", "KAFKA_", "USER_SERVICE_", "MAKE", "MFLAGS")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(settings)}
    ports = {f"ORDERS_{name}_PORT": str(free_port()) for name in ("KAFKA", "ADMIN", "USERS", "HTTP")}
    data = {"ORDERS_DATA_DIR": str(tmp_path / "data")}
    return kept | ports | data | {"JDK_JAVA_OPTIONS": java_options()}


@pytest.fixture
def running(environment, tmp_path):
    """Run the first block of the README until it is ready, and interrupt it afterwards."""
    output = tmp_path / "output"
    command = shlex.split(block(README, "Quickstart", "sh"))
    with output.open("wb") as file:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        until(lambda: re.search("^ready", output.read_text(), flags=re.MULTILINE), "it says ready", within_s=90)
        yield output
        os.killpg(process.pid, signal.SIGINT)
        until(lambda: process.poll() is not None, "Ctrl-C ends all processes", within_s=15)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def outcomes(text):
    """Return the lines about outcomes in what `make run` has printed, or in what the README shows of that."""
    return sorted(line for line in text.splitlines() if line.startswith("outcome "))


def wait_shown(output, expected):
    until(lambda: len(outcomes(output.read_text())) >= len(expected), "it has shown the outcomes")
    assert outcomes(output.read_text()) == expected


@pytest.mark.parametrize(
    ("document", "counts"),
    [pytest.param(README, {"Quickstart": 7, "HTTP": 2}, id="README"), pytest.param(HTTP, {"Example": 8}, id="http")],
)
def test_what_a_document_shows_is_what_comes(environment, running, document, counts):
    here = f"127.0.0.1:{environment['ORDERS_HTTP_PORT']}"
    for section, count in counts.items():
        assert len(steps(document, section)) == count
        for command, shown in steps(document, section):
            arguments = shlex.split(command.replace("127.0.0.1:8080", here))
            assert_shown(output_of(arguments, environment), shown, command)
        if section == "Quickstart":
            wait_shown(running, outcomes(block(document, section, "text")))
