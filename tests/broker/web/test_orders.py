"""Orders over HTTP on a real Kafka: from placing to delivery, refusals, repeats, states of the past, and pages."""

import signal
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

import pytest

from order_service.users.stub import Mode
from tests.support.service import until
from tests.support.shop import MUG, ORDER, PAYMENT, SHIPMENT

UNKNOWN = "/v1/orders/no-such-order"


@pytest.fixture
def here(http):
    """Place an order; give where it is."""
    return http.create().headers["location"]


@pytest.fixture
def other(shop):
    """A second HTTP server beside the first."""
    http, process = shop.serve()
    yield http
    process.send(signal.SIGTERM)
    assert process.wait_ended() == 0


def test_an_order_goes_its_way(http):
    placed = http.create()
    assert placed.status == 201
    assert placed.headers["etag"] == '"1"'
    here = placed.headers["location"]
    assert http.get(here).body == placed.body
    paid = http.ask("POST", f"{here}/pay", PAYMENT)
    shipped = http.ask("POST", f"{here}/ship", SHIPMENT)
    delivered = http.ask("POST", f"{here}/deliver")
    assert [answer.status for answer in (paid, shipped, delivered)] == [200, 200, 200]
    assert [answer.body["status"] for answer in (paid, shipped, delivered)] == ["paid", "shipped", "delivered"]
    assert http.get(here).body == delivered.body
    assert [event["type"] for event in http.get(f"{here}/events").body["events"]] == [
        "OrderCreated",
        "OrderPaid",
        "OrderShipped",
        "OrderDelivered",
    ]


def test_an_order_is_amended_and_cancelled(http, here):
    amended = http.ask("PATCH", here, {"lines": [{**MUG, "quantity": 3}], "shipping": 490})
    assert (amended.status, amended.body["total"], amended.body["version"]) == (200, 4240, 2)
    cancelled = http.ask("DELETE", here)
    assert (cancelled.status, cancelled.body["status"]) == (200, "cancelled")
    assert cancelled.body["cancellation"]["reason"] == "customer_request"


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "kind"),
    [
        pytest.param("POST", "/ship", SHIPMENT, 409, "not_paid", id="nothing is shipped before it is paid"),
        pytest.param("POST", "/deliver", None, 409, "not_paid", id="nothing is delivered before it is paid"),
        pytest.param("POST", "/pay", {**PAYMENT, "amount": 1}, 422, "payment_mismatch", id="a cent is not the total"),
        pytest.param("POST", "/pay", {**PAYMENT, "currency": "XXX"}, 422, "invalid_order", id="no such currency"),
        pytest.param("PATCH", "", {"discount": 9999}, 422, "invalid_order", id="a discount larger than the order"),
    ],
)
def test_a_refusal_says_why(http, here, method, path, body, status, kind):
    refused = http.ask(method, here + path, body)
    assert refused.status == status
    assert refused.headers["content-type"].startswith("application/problem+json")
    assert refused.body["type"] == f"/problems/{kind}"
    assert (refused.body["status"], refused.body["order_version"]) == (status, 1)
    assert http.get(here).body["version"] == 1


@pytest.mark.parametrize(
    ("user_id", "status", "kind"),
    [("unknown-1", 422, "user_not_found"), ("inactive-1", 422, "user_not_active")],
)
def test_only_active_users_order(http, user_id, status, kind):
    refused = http.create(user_id=user_id)
    assert (refused.status, refused.body["type"]) == (status, f"/problems/{kind}")
    assert http.get(f"/v1/orders/{refused.body['order_id']}").status == 404


def test_what_is_not_there_is_not_found(http):
    for answer in (http.get(UNKNOWN), http.ask("POST", f"{UNKNOWN}/deliver"), http.get(f"{UNKNOWN}/events")):
        assert (answer.status, answer.body["type"]) == (404, "/problems/order_not_found")
    assert http.get(f"{UNKNOWN}/commands/none").status == 404


def test_a_version_that_has_passed_is_a_conflict(http, here):
    http.ask("POST", f"{here}/pay", PAYMENT)
    late = http.ask("POST", f"{here}/ship", SHIPMENT, If_Match='"1"')
    assert (late.status, late.body["type"]) == (412, "/problems/version_conflict")
    assert (late.body["expected_version"], late.body["order_version"]) == (1, 2)
    assert http.ask("POST", f"{here}/ship", SHIPMENT, If_Match='"2"').status == 200


@pytest.mark.parametrize(
    ("tag", "status", "kind"),
    [
        ('W/"1"', 409, "not_paid"),
        ('"2", "1"', 409, "not_paid"),
        ('"one"', 412, "version_conflict"),
        ('"01"', 412, "version_conflict"),
        ('"99999999999"', 412, "version_conflict"),
        ("1", 400, "invalid_parameter"),
    ],
)
def test_if_match_names_versions(http, here, tag, status, kind):
    answer = http.ask("POST", f"{here}/deliver", If_Match=tag)
    assert (answer.status, answer.body["type"]) == (status, f"/problems/{kind}")


