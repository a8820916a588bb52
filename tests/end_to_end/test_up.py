"""`order-service up` as people run it: a process with its own Kafka, ports and folder."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest
from confluent_kafka import Producer

from order_service.local.broker import free_port
from order_service.wire.commands import partition_of
from tests.support.command_line import CommandLine
from tests.support.quick_kafka import java_options
from tests.support.service import until

UP = [sys.executable, "-m", "order_service.cli", "up"]
PORTS = ("ORDERS_KAFKA_PORT", "ORDERS_ADMIN_PORT", "ORDERS_USERS_PORT", "ORDERS_HTTP_PORT")


@pytest.fixture
def environment(tmp_path):
    """A machine of its own: nothing set but free ports, a folder and a prefix."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("ORDERS_", "KAFKA_"))}
    kept.pop("USER_SERVICE_URL", None)
    ports = {name: str(free_port()) for name in PORTS}
    data = {"ORDERS_DATA_DIR": str(tmp_path / "data"), "ORDERS_TOPIC_PREFIX": "up."}
    return kept | ports | data | {"ORDERS_WORKERS": "1"} | {"JDK_JAVA_OPTIONS": java_options()}


class Up:
    """A run; what it says goes to files."""

    def __init__(self, environment, directory, *options):
        self.out, self.err = directory / "out", directory / "err"
        with self.out.open("wb") as out, self.err.open("wb") as err:
            self.process = subprocess.Popen([*UP, *options], env=environment, cwd=directory, stdout=out, stderr=err)

    def is_ready(self):
        assert self.process.poll() is None, self.err.read_text()
        return any(line.startswith("ready ") for line in self.out.read_text().splitlines())

    def outcomes(self):
        """Return the outcomes that it has shown."""
        shown = [line.partition(" | ") for line in self.out.read_text().splitlines()]
        return [text for name, _, text in shown if name.strip() == "outcome"]

    def ends_by_ctrl_c(self):
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(20) == 0

    def processes(self):
        """Return the command line of each process that it has started, and those that these have."""
        shown = subprocess.run(["ps", "-axwwo", "pid=,ppid=,args="], capture_output=True, text=True, check=True)
        rows = [line.split(None, 2) for line in shown.stdout.splitlines()]
        found: dict[int, str] = {}
        family = {str(self.process.pid)}
        while more := [row for row in rows if row[1] in family and row[0] not in family]:
            family |= {row[0] for row in more}
            found |= {int(row[0]): row[2] for row in more}
        return {pid: args for pid, args in found.items() if not args.startswith("ps ")}

    def worker(self):
        workers = {pid: args for pid, args in self.processes().items() if "order_service.cli worker" in args}
        [pid] = [pid for pid, args in workers.items() if "watcher.py" not in args]
        return pid


def is_there(pid):
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False).stdout
    return bool(state.strip()) and not state.startswith("Z")


def answers(url):
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return answer.status == 200
    except OSError:
        return False


def listed(cli):
    """Return id and status of each order in the views; `show` would fail until they have its first event."""
    return {(order["order_id"], order["status"]) for order in cli.json("list")}


def test_a_run_from_ready_to_ctrl_c(environment, tmp_path):
    up = Up(environment, tmp_path)
    try:
        until(up.is_ready, "it is ready")
        cli = CommandLine(environment)
        cli("create", "order-1", "--user", "dana", "--currency", "EUR", "--line", "mug-blue:2:1250")
        cli("create", "order-2", "--user", "unknown-1", "--currency", "EUR", "--line", "mug-blue:2:1250", code=1)
        cli("pay", "order-1", "--payment-id", "payment-1", "--amount", "2500", "--currency", "EUR")
        killed = up.worker()
        os.kill(killed, signal.SIGKILL)
        cli("ship", "order-1", "--carrier", "DHL", "--tracking-number", "JD0146", "--wait", "40")
        assert up.worker() != killed
        cli("deliver", "order-1")
        assert [step["version"] for step in cli.json("timeline", "order-1")] == [1, 2, 3, 4]
        until(lambda: ("order-1", "delivered") in listed(cli), "HTTP has seen it delivered")
        cli("topics", "check")
        told = dict(re.findall(r"(worker|projector|web) (http:\S+/health/ready)", up.out.read_text()))
        assert len(told) == 3
        until(lambda: all(map(answers, told.values())), "all health addresses that it says are ready")
        [created, refused] = until(lambda: up.outcomes()[:2] * (len(up.outcomes()) >= 5), "it shows each outcome")
        assert re.fullmatch(r"accepted: CreateOrder, order-1: OrderCreated, version 1 \(command \d:0\)", created)
        assert re.match(r"refused: CreateOrder, order-2: user_not_found: .* \(command \d:\d\)", refused)
        processes = up.processes()
        assert any("kafka.Kafka" in args or "docker" in args for args in processes.values())
        began_at = time.monotonic()
        up.process.send_signal(signal.SIGINT)
        assert up.process.wait(20) == 0
        assert time.monotonic() - began_at < 15
        until(lambda: not any(map(is_there, processes)), "no process remains")
    finally:
        up.process.kill()
        up.process.wait()
    said = up.err.read_text()
    assert "Traceback" not in said
    assert said.index("Kafka is starting ...") < said.index("the worker is starting ...")


@pytest.fixture
def shared(bootstrap_servers, environment, tmp_path):
    """The environment of a run on the Kafka of all tests, with topics of its own of two partitions."""
    kafka = {"KAFKA_BOOTSTRAP_SERVERS": bootstrap_servers, "ORDERS_PARTITIONS": "2"}
    found = environment | kafka | {"ORDERS_TOPIC_PREFIX": f"up{tmp_path.name}."}
    CommandLine(found)("topics", "create")
    return found


