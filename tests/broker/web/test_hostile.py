"""Callers who mean harm, or know no HTTP: each gets a problem, soon, that repeats nothing; other callers are unhurt."""

from __future__ import annotations

import gzip
import json
import re
import selectors
import socket
import sqlite3
import time
from contextlib import ExitStack, closing, suppress
from http.client import HTTPConnection
from pathlib import Path

import pytest

from order_service.domain.messages import CreateOrder, Event
from order_service.views.order_view import OrderView
from order_service.web.api.operations import OPERATIONS
from order_service.web.http.connections import (
    HEAD_WITHIN_S,
    HEADERS_MAX,
    LINGER_S,
    TAKEN_WITHIN_S,
    connections_possible,
)
from order_service.web.http.requests import BODY_WITHIN_S, MAX_BODY_BYTES
from order_service.web.server import HEADERS
from tests.support.service import until
from tests.support.shop import MUG, ORDER, Answer

MARK = "sesame"
WITHIN_S = 1.0
PROBLEM = "application/problem+json"
MIB = 1024 * 1024


@pytest.fixture(scope="module")
def server(shop):
    """Serve everybody, on loopback."""
    return shop.serve()


@pytest.fixture
def http(server):
    return server[0]


@pytest.fixture
def process(server):
    return server[1]


@pytest.fixture
def order(http):
    """Place an order; give where it is."""
    return http.create().headers["location"]


def request(method, target, *headers, body=b""):
    lines = [f"{method} {target} HTTP/1.1", "Host: 127.0.0.1", *headers, "", ""]
    return "\r\n".join(lines).encode("latin-1") + body


def get(target, *headers):
    return request("GET", target, *headers)


def post(body, *headers, kind="application/json"):
    body = body.encode() if isinstance(body, str) else body
    return request("POST", "/v1/orders", f"Content-Type: {kind}", f"Content-Length: {len(body)}", *headers, body=body)


def order_with(**changes):
    return json.dumps(ORDER | changes)


def line_with(value):
    """Write an order whose quantity is this piece of JSON."""
    return order_with(lines=[MUG | {"quantity": 123456789}]).replace("123456789", value)


def parsed(data):
    """Read an answer; None if there is no whole one."""
    head, end, body = data.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    is_whole = end and len(body) >= int(headers["content-length"])
    return Answer(int(first.split()[1]), headers, body) if is_whole else None


def heard(connection, *, to_end=True):
    """Read until the connection ends, or else until there is a whole answer."""
    data = b""
    with suppress(ConnectionError):
        while (to_end or parsed(data) is None) and (more := connection.recv(65536)):
            data += more
    return data


def exchange(http, data, *, to_end=False, within_s=WITHIN_S):
    """Send these bytes, as they are, and hear what comes back."""
    with socket.create_connection(("127.0.0.1", http.port), timeout=within_s) as connection:
        with suppress(ConnectionError):  # the answer can be there before all is sent
            connection.sendall(data)
        return heard(connection, to_end=to_end)


def exchange_soon(http, data, **how):
    """Do it within a second; others use this machine, so three times."""
    for _ in range(2):
        with suppress(TimeoutError):
            return exchange(http, data, **how)
    return exchange(http, data, **how)