def test_a_repeat_gets_the_first_answer_on_any_server(http, other):
    first = http.create("key-1")
    assert "idempotency-replayed" not in first.headers
    again, elsewhere = http.create("key-1"), other.create("key-1")
    assert again.body == elsewhere.body == first.body
    assert (again.status, elsewhere.status) == (201, 201)
    assert again.headers["idempotency-replayed"] == elsewhere.headers["idempotency-replayed"] == "true"
    here = first.headers["location"]
    paid = http.ask("POST", f"{here}/pay", PAYMENT, Idempotency_Key="key-2")
    http.ask("POST", f"{here}/ship", SHIPMENT)
    assert other.ask("POST", f"{here}/pay", PAYMENT, Idempotency_Key="key-2").body == paid.body
    assert other.create("key-1").body == first.body


def test_a_repeated_refusal_is_the_first_one(http, here):
    first = http.ask("POST", f"{here}/ship", SHIPMENT, Idempotency_Key="early")
    http.ask("POST", f"{here}/pay", PAYMENT)
    again = http.ask("POST", f"{here}/ship", SHIPMENT, Idempotency_Key="early")
    assert (first.status, again.status) == (409, 409)
    assert again.body == first.body
    assert again.headers["idempotency-replayed"] == "true"
    assert http.ask("POST", f"{here}/ship", SHIPMENT, Idempotency_Key="now").status == 200


def test_an_invalid_value_is_pointed_to_also_in_a_repeat(http, here):
    body = {**PAYMENT, "currency": "XXX"}
    first, again = (http.ask("POST", f"{here}/pay", body, Idempotency_Key="no-currency") for _ in range(2))
    assert first.body["errors"] == [{"pointer": "/currency", "detail": first.body["detail"]}]
    assert again.body == first.body
    assert again.headers["idempotency-replayed"] == "true"
    [rejection] = http.get(f"{here}/events?include_refused=true").body["rejections"]
    assert rejection["pointer"] == "/currency"


def test_a_key_is_not_used_for_something_else(http, other):
    http.create("key-3")
    for server in (http, other):
        answer = server.create("key-3", currency="USD")
        assert (answer.status, answer.body["type"]) == (422, "/problems/command_id_reused")


def test_a_refused_create_is_decided_again_on_any_server_until_it_is_accepted(http, other):
    for server in (http, other, http):
        refused = server.create("key-6", user_id="unknown-erin")
        assert (refused.status, refused.body["type"]) == (422, "/problems/user_not_found")
        assert "idempotency-replayed" not in refused.headers
    placed = other.create("key-6")
    assert (placed.status, placed.body["order_id"]) == (201, refused.body["order_id"])
    assert http.create("key-6").headers["idempotency-replayed"] == "true"
    for server in (http, other):
        assert server.create("key-6", user_id="unknown-erin").body["type"] == "/problems/command_id_reused"
    history = http.get(f"{placed.headers['location']}/events?include_refused=true").body
    assert [event["command_id"] for event in history["events"]] == [refused.body["command_id"]]
    assert [rejection["reason"] for rejection in history["rejections"]] == ["user_not_found"]


def test_those_who_ask_at_once_get_one_order(http, other):
    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(lambda number: (http, other)[number % 2].create("key-4"), range(12)))
    assert {answer.status for answer in answers} == {201}
    assert len({answer.body["order_id"] for answer in answers}) == 1
    [event] = http.get(f"{answers[0].headers['location']}/events").body["events"]
    assert event["version"] == 1


def test_an_answer_is_read_everywhere(http, other):
    for _ in range(10):
        placed = http.create()
        seen = other.get(placed.headers["location"], min_version=1)
        assert seen.body == placed.body


def test_a_version_that_does_not_come_is_not_waited_for_for_ever(http, here):
    answer = http.ask("GET", f"{here}?min_version=2", Prefer="wait=0")
    assert (answer.status, answer.body["type"]) == (503, "/problems/views_not_ready")
    assert answer.headers["retry-after"] == "1"
    assert http.ask("GET", f"{UNKNOWN}?min_version=1", Prefer="wait=0").status == 404


def test_a_user_service_that_hangs_delays_one_order(http, users, here):
    users.stub.mode = Mode.HANG
    try:
        waiting = http.ask("POST", "/v1/orders", {**ORDER, "user_id": "erin"}, Prefer="wait=1")
        assert waiting.status == 202
        assert waiting.headers["preference-applied"] == "wait=1"
        assert http.get(waiting.headers["location"]).status == 202
        assert http.ask("POST", f"{here}/pay", PAYMENT).status == 200
    finally:
        users.stub.mode = Mode.OK
    outcome = until(
        lambda: (answer := http.get(waiting.headers["location"])).status == 200 and answer, "the order is decided"
    )
    assert (outcome.body["outcome"], outcome.body["event"]["type"]) == ("accepted", "OrderCreated")


