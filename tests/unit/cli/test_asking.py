"""What `show` and `list` make of answers: of a server that is busy, and of a server that is not ours."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import get_args
from urllib.parse import parse_qs, urlsplit

import pytest

from order_service.cli.asking import ATTEMPTS_MAX, with_retries
from order_service.domain.refusals import Status
from order_service.http_client import Reply
from order_service.web.api.bodies import Wanted
from tests.support.command_line import CommandLine
from tests.support.foreign_ids import FOREIGN_IDS

ORDER = {
    "order_id": "order-1",
    "user_id": "dana",
    "created_at": "2026-11-24T12:00:00Z",
    "status": "paid",
    "version": 2,
    "total": 2500,
    "currency": "EUR",
    "payment": None,
}
BUSY = Reply(429, b"{}", retry_after="1")
DONE = Reply(200, b"{}", retry_after="")


class Server(ThreadingHTTPServer):
    """Gives the answers that it is told, one after the other, then the last again and again; keeps who asked."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Answering)
        self.answers = []
        self.asked = []
        self.url = f"http://127.0.0.1:{self.server_port}"

    def will_answer(self, status, body, **headers):
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.answers.append((status, data, {name.replace("_", "-"): value for name, value in headers.items()}))

    def cli(self, **environment):
        return CommandLine({"ORDERS_URL": self.url, "ORDERS_TOKEN": "secret", **environment})