NO_HTTP = [
    pytest.param(f"{MARK}\x00\x1b[31m\r\n\r\n".encode(), id="not HTTP"),
    pytest.param(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + MARK.encode() + bytes(60), id="TLS"),
    pytest.param(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", id="HTTP/2"),
    pytest.param(f"GET /{MARK} HTTP/7.7\r\nHost: shop\r\n\r\n".encode(), id="an unknown version"),
    pytest.param(f"GET /{MARK} HTTP/1.1\r\n\r\n".encode(), id="no Host"),
    pytest.param(f"GET /{MARK} HTTP/1.1\nHost: shop\n\n".encode(), id="lines without CR"),
    pytest.param(request(MARK.upper(), "/v1/orders"), id="an unknown method"),
    pytest.param(get("/v1/orders", f"X-{MARK} : 1"), id="a space before the colon"),
    pytest.param(get("/v1/orders", f"X-A: {MARK}\x00"), id="NUL in a header"),
    pytest.param(get("/v1/orders", f"X-A: {MARK}\rX-B: 2"), id="a CR alone in a header"),
    pytest.param(get("/v1/orders", "X-A: 1", f" {MARK}"), id="a folded header"),
    pytest.param(get("/v1/orders", f"X-A: {MARK * 180_000}"), id="a header of 1 MB"),
    pytest.param(get("/v1/orders", *[f"X-{n}: {MARK}" for n in range(HEADERS_MAX)]), id="one header too many"),
    pytest.param(get(f"/v1/orders?{'&'.join(f'p{n}={MARK}' for n in range(10_000))}"), id="10,000 parameters"),
    pytest.param(get(f"/v1/orders/{MARK}\xff\xfe"), id="raw bytes in a path"),
    pytest.param(get(f"http://[{MARK}/v1/orders"), id="an invalid address"),
    pytest.param(post(order_with(), f"Idempotency-Key: {MARK}\x1b[31m"), id="colours in a key"),
    pytest.param(post(order_with(), f"Sec-WebSocket-Key1: {MARK}"), id="a web socket of old"),
    pytest.param(
        request("POST", "/v1/orders", "Content-Length: 4", "Transfer-Encoding: chunked", body=b"0\r\n\r\n"),
        id="two ways to say where the body ends",
    ),
    pytest.param(request("POST", "/v1/orders", "Content-Length: 4", "Content-Length: 5"), id="two lengths"),
    pytest.param(request("POST", "/v1/orders", "Content-Length: -1"), id="a negative length"),
    pytest.param(request("POST", "/v1/orders", f"Content-Length: {'9' * 20}"), id="a length past 64 bits"),
    pytest.param(request("POST", "/v1/orders", "Transfer-Encoding: chunked, chunked"), id="chunked twice"),
    pytest.param(request("POST", "/v1/orders", "Transfer-Encoding: xchunked"), id="not quite chunked"),
    pytest.param(
        request("POST", "/v1/orders", "Transfer-Encoding: chunked", body=f"{MARK}\r\n".encode()),
        id="a chunk without a size",
    ),
]
"""What cannot be read: 400, and the connection ends."""

BAD_REQUESTS = [
    pytest.param(post(order_with(), f"Expect: {MARK}"), 400, id="an expectation that we cannot meet"),
    pytest.param(get(f"/{MARK}", f"Expect: {MARK}"), 400, id="the same where nothing is"),
    pytest.param(post(order_with(), f"Idempotency-Key: {MARK}\xff"), 400, id="a key of other bytes"),
    pytest.param(post(order_with(), f"Idempotency-Key: {MARK * 34}"), 400, id="a key that is too long"),
    pytest.param(post(order_with(), "Idempotency-Key: "), 400, id="an empty key"),
    pytest.param(post(order_with(), f"If-Match: {MARK}"), 400, id="If-Match without a version"),
    pytest.param(post(order_with(), f"If-Match: {','.join([f'{MARK!r}'] * 900)}"), 400, id="If-Match without end"),
    pytest.param(get("/v1/orders/order-1/stream", f"Last-Event-ID: {MARK}"), 400, id="an id of no stream"),
    pytest.param(get("/v1/events", f"Last-Event-ID: {MARK}"), 400, id="an id of no event"),
    pytest.param(get(f"/v1/orders?status={MARK}"), 400, id="an unknown status"),
    pytest.param(get(f"/v1/orders?user_id={MARK}%00"), 400, id="NUL in a parameter"),
    pytest.param(get(f"/v1/orders?%1b[31m%ff{MARK}=1&%1b[31m%ff{MARK}=1"), 400, id="colours in its name"),
    pytest.param(get(f"/v1/orders?{'&'.join(f'p{n}!={MARK}' for n in range(500))}"), 400, id="500 parameters"),
    pytest.param(get("/v1/orders?limit=" + "9" * 5_000), 400, id="a parameter of 5,000 digits"),
    pytest.param(get(f"/v1/orders?cursor={MARK}"), 400, id="a cursor of others"),
    pytest.param(get("/v1/orders?created_from=10000-01-01T00:00:00Z"), 400, id="the year 10,000"),
    pytest.param(get(f"/v1/orders/%2e%2e%2f{MARK}"), 404, id="dots and a slash, encoded"),
    pytest.param(get(f"/v1/orders/../../../{MARK}"), 404, id="dots and slashes"),
    pytest.param(get(f"/v1/orders/{MARK}%00"), 404, id="NUL in a path"),
    pytest.param(get(f"/v1/orders/%c0%ae%c0%ae{MARK}"), 404, id="dots, encoded too long"),
    pytest.param(get(f"/v1/orders/%zz{MARK}%"), 404, id="an invalid encoding"),
    pytest.param(get(f"/v1/orders/{MARK * 12}"), 404, id="an id that is too long"),
    pytest.param(get(f"//{MARK}:99999/v1/orders"), 404, id="an address in a path"),
    pytest.param(get(f"/static/%2e%2e%2fserver.py?{MARK}"), 404, id="out of the files"),
    pytest.param(get(f"/static/..%5cserver.py?{MARK}"), 404, id="out of the files, backwards"),
    pytest.param(request("CONNECT", f"{MARK}.test:443"), 404, id="a tunnel"),
    pytest.param(request("OPTIONS", "*"), 404, id="all of the server"),
    pytest.param(request("TRACE", "/v1/orders", f"X-A: {MARK}"), 405, id="an echo"),
    pytest.param(request("PUT", "/v1/orders", f"X-A: {MARK}"), 405, id="a method of others"),
    pytest.param(post(order_with(), kind="text/plain"), 415, id="text"),
    pytest.param(post(order_with(), kind="application/x-www-form-urlencoded"), 415, id="a form"),
    pytest.param(post(gzip.compress(b" " * 50 * MIB), "Content-Encoding: gzip"), 415, id="50 MiB in 50 KiB"),
    pytest.param(post(order_with(), "Content-Encoding: gzip"), 415, id="no gzip after all"),
    pytest.param(post(order_with(), "Content-Encoding: br"), 415, id="Brotli"),
    pytest.param(post(order_with(), f"Content-Encoding: {MARK}"), 415, id="an encoding of others"),
    pytest.param(post(MARK.ljust(MAX_BODY_BYTES + 1)), 413, id="a byte more than 5 MiB"),
    pytest.param(post("{" + ",".join(f'"{n}":1' for n in range(100_000)) + "}"), 422, id="100,000 names"),
    pytest.param(
        request("POST", "/v1/orders", "Content-Type: application/json", f"Content-Length: {10**12}"),
        413,
        id="a body of 1 TB, announced",
    ),
    pytest.param(
        request(
            "POST",
            "/v1/orders",
            "Content-Type: application/json",
            "Transfer-Encoding: chunked",
            body=b"4000\r\n%b\r\n" % bytes(0x4000) * (MAX_BODY_BYTES // 0x4000 + 1),
        ),
        413,
        id="a body without end",
    ),
    pytest.param(request("POST", "/v1/orders", "Content-Type: application/json"), 422, id="no body"),
    pytest.param(post(MARK.ljust(MAX_BODY_BYTES)), 422, id="5 MiB of nothing"),
    pytest.param(post("[" * 10_000), 422, id="10,000 arrays deep"),
    pytest.param(post('{"metadata":' * 5_000), 422, id="5,000 objects deep"),
    pytest.param(post("{" + ",".join(f'"{MARK}!{n}":1' for n in range(3_000)) + "}"), 422, id="3,000 names"),
    pytest.param(post(order_with(lines=[{f"{MARK}!": 1}] * 3_000)), 422, id="3,000 lines"),
    pytest.param(post(f'"{MARK}"'), 422, id="a text"),
    pytest.param(post("null"), 422, id="null"),
    pytest.param(post(f'{{"{MARK}'), 422, id="a piece of JSON"),
    pytest.param(post(f'{{"\\u001b[31m{MARK}":1}}'), 422, id="colours in a name"),
    pytest.param(post(line_with("9" * 1_000)), 422, id="1,000 digits"),
    pytest.param(post(line_with("9" * 50_000)), 422, id="50,000 digits"),
    pytest.param(post(line_with("1e400")), 422, id="1e400"),
    pytest.param(post(line_with("-Infinity")), 422, id="minus infinity"),
    pytest.param(post(line_with("NaN")), 422, id="no number"),
    pytest.param(post(line_with("1.5")), 422, id="a number with a fraction"),
    pytest.param(post(line_with("true")), 422, id="true for a number"),
    pytest.param(post(line_with(f'"{MARK}"')), 422, id="a text for a number"),
    pytest.param(post(f'{{"user_id":"{MARK}",{order_with()[1:]}'), 422, id="a name twice"),
    pytest.param(post(line_with('1,"quantity":1')), 422, id="a name twice, further in"),
    pytest.param(post(order_with().encode("utf-16")), 422, id="UTF-16"),
    pytest.param(post(order_with().encode("utf-16-le")), 422, id="UTF-16 without a mark"),
    pytest.param(post(order_with().encode("utf-8-sig").decode().encode("utf-8-sig")), 422, id="two marks of UTF-8"),
    pytest.param(post('{"lines":[' + "{}," * 1_700_000 + "{}]}"), 422, id="1,700,000 empty lines"),
    pytest.param(post('{"lines":[' + "0," * 2_500_000 + "0]}"), 422, id="2,500,000 numbers"),
    pytest.param(post("[" + "[]," * 1_700_000 + "[]]"), 422, id="1,700,000 empty arrays"),
    pytest.param(post('{"lines":[{' + ",".join(f'"{n}":1' for n in range(90)) + "}]}"), 422, id="a line of 90 names"),
    pytest.param(post(order_with(metadata={MARK: "?"}).replace("?", "é").encode("latin-1")), 422, id="Latin-1"),
    pytest.param(post(order_with(metadata={MARK: "\ud800"})), 422, id="half a character"),
    pytest.param(post(order_with(metadata={"\ud800": MARK})), 422, id="half a character in a name"),
    pytest.param(post(order_with(user_id=f"{MARK}\x00")), 422, id="NUL in an id"),
    pytest.param(post(order_with(user_id=f"{MARK}\n")), 422, id="a line break after an id"),
    pytest.param(post(order_with(metadata={"note": MARK * 90})), 422, id="a text that is too long"),
]
"""What can be read and is refused."""

ALL = [case.values[0] for case in (*NO_HTTP, *BAD_REQUESTS)]


def check_refused(answer, status):
    assert answer.status == status
    assert answer.headers["content-type"] == PROBLEM
    assert MARK not in (answer.body.decode() + repr(answer.headers)).lower()
    assert b"\\u" not in answer.body  # neither colours nor other bytes of the request


@pytest.mark.parametrize("data", NO_HTTP)
def test_what_is_no_http_is_refused_and_not_repeated(http, data):
    said = exchange_soon(http, data, to_end=True)
    if not said:  # it can be lost, where much is still to be sent
        assert len(data) > MIB
        return
    answer = parsed(said)
    check_refused(answer, 400)
    assert len(answer.body) == int(answer.headers["content-length"]), "nothing comes behind it"
    assert answer.headers.items() >= small(HEADERS).items()
    assert answer.headers["server"] == "orders"


@pytest.mark.parametrize(("data", "status"), BAD_REQUESTS)
def test_a_bad_request_is_refused_and_not_repeated(http, data, status):
    check_refused(parsed(exchange_soon(http, data)), status)


def test_a_flood_of_all_this_leaves_nothing_behind(http, process):
    flood(http, 1)
    before = process.resident_bytes()
    flood(http, 10)
    assert process.resident_bytes() - before < 20 * MIB
    log = process.log().lower()
    assert MARK not in log
    assert "traceback" not in log
    assert '"level": "error"' not in log


def flood(http, times):
    for data in ALL * times:
        exchange(http, data, within_s=30)


def test_a_text_may_hold_nul_and_comes_back_as_it_was(http):
    placed = http.create(metadata={"note": "a\x00b\x1b[31m"})
    assert placed.status == 201
    assert http.get(placed.headers["location"]).body["metadata"] == {"note": "a\x00b\x1b[31m"}


def test_the_body_of_a_question_is_no_second_request(http, order):
    hidden = get("/v1/orders")
    said = exchange(
        http,
        get(order, f"Content-Length: {len(hidden)}") + hidden + get("/nothing", "Connection: close"),
        to_end=True,
        within_s=30,
    )
    assert re.findall(rb"HTTP/1.1 (\d+)", said) == [b"200", b"404"]


# Slow callers

HALF_A_HEAD = get("/v1/orders", "X-A: 1").removesuffix(b"\r\n\r\n")
HALF_A_BODY = request("POST", "/v1/orders", "Content-Type: application/json", "Content-Length: 60000", body=b"{")
BODY_S = BODY_WITHIN_S + LINGER_S
MANY = 500
SLOW = [
    (1, b"", HEAD_WITHIN_S),
    (5, b"GET /v1/or", HEAD_WITHIN_S),
    (5, get("/nothing") + HALF_A_HEAD, HEAD_WITHIN_S),
    (5, get("/nothing", "Content-Length: 9"), LINGER_S),
    (5, get("/nothing", "Transfer-Encoding: chunked"), LINGER_S),
]
"""How many send this, and then no more or a byte every second, and when their connection ends."""
LATE_S = 5.0
ANSWERS = 200


class Slow:
    """A caller that does not go on: what it hears, and when its connection ends."""

    def __init__(self, http, data, within_s, *, drips):
        self.within_s, self.drips = within_s, drips
        self.heard, self.start, self.ended_s = b"", time.monotonic(), 0.0
        self.connection = socket.create_connection(("127.0.0.1", http.port))
        self.connection.sendall(data)


class Crowd(ExitStack):
    """Slow callers, every other one of which drips."""

    def __init__(self, http):
        super().__init__()
        self.http = http
        self.all = []
        self.open_ones = self.enter_context(selectors.DefaultSelector())
        self.drip_at = 0.0

    def add(self, count, data, within_s):
        for number in range(count):
            caller = Slow(self.http, data, within_s, drips=number % 2)
            self.callback(caller.connection.close)
            self.open_ones.register(caller.connection, selectors.EVENT_READ, caller)
            self.all.append(caller)

    def hear(self, wait_s=0.0):
        """Read what came; return True if no connection is left."""
        for key, _ in self.open_ones.select(wait_s):
            data = b""
            with suppress(ConnectionError):
                data = key.data.connection.recv(65536)
            key.data.heard += data
            if not data:
                key.data.ended_s = time.monotonic() - key.data.start
                self.open_ones.unregister(key.fileobj)
        return not self.open_ones.get_map()

    def go_on(self):
        """Read, and drip once a second."""
        if time.monotonic() > self.drip_at:
            self.drip_at = time.monotonic() + 1.0
            for caller in self.all:
                with suppress(ConnectionError):
                    caller.connection.send(b"1" * caller.drips)
        return self.hear(0.1)


@pytest.mark.timeout(240)
def test_slow_callers_hurt_nobody_and_are_gone_in_time(shop, http, process, order):
    """A server without slow callers answers in the same seconds, for comparison: others use this machine."""
    big = http.create(lines=[MUG | {"name": "x" * 80}] * 400).headers["location"]
    quiet, _ = shop.serve()
    at_first = sockets(process)
    assert connections_possible(4 * MANY) == 4 * MANY
    with Crowd(http) as crowd:
        deaf = [no_reader(crowd, http, get(big) * ANSWERS) for _ in range(5)]
        all_there = at_first + len(deaf) + 2 * MANY
        crowd.add(MANY, HALF_A_BODY, BODY_S)
        during = []
        for _ in range(3):
            crowd.add(MANY, HALF_A_HEAD, HEAD_WITHIN_S)
            for both in zip(rounds(http, order, crowd.hear), rounds(quiet, order, crowd.hear), strict=True):
                if sockets(process) >= all_there:
                    during.append(both)  # noqa: PERF401, the sockets are counted after each pair
        for row in SLOW:
            crowd.add(*row)
        until(crowd.go_on, "all connections end")
        for caller in crowd.all:
            assert caller.within_s - 1 < caller.ended_s < caller.within_s + LATE_S
            assert (b" 408 " in caller.heard) == (caller.within_s == BODY_S)
        until(lambda: sockets(process) <= at_first, "no connection is left", within_s=TAKEN_WITHIN_S)
        assert all(0 < heard(one).count(b"HTTP/1.1 200") < ANSWERS for one in deaf)
    assert any(took_s <= 2 * usual_s + 0.02 for took_s, usual_s in during), during


def rounds(http, path, meanwhile):
    """Measure the 99th percentile of a usual caller's answers, in seconds, again and again."""
    for _ in range(8):
        with closing(HTTPConnection("127.0.0.1", http.port, timeout=40)) as connection:
            yield sorted(seconds(connection, path, meanwhile) for _ in range(100))[98]


def seconds(connection, path, meanwhile):
    meanwhile()
    start = time.perf_counter()
    connection.request("GET", path)
    assert connection.getresponse().read()
    return time.perf_counter() - start


def no_reader(undo, http, data):
    """Ask, with little room for answers, and read none."""
    connection = undo.enter_context(socket.socket())
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.connect(("127.0.0.1", http.port))
    connection.sendall(data)
    return connection


def sockets(process):
    """Count its open sockets; of its database it opens a few more files while it has much to do."""
    return sum(file.is_socket() for file in Path(f"/proc/{process.process.pid}/fd").iterdir())


# What a body may not say

OWNED = {"role", "id"}.union(*(kind.__struct_fields__ for kind in (OrderView, Event, CreateOrder)))
"""What only we say of an order, an event or a command; what a body may say of it is taken out for each body."""


@pytest.mark.parametrize("operation", [one for one in OPERATIONS if one.body], ids=lambda one: one.name)
def test_no_body_sets_what_is_ours(http, operation):
    path = operation.path.format(order_id="order-1")
    for name in sorted(OWNED - operation.body.model_fields.keys()):
        refused = http.ask(operation.method, path, {name: "created"})
        assert refused.status == 422
        assert f"/{name}" in [fault["pointer"] for fault in refused.body["errors"]]


# What every answer has, and none


@pytest.mark.parametrize(
    ("method", "path", "status", "headers"),
    [
        ("GET", "/", 200, {}),
        ("GET", "/v1/orders", 200, {}),
        ("HEAD", "/v1/orders", 200, {}),
        ("GET", "{order}", 304, {"If-None-Match": '"1"'}),
        ("GET", "{order}/pay", 405, {}),
        ("GET", "/nothing", 404, {}),
        ("POST", "/v1/orders", 415, {"Content-Encoding": "gzip"}),
        ("POST", "/v1/orders", 422, {"Content-Type": "application/json"}),
        ("GET", "{order}/stream", 200, {}),
        ("GET", "/", 200, {"Origin": "https://evil.test"}),
        ("GET", "{order}", 403, {"Origin": "https://evil.test"}),
    ],
)
def test_every_answer_is_made_harmless(http, order, method, path, status, headers):
    with closing(HTTPConnection("127.0.0.1", http.port, timeout=40)) as connection:
        connection.request(method, path.format(order=order), headers=headers)
        response = connection.getresponse()
        given = {name.lower(): value for name, value in response.getheaders()}
    assert response.status == status
    assert given.keys() >= small(HEADERS).keys()
    assert given["x-content-type-options"] == "nosniff"
    assert "frame-ancestors 'none'" in given["content-security-policy"]
    assert "server" not in given
    assert not [name for name in given if name.startswith("access-control-")]


@pytest.mark.parametrize("path", sorted({operation.path for operation in OPERATIONS} | {"/"}))
def test_no_other_origin_is_let_in(http, path):
    asked = {"Origin": "https://evil.test", "Access-Control-Request-Method": "POST"}
    answer = http.ask("OPTIONS", path.format(order_id="order-1", command_id="command-1", id="order-1"), **asked)
    assert answer.status == 405
    assert not [name for name in answer.headers if name.startswith("access-control-")]


@pytest.mark.parametrize("path", ["/metrics", "/health", "/health/live", "/health/ready"])
def test_what_the_admin_port_tells_is_not_told_to_callers(http, process, path):
    assert http.get(path).status == 404
    assert process.admin(path)[0] == (404 if path == "/health" else 200)


@pytest.mark.parametrize("path", sorted({operation.path for operation in OPERATIONS} | {"/", "/docs", "/openapi.json"}))
def test_the_admin_port_serves_no_callers(process, path):
    assert process.admin(path.format(order_id="order-1", command_id="command-1", id="order-1"))[0] == 404


def small(headers):
    return {name.lower(): value for name, value in headers.items()}


# Our faults


@pytest.fixture
def broken(request, shop, order):
    """Break what a table holds of an order, as no projector would, and mend it again."""
    change = f"UPDATE {request.param} SET document = {{}} WHERE order_id = '{order.rpartition('/')[2]}'"
    with closing(sqlite3.connect(shop.service.directory / "views.db", timeout=30)) as views:
        write(views, change.format(f"'{MARK}' || document"))
        yield order
        write(views, change.format(f"substr(document, {len(MARK) + 1})"))


def write(views, statement):
    with views:
        assert views.execute(statement).rowcount == 1


@pytest.mark.parametrize("broken", ["orders"], indirect=True)
def test_a_fault_of_ours_says_nothing_of_itself(http, process, broken):
    answer = http.get(broken)
    assert answer.status == 500
    assert answer.headers["content-type"] == PROBLEM
    assert answer.body == {
        "type": "/problems/internal",
        "title": "Internal",
        "status": 500,
        "detail": "Internal error.",
    }
    until(lambda: process.lines("Request failed with an unexpected error."), "the log has it")
    assert MARK not in process.log()
    assert "Traceback" not in process.log()


@pytest.mark.parametrize("broken", ["order_events"], indirect=True)
def test_a_stream_that_meets_a_fault_of_ours_breaks_off(http, broken):
    said = exchange(http, get(f"{broken}/stream"), to_end=True, within_s=30)
    assert said.count(b"HTTP/1.1") == 1
    assert b"retry: 1000" in said
    assert not said.endswith(b"0\r\n\r\n"), "it is no whole answer"
    assert MARK.encode() not in said
