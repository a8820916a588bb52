"""Who may do what with whose order: each route by each kind of caller, with tokens, on a real Kafka.

The cases are made from the table of routes: a route that has no line in `CASES` fails here.
"""

from __future__ import annotations

import json
import time
from contextlib import closing, contextmanager
from http.client import HTTPConnection
from typing import NamedTuple
from uuid import uuid4

import pytest

from order_service.users.stub import Mode
from order_service.web.access.caller import Scope
from order_service.web.api.operations import OPERATIONS, ORDER
from tests.support import tokens
from tests.support.shop import MUG, PAYMENT, SHIPMENT, Answer, Http

READ, PAY, SHIP, ADMIN = Scope.READ, Scope.PAY, Scope.SHIP, Scope.ADMIN
MINE = {"currency": "EUR", "lines": [MUG]}
STEPS: dict[str, list[tuple[str, object]]] = {
    "created": [],
    "paid": [("pay", PAYMENT)],
    "shipped": [("pay", PAYMENT), ("ship", SHIPMENT)],
}


class Case(NamedTuple):
    """Whom a route serves: services of these scopes, and users where it is their own order, in this state."""

    scopes: set[Scope]
    users: bool = True
    body: object = None
    state: str = "created"
    done: int = 200
    refused: int = 403


CASES = {
    "create_order": Case({ADMIN}, body=MINE, done=201),
    "list_orders": Case({READ, ADMIN}),
    "get_order": Case({READ, ADMIN}, refused=404),
    "amend_order": Case({ADMIN}, body={"tax": 1}),
    "delete_order": Case({ADMIN}),
    "pay_order": Case({PAY, ADMIN}, users=False, body=PAYMENT),
    "ship_order": Case({SHIP, ADMIN}, users=False, body=SHIPMENT, state="paid"),
    "deliver_order": Case({SHIP, ADMIN}, users=False, state="shipped"),
    "cancel_order": Case({ADMIN}),
    "get_events": Case({READ, ADMIN}, refused=404),
    "stream_order": Case({READ, ADMIN}, refused=404),
    "get_command": Case({READ, ADMIN}, refused=404),
    "stream_events": Case({READ, ADMIN}),
    "why": Case({ADMIN}, users=False),
    "overview": Case({ADMIN}, users=False),
}
"""A service that may not see orders hears of one what it would hear if there were none: 404."""
ROUTES = [pytest.param(one, CASES[one.name], id=one.name) for one in OPERATIONS]
OF_AN_ORDER = [pytest.param(one, CASES[one.name], id=one.name) for one in OPERATIONS if one.path.startswith(ORDER)]


class Placed(NamedTuple):
    """An order, and the command that made it."""

    order_id: str
    command_id: str


@pytest.fixture(scope="module")
def server(shop):
    """Serve those whom a token names, as often as they like."""
    return shop.serve(**tokens.settings(shop.service.directory), ORDERS_WEB_RATE_PER_S="1000000")


@pytest.fixture(scope="module")
def caller(server):
    """Make callers: users, and services with their scopes."""
    return lambda subject, *scopes: Http(server[0].port, Authorization=tokens.bearer(subject, *scopes))


@pytest.fixture(scope="module")
def dana(caller):
    return caller("dana")


@pytest.fixture(scope="module")
def erin(caller):
    return caller("erin")


@pytest.fixture(scope="module")
def place(caller):
    """Place orders of users, and bring them to a state."""
    clerk = caller("clerk", ADMIN)

    def placed(user_id, state="created"):
        here = caller(user_id).ask("POST", "/v1/orders", MINE).headers["location"]
        for step, body in STEPS[state]:
            assert clerk.ask("POST", f"{here}/{step}", body).status == 200
        first = clerk.get(f"{here}/events").body["events"][0]
        return Placed(first["order_id"], first["command_id"])

    return placed


@contextmanager
def opened(http, method, path, body=None, **headers):
    """Send a request and give the response, whose body may have no end."""
    with closing(HTTPConnection("127.0.0.1", http.port, timeout=40)) as connection:
        data = None if body is None else json.dumps(body)
        kind = {} if body is None else {"Content-Type": "application/json"}
        connection.request(method, path, data, {**http.headers, **kind, **headers})
        yield connection.getresponse()


def asked(http, operation, case, placed, query="", **headers):
    """Send the request of a route; of a stream that begins take the head alone."""
    path = operation.path.format(**placed._asdict(), id=placed.order_id) + query
    with opened(http, operation.method, path, case.body, **headers) as response:
        begins = operation.is_stream and response.status == 200
        return Answer(response.status, dict(response.getheaders()), b"" if begins else response.read())


def nothing():
    return Placed(str(uuid4()), str(uuid4()))


CHANGING = {"Date", "X-Request-Id"}


