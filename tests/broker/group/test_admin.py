"""The admin port of a worker: is it alive, is it ready, what does it measure."""

import json
import re
import socket
import subprocess
import sys

from confluent_kafka import Producer

from order_service.local.broker import free_port
from tests.support.samples import SHOP, but, create, pay, ship
from tests.support.service import ROOT, until

FAMILIES = {
    "orders_commands": "counter",
    "orders_dead_letters": "counter",
    "orders_turn_seconds": "histogram",
    "orders_turn_commands": "histogram",
    "orders_lag_commands": "gauge",
    "orders_lanes": "gauge",
    "orders_lane_parked": "gauge",
    "orders_waiting_commands": "gauge",
    "orders_waiting_oldest_seconds": "gauge",
    "orders_user_lookups": "counter",
    "orders_user_lookup_seconds": "histogram",
    "orders_user_breaker_state": "gauge",
    "orders_claims": "counter",
    "orders_claim_seconds": "histogram",
}


def measured(worker):
    """Read the metrics: sample name with its labels, and its value."""
    status, body = worker.admin("/metrics")
    assert status == 200
    return {name: float(value) for name, value in re.findall(r"^(\w+(?:\{.*\})?) (\S+)$", body, re.MULTILINE)}


def families(worker):
    """Read the names and types of the metrics; a counter's name is declared with `_total`."""
    declared = re.findall(r"^# TYPE (\w+) (\w+)$", worker.admin("/metrics")[1], re.MULTILINE)
    return {name.removesuffix("_total"): kind for name, kind in declared}


def test_a_worker_is_alive_before_it_is_ready_and_says_why(service):
    """An open foreign transaction in a changelog keeps its claim from being done."""
    foreign = Producer(
        {
            "log_level": 0,
            "bootstrap.servers": service.bootstrap_servers,
            "transactional.id": f"{service.app_id}-foreign",
        }
    )
    foreign.init_transactions(30)
    foreign.begin_transaction()
    foreign.produce(service.names.table, b"never committed", b"order-1", partition=2)
    assert foreign.flush(30) == 0
    worker = service.start_worker()
    until(lambda: worker.lanes() == 3, "three lanes run")
    status, body = worker.admin("/health/ready")
    assert (status, json.loads(body)) == (
        503,
        {"ready": False, "starting": True, "faults": ["partition 2 is being claimed"]},
    )
    assert worker.admin("/health/live") == (200, '{"live": true}')
    foreign.abort_transaction(30)
    worker.wait_ready()
    status, body = worker.admin("/health/ready")
    assert (status, json.loads(body)) == (200, {"ready": True, "starting": False, "faults": []})
    assert worker.admin("/health/live")[0] == 200


def test_metrics_tell_what_was_decided(service):
    worker = service.start_worker().wait_lanes(4)
    assert FAMILIES.items() <= families(worker).items()
    waiting = but(create, order_id="order-2", command_id="create-2", user_id="slow-1500-x", actor=SHOP)
    service.send([create, create, pay, but(pay, command_id="pay-2"), ship, (b"order-1", b"no command"), waiting])
    until(lambda: measured(worker)["orders_waiting_commands"] == 1, "one command waits")
    until(lambda: measured(worker)["orders_waiting_oldest_seconds"] > 0.1, "it ages")
    service.wait_outcomes(6)
    until(lambda: measured(worker)["orders_waiting_commands"] == 0, "nothing waits")
    now = measured(worker)
    decided = {name: value for name, value in now.items() if name.startswith("orders_commands_total{")}
    assert decided == {
        'orders_commands_total{outcome="accepted",reason="",type="CreateOrder"}': 2,
        'orders_commands_total{outcome="repeated",reason="",type="CreateOrder"}': 1,
        'orders_commands_total{outcome="accepted",reason="",type="PayOrder"}': 1,
        'orders_commands_total{outcome="rejected",reason="already_paid",type="PayOrder"}': 1,
        'orders_commands_total{outcome="accepted",reason="",type="ShipOrder"}': 1,
    }
    assert now['orders_dead_letters_total{reason="unknown_format"}'] == 1
    assert now["orders_user_breaker_state"] == 0
    assert now['orders_user_lookups_total{outcome="active"}'] == 2
    assert now["orders_turn_commands_sum"] == 7
    assert 1 <= now["orders_turn_commands_count"] == now["orders_turn_seconds_count"] <= 9
    assert 0 < now["orders_turn_seconds_sum"] < 10
    assert now['orders_lanes{state="running"}'] == 4
    assert now['orders_claims_total{outcome="restored"}'] == now["orders_claim_seconds_count"] == 4
    assert [now[f'orders_lag_commands{{partition="{partition}"}}'] for partition in range(4)] == [0] * 4
    assert [now[f'orders_lane_parked{{partition="{partition}"}}'] for partition in range(4)] == [0] * 4


def test_a_taken_admin_port_ends_the_worker_with_one_line(service):
    with socket.create_server(("127.0.0.1", free_port())) as taken:
        port = taken.getsockname()[1]
        ended = subprocess.run(
            [sys.executable, "-m", "tests.support.worker"],
            cwd=ROOT,
            env=service.environment | {"ORDERS_ADMIN_PORT": str(port)},
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
    assert (ended.returncode, ended.stdout) == (1, "")
    [line] = ended.stderr.splitlines()
    assert json.loads(line)["reason"] == f"port {port} is taken: set ORDERS_ADMIN_PORT to another"