def write(environment, topic, partition, key, value):
    producer = Producer({"bootstrap.servers": environment["KAFKA_BOOTSTRAP_SERVERS"]})
    producer.produce(environment["ORDERS_TOPIC_PREFIX"] + topic, value, key, partition)
    assert producer.flush(30) == 0


def states_of(environment):
    """Return the components that the operator's page shows as ready, each with the number of its processes."""
    address = f"http://127.0.0.1:{environment['ORDERS_HTTP_PORT']}/v1/operations/overview"
    with urllib.request.urlopen(address, timeout=5) as answer:
        rows = json.load(answer)["processes"]
    return sorted((row["component"], row["process_count"]) for row in rows if row["state"] == "ready")


def lanes_of(environment):
    """Return the number of lanes that each process of the worker runs, as they were measured last."""
    address = f"http://127.0.0.1:{environment['ORDERS_ADMIN_PORT']}/metrics"
    with urllib.request.urlopen(address, timeout=5) as answer:
        measured = answer.read().decode()
    return re.findall(r'^orders_lanes{process="(\d)",state="running"} (\d)', measured, re.MULTILINE)


def test_a_run_with_two_processes_of_the_worker(shared, tmp_path):
    """As on a machine with four cores."""
    up = Up(shared | {"ORDERS_WORKERS": "2"}, tmp_path)
    try:
        until(up.is_ready, "it is ready")
        until(lambda: lanes_of(shared) == [("1", "1"), ("2", "1")], "each process runs one lane")
        until(lambda: states_of(shared) == [("projector", 1), ("web", 1), ("worker", 2)], "operators see all of them")
        CommandLine(shared)("create", "order-1", "--user", "dana", "--currency", "EUR", "--line", "mug:2:1250")
        processes = up.processes()
        assert up.ends_by_ctrl_c()
        until(lambda: not any(map(is_there, processes)), "no process remains")
    finally:
        up.process.kill()
        up.process.wait()


@pytest.mark.timeout(400)
@pytest.mark.parametrize("option", ["", "--quiet"])
def test_a_parked_lane_holds_nothing_else_up_and_a_first_mistake_is_shown(shared, tmp_path, option):
    orders = [next(f"order-{n}" for n in range(99) if partition_of(b"order-%d" % n, 2) == where) for where in (0, 1)]
    write(shared, "orders.table.v1", 0, orders[0].encode(), b"a record of no version")
    up = Up(shared, tmp_path, *filter(None, [option]))
    try:
        until(up.is_ready, "it is ready, with a parked lane", within_s=180)
        cli = CommandLine(shared)
        details = ("--user", "dana", "--currency", "EUR", "--line", "mug-blue:2:1250")
        cli("create", orders[0], *details, "--wait", "0")
        write(shared, "orders.commands.v1", 1, orders[1].encode(), b"{}")
        cli("create", orders[1], *details)
        until(lambda: (orders[1], "created") in listed(cli), "the views go on")
        [worker] = re.findall(r"worker (http:\S+/health/ready)", up.out.read_text())
        with pytest.raises(urllib.error.HTTPError) as unready:
            urllib.request.urlopen(worker, timeout=5)
        fault = json.loads(unready.value.read())["faults"][0]
        assert fault.startswith("partition 0 is parked: changelog_unreadable: ")
        if not option:
            until(lambda: len(up.outcomes()) >= 2, "it shows both outcomes of the other partition")
            mistake = f"dead letter: key {orders[1]}: bad_shape: "
            assert [line[: len(mistake)] for line in up.outcomes()[:1]] == [mistake]
            accepted = f"accepted: CreateOrder, {orders[1]}: OrderCreated, version 1 (command 1:1)"
            assert up.outcomes()[1:] == [accepted]
        assert up.ends_by_ctrl_c()
        assert bool(up.outcomes()) != bool(option)
    finally:
        up.process.kill()
        up.process.wait()


@pytest.mark.parametrize("name", PORTS)
def test_a_used_port_is_one_line_that_names_its_setting(environment, name):
    with socket.create_server(("127.0.0.1", int(environment[name]))):
        done = subprocess.run(UP, env=environment, capture_output=True, text=True, timeout=60, check=False)
    said = f"port {environment[name]} is taken: stop the process that uses it, or set {name} to another one"
    assert (done.returncode, done.stdout, done.stderr) == (1, "", f"order-service: {said}\n")


def test_a_folder_that_cannot_be_written_is_one_line(environment, tmp_path):
    (tmp_path / "file").touch()
    folder = tmp_path / "file" / "data"
    done = subprocess.run(
        UP, env=environment | {"ORDERS_DATA_DIR": str(folder)}, capture_output=True, text=True, timeout=60, check=False
    )
    said = f"the folder {folder} cannot be written (Not a directory): set ORDERS_DATA_DIR to another one"
    assert (done.returncode, done.stderr) == (1, f"order-service: {said}\n")


def test_topics_of_another_count_end_the_run_with_13(bootstrap_servers, environment, tmp_path):
    there = environment | {"KAFKA_BOOTSTRAP_SERVERS": bootstrap_servers, "ORDERS_TOPIC_PREFIX": f"up{tmp_path.name}."}
    CommandLine(there | {"ORDERS_PARTITIONS": "1"})("topics", "create")
    done = subprocess.run(
        UP, env=there | {"ORDERS_PARTITIONS": "2"}, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 13, done.stderr
    assert "has 1 partitions, ORDERS_PARTITIONS says 2" in done.stderr
    assert "not restarting it" in done.stderr