def without_ids(answer, placed):
    """Take out of an answer what its caller knew before, the id of the request, and the time."""
    body = answer.body.decode().replace(placed.order_id, "<order>").replace(placed.command_id, "<command>")
    return answer.status, body, {name: value for name, value in answer.headers.items() if name not in CHANGING}


# Each route by each kind of caller


@pytest.mark.parametrize(("operation", "case"), ROUTES)
def test_without_a_token_nobody_is_served(server, place, operation, case):
    answer = asked(server[0], operation, case, place("dana"))
    assert answer.status == 401
    assert answer.headers["WWW-Authenticate"].startswith("Bearer")
    assert json.loads(answer.body)["type"] == "/problems/unauthorized"


@pytest.mark.parametrize(("operation", "case"), ROUTES)
def test_users_do_with_their_own_orders_what_users_may(dana, place, operation, case):
    answer = asked(dana, operation, case, place("dana", case.state))
    assert answer.status == (case.done if case.users else 403)


@pytest.mark.parametrize("scope", Scope)
@pytest.mark.parametrize(("operation", "case"), ROUTES)
def test_services_do_what_their_scope_says(caller, place, operation, case, scope):
    answer = asked(caller("robot", scope), operation, case, place("dana", case.state))
    assert answer.status == (case.done if scope in case.scopes else case.refused)


@pytest.mark.parametrize(("operation", "case"), OF_AN_ORDER)
def test_the_order_of_another_user_is_like_one_that_is_not_there(dana, erin, place, operation, case):
    placed, missing = place("dana", case.state), nothing()
    before = dana.get(f"/v1/orders/{placed.order_id}").body
    key = {"Idempotency-Key": str(uuid4())}  # so that both commands have the same id
    foreign, none = (asked(erin, operation, case, one, **key) for one in (placed, missing))
    assert foreign.status == (404 if case.users else 403)
    assert without_ids(foreign, placed) == without_ids(none, missing)
    assert dana.get(f"/v1/orders/{placed.order_id}").body == before


# Ways around


@pytest.mark.parametrize(
    ("method", "query", "headers"),
    [
        ("HEAD", "", {}),
        ("GET", "", {"If-None-Match": '"1"'}),
        ("GET", "", {"If-None-Match": "*"}),
        ("GET", "?version=1", {}),
        ("GET", "?at=2100-01-01T00:00:00Z", {}),
        ("GET", "?min_version=1", {"Prefer": "wait=0"}),
        ("GET", "?min_version=2", {"Prefer": "wait=0"}),
        ("DELETE", "", {"If-Match": '"1"'}),
        ("DELETE", "", {"If-Match": '"7"'}),
    ],
)
def test_no_condition_tells_of_the_order_of_another(erin, place, method, query, headers):
    placed, missing = place("dana"), nothing()
    answers = []
    for one in (placed, missing):
        path = f"/v1/orders/{one.order_id}{query}"
        with opened(erin, method, path, **headers, **{"Idempotency-Key": placed.command_id}) as response:
            answers.append(without_ids(Answer(response.status, dict(response.getheaders()), response.read()), one))
    assert answers[0][0] == 404
    assert answers[0] == answers[1]


def test_waiting_for_a_version_takes_as_long_for_the_order_of_another(erin, place):
    took = []
    for one in (place("dana"), nothing()):
        start = time.monotonic()
        assert erin.ask("GET", f"/v1/orders/{one.order_id}?min_version=1", Prefer="wait=1").status == 404
        took.append(time.monotonic() - start)
    assert all(1.0 <= seconds < 3.0 for seconds in took)


def test_a_user_waits_for_its_own_order_alone(dana, place):
    here = f"/v1/orders/{place('dana').order_id}"
    assert dana.ask("GET", f"{here}?min_version=1").status == 200
    assert dana.ask("GET", f"{here}?min_version=2", Prefer="wait=0").status == 503


def test_nobody_orders_for_another(dana):
    answer = dana.ask("POST", "/v1/orders", {**MINE, "user_id": "erin"})
    assert (answer.status, answer.body["type"]) == (403, "/problems/not_allowed")


def test_two_users_with_one_key_have_an_order_each(dana, erin):
    key = str(uuid4())
    orders = [user.ask("POST", "/v1/orders", MINE, Idempotency_Key=key).body for user in (dana, erin, dana)]
    assert [order["user_id"] for order in orders] == ["dana", "erin", "dana"]
    assert orders[0] == orders[2]
    assert orders[0]["order_id"] != orders[1]["order_id"]


