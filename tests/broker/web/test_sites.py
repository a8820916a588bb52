"""Without tokens, a browser on this machine must not do what a page of another site has it do."""

import pytest

from order_service.web.access.caller import Scope
from order_service.web.access.local_only import is_from_here
from order_service.web.api.operations import OPERATIONS
from tests.support import tokens

EVIL = "evil.test"
CROSS = {"Origin": f"https://{EVIL}", "Sec_Fetch_Site": "cross-site"}


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "127.0.0.1:8080", "127.8.9.10:1", "localhost", "LocalHost:8080", "[::1]", "[::1]:8080", "127.0.0.1:"],
)
def test_a_request_for_this_machine_is_from_here(host):
    assert is_from_here({"Host": host})
    assert is_from_here({"Host": host, "Origin": f"http://{host}", "Sec-Fetch-Site": "same-origin"})


@pytest.mark.parametrize(
    "host",
    [
        "",
        EVIL,
        f"{EVIL}:8080",
        f"127.0.0.1.{EVIL}",
        f"localhost.{EVIL}:8080",
        f"127.0.0.1@{EVIL}",
        f"{EVIL}@127.0.0.1",
        "10.0.0.1:8080",
        "0.0.0.0:8080",
        "127.0.0.1:8080:8080",
        "::1",
        "[::]",
        "[2001:db8::1]:8080",
        "[localhost]",
        "127.0.0.1, evil.test",
    ],
)
def test_a_request_for_another_host_is_not(host):
    assert not is_from_here({"Host": host})
    assert not is_from_here({"Host": host, "Origin": f"http://{host}", "Sec-Fetch-Site": "same-origin"})


@pytest.mark.parametrize(
    ("headers", "is_ours"),
    [
        pytest.param({}, True, id="no browser"),
        pytest.param({"Origin": "http://localhost:8080"}, True, id="our own page"),
        pytest.param({"Origin": "HTTP://LOCALHOST:8080"}, True, id="in any case"),
        pytest.param({"Sec-Fetch-Site": "none"}, True, id="typed into the address bar"),
        pytest.param({"Origin": "http://localhost:3000", "Sec-Fetch-Site": "same-site"}, False, id="another port"),
        pytest.param({"Origin": "http://localhost"}, False, id="no port"),
        pytest.param({"Origin": "http://127.0.0.1:8080"}, False, id="another name of this machine"),
        pytest.param({"Origin": f"https://{EVIL}"}, False, id="another site"),
        pytest.param({"Origin": f"https://{EVIL}://localhost:8080"}, False, id="another site that looks like ours"),
        pytest.param({"Origin": "null"}, False, id="a page without an origin"),
        pytest.param({"Origin": ""}, False, id="an empty origin"),
        pytest.param({"Sec-Fetch-Site": "cross-site"}, False, id="a link or an image of another site"),
    ],
)
def test_a_request_for_this_machine_is_ours_if_no_other_site_sends_it(headers, is_ours):
    assert is_from_here({"Host": "localhost:8080", **headers}) is is_ours


# A running server


@pytest.fixture
def order(http):
    """Place an order; give where it is."""
    return http.create().headers["location"]


def refused(answer):
    return (answer.status, answer.body["type"]) == (403, "/problems/cross_site_request")


@pytest.mark.parametrize("headers", [CROSS, {"Sec_Fetch_Site": "cross-site"}, {"Origin": "null"}, {"Host": EVIL}])
@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.name)
def test_no_operation_serves_another_site(http, order, operation, headers):
    order_id = order.rpartition("/")[2]
    path = operation.path.format(order_id=order_id, command_id="command-1", id=order_id)
    assert refused(http.ask(operation.method, path, **headers))


def test_another_site_cancels_nothing_with_an_empty_body(http, order):
    for kind in ("text/plain", "application/x-www-form-urlencoded"):
        assert refused(http.ask("POST", f"{order}/cancel", "", **CROSS, Content_Type=kind))
    history = http.get(f"{order}/events", include_refused="true").body
    assert [event["type"] for event in history["events"]] == ["OrderCreated"]
    assert history["rejections"] == []


def test_a_page_whose_name_has_become_ours_reads_nothing(http, order):
    host = f"{EVIL}:{http.port}"
    assert refused(http.ask("GET", order, Host=host, Origin=f"http://{host}", Sec_Fetch_Site="same-origin"))
    assert http.ask("HEAD", order, Host=host).status == 403


@pytest.mark.parametrize("is_browser", [True, False])
def test_our_own_pages_and_programs_are_served(http, order, is_browser):
    host = f"localhost:{http.port}"
    headers = {"Origin": f"http://{host}", "Sec_Fetch_Site": "same-origin"} if is_browser else {}
    assert http.ask("GET", order, Host=host, **headers).status == 200
    assert http.ask("POST", f"{order}/cancel", Host=host, **headers).body["status"] == "cancelled"


@pytest.mark.parametrize("path", ["/", "/docs", "/openapi.json", "/problems/cross_site_request"])
def test_pages_without_orders_are_open_to_all(http, path):
    assert http.ask("GET", path, Host=EVIL, **CROSS).status == 200


def test_where_tokens_are_asked_for_a_token_alone_decides(shop):
    guarded, _ = shop.serve(**tokens.settings(shop.service.directory))
    authorization = tokens.bearer("desk", Scope.READ)
    assert guarded.ask("GET", "/v1/orders", Host="orders.test", **CROSS, Authorization=authorization).status == 200
    assert guarded.ask("GET", "/v1/orders", Host="orders.test", **CROSS).status == 401


def test_whoever_publishes_a_container_on_loopback_is_reached_by_its_name_alone(shop):
    published, _ = shop.serve(ORDERS_HOST="0.0.0.0", ORDERS_HTTP_PUBLISHED_ON_LOOPBACK="true")
    assert published.get("/v1/orders").status == 200
    assert refused(published.ask("GET", "/v1/orders", Host="orders.test"))
