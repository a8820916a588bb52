"""The README on docker-compose.yml: the same commands, with the same output, on containers."""

import json
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from uuid import uuid4

import pytest

from order_service.local.broker import free_port, is_taken
from tests.support.consoles import README, assert_shown, output_of, steps
from tests.support.service import ROOT, until

UP_WITHIN_S = 900.0
OURS = ("worker", "projector", "web", "users", "topics")
ENDS_WITH = {"kafka": 143}
"""Java ends with 128 and the number of SIGTERM."""

pytestmark = pytest.mark.timeout(1300)  # the first test may build the image


class Compose:
    """The services of docker-compose.yml as a project of its own, on free ports."""

    def __init__(self):
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("ORDERS_", "KAFKA_", "USER_SERVICE_", "SCHEMA_REGISTRY_", "COMPOSE_"))
        }
        ports = {f"ORDERS_{name}_PORT": str(free_port()) for name in ("KAFKA", "ADMIN", "USERS", "HTTP")}
        self.name = f"orders-test-{uuid4().hex[:8]}"
        self.environment = kept | ports | {"COMPOSE_PROJECT_NAME": self.name}
        self.environment["PATH"] = f"{Path(sys.executable).parent}:{kept['PATH']}"

    def __call__(self, *arguments, within_s=120.0, **environment):
        done = subprocess.run(
            ["docker", "compose", *arguments],
            cwd=ROOT,
            env=self.environment | environment,
            capture_output=True,
            text=True,
            timeout=within_s,
            check=False,
        )
        assert done.returncode == 0, f"{arguments}: {done.stdout[-3000:]}{done.stderr[-3000:]}"
        return done.stdout.strip()

    def up(self, *options, **environment):
        self("up", "--detach", "--wait", *options, within_s=UP_WITHIN_S, **environment)

    def container(self, service):
        return self("ps", "--all", "--quiet", service).splitlines()[0]

    def order_service(self, *arguments):
        command = ["order-service", *arguments]
        done = subprocess.run(
            command, cwd=ROOT, env=self.environment, capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


@pytest.fixture(scope="module")
def compose():
    made = Compose()
    try:
        made.up("--build")
        yield made
    finally:
        made("down", "--volumes")


@pytest.fixture
def inspected(run):
    return lambda container: json.loads(run("inspect", container))[0]


def test_what_the_readme_shows_is_what_comes_from_the_containers(compose):
    here = f"127.0.0.1:{compose.environment['ORDERS_HTTP_PORT']}"
    for section, count in {"Quickstart": 7, "HTTP": 2}.items():
        assert len(steps(README, section)) == count
        for command, shown in steps(README, section):
            arguments = shlex.split(command.replace("127.0.0.1:8080", here))
            assert_shown(output_of(arguments, compose.environment), shown, command)


def test_our_containers_have_no_rights_and_a_root_that_cannot_be_written(compose, inspected):
    for service in OURS:
        container = inspected(compose.container(service))
        host = container["HostConfig"]
        assert host["ReadonlyRootfs"], service
        assert host["CapDrop"] == ["ALL"], service
        assert host["SecurityOpt"] == ["no-new-privileges:true"], service
        assert host["Memory"] > 0, service
        assert not host.get("Init"), service
        assert container["Mounts"] == [], service


def test_our_containers_may_write_to_the_data_folder(compose):
    for service in ("worker", "projector", "web"):
        compose("exec", "--no-tty", service, "python", "-c", "open('/data/written', 'w').close()")


def test_an_http_server_logs_where_it_serves(compose):
    assert "Serving HTTP." in compose("logs", "web")


def test_a_killed_worker_goes_on_at_once(compose, inspected):
    compose.order_service("create", "killed", "--user", "dana", "--currency", "EUR", "--line", "mug:1:100")
    container = compose.container("worker")
    killed = inspected(container)["State"]["Pid"]
    os.kill(killed, signal.SIGKILL)
    pay = ("pay", "killed", "--payment-id", "p", "--amount", "100", "--currency", "EUR")
    assert "accepted" in compose.order_service(*pay, "--wait", "60")
    assert inspected(container)["State"]["Pid"] not in {0, killed}


def test_several_workers_share_the_partitions(compose, inspected):
    ports = ports_side_by_side(2)
    compose.up("--no-recreate", "--scale", "web=1", "--scale", "worker=0")
    compose.up("--scale", "worker=2", ORDERS_ADMIN_PORT=f"{ports[0]}-{ports[-1]}")
    workers = [part for port in ports for part in ("--worker", f"127.0.0.1:{port}")]

    def states():
        listed = json.loads(compose.order_service("lanes", *workers, "--json"))
        return {(lane["state"], lane["worker"]) for lane in listed["lanes"]}

    until(lambda: states() == {("running", f"127.0.0.1:{port}") for port in ports}, "both have running lanes")
    compose.up("--scale", "worker=1")


def test_down_and_up_keep_the_orders_and_leave_no_unnamed_volume(compose, run):
    compose.order_service("create", "kept", "--user", "dana", "--currency", "EUR", "--line", "mug:1:100")
    label = f"label=com.docker.compose.project={compose.name}"
    before = set(run("volume", "ls", "--quiet").splitlines())
    compose("stop")
    containers = compose("ps", "--all", "--format", "{{.Service}} {{.ExitCode}}").splitlines()
    ended = {service: int(code) for service, code in map(str.split, containers)}
    assert ended == {service: ENDS_WITH.get(service, 0) for service in ended}
    compose("down")
    assert run("ps", "--all", "--quiet", "--filter", label) == ""
    after = set(run("volume", "ls", "--quiet").splitlines())
    assert after == before
    assert {name for name in after if name.startswith(compose.name)} == {
        f"{compose.name}_kafka",
        f"{compose.name}_postgresql",
    }
    compose.up()
    assert "OrderCreated" in compose.order_service("timeline", "kept")


def ports_side_by_side(count):
    """Return free ports that follow each other."""
    while True:
        ports = [free_port() + number for number in range(count)]
        ports = list(range(ports[0], ports[0] + count))
        if not any(map(is_taken, ports)):
            return ports
