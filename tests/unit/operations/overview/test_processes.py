"""What the admin ports tell: real admin servers answer, and others that are not ours."""

import asyncio
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest
from prometheus_client import REGISTRY
from prometheus_client.parser import text_string_to_metric_families

from order_service import __version__
from order_service.local.broker import free_port
from order_service.operations.overview import processes
from order_service.operations.overview.processes import ask_processes, lane_states, read_metrics
from order_service.runtime.admin import AdminServer
from order_service.runtime.build_info import report_build
from order_service.runtime.readiness import NotReady
from order_service.worker.lane_states import LaneState
from order_service.worker.membership import Member
from tests.support.samples import NOW

WORKER_METRICS = """\
# HELP orders_build_info 1, with the component and its version.
# TYPE orders_build_info gauge
orders_build_info{process="parent",component="worker",version="0.3.0"} 1.0
orders_build_info{process="1",component="worker",version="0.3.0"} 1.0
orders_build_info{process="2",component="worker",version="0.2.0"} 1.0
# TYPE orders_commands_total counter
orders_commands_total{process="1",type="PayOrder",outcome="rejected",reason="already_paid"} 3.0
orders_commands_total{process="1",type="ShipOrder",outcome="rejected",reason="already_paid"} 1.0
orders_commands_total{process="2",type="PayOrder",outcome="rejected",reason="already_paid"} 2.0
orders_commands_total{process="2",type="PayOrder",outcome="accepted",reason=""} 900.0
orders_commands_created{process="2",type="PayOrder",outcome="accepted",reason=""} 1.7e+09
orders_dead_letters_total{process="2",reason="not_json"} 5.0
"""


@pytest.fixture
def serve():
    """Serve admin ports, each with its faults, and lanes for a worker."""
    with ExitStack() as stack:

        def start(faults=(), lanes=None, *, is_starting=False):
            port = free_port()
            server = stack.enter_context(AdminServer("127.0.0.1", port, lambda: list(faults)))
            server.is_starting = lambda: is_starting
            server.lanes = None if lanes is None else lambda: lanes
            return f"127.0.0.1:{port}"

        yield start


def asked(*addresses):
    return asyncio.run(ask_processes(addresses))


def test_a_worker_tells_its_version_its_readiness_and_its_lanes(serve):
    report_build("worker")
    parked = LaneState(1, "parked", NOW, "too large")
    fault = NotReady.LANE_PARKED.fault(partition=1, why="too large")
    address = serve([fault], [LaneState(0, "running"), parked])
    [report] = asked(address)
    row = report.row
    assert (row.address, row.component, row.process_count) == (address, "worker", 1)
    assert row.versions == [__version__]
    assert (row.state, row.reasons) == ("not ready", [fault])
    assert report.lanes == [LaneState(0, "running"), parked]
    assert report.processes == [f"{address}/"]


@pytest.mark.parametrize(
    ("faults", "is_starting", "state"),
    [([], False, "ready"), ([NotReady.VIEWS_OPENED.fault()], True, "starting")],
)
def test_a_process_without_lanes_has_none(serve, faults, is_starting, state):
    [report] = asked(serve(faults, is_starting=is_starting))
    assert (report.row.state, report.lanes) == (state, [])


def test_the_faults_of_many_lanes_are_shortened(serve):
    faults = [NotReady.LANE_CLAIMED.fault(partition=number, progress="") for number in range(100)]
    [report] = asked(serve(faults))
    assert report.row.reasons == [*faults[: processes.REASONS_MAX], "and 80 more"]


def test_what_does_not_answer_says_so_and_the_others_are_there(serve):
    silent = f"127.0.0.1:{free_port()}"
    reports = {report.row.address: report.row for report in asked(silent, serve(), "no-such-host.invalid:9100")}
    assert sorted(row.state for row in reports.values()) == ["no answer", "no answer", "ready"]
    assert "connection failed" in reports[silent].reasons[0]


