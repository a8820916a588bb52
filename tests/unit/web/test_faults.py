"""What is said about a wrong body or query: the expected value and the nearest name, never what was sent."""

import json
from contextlib import closing
from http.client import HTTPConnection

import pytest

from order_service.web.api.bodies import CreateBody
from order_service.web.docs import examples
from tests.support.alone import server_alone
from tests.support.shop import MUG, ORDER, Http

CREATE_FIELDS = "`user_id`, `currency`, `lines`, `discount`, `tax`, `shipping`, `shipping_address_ref`, `metadata`"
SEND = "Send `Content-Type: application/json`."
LINE_FIELDS = "`line_id`, `sku`, `name`, `quantity`, `unit_price`"
LIST_FIELDS = "`user_id`, `status`, `created_from`, `created_to`, `limit`, `cursor`"


@pytest.fixture(scope="module")
def http(tmp_path_factory):
    with server_alone(tmp_path_factory.mktemp("alone")) as port:
        yield Http(port)


def test_the_example_has_no_fault():
    assert CreateBody.model_validate(examples.BODIES[CreateBody])


@pytest.mark.parametrize(
    ("changes", "pointer", "detail"),
    [
        ({"user": "dana"}, "/user", f"is unknown: did you mean `user_id`? Allowed: {CREATE_FIELDS}"),
        ({"userId": "dana"}, "/userId", f"is unknown: did you mean `user_id`? Allowed: {CREATE_FIELDS}"),
        ({"zzz": 1}, "/zzz", f"is unknown: Allowed: {CREATE_FIELDS}"),
        ({"<b>": 1}, "/?", f"is unknown: Allowed: {CREATE_FIELDS}"),
        (
            {"lines": [{**MUG, "price": 1}]},
            "/lines/0/price",
            f"is unknown: did you mean `unit_price`? Allowed: {LINE_FIELDS}",
        ),
        ({"lines": []}, "/lines", "must have at least 1 item"),
        ({"lines": [MUG] * 501}, "/lines", "must have at most 500 items"),
        ({"lines": MUG}, "/lines", "must be an array"),
        ({"lines": [7]}, "/lines/0", "must be an object"),
        ({"lines": [{"sku": "mug", "quantity": 1}]}, "/lines/0/unit_price", "is missing"),
        ({"lines": [{**MUG, "quantity": 0}]}, "/lines/0/quantity", "must be at least 1"),
        ({"lines": [{**MUG, "quantity": 10**9}]}, "/lines/0/quantity", "must be at most 1000000"),
        ({"lines": [{**MUG, "quantity": 1.5}]}, "/lines/0/quantity", "must be a whole number"),
        ({"lines": [{**MUG, "quantity": "2"}]}, "/lines/0/quantity", "must be a whole number"),
        ({"lines": [{**MUG, "name": "n" * 201}]}, "/lines/0/name", "must have at most 200 characters"),
        ({"currency": 7}, "/currency", "must be a string"),
        ({"currency": "eur"}, "/currency", "must match the pattern ^[A-Z]{3}$"),
        ({"metadata": []}, "/metadata", "must be an object"),
        ({"metadata": {str(number): "" for number in range(21)}}, "/metadata", "must have at most 20 entries"),
        ({"metadata": {"n" * 41: ""}}, f"/metadata/{'n' * 41}", "its name must have at most 40 characters"),
        ({"metadata": {"n n" * 14: ""}}, "/metadata/?", "its name must have at most 40 characters"),
        ({"metadata": {"n": "v" * 501}}, "/metadata/n", "must have at most 500 characters"),
        ({"metadata": {"[key]": 7}}, "/metadata/?", "must be a string"),
    ],
)
def test_a_fault_of_a_body_says_what_is_expected(http, changes, pointer, detail):
    answer = http.ask("POST", "/v1/orders", ORDER | changes)
    assert (answer.status, answer.body["type"]) == (422, "/problems/invalid_body")
    assert answer.body["errors"] == [{"pointer": pointer, "detail": detail}]


@pytest.mark.parametrize(
    ("path", "body", "detail"),
    [
        ("/cancel", {"reason": "boredom"}, "must be 'customer_request', "),
        ("/cancel", {"reasons": "other"}, "is unknown: did you mean `reason`? Allowed: `reason`, `note`"),
        ("/deliver", {"carrier": "DHL"}, "is unknown: nothing is allowed here"),
        ("/pay", "[]", "must be an object"),
        ("/pay", "{", "must be well-formed JSON"),
    ],
)
def test_a_fault_of_another_command_says_what_is_expected(http, path, body, detail):
    answer = http.ask("POST", f"/v1/orders/order-1{path}", body)
    assert answer.status == 422
    assert answer.body["errors"][0]["detail"].startswith(detail)


@pytest.mark.parametrize(
    ("path", "query", "detail"),
    [
        ("/v1/orders", {"user": "dana"}, f"is unknown: did you mean `user_id`? Allowed: {LIST_FIELDS}"),
        ("/v1/orders", {"limit": 201}, "must be at most 200"),
        ("/v1/orders", {"limit": "many"}, "must be a whole number"),
        ("/v1/orders", {"limit": "9" * 5000}, "must be a whole number"),
        ("/v1/orders", {"status": "absent"}, "must be 'created', 'paid', 'shipped', 'delivered' or 'cancelled'"),
        ("/v1/orders", {"created_from": "today"}, "must be an RFC 3339 time with an offset"),
        ("/v1/orders/order-1/events", {"include_refused": "maybe"}, "must be true or false"),
        ("/v1/events", {"limit": 1}, "is unknown: nothing is allowed here"),
    ],
)
def test_a_fault_of_a_query_says_what_is_expected(http, path, query, detail):
    answer = http.get(path, **query)
    assert (answer.status, answer.body["type"]) == (400, "/problems/invalid_parameter")
    assert answer.body["errors"] == [{"pointer": f"/{next(iter(query))}", "detail": detail}]


@pytest.mark.parametrize(
    ("kind", "detail"),
    [
        ("", f"The header `Content-Type` is missing. {SEND}"),
        (
            "application/x-www-form-urlencoded",
            f"`Content-Type` says that the body is a form, which is the default of curl. {SEND}",
        ),
        ("text/sesame", f"`Content-Type` names another type than JSON. {SEND}"),
    ],
)
def test_a_body_of_another_type_is_told_which_header_to_send(http, kind, detail):
    answer = post(http, json.dumps(ORDER), {"Content-Type": kind} if kind else {})
    assert (answer["status"], answer["type"]) == (415, "/problems/unsupported_media_type")
    assert answer["detail"] == detail


def post(http, body, headers):
    """Send a body with these headers alone; return the problem."""
    with closing(HTTPConnection("127.0.0.1", http.port, timeout=40)) as connection:
        connection.request("POST", "/v1/orders", body, headers)
        return json.loads(connection.getresponse().read())


def test_a_missing_body_is_named_as_that(http):
    for headers in ({}, {"Content_Type": "application/json"}):
        answer = http.ask("POST", "/v1/orders/order-1/pay", None, **headers)
        assert (answer.status, answer.body["type"]) == (422, "/problems/invalid_body")
        assert answer.body["detail"] == "The body is missing."
        assert answer.body["errors"] == [
            {"pointer": "", "detail": "must be a JSON object with `payment_id`, `amount`, `currency`"}
        ]
    amend = http.ask("PATCH", "/v1/orders/order-1")
    assert amend.body["errors"] == [{"pointer": "", "detail": "must be a JSON object"}]
