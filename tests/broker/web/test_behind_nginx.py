"""A real nginx with the configuration of the guide: TLS, gzip, and a prefix that it strips."""

import json
import re
import ssl
from contextlib import closing
from http.client import HTTPSConnection
from urllib.parse import urljoin

import pytest

from order_service.local.broker import free_port
from order_service.web.http.requests import MAX_BODY_BYTES
from tests.support.certificates import CertificateAuthority
from tests.support.extremes import body_of, largest_order
from tests.support.proxies import nginx_of_the_guide, running_nginx
from tests.support.shop import ORDER, Http

HOST, PREFIX = "shop.example", "/orders-api"
PAGES = ["/", "/docs", "/asyncapi", "/problems", "/problems/not_found"]
BEHIND = {"ORDERS_HTTP_BASE_PATH": PREFIX, "ORDERS_HTTP_HOSTS": HOST}


class Https(Http):
    """A caller of the proxy."""

    def __init__(self, port, authority):
        super().__init__(port, Host=HOST)
        self._tls = ssl.create_default_context(cafile=authority.file)

    def connect(self):
        return HTTPSConnection("127.0.0.1", self.port, timeout=40, context=self._tls)


@pytest.fixture(scope="module")
def direct(shop):
    """Return a caller of the server itself, which knows its prefix and its name."""
    return shop.serve(**BEHIND)[0]


@pytest.fixture(scope="module")
def proxied(direct, tmp_path_factory):
    """Return a caller of nginx."""
    folder, port = tmp_path_factory.mktemp("tls"), free_port()
    authority = CertificateAuthority(folder)
    certificate, key = authority.issue(HOST)
    changes = {
        "listen 443 ssl": f"listen 127.0.0.1:{port} ssl",
        "server 127.0.0.1:8080": f"server 127.0.0.1:{direct.port}",
        "/etc/ssl/shop.example.crt": str(certificate),
        "/etc/ssl/shop.example.key": str(key),
    }
    with running_nginx(nginx_of_the_guide(changes), port):
        yield Https(port, authority)


@pytest.fixture
def order(proxied):
    """Place an order through the proxy; return its address."""
    answer = proxied.ask("POST", f"{PREFIX}/v1/orders", ORDER)
    assert answer.status == 201
    return answer.headers["location"]


def test_the_address_of_an_order_leads_back_through_the_proxy(proxied, order):
    assert order.startswith(f"{PREFIX}/v1/orders/")
    assert proxied.get(order).body["status"] == "created"


def test_the_largest_order_passes_the_proxy(proxied):
    body = json.dumps(body_of(largest_order(user_id="dana"))).encode()
    placed = proxied.ask("POST", f"{PREFIX}/v1/orders", body, Prefer="wait=30")
    assert placed.status == 201
    assert proxied.ask("POST", f"{PREFIX}/v1/orders", b" " * MAX_BODY_BYTES + body).status == 413


def test_the_address_of_an_outcome_leads_back_through_the_proxy(proxied):
    answer = proxied.ask("POST", f"{PREFIX}/v1/orders", ORDER, Prefer="respond-async")
    assert answer.status == 202
    outcome = proxied.ask("GET", answer.headers["location"])
    assert outcome.status in {200, 202}


def test_the_next_page_of_a_list_leads_back_through_the_proxy(proxied, order):
    proxied.ask("POST", f"{PREFIX}/v1/orders", ORDER)
    first = proxied.get(f"{PREFIX}/v1/orders", limit=1)
    [following] = re.findall(r'^<(.+)>; rel="next"$', first.headers["link"])
    assert following.startswith(f"{PREFIX}/v1/orders?")
    assert proxied.get(following).body["orders"] != first.body["orders"]
    related = proxied.get(f"{order}/events").headers["link"]
    assert related.startswith(f"<{PREFIX}/v1/operations/why/")


