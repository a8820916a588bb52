"""`order-service up` with Kafka in a container, whose docker client is killed."""

import os
import re
import signal
import subprocess
import sys

import pytest

from order_service.local.broker import free_port
from tests.support.service import until

UP = [sys.executable, "-m", "order_service.cli", "up", "--quiet"]
PORTS = ("ORDERS_KAFKA_PORT", "ORDERS_ADMIN_PORT", "ORDERS_USERS_PORT", "ORDERS_HTTP_PORT")

pytestmark = pytest.mark.timeout(600)


@pytest.fixture
def environment(tmp_path):
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("ORDERS_", "KAFKA_", "USER_"))}
    ports = {name: str(free_port()) for name in PORTS}
    return kept | ports | {"ORDERS_KAFKA": "docker", "ORDERS_DATA_DIR": str(tmp_path / "data")}


@pytest.fixture
def container(environment, run):
    """Return the name of the container, which is also that of its volume."""
    name = f"order-service-kafka-{environment['ORDERS_KAFKA_PORT']}"
    yield name
    run("volume", "rm", "--force", name)


def start(environment, output):
    with output.open("wb") as file:
        return subprocess.Popen(UP, env=environment, stdout=file, stderr=subprocess.STDOUT)


def docker_client(name):
    shown = subprocess.run(["ps", "-axwwo", "pid=,args="], capture_output=True, text=True, check=True)
    lines = [line.split(None, 1) for line in shown.stdout.splitlines()]
    return [int(pid) for pid, args in lines if re.match(rf"\S*docker run .*--name {name}", args)]


def containers(run, name):
    return run("ps", "--all", "--quiet", "--no-trunc", "--filter", f"name=^/?{name}$")


def order_service(environment, *arguments):
    done = subprocess.run(
        [sys.executable, "-m", "order_service.cli", *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_killed_docker_client_costs_a_restart_and_leaves_no_container(environment, container, run, tmp_path):
    output = tmp_path / "output"
    up = start(environment, output)
    try:
        until(lambda: "\nready " in output.read_text(), "it says ready", within_s=180)
        order_service(environment, "create", "order-1", "--user", "dana", "--currency", "EUR", "--line", "mug:1:100")
        first = containers(run, container)
        [client] = docker_client(container)
        os.kill(client, signal.SIGKILL)
        until(lambda: containers(run, container) not in {"", first}, "another container runs", within_s=90)
        pay = ("pay", "order-1", "--payment-id", "p", "--amount", "100", "--currency", "EUR", "--wait", "60")
        until(lambda: paid(environment, pay), "the next command is accepted", within_s=120)
        up.send_signal(signal.SIGINT)
        assert up.wait(40) == 0
        assert containers(run, container) == ""
    finally:
        if up.poll() is None:
            up.kill()
            up.wait()


def paid(environment, pay):
    done = subprocess.run(
        [sys.executable, "-m", "order_service.cli", *pay],
        env=environment,
        capture_output=True,
        timeout=120,
        check=False,
    )
    return done.returncode == 0


def test_a_container_that_a_killed_run_left_does_not_block_the_next_run(environment, container, run, tmp_path):
    output = tmp_path / "output"
    up = start(environment, output)
    try:
        until(lambda: docker_client(container), "the container starts", within_s=60)
        until(lambda: containers(run, container), "it is there", within_s=60)
        [client] = docker_client(container)
        os.kill(client, signal.SIGKILL)
        up.kill()
        up.wait()
        assert containers(run, container) != ""
        up = start(environment, output)
        until(lambda: "\nready " in output.read_text(), "the next run is ready", within_s=180)
        up.send_signal(signal.SIGINT)
        assert up.wait(40) == 0
        assert containers(run, container) == ""
    finally:
        if up.poll() is None:
            up.kill()
            up.wait()