@pytest.mark.parametrize("scopes", [(), (READ,), (ADMIN,)])
def test_of_a_command_that_is_undecided_only_its_sender_hears(caller, users, scopes):
    frank, other = caller(f"frank-{uuid4()}"), caller("gina", *scopes)
    users.stub.mode = Mode.HANG
    try:
        placed = frank.ask("POST", "/v1/orders", MINE, Prefer="respond-async")
        assert placed.status == 202
        here = placed.headers["location"]
        address, _, copy_id = here.partition("?copy_id=")
        assert [frank.get(each).status for each in (here, address)] == [202, 202]
        assert other.get(address).status == 404
        unknown = f"/v1/orders/{uuid4()}/commands/{uuid4()}"
        assert other.get(here).status == other.get(f"{unknown}?copy_id={copy_id}").status == 202
    finally:
        users.stub.mode = Mode.OK


# What comes in numbers


def test_a_list_holds_own_orders_only(dana, erin, place):
    mine, others = place("dana"), place("erin")
    listed = dana.get("/v1/orders", limit=200).body["orders"]
    assert {order["user_id"] for order in listed} == {"dana"}
    assert mine.order_id in {order["order_id"] for order in listed}
    assert dana.get("/v1/orders", user_id="dana").status == 200
    assert dana.get("/v1/orders", user_id="erin").status == 403
    place("erin")
    behind = erin.get("/v1/orders", limit=1).body["next"]
    stolen = dana.get("/v1/orders", limit=200, cursor=behind).body["orders"]
    assert others.order_id not in {order["order_id"] for order in stolen}
    assert {order["user_id"] for order in stolen} <= {"dana"}


def test_a_list_of_a_service_holds_all_orders(caller, place):
    orders = {place("dana").order_id, place("erin").order_id}
    listed = caller("robot", READ).get("/v1/orders", limit=200).body["orders"]
    assert orders <= {order["order_id"] for order in listed}


@pytest.mark.parametrize("resumes", [False, True], ids=["from now on", "from the start"])
def test_a_stream_holds_own_events_only(dana, place, resumes):
    place("erin")
    start = {"Last-Event-ID": "0-0.1-0.2-0.3-0"} if resumes else {}
    with opened(dana, "GET", "/v1/events", **start) as response:
        assert response.status == 200
        place("erin")
        mine = place("dana")
        seen: list[dict[str, str]] = []
        while mine.order_id not in [event["order_id"] for event in seen]:
            seen.append(next_event(response))
    assert {event["user_id"] for event in seen if event["type"] == "OrderCreated"} == {"dana"}
    assert "user:erin" not in {event["actor"] for event in seen}
    assert resumes == (len(seen) > 1)


def test_a_stream_of_a_service_holds_all_events(caller, place):
    with opened(caller("robot", READ), "GET", "/v1/events") as response:
        orders = {place(user_id).order_id for user_id in ("dana", "erin")}
        assert {next_event(response)["order_id"] for _ in range(2)} == orders


def next_event(response):
    """Read the next event of a stream."""
    while not (line := response.readline()).startswith(b"data: "):
        assert line, "the stream goes on"
    return json.loads(line.removeprefix(b"data: "))


# What is written down


def test_no_log_holds_a_token_or_what_it_was_sent_with(shop, server, dana):
    mark = "sesame"
    headers = dict.fromkeys(("User-Agent", "Cookie", "X-Api-Key", "Idempotency-Key", "X-Forwarded-For"), mark)
    order = {**MINE, "lines": [{**MUG, "name": mark}], "metadata": {mark: mark}}
    with opened(dana, "POST", "/v1/orders", order, **headers) as response:
        assert response.status == 201
    for token in ("Bearer sesame", "Basic c2VzYW1l", tokens.bearer("sesame\n"), f"Bearer {mark}.{mark}.{mark}"):
        assert Http(server[0].port, Authorization=token).get(f"/v1/orders/{mark}/events").status == 401
    assert dana.get(f"/v1/orders/{mark}", version=mark).status == 400
    assert dana.ask("POST", f"/v1/orders?{mark}={mark}", f"{{{mark}").status == 400
    logs = [process.log() for process in shop.service.workers]
    assert logs
    for piece in (mark, "eyJ", "c2VzYW1l", "Bearer"):
        assert not [log for log in logs if piece in log]


def test_a_user_does_not_hear_who_else_tried(caller, place, dana, erin):
    placed = place("dana")
    assert erin.ask("POST", f"/v1/orders/{placed.order_id}/cancel").status == 404
    assert dana.ask("PATCH", f"/v1/orders/{placed.order_id}", {"tax": 1}, If_Match='"7"').status == 412

    def refused(http):
        history = http.get(f"/v1/orders/{placed.order_id}/events", include_refused="true").body
        return [(one["actor"], one["command_type"]) for one in history["rejections"]]

    assert refused(caller("auditor", READ)) == [("user:erin", "CancelOrder"), ("user:dana", "AmendOrder")]
    assert refused(dana) == [("user:dana", "AmendOrder")]