def test_the_type_of_a_problem_leads_to_its_page(proxied, order):
    refused = [
        proxied.get(f"{PREFIX}/v1/nothing"),
        proxied.get(f"{PREFIX}/v1/orders/none"),
        proxied.ask("POST", f"{order}/ship", {"carrier": "DHL", "tracking_number": "T-1"}),
    ]
    for answer in refused:
        assert answer.body["type"].startswith(f"{PREFIX}/problems/")
        assert proxied.ask("GET", answer.body["type"], Accept="application/json").body["type"] == answer.body["type"]
    rejected = proxied.get(f"{order}/commands/{refused[2].body['command_id']}").body
    assert rejected["problem"] == refused[2].body["type"]


@pytest.mark.parametrize("path", PAGES)
def test_a_page_loads_and_links_through_the_proxy_only(proxied, path):
    page = proxied.get(PREFIX + path)
    assert page.status == 200
    links = {urljoin(PREFIX + path, link) for link in re.findall(r'(?:href|src)="([^"#][^"]*)"', page.body.decode())}
    ours = {link for link in links if not re.match(r"data:|https?:", link)}
    assert ours
    for link in ours:
        assert link.startswith(f"{PREFIX}/")
        assert proxied.get(link).status == 200, link


def test_the_api_document_names_the_prefix(proxied):
    document = proxied.get(f"{PREFIX}/openapi.json").body
    assert document["servers"] == [{"url": PREFIX}]
    schema = document["components"]["schemas"]["OrderNotFoundProblem"]
    assert schema["properties"]["type"] == {"const": f"{PREFIX}/problems/order_not_found"}


def test_a_proxy_that_does_not_strip_the_prefix_is_served_the_same(direct, order):
    answer = direct.get(f"{PREFIX}/v1/orders", limit=1)
    assert answer.body == direct.get("/v1/orders", limit=1).body
    assert answer.headers.get("link") == direct.get("/v1/orders", limit=1).headers.get("link")
    for path in [*PAGES, "/static/orders.js", "/schema-registry/subjects", "/asyncapi.json"]:
        assert direct.get(PREFIX + path).body == direct.get(path).body
    assert direct.get(order.replace(PREFIX, "/other")).status == 404


def test_a_compressed_order_is_the_same_and_its_weak_tag_is_good_for_a_change(proxied, order):
    plain = proxied.get(order)
    packed = proxied.ask("GET", order, Accept_Encoding="gzip")
    assert (packed.headers["content-encoding"], packed.headers["etag"]) == ("gzip", 'W/"1"')
    assert (plain.headers["etag"], plain.body) == ('"1"', packed.body)
    assert proxied.ask("GET", order, If_None_Match='W/"1"', Accept_Encoding="gzip").status == 304
    assert proxied.ask("POST", f"{order}/cancel", If_Match='W/"2"').status == 412
    assert proxied.ask("POST", f"{order}/cancel", If_Match=packed.headers["etag"]).status == 200


def test_an_event_arrives_at_once(proxied, order):
    with closing(proxied.connect()) as connection:
        connection.request("GET", f"{order}/stream", headers={"Host": HOST, "Accept-Encoding": "gzip"})
        stream = connection.getresponse()
        assert stream.getheader("Content-Encoding") is None
        lines = iter(stream.readline, b"")
        assert next(line for line in lines if line.startswith(b"event:")) == b"event: OrderCreated\n"
        assert proxied.ask("POST", f"{order}/cancel").status == 200
        assert next(line for line in lines if line.startswith(b"event:")) == b"event: OrderCancelled\n"


@pytest.mark.parametrize("host", ["evil.example", "shop.example.evil.example", "10.0.0.1"])
def test_another_name_than_that_of_the_proxy_is_refused(proxied, order, host):
    assert proxied.ask("GET", order, Host=HOST.upper()).status == 200
    refused = proxied.ask("GET", order, Host=host)
    assert (refused.status, refused.body["type"]) == (403, f"{PREFIX}/problems/cross_site_request")


def test_a_page_of_another_site_is_refused_through_the_proxy_too(proxied, order):
    own = {"Origin": f"https://{HOST}", "Sec_Fetch_Site": "same-origin"}
    assert proxied.ask("GET", order, **own).status == 200
    for headers in ({"Origin": "https://evil.example"}, {"Sec_Fetch_Site": "cross-site"}, {"Origin": "null"}):
        assert proxied.ask("POST", f"{order}/cancel", **headers).status == 403
