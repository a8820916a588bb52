"""The subjects of real identity providers, as the actors and the users of orders."""

import pytest

from order_service.web.access.caller import Scope
from tests.support import tokens
from tests.support.shop import MUG, Http


@pytest.fixture(scope="module")
def port(shop):
    """Return the port of a server that verifies tokens."""
    return shop.serve(**tokens.settings(shop.service.directory))[0].port


@pytest.mark.parametrize(
    "subject",
    ["auth0|5f7c8e", "dana@example.com", "-7mXb_", "system:serviceaccount:shop:web", "Zoë Größe, 東京/?#%"],
)
def test_a_user_with_any_subject_orders_reads_and_cancels(port, subject):
    http = Http(port, Authorization=tokens.bearer(subject))
    created = http.ask("POST", "/v1/orders", {"currency": "EUR", "lines": [MUG]})
    assert created.status == 201, created.body
    assert created.body["user_id"] == subject
    assert [order["user_id"] for order in http.get("/v1/orders").body["orders"]] == [subject]
    address = created.headers["location"]
    assert http.ask("DELETE", address).body["status"] == "cancelled"
    assert {event["actor"] for event in http.get(f"{address}/events").body["events"]} == {f"user:{subject}"}


def test_an_admin_with_a_foreign_subject_orders_for_a_user(port):
    desk = Http(port, Authorization=tokens.bearer("00uid4BxXw6I6TV4m0g3@clients", Scope.ADMIN))
    assert desk.ask("POST", "/v1/orders", {"user_id": "dana", "currency": "EUR", "lines": [MUG]}).status == 201
