"""The largest order that the documents allow, on a real Kafka: over HTTP, and over Kafka as HTTP shows it."""

import json

import pytest

from tests.support.extremes import body_of, in_every_form, largest_order
from tests.support.samples import SHOP
from tests.support.service import until


@pytest.mark.parametrize("is_escaped", [False, True], ids=["UTF-8", "escaped"])
def test_the_largest_order_goes_through_http(http, is_escaped):
    order = largest_order(user_id="dana")
    body = body_of(order)
    placed = http.ask("POST", "/v1/orders", json.dumps(body, ensure_ascii=is_escaped).encode(), Prefer="wait=30")
    assert placed.status == 201
    assert placed.body["lines"] == order["lines"]
    assert http.get(placed.headers["location"]).body["metadata"] == order["metadata"]
    too_many = {**body, "lines": [*body["lines"], {**body["lines"][0], "line_id": "one-more"}]}
    refused = http.ask("POST", "/v1/orders", too_many)
    assert (refused.status, refused.body["errors"][0]["pointer"]) == (422, "/lines")


@pytest.mark.parametrize("form", ["UTF-8", "escaped", "Avro"])
def test_the_largest_order_over_kafka_is_shown_over_http(shop, http, form):
    order = largest_order(user_id="dana", actor=SHOP, order_id=f"largest-{form}")
    shop.service.send([(order["order_id"], in_every_form(order)[form])])
    path = f"/v1/orders/{order['order_id']}"
    until(lambda: http.get(path).status == 200, "the order is in the views")
    assert http.get(path).body["lines"] == order["lines"]
    (event,) = http.get(f"{path}/events").body["events"]
    assert event["correlation_id"] == order["correlation_id"]
