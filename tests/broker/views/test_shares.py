"""Two projectors that share the partitions, as processes on PostgreSQL: each order waits only for its own one."""

import json
import signal
from uuid import uuid4

import pytest

from order_service.local.broker import free_port
from tests.support.service import until
from tests.support.shop import PAYMENT, Http

BRIEFLY = {"Prefer": "wait=1"}
PROMPTLY = {"Prefer": "wait=30"}


@pytest.fixture
def start(service, postgresql):
    """Start a process with views in a schema of its own."""
    shown = postgresql.render_as_string(hide_password=False)
    views = {"ORDERS_DATABASE_URL": shown, "ORDERS_DATABASE_SCHEMA": f"orders-{uuid4().hex[:10]}", "ORDERS_LOG": "json"}
    return lambda command, **settings: service.start_worker(
        module=("order_service.cli", command), ORDERS_PROJECTORS="2", **views, **settings
    )


def placed(service, http, index):
    """Place an order whose partition the projector with this index reads; return its id."""
    while True:
        order = http.create()
        assert order.status == 201
        if service.partition_of(order.body["order_id"]) % 2 == index:
            return order.body["order_id"]


def test_an_order_waits_only_for_the_projector_of_its_partition_and_a_gap_shows(service, start):
    service.start_worker().wait_lanes(4)
    even, odd = (start("projector", ORDERS_PROJECTOR_INDEX=str(index)) for index in range(2))
    port = free_port()
    web = start("web", ORDERS_HTTP_PORT=str(port))
    until(lambda: all(process.is_ready() for process in (even, odd, web)), "both have built their views")
    http = Http(port)
    of_even, of_odd = (placed(service, http, index) for index in range(2))

    odd.send(signal.SIGSTOP)
    assert http.ask("POST", f"/v1/orders/{of_even}/pay", PAYMENT, **PROMPTLY).status == 200
    waits = http.ask("POST", f"/v1/orders/{of_odd}/pay", PAYMENT, **BRIEFLY)
    assert waits.status == 202
    assert http.get(f"/v1/orders/{of_odd}").body["status"] == "created"
    until(even.faults, "the other one reports the gap", within_s=90)
    [fault] = json.loads(even.faults())["faults"]
    assert fault.startswith(f"no projector reads 4 partitions, partition 1 of {service.names.events} among them")
    assert "orders_views_unread_partitions 4.0" in even.admin("/metrics")[1]
    assert web.is_ready(), "the orders of the other partitions can be read and written"

    odd.send(signal.SIGCONT)
    until(lambda: http.get(f"/v1/orders/{of_odd}").body["status"] == "paid", "the views go on")
    assert http.get(waits.headers["location"]).body["outcome"] == "accepted"
    until(even.is_ready, "all partitions are read again")


def test_a_projector_without_an_index_and_one_on_sqlite_say_what_to_set(service, start):
    nameless = start("projector")
    assert nameless.wait_ended() == 1
    assert "set ORDERS_PROJECTOR_INDEX to a number from 0 to 1" in nameless.log()
    on_sqlite = service.start_worker(module=("order_service.cli", "projector"), ORDERS_PROJECTORS="2")
    assert on_sqlite.wait_ended() == 1
    assert "the views are in SQLite, which has one writer at a time" in on_sqlite.log()
    assert "Traceback" not in nameless.log() + on_sqlite.log()
