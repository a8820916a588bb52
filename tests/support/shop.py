"""A shop as callers see it: a service with a worker, a projector and HTTP servers, all of them processes."""

import gzip
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlencode

from order_service.local.broker import free_port
from tests.support.service import Service, StubThread, WorkerProcess

MUG = {"sku": "mug-blue", "quantity": 2, "unit_price": 1250}
ORDER = {"user_id": "dana", "currency": "EUR", "lines": [MUG]}
PAYMENT = {"payment_id": "payment-1", "amount": 2500, "currency": "EUR"}
SHIPMENT = {"carrier": "DHL", "tracking_number": "T-1"}


class Answer(NamedTuple):
    """What came back: headers by their names in small letters, and the body as JSON if it is."""

    status: int
    headers: Mapping[str, str]
    body: Any


class Http:
    """A caller of one HTTP server; each request has a connection of its own."""

    def __init__(self, port: int, **headers: str) -> None:
        self.port = port
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}

    def ask(self, method: str, path: str, body: object = None, **headers: str) -> Answer:
        """Send a request; a body that is neither text nor bytes is sent as JSON."""
        given = {**self.headers, **{name.replace("_", "-"): value for name, value in headers.items()}}
        if body is not None:
            given = {"Content-Type": "application/json", **given}
            body = body if isinstance(body, bytes | str) else json.dumps(body)
        connection = self.connect()
        try:
            connection.request(method, path, body, given)
            return _answer(connection.getresponse())
        finally:
            connection.close()

    def connect(self) -> HTTPConnection:
        """Return a new connection."""
        return HTTPConnection("127.0.0.1", self.port, timeout=40)

    def get(self, path: str, **query: object) -> Answer:
        """Ask with these parameters."""
        return self.ask("GET", f"{path}?{urlencode(query)}" if query else path)

    def create(self, key: str | None = None, **changes: object) -> Answer:
        """Place an order."""
        headers = {} if key is None else {"Idempotency_Key": key}
        return self.ask("POST", "/v1/orders", {**ORDER, **changes}, **headers)


class Shop:
    """A service whose worker and projector run; HTTP servers are started as they are needed."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.worker = service.start_worker()
        self.projector = service.start_worker(module=("order_service.cli", "projector"))

    def serve(self, **settings: str) -> tuple[Http, WorkerProcess]:
        """Start an HTTP server, and wait until it has something to read."""
        port = free_port()
        process = self.service.start_worker(
            None, module=("order_service.cli", "web"), ORDERS_HTTP_PORT=str(port), ORDERS_LOG="json", **settings
        )
        return Http(port), process.wait_ready()


@contextmanager
def running_shop(bootstrap_servers: str, directory: Path, users: StubThread, **settings: str) -> Iterator[Shop]:
    """Run a shop with views in a file of its own."""
    url = f"sqlite:///{directory}/views.db"
    given = {"ORDERS_DATABASE_URL": url, **settings}
    with Service(bootstrap_servers, directory, users, keep_topics=False, **given) as service:
        shop = Shop(service)
        shop.worker.wait_lanes(service.partitions)
        shop.projector.wait_ready()
        yield shop


def _answer(response: HTTPResponse) -> Answer:
    headers = {name.lower(): value for name, value in response.getheaders()}
    data = response.read()
    if headers.get("content-encoding") == "gzip":
        data = gzip.decompress(data)
    is_json = "json" in headers.get("content-type", "")
    return Answer(response.status, headers, json.loads(data) if is_json and data else data)