async def test_another_program_is_no_process():
    async def answer(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello")
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        [report] = await ask_processes([f"127.0.0.1:{port}"])
    assert (report.row.state, report.row.reasons) == ("no answer", ["another program has this port"])


async def test_a_name_with_several_addresses_stands_for_all_of_them(monkeypatch):
    """As a headless Service of Kubernetes has; one with IPv4 and IPv6 is one process."""

    def getaddrinfo(host, port, **_kwargs):
        assert (host, port) == ("workers", "9100")
        return [(2, 1, 6, "", ("10.0.0.2", 9100)), (2, 1, 6, "", ("10.0.0.1", 9100)), (10, 1, 6, "", ("fd00::1", 9100))]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    assert list(await processes._resolved("workers:9100")) == ["10.0.0.1:9100", "10.0.0.2:9100"]


async def test_a_name_with_one_address_is_shown_and_its_address_is_asked(monkeypatch, serve):
    port = serve().rpartition(":")[2]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_args, **_kwargs: [(2, 1, 6, "", ("127.0.0.1", int(port)))])
    [report] = await ask_processes([f"worker-0:{port}"])
    assert (report.row.address, report.row.state) == (f"worker-0:{port}", "ready")


async def test_a_hanging_dns_takes_no_thread_of_callers_queries(monkeypatch, serve):
    """The loop has few threads, in which the queries of callers run. A lookup may hang for half a minute."""
    has_ended = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_args, **_kwargs: has_ended.wait(60) and [])
    monkeypatch.setattr(processes, "ANSWER_WITHIN_S", 0.1)
    monkeypatch.setattr(processes, "_lookups", ThreadPoolExecutor(2))
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(2))
    try:
        reports = await ask_processes([serve(), "worker-0:9100", "worker-1:9100", "worker-2:9100"])
        async with asyncio.timeout(30):
            assert await asyncio.to_thread(lambda: "answered") == "answered"
    finally:
        has_ended.set()
    unresolved = [report.row for report in reports if report.row.state == "no answer"]
    assert [row.address for row in unresolved] == ["worker-0:9100", "worker-1:9100", "worker-2:9100"]
    assert {reason for row in unresolved for reason in row.reasons} == {"its name cannot be resolved"}
    assert "ready" in {report.row.state for report in reports}, "an address that needs no lookup"


def test_the_processes_of_a_worker_are_counted_one_by_one():
    read = read_metrics("w:9100", WORKER_METRICS)
    assert (read.component, read.versions) == ("worker", ["0.2.0", "0.3.0"])
    assert read.processes == ["w:9100/1", "w:9100/2"]
    assert read.refused == {("w:9100/1", "already_paid"): 4.0, ("w:9100/2", "already_paid"): 2.0}
    assert read.dead_letters == {("w:9100/2", "not_json"): 5.0}


def test_a_version_without_the_metric_is_unknown():
    read = read_metrics("w:9100", 'orders_lanes{state="running"} 4.0\n')
    assert (read.component, read.versions, read.processes, read.refused) == ("", [], [], {})


def test_the_names_are_those_of_the_metrics():
    import order_service.worker.metrics  # noqa: F401, PLC0415 - it registers them

    report_build("worker")
    names = {metric.name for metric in REGISTRY.collect()}
    parsed = [family.name for family in text_string_to_metric_families(WORKER_METRICS) if family.type != "unknown"]
    assert {processes.BUILD, processes.COMMANDS.removesuffix("_total")} <= names
    assert processes.DEAD_LETTERS.removesuffix("_total") in names
    assert set(parsed) <= names


def test_a_lane_that_two_workers_claim_to_have_is_the_one_that_runs(serve):
    old = serve([], [LaneState(0, "running"), LaneState(1, "claiming")])
    new = serve([], [LaneState(0, "claiming"), LaneState(1, "running")])
    assert {number: state.state for number, (_, state) in lane_states(asked(old, new)).items()} == {
        0: "running",
        1: "running",
    }


@pytest.mark.parametrize(
    ("client_id", "host", "address"),
    [
        ("order-service@host-9100", "/10.0.0.1", "10.0.0.1:9100"),
        ("order-service@host-9100-0123abcd", "/10.0.0.1", "10.0.0.1:9100"),
        ("order-service@host-9100-01234567", "/10.0.0.1", "10.0.0.1:9100"),
        ("order-service@a-1-9100.3-0123abcd", "/fd00:0:0:0:0:0:0:1", "[fd00:0:0:0:0:0:0:1]:9100"),
        ("order-service@host-0", "/10.0.0.1", None),
        ("faust-1.0", "/10.0.0.1", None),
        ("order-service@host", "/10.0.0.1", None),
    ],
)
def test_the_admin_port_of_a_member_is_in_its_client_id(client_id, host, address):
    assert Member("m", client_id, host).admin_address == address
