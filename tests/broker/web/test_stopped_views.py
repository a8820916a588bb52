"""A record that does not fit stops the views of its partition alone: what is seen of it, and the way back."""

import json

import pytest

from tests.support.command_line import CommandLine
from tests.support.samples import SHOP, but, create
from tests.support.service import until
from tests.support.shop import PAYMENT, running_shop

PAY = {**PAYMENT, "amount": 3800}
BRIEFLY = {"Prefer": "wait=1"}


@pytest.fixture(scope="module")
def shop(bootstrap_servers, tmp_path_factory, users):
    with running_shop(bootstrap_servers, tmp_path_factory.mktemp("stopped"), users) as running:
        yield running


def in_partition(service, number):
    """Return ids of orders in a partition."""
    return (name for n in range(1000) if service.partition_of(name := f"order-{n}") == number)


def place(shop, http, order_id):
    shop.service.send([but(create, order_id=order_id, actor=SHOP)])
    until(lambda: http.get(f"/v1/orders/{order_id}").status == 200, f"{order_id} is in the views")


def test_a_record_that_does_not_fit_stops_its_partition_until_it_is_skipped(shop, http):
    service, projector = shop.service, shop.projector
    cli = CommandLine(service.environment)
    stopped, others = in_partition(service, 0), in_partition(service, 1)
    known, unknown, elsewhere = next(stopped), next(stopped), next(others)
    place(shop, http, known)
    assert cli("views", "stopped").stdout == "no partition is stopped\n"

    service.producer.produce(service.names.events, key=known, value=b"no event", partition=0)
    assert service.producer.flush(30) == 0
    until(projector.faults, "the projector is not ready")
    (told,) = json.loads(projector.faults())["faults"]
    (listed,) = cli.json("views", "stopped", code=1)
    assert (listed["topic"], listed["partition"]) == (service.names.events, 0)
    assert told.startswith(f"partition 0 of {service.names.events} is stopped at offset {listed['offset']}: ")
    assert "expected byte 0 and a schema id" in told
    metric = f'orders_views_stopped{{partition="0",topic="{service.names.events}"}} 1.0'
    assert metric in projector.admin("/metrics")[1]
    (line,) = projector.lines("The views of a partition are stopped.")
    assert {name: line[name] for name in ("topic", "partition", "offset", "reason")} == listed

    place(shop, http, elsewhere)  # other partitions go on
    assert http.ask("POST", f"/v1/orders/{elsewhere}/pay", PAY).status == 200
    waits = http.ask("POST", f"/v1/orders/{known}/pay", PAY, **BRIEFLY)
    assert waits.status == 202  # it is decided, and the views do not know
    assert http.get(f"/v1/orders/{known}").body["status"] == "created"  # the last good state
    assert http.ask("GET", f"/v1/orders/{known}?min_version=2", **BRIEFLY).status == 503
    absent = http.get(f"/v1/orders/{unknown}")
    assert (absent.status, absent.body["type"], absent.headers["retry-after"]) == (
        503,
        "/problems/views_not_ready",
        "30",
    )
    assert http.get(f"/v1/orders/{unknown}/commands/none").status == 503
    assert http.get(f"/v1/orders/{next(others)}").status == 404

    where = ("views", "skip", service.names.events, 0)
    assert "is not stopped at offset 0" in cli(*where, 0, code=1).stderr
    cli(*where, listed["offset"])
    until(projector.is_ready, "the partition goes on")
    until(lambda: http.get(f"/v1/orders/{known}").body["status"] == "paid", "the views are what the log holds")
    assert http.get(waits.headers["location"]).body["outcome"] == "accepted"
    assert http.get(f"/v1/orders/{unknown}").status == 404
    assert "orders_views_stopped{" not in projector.admin("/metrics")[1]
    assert cli("views", "stopped").stdout == "no partition is stopped\n"