def test_a_state_of_the_past(http, here):
    http.ask("POST", f"{here}/pay", PAYMENT)
    paid_at = datetime.fromisoformat(http.get(here).body["changed_at"])
    http.ask("POST", f"{here}/ship", SHIPMENT)
    assert http.get(here, version=1).body["status"] == "created"
    assert http.get(here, at=paid_at.isoformat()).body["status"] == "paid"
    assert http.get(here, at=datetime.now(UTC).isoformat()).body["status"] == "shipped"
    assert http.get(here, version=4).status == 404
    assert http.get(here, at="2020-01-01T00:00:00Z").status == 404


def test_what_the_caller_has_is_not_sent_again(http, here):
    etag = http.get(here).headers["etag"]
    unchanged = http.ask("GET", here, If_None_Match=etag)
    assert (unchanged.status, unchanged.body, unchanged.headers["etag"]) == (304, b"", etag)
    http.ask("POST", f"{here}/pay", PAYMENT)
    assert http.ask("GET", here, If_None_Match=etag).status == 200


def test_pages_stay_stable_while_orders_come_in(http):
    user_id = "frank"
    placed = [http.create(user_id=user_id).body["order_id"] for _ in range(7)]
    seen, path = [], f"/v1/orders?user_id={user_id}&limit=3"
    while path:
        page = http.get(path)
        seen += [order["order_id"] for order in page.body["orders"]]
        http.create(user_id=user_id)
        link = page.headers.get("link")
        path = link and link[1 : link.index(">")]
        assert bool(link) == bool(page.body["next"])
    assert sorted(seen) == sorted(placed)


def test_orders_are_found_by_status_and_time(http):
    before = datetime.now(UTC).isoformat()
    here = http.create(user_id="gwen").headers["location"]
    http.ask("POST", f"{here}/pay", PAYMENT)
    http.create(user_id="gwen")
    found = http.get("/v1/orders", user_id="gwen", status="paid", created_from=before).body["orders"]
    assert [f"/v1/orders/{order['order_id']}" for order in found] == [here]
    assert http.get("/v1/orders", user_id="gwen", created_to=before).body["orders"] == []


@pytest.mark.parametrize(
    "query",
    [
        "colour=red",
        "limit=0",
        "limit=201",
        "limit=ten",
        "status=absent",
        "created_from=yesterday",
        "created_from=2026-01-01T00:00:00",
        "limit=1&limit=2",
        "cursor=%00",
        "cursor=W10",
        "user_id=a%0Ab",
    ],
)
def test_a_parameter_that_cannot_be_is_refused(http, query):
    answer = http.get(f"/v1/orders?{query}")
    assert (answer.status, answer.body["type"]) == (400, "/problems/invalid_parameter")
    assert query.split("=")[0] in answer.body["errors"][0]["pointer"]


def test_the_history_comes_in_pages_and_tells_of_refusals(http, here):
    http.ask("POST", f"{here}/ship", SHIPMENT)
    http.ask("POST", f"{here}/pay", PAYMENT)
    page = http.get(f"{here}/events", limit=1, include_refused="true").body
    assert [event["version"] for event in page["events"]] == [1]
    assert page["next_after_version"] == 1
    assert [rejection["reason"] for rejection in page["rejections"]] == ["not_paid"]
    rest = http.get(f"{here}/events", after_version=1).body
    assert [event["version"] for event in rest["events"]] == [2]
    assert rest["next_after_version"] is None
    assert "rejections" not in rest


def test_a_caller_may_leave_before_its_order_is_decided(http):
    placed = http.ask("POST", "/v1/orders", ORDER, Prefer="respond-async", Idempotency_Key="key-5")
    assert placed.status == 202
    until(lambda: http.get(placed.headers["location"]).status == 200, "the command is decided")
    assert http.create("key-5").status == 201


def test_correlation_and_trace_go_with_the_event(http, shop):
    trace, state = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "shop=1,other=2"
    placed = http.ask("POST", "/v1/orders", ORDER, X_Correlation_Id="basket-7", traceparent=trace, tracestate=state)
    [event] = http.get(f"{placed.headers['location']}/events").body["events"]
    assert event["correlation_id"] == "basket-7"
    records = shop.service.read(shop.service.names.events)
    [headers] = [dict(one.headers()) for one in records if one.key().decode() == placed.body["order_id"]]
    assert (headers["traceparent"].decode(), headers["tracestate"].decode()) == (trace, state)
