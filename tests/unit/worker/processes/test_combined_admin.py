"""The admin port of a worker with several processes answers for all of them."""

import json
import socket
import urllib.error
import urllib.request
from contextlib import ExitStack
from datetime import UTC, datetime

import pytest
from prometheus_client import Metric, generate_latest
from prometheus_client.openmetrics import parser as open_metrics
from prometheus_client.parser import text_string_to_metric_families

from order_service.local.broker import free_port
from order_service.runtime.admin import AdminServer
from order_service.runtime.readiness import NotReady
from order_service.worker.lane_states import LaneState
from order_service.worker.metrics import TURN_SECONDS
from order_service.worker.processes import combined_admin
from order_service.worker.processes.combined_admin import CombinedAdminServer, Process

PARKED_AT = datetime(2026, 1, 2, tzinfo=UTC)
CLAIMED = NotReady.LANE_CLAIMED.fault(partition=3, progress="")


class Processes:
    """Admin servers on sockets, and the port that answers for them."""

    def __init__(self, directory, count):
        self.processes = [Process(number, directory / f"{number}.sock") for number in range(1, count + 1)]
        self.servers = {}
        self._port = free_port()
        self._open = ExitStack()

    def __enter__(self):
        self._open.enter_context(CombinedAdminServer("127.0.0.1", self._port, self.processes))
        return self

    def __exit__(self, *_):
        self._open.close()

    def start(self, *numbers):
        for number in numbers:
            server = AdminServer("", 0, list, socket_path=self.processes[number - 1].socket)
            server.is_starting = lambda: False
            self.servers[number] = self._open.enter_context(server)

    def get(self, path, accept="*/*"):
        request = urllib.request.Request(f"http://127.0.0.1:{self._port}{path}", headers={"Accept": accept})
        try:
            with urllib.request.urlopen(request, timeout=10) as response:
                return response.status, response.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def json(self, path):
        status, body = self.get(path)
        return status, json.loads(body)


@pytest.fixture
def two(tmp_path):
    with Processes(tmp_path, 2) as processes:
        yield processes


def test_a_worker_is_ready_when_all_of_its_processes_are(two):
    two.start(1, 2)
    assert two.json("/health/ready") == (200, {"ready": True, "starting": False, "faults": []})


def test_each_fault_has_the_number_of_its_process(two):
    two.start(1, 2)
    two.servers[2].faults = lambda: [CLAIMED]
    two.servers[2].is_starting = lambda: True
    fault = "process 2: partition 3 is being claimed"
    assert two.json("/health/ready") == (503, {"ready": False, "starting": True, "faults": [fault]})


def test_a_process_that_does_not_run_is_named_with_its_last_end_and_the_worker_lives(two):
    two.start(1)
    two.processes[1].why_down = "it ended with 12, it is started again after 4 s"
    fault = "process 2 does not run: it ended with 12, it is started again after 4 s"
    assert two.json("/health/ready") == (503, {"ready": False, "starting": True, "faults": [fault]})
    assert two.json("/health/live") == (200, {"live": True})


def test_a_process_that_listens_and_does_not_answer_fails_the_liveness(two, monkeypatch):
    monkeypatch.setattr(combined_admin, "ANSWER_WITHIN_S", 0.2)
    two.start(1)
    with socket.socket(socket.AF_UNIX) as hangs:
        hangs.bind(str(two.processes[1].socket))
        hangs.listen()
        assert two.json("/health/live") == (503, {"live": False, "silent_processes": [2]})
        status, body = two.json("/health/ready")
        assert (status, body["faults"]) == (503, ["process 2 does not answer within 0.2 s"])


def test_the_lanes_of_all_processes_are_listed_by_partition(two):
    two.start(1, 2)
    two.servers[1].lanes = lambda: [LaneState(1, "running"), LaneState(3, "parked", PARKED_AT, "why")]
    two.servers[2].lanes = lambda: [LaneState(0, "claiming"), LaneState(2, "running")]
    status, body = two.json("/lanes")
    assert status == 200
    assert [(lane["partition"], lane["state"]) for lane in body["lanes"]] == [
        (0, "claiming"),
        (1, "running"),
        (2, "running"),
        (3, "parked"),
    ]


def test_the_lanes_of_a_process_that_prepares_are_left_out(two):
    two.start(1, 2)
    two.servers[2].lanes = lambda: [LaneState(2, "running")]
    assert [lane["partition"] for lane in two.json("/lanes")[1]["lanes"]] == [2]


def test_metrics_have_the_number_of_their_process(two):
    two.start(1, 2)
    families = {family.name: family for family in text_string_to_metric_families(two.get("/metrics")[1])}
    assert [sample.labels["process"] for sample in families["python_info"].samples] == ["parent", "1", "2"]


def test_metrics_have_exemplars_where_openmetrics_is_accepted(two):
    """Prometheus asks for it, and keeps what leads from a slow turn to its trace."""
    two.start(1, 2)
    TURN_SECONDS.observe(0.0015, {"trace_id": "a" * 32})
    _, body = two.get("/metrics", "application/openmetrics-text; version=1.0.0, text/plain;q=0.5")
    assert body.endswith("# EOF\n")
    families = {family.name: family for family in open_metrics.text_string_to_metric_families(body)}
    samples = [sample for sample in families["orders_turn_seconds"].samples if sample.exemplar is not None]
    assert {"parent", "1", "2"} <= {sample.labels["process"] for sample in samples}
    assert {sample.exemplar.labels["trace_id"] for sample in samples} >= {"a" * 32}
    assert [sample.labels["process"] for sample in families["python_info"].samples] == ["parent", "1", "2"]
    assert " # {" not in two.get("/metrics", "text/plain")[1]


def test_each_metric_is_described_once_and_keeps_its_type_and_labels():
    text = (
        "# HELP orders_x_total Some.\n# TYPE orders_x_total counter\n"
        'orders_x_total{reason="a \\"b\\""} 3.0\n'
        "# HELP orders_y_seconds Some.\n# TYPE orders_y_seconds histogram\n"
        'orders_y_seconds_bucket{le="+Inf"} 1.0\norders_y_seconds_count 1.0\norders_y_seconds_sum 0.5\n'
    )
    combined = generate_latest(combined_admin.Combined({"1": text, "2": text})).decode()
    assert combined.count("# TYPE orders_x_total counter") == 1
    assert 'orders_x_total{process="2",reason="a \\"b\\""} 3.0' in combined
    assert 'orders_y_seconds_bucket{le="+Inf",process="1"} 1.0' in combined


def test_a_metric_with_a_process_of_its_own_keeps_it():
    text = '# HELP s_total Starts.\n# TYPE s_total counter\ns_total{process="2"} 3.0\n'
    [metric] = combined_admin.Combined({"parent": text}).collect()
    assert isinstance(metric, Metric)
    assert [sample.labels for sample in metric.samples] == [{"process": "2"}]
