"""The README's quickstart, as written: `make run`, then each line that begins with `$`, and what is shown under it."""

import os
import re
import shlex
import signal
import subprocess

import pytest

from order_service.embedded.broker import free_port
from tests.service import ROOT, until

QUICKSTART = (ROOT / "README.md").read_text(encoding="utf-8").split("## Quickstart")[1].split("\n## ")[0]
VARIES = re.compile(r"[0-9a-f]{8}-[0-9a-f-]{27}|\d{4}-\d\d-\d\dT[\d:.]+Z")


def block(language):
    [found] = re.findall(rf"```{language}\n(.*?)```", QUICKSTART, flags=re.DOTALL)
    return found


def steps():
    """Give each command of the console block with the output shown under it."""
    return [
        tuple(part.partition("\n")[::2]) for part in re.split(r"^\$ ", block("console"), flags=re.MULTILINE) if part
    ]


@pytest.fixture
def environment(tmp_path):
    settings = ("ORDERS_", "KAFKA_", "USER_SERVICE_", "MAKE", "MFLAGS")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(settings)}
    ports = {f"ORDERS_{name}_PORT": str(free_port()) for name in ("KAFKA", "ADMIN", "USERS")}
    return kept | ports | {"ORDERS_DATA_DIR": str(tmp_path / "data")}


@pytest.fixture
def running(environment, tmp_path):
    """Run what the first block says until it is ready, and interrupt it afterwards."""
    output = tmp_path / "output"
    command = shlex.split(block("sh"))
    with output.open("wb") as file:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        until(lambda: re.search("^ready", output.read_text(), flags=re.MULTILINE), "it says ready", within_s=90)
        yield
        os.killpg(process.pid, signal.SIGINT)
        until(lambda: process.poll() is not None, "Ctrl-C ends all of it", within_s=15)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@pytest.mark.usefixtures("running")
def test_the_quickstart_says_what_the_readme_shows(environment):
    assert len(steps()) >= 5
    for command, shown in steps():
        done = subprocess.run(
            shlex.split(command), cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60, check=False
        )
        assert VARIES.sub("…", done.stdout + done.stderr) == VARIES.sub("…", shown), command
