"""The alerts about the views and the HTTP server."""

import os
from contextlib import ExitStack, closing, contextmanager
from http.client import HTTPConnection, HTTPResponse
from threading import Event, Thread
from typing import Any

from order_service.local.broker import free_port
from tests.support import tokens
from tests.support.command_line import CommandLine
from tests.support.issuer import answering, jwk, jwks
from tests.support.prometheus import fires
from tests.support.samples import SHOP, but, create
from tests.support.service import until
from tests.support.shop import Http

CLI = "order_service.cli"
STREAMS = 8
MANY = 150
"""Requests without a token in one write: the server logs a line for each."""


def in_partition(service, number, count):
    """Return ids of orders in a partition."""
    names = (name for n in range(10_000) if service.partition_of(name := f"order-{n}") == number)
    return [name for name, _ in zip(names, range(count), strict=False)]


def creates(orders):
    return [but(create, order_id=order, command_id=order, actor=SHOP) for order in orders]


@fires(
    "OrdersViewsStopped",
    "OrdersViewsLag",
    "OrdersHttpErrors",
    "OrdersHttpSaturated",
    "OrdersReadsFailFast",
    "OrdersReadsFailSlow",
    "OrdersViewsBehindFast",
    "OrdersViewsBehindSlow",
)
def test_a_record_that_stops_the_views_and_readers_that_wait(watch):
    service, port = watch.service, str(free_port())
    service.start_worker().wait_lanes(4)
    projector = watch.target(service.start_worker(module=(CLI, "projector")), "projector").wait_ready()
    watch.target(service.start_worker(module=(CLI, "web"), ORDERS_HTTP_PORT=port), "web").wait_ready()
    http = Http(int(port))
    *orders, unknown = in_partition(service, 0, 8)
    [known] = in_partition(service, 1, 1)
    service.send(creates([known]))
    until(lambda: http.get(f"/v1/orders/{known}").status == 200, "the order can be read")
    watch.before()
    service.producer.produce(service.names.events, key=unknown, value=b"no event", partition=0)
    assert service.producer.flush(30) == 0
    service.send(creates(orders))
    until(projector.faults, "the views are stopped")
    until(lambda: watch.value("orders_views_lag_offsets") > 5, "the views are behind")
    streams: list[HTTPResponse] = []
    with ExitStack() as stack:
        for _ in range(STREAMS):
            reader = stack.enter_context(closing(http.connect()))
            reader.request("GET", f"/v1/orders/{known}/stream")
            streams.append(reader.getresponse())
        assert {stream.status for stream in streams} == {200}
        assert http.get(f"/v1/orders/{unknown}").status == 503
        watch.fault()
        assert http.get(f"/v1/orders/{unknown}").status == 503
        watch.fault()
    cli = CommandLine(service.environment)
    [stopped] = cli.json("views", "stopped", code=1)
    cli("views", "skip", stopped["topic"], stopped["partition"], stopped["offset"])
    until(projector.is_ready, "the views go on")
    assert "no partition is stopped" in cli("views", "stopped").output
    until(lambda: watch.value("orders_views_lag_offsets") == 0, "the views have all there is")
    until(lambda: watch.value("orders_http_requests_open") == 0, "the streams are closed")
    assert http.get(f"/v1/orders/{unknown}").status == 404
    watch.after()


@fires("OrdersViewsUnread", ORDERS_PROJECTORS="2")
def test_a_projector_that_is_not_started(watch, postgresql):
    service = watch.service
    shown = postgresql.render_as_string(hide_password=False)
    views = {"ORDERS_DATABASE_URL": shown, "ORDERS_DATABASE_SCHEMA": service.app_id}
    service.start_worker().wait_lanes(4)

    def start(index):
        settings = {**views, "ORDERS_PROJECTOR_INDEX": str(index)}
        return watch.target(service.start_worker(module=(CLI, "projector"), **settings), "projector", f"p-{index}")

    first = start(0)
    until(lambda: first.admin("/metrics")[0] == 200, "it answers")
    watch.before()
    until(lambda: watch.value("orders_views_unread_partitions") > 0, "the gap is seen", within_s=90)
    watch.fault()
    start(1)
    until(lambda: watch.value("orders_views_unread_partitions") == 0, "all are read")
    watch.after()


@contextmanager
def unread_log(path):
    """Make the log of a process a pipe; provide what lets a thread read it to its end."""
    os.mkfifo(path)
    reading = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    os.set_blocking(reading, True)
    may_read = Event()

    def read():
        may_read.wait()
        while os.read(reading, 65536):
            pass
        os.close(reading)

    reader = Thread(target=read, daemon=True)
    reader.start()
    try:
        yield may_read.set
    finally:
        path.unlink()  # a failed test shows no log that would have to be waited for
        path.touch()
        may_read.set()


def ask_without_token(port):
    """Send many requests at once, and read the answers."""
    connection = HTTPConnection("127.0.0.1", port, timeout=60)
    connection.connect()
    connection.sock.sendall(b"GET /v1/orders HTTP/1.1\r\nHost: localhost\r\n\r\n" * MANY)
    answers = b""
    while answers.count(b"HTTP/1.1 ") < MANY:
        answers += connection.sock.recv(65536)
    connection.close()


@fires("OrdersKeysUnavailable", "OrdersLogLinesDropped")
def test_an_issuer_without_keys_and_a_log_that_is_not_read(watch):
    service, port = watch.service, free_port()
    answers: list[Any] = [(503, {}, b"")]
    watch.before()
    name = f"worker-{len(service.workers) + 1}"
    with answering(answers) as url, unread_log(service.directory / f"{name}.log") as read_log:
        settings = {"ORDERS_JWT_ISSUER": tokens.ISSUER, "ORDERS_JWT_AUDIENCE": tokens.AUDIENCE}
        process = service.start_worker(
            module=(CLI, "web"), ORDERS_HTTP_PORT=str(port), ORDERS_JWT_JWKS_URL=url, **settings
        )
        watch.target(process, "web")
        until(lambda: watch.value("orders_jwks_fetches_total", outcome="failed") >= 1, "a fetch fails")
        watch.fault()
        until(lambda: watch.value("orders_jwks_fetches_total", outcome="failed") >= 2, "a second one fails")

        def is_dropped():
            ask_without_token(port)
            return watch.value("orders_log_lines_dropped_total") > 0

        until(is_dropped, "lines are dropped")
        watch.fault()
        read_log()
        answers.append((200, {"Content-Type": "application/jwk-set+json"}, jwks(jwk(tokens.KEY, None))))
        until(lambda: watch.value("orders_jwks_fetches_total", outcome="ok") == 1, "the keys are fetched")
        watch.after()
        process.end()
