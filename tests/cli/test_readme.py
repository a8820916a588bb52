"""The README, as written: `make run`, then each line of a console that begins with `$`, and what is shown under it."""

import os
import re
import shlex
import signal
import subprocess

import pytest

from order_service.local.broker import free_port
from tests.service import ROOT, until

README = (ROOT / "README.md").read_text(encoding="utf-8")
VARIES = re.compile(r"offset\":\d+|[0-9a-f]{8}-[0-9a-f-]{27}|[0-9a-f]{32}|\d{4}-\d\d-\d\dT[\d:.]+Z")


def block(section, language):
    text = README.split(f"\n## {section}\n")[1].split("\n## ")[0]
    [found] = re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)
    return found


def steps(section):
    """Give each command of a section's console with the output shown under it."""
    parts = re.split(r"^\$ ", block(section, "console"), flags=re.MULTILINE)
    return [tuple(part.partition("\n")[::2]) for part in parts if part]


@pytest.fixture
def environment(tmp_path):
    settings = ("ORDERS_", "KAFKA_", "USER_SERVICE_", "MAKE", "MFLAGS")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(settings)}
    ports = {f"ORDERS_{name}_PORT": str(free_port()) for name in ("KAFKA", "ADMIN", "USERS", "HTTP")}
    return kept | ports | {"ORDERS_DATA_DIR": str(tmp_path / "data")}


@pytest.fixture
def running(environment, tmp_path):
    """Run what the first block says until it is ready, and interrupt it afterwards."""
    output = tmp_path / "output"
    command = shlex.split(block("Quickstart", "sh"))
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
def test_what_the_readme_shows_is_what_comes(environment):
    here = f"127.0.0.1:{environment['ORDERS_HTTP_PORT']}"
    for section, count in (("Quickstart", 6), ("HTTP", 8)):
        assert len(steps(section)) == count
        for command, shown in steps(section):
            arguments = shlex.split(command.replace("127.0.0.1:8080", here))
            done = subprocess.run(
                arguments, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60, check=False
            )
            said = (done.stdout + done.stderr).rstrip("\n")
            assert VARIES.sub("…", said) == VARIES.sub("…", shown.rstrip("\n")), command
