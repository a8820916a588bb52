"""The admin port answers before Kafka does, whatever the process."""

import json
import os
import signal
import socket
import threading
import urllib.error
import urllib.request
from concurrent.futures import Future
from contextlib import suppress

import msgspec
import pytest
from aiohttp import web

from order_service.errors import PortTakenError, cannot_listen
from order_service.local import up
from order_service.local.broker import free_port
from order_service.local.up import has_started
from order_service.runtime.admin import AdminServer
from order_service.settings import Settings
from order_service.web.process import _listen
from order_service.worker.lane_states import LaneState, LaneStates
from tests.support.samples import NOW
from tests.support.service import WorkerProcess, until, without_kafka


@pytest.mark.parametrize(
    ("command", "fault"),
    [("worker", "waiting for Kafka at {}"), ("projector", "waiting for Kafka at {}"), ("web", "")],
)
def test_a_process_is_alive_and_says_what_it_waits_for_before_kafka_is_there(tmp_path, command, fault):
    kafka = f"127.0.0.1:{free_port()}"
    environment = os.environ | {
        "KAFKA_BOOTSTRAP_SERVERS": kafka,
        "ORDERS_DATABASE_URL": f"sqlite:///{tmp_path / 'views.db'}",
        "ORDERS_HTTP_PORT": str(free_port()),
    }
    process = WorkerProcess(
        command, environment, tmp_path, None, ("order_service.cli", command), admin_port=free_port()
    )
    try:
        until(lambda: process.admin("/health/live") == (200, '{"live": true}'), "it is alive")
        status, body = process.admin("/health/ready")
        assert status == 503
        assert any(fault.format(kafka) in said for said in json.loads(body)["faults"])
        process.send(signal.SIGTERM)
        assert process.wait_ended() == 0
    finally:
        process.end()


def test_a_taken_port_is_named_by_its_setting():
    port = free_port()
    with (
        AdminServer("127.0.0.1", port, list),
        pytest.raises(PortTakenError, match=f"port {port} is taken: set ORDERS_ADMIN_PORT"),
        AdminServer("127.0.0.1", port, list),
    ):
        pass


def test_an_admin_port_that_cannot_be_set_up_raises_and_does_not_wait(monkeypatch):
    raised: Future[str] = Future()

    async def fail(_runner):
        raise RuntimeError("no set-up")

    def enter():
        try:
            with AdminServer("127.0.0.1", free_port(), list):
                raised.set_result("it listens")
        except RuntimeError as error:
            raised.set_result(str(error))

    monkeypatch.setattr(web.AppRunner, "setup", fail)
    threading.Thread(target=enter, daemon=True).start()
    assert raised.result(30) == "no set-up"


FOREIGN = "203.0.113.1"
"""An address for documentation: no machine has it."""


def test_an_address_of_another_machine_is_not_a_taken_admin_port():
    said = f"port 9100 of {FOREIGN} cannot be used .*: set ORDERS_ADMIN_HOST or ORDERS_ADMIN_PORT to another"
    with pytest.raises(PortTakenError, match=said), AdminServer(FOREIGN, 9100, list):
        pass


async def test_an_address_of_another_machine_is_not_a_taken_http_port():
    runner = web.AppRunner(web.Application())
    await runner.setup()
    said = f"port 8080 of {FOREIGN} cannot be used .*: set ORDERS_HOST or ORDERS_HTTP_PORT to another"
    with pytest.raises(PortTakenError, match=said):
        await _listen(runner, Settings(host=FOREIGN, http_port=8080))
    await runner.cleanup()


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (PermissionError(13, "Permission denied"), "Permission denied"),
        (socket.gaierror(-2, "Name or service not known"), "Name or service not known"),
        (OSError("could not bind on any address"), "could not bind on any address"),
    ],
)
def test_why_a_port_cannot_be_used_is_said(error, why):
    said = f"port 80 of example cannot be used ({why}): set ORDERS_HOST or ORDERS_HTTP_PORT to another"
    assert str(cannot_listen("example", 80, "ORDERS_HTTP_PORT", error)) == said


@pytest.mark.parametrize(
    ("faults", "is_starting", "body", "started"),
    [
        pytest.param(
            ["a claim"], True, {"ready": False, "starting": True, "faults": ["a claim"]}, False, id="starting"
        ),
        pytest.param(["parked"], False, {"ready": False, "starting": False, "faults": ["parked"]}, True, id="parked"),
        pytest.param([], True, {"ready": True, "starting": False, "faults": []}, True, id="ready"),
    ],
)
def test_a_process_that_works_with_faults_has_started(faults, is_starting, body, started):
    port = free_port()
    with AdminServer("127.0.0.1", port, lambda: faults) as serving:
        serving.is_starting = lambda: is_starting
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health/ready", timeout=30) as answer:
                said = answer.read()
        except urllib.error.HTTPError as error:
            said = error.read()
        assert json.loads(said) == body
        assert has_started("127.0.0.1", port) is started


def test_a_process_that_does_not_answer_has_not_started():
    assert not has_started("127.0.0.1", free_port())


@pytest.mark.parametrize("body", [b"busy", b"{}", b"[]"])
def test_another_program_on_the_port_has_not_started(body, monkeypatch):
    monkeypatch.setattr(up, "_get", lambda *_: (503, body))
    assert not has_started("127.0.0.1", 9100)


def test_only_a_worker_has_lanes():
    port = free_port()
    with AdminServer("127.0.0.1", port, list) as serving:
        url = f"http://127.0.0.1:{port}/lanes"
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(url)
        serving.lanes = lambda: [LaneState(1, "parked", NOW, "damaged")]
        with urllib.request.urlopen(url) as response:
            lanes = msgspec.json.decode(response.read(), type=LaneStates)
    assert lanes.lanes == [LaneState(1, "parked", NOW, "damaged")]


def test_health_has_an_address_of_its_own(tmp_path):
    environment = without_kafka(tmp_path, ORDERS_HOST="127.0.0.1", ORDERS_ADMIN_HOST="127.0.0.2")
    process = WorkerProcess("worker", environment, tmp_path, None, ("order_service.cli", "worker"))
    live = f"http://127.0.0.2:{process.admin_port}/health/live"

    def is_live():
        with suppress(OSError), urllib.request.urlopen(live, timeout=5) as response:
            return response.status == 200
        return False

    try:
        until(is_live, "it answers on the address for health")
        assert process.admin("/health/live") == (0, "")
    finally:
        process.end()