class Answering(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self):
        self.server.asked.append(self.path)
        status, data, headers = self.server.answers[0]
        if len(self.server.answers) > 1:
            self.server.answers.pop(0)
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": str(len(data)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        """Log nothing."""


@pytest.fixture
def server(clean_environment):
    with Server() as made:
        thread = threading.Thread(target=made.serve_forever, args=(0.01,))
        thread.start()
        yield made
        made.shutdown()
        thread.join()


@pytest.mark.parametrize("status", [429, 503])
def test_a_busy_server_is_asked_again(server, status):
    server.will_answer(200, {"orders": [ORDER], "next": "c1"})
    server.will_answer(status, {"title": "Later"}, Retry_After="0")
    server.will_answer(200, {"orders": [{**ORDER, "order_id": "order-2"}], "next": None})
    assert server.cli().json("list") == [ORDER, {**ORDER, "order_id": "order-2"}]
    assert len(server.asked) == 3


def test_a_server_that_stays_busy_is_asked_ten_times_and_its_problem_said(server):
    server.will_answer(429, {"title": "Too many requests", "detail": "Rate limit exceeded."}, Retry_After="0")
    assert server.cli()("list", code=1).stderr == "order-service: Rate limit exceeded.\n"
    assert len(server.asked) == ATTEMPTS_MAX


@pytest.mark.parametrize(
    ("status", "headers"),
    [(503, {}), (503, {"Retry_After": "Wed, 21 Oct 2026 07:28:00 GMT"}), (500, {"Retry_After": "0"})],
)
def test_nobody_asks_again_who_was_not_told_when(server, status, headers):
    server.will_answer(status, {"title": "No"}, **headers)
    assert server.cli()("list", code=1).stderr == "order-service: No\n"
    assert len(server.asked) == 1


@pytest.mark.parametrize(
    ("retry_after", "waits"),
    [pytest.param("1", 9, id="ten times"), pytest.param("25", 2, id="a minute"), pytest.param("61", 0, id="at once")],
)
def test_patience_has_an_end(clock, retry_after, waits):
    def sleep(seconds):
        clock.now += seconds
        slept.append(seconds)

    slept: list[float] = []
    busy = Reply(429, b"{}", retry_after)
    assert with_retries(lambda: busy, sleep, clock) == busy
    assert slept == [float(retry_after)] * waits


def test_patience_ends_with_an_answer(clock):
    answers = iter([BUSY, BUSY, DONE, BUSY])
    assert with_retries(lambda: next(answers), lambda _: None, clock) == DONE


FOREIGN = [
    pytest.param(b'{"hello": "world"}', id="another object"),
    pytest.param(b"[]", id="a list"),
    pytest.param(b"null", id="nothing"),
    pytest.param(b'{"orders": [{"id": 1}], "next": null}', id="other orders"),
    pytest.param(b'{"orders": "none", "next": null}', id="no list of orders"),
    pytest.param(b'{"orders": [', id="cut short"),
    pytest.param(b'"\xff"', id="no text"),
    pytest.param(b"<html>", id="no JSON"),
    pytest.param(b"[" * 100_000, id="too deep"),
]


@pytest.mark.parametrize("arguments", [["list"], ["list", "--json"], ["show", "order-1"]], ids=" ".join)
@pytest.mark.parametrize("body", FOREIGN)
def test_an_answer_that_is_none_of_ours_is_one_line(server, arguments, body):
    server.will_answer(200, body)
    said = f"order-service: the server at {server.url} is not an order service: set ORDERS_URL to one\n"
    assert server.cli()(*arguments, code=1).stderr == said


@pytest.mark.parametrize("body", [*FOREIGN[1:], pytest.param(b'{"title": 1}', id="another title")])
def test_a_problem_that_is_none_is_one_line(server, body):
    server.will_answer(404, body)
    said = f"order-service: the server at {server.url} answered 404: check ORDERS_URL\n"
    assert server.cli()("show", "order-1", code=1).stderr == said


def test_an_answer_that_is_cut_off_is_one_line(server):
    server.will_answer(404, b"{", Content_Length="100")
    assert f"the HTTP server at {server.url} does not answer" in server.cli()("list", code=1).stderr


def test_a_problem_cannot_steer_a_terminal(server):
    server.will_answer(400, {"title": "x", "detail": "a\x1b[31m\nb", "errors": [{"pointer": "/p", "detail": "bad"}]})
    assert server.cli()("list", code=1).stderr == "order-service: a\\x1b[31m\\nb; /p: bad\n"


def test_a_server_that_sends_us_elsewhere_is_not_followed(server):
    server.will_answer(302, b"", Location=f"{server.url}/elsewhere")
    assert "answered 302" in server.cli()("list", code=1).stderr
    assert len(server.asked) == 1


def test_a_user_is_asked_for_as_the_id_is(server):
    server.will_answer(200, {"orders": [], "next": None})
    for user_id in FOREIGN_IDS:
        server.cli()("list", "--user", user_id)
        assert parse_qs(urlsplit(server.asked[-1]).query)["user_id"] == [user_id]


@pytest.mark.parametrize("call", [("list", "--user"), ("show",), ("timeline",), ("tail", "--order"), ("deliver",)])
def test_an_argument_that_is_not_utf_8_is_a_wrong_call(server, call):
    assert "the arguments must be UTF-8" in server.cli()(*call, "dana\udcff", code=2).stderr
    assert server.asked == []


def test_pages_that_do_not_end_are_not_asked_for(server):
    server.will_answer(200, {"orders": [], "next": "c1"})
    assert server.cli().json("list") == []
    assert len(server.asked) == 1


def test_this_machine_is_asked_without_a_proxy(server):
    server.will_answer(200, ORDER)
    away = "http://127.0.0.1:9"
    for url in (server.url, server.url.replace("127.0.0.1", "localhost")):
        cli = server.cli(ORDERS_URL=url, HTTP_PROXY=away, http_proxy=away, NO_PROXY="", no_proxy="")
        assert cli.json("show", "order-1") == [ORDER]


def test_another_machine_is_asked_through_the_proxy_that_is_set(server):
    server.will_answer(200, ORDER)
    cli = server.cli(ORDERS_URL="http://orders.invalid", http_proxy=server.url, no_proxy="")
    assert cli.json("show", "order-1") == [ORDER]
    assert server.asked == ["http://orders.invalid/v1/orders/order-1"]


def test_a_list_can_be_asked_for_every_status_but_absent():
    assert {*get_args(Wanted), Status.ABSENT} == set(Status)
