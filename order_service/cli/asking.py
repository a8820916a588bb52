"""Requests to the HTTP server: `show` an order, now or in the past, and `list` orders."""

import asyncio
import json
import time
from collections.abc import Callable, Iterator
from http import HTTPStatus
from typing import Annotated, Any, Final
from urllib.parse import quote, urlencode

import msgspec
import typer
from msgspec import Struct
from yarl import URL

from order_service.cli import show
from order_service.cli.environment import read_settings
from order_service.cli.options import AsJson, At, CreatedFrom, CreatedTo
from order_service.errors import HttpError, NoResponse
from order_service.http_client import HttpClient, Reply
from order_service.settings import Settings
from order_service.web.access.local_only import is_loopback
from order_service.web.api.bodies import Wanted

TIMEOUT_S: Final = 40.0
PAGE_SIZE: Final = 200
BODY_MAX_BYTES: Final = 64 * 1024 * 1024
RETRYABLE: Final = frozenset({HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE})
"""Statuses after which the same request may be sent again, if `Retry-After` says when."""
ATTEMPTS_MAX: Final = 10
RETRY_WITHIN_S: Final = 60.0


class Order(Struct):
    """The fields that we need of an order; the server sends more."""

    order_id: str
    user_id: str
    created_at: str
    status: str
    version: int
    total: int
    currency: str


class Page(Struct):
    """A page of orders, and the cursor of the next page."""

    orders: list[Order]
    next: str | None


class Fault(Struct):
    """One error in the request."""

    pointer: str
    detail: str


class Problem(Struct):
    """The body of an error response (RFC 9457)."""

    title: str
    detail: str = ""
    errors: tuple[Fault, ...] = ()


def show_order(
    order_id: Annotated[str, typer.Argument(metavar="ORDER_ID", help="The order's id.")],
    version: Annotated[int | None, typer.Option(min=1, help="Show it as of this version.")] = None,
    at: At = None,
    as_json: AsJson = False,
) -> None:
    """Show one order, as it is or as it was. Reads from the HTTP server at ORDERS_URL.

    `timeline` shows its history in Kafka, with what operators did to it.
    """
    if version is not None and at is not None:
        raise typer.BadParameter("--version and --at exclude each other")
    query = {"version": version, "at": None if at is None else at.isoformat()}
    order = _get(read_settings(), f"/v1/orders/{quote(order_id, safe='')}", query, Order)
    if as_json:
        show.json_line(order)
        return
    show.table(("field", "value"), [(name, _text(value)) for name, value in order.items()])


def list_orders(
    user: Annotated[str | None, typer.Option(help="Only orders of this user.")] = None,
    status: Annotated[Wanted | None, typer.Option(help="Only orders with this status.")] = None,
    created_from: CreatedFrom = None,
    created_to: CreatedTo = None,
    limit: Annotated[int, typer.Option(min=1, help="The maximum number of orders.")] = 50,
    as_json: AsJson = False,
) -> None:
    """List orders, the newest first. Reads from the HTTP server at ORDERS_URL."""
    query = {
        "user_id": user,
        "status": status,
        "created_from": None if created_from is None else created_from.isoformat(),
        "created_to": None if created_to is None else created_to.isoformat(),
    }
    orders = _pages(read_settings(), query, limit)
    if as_json:
        for order in orders:
            show.json_line(order)
        return
    show.table(("created", "order", "user", "status", "version", "total"), map(_row, orders))


def _pages(settings: Settings, query: dict[str, Any], limit: int) -> Iterator[dict[str, Any]]:
    cursor = None
    while limit > 0:
        page = _get(settings, "/v1/orders", {**query, "limit": min(limit, PAGE_SIZE), "cursor": cursor}, Page)
        yield from page["orders"]
        limit -= len(page["orders"])
        cursor = page["next"]
        if cursor is None or not page["orders"]:
            return


def _get(settings: Settings, path: str, query: dict[str, Any], shape: type[Page | Order]) -> Any:
    """Return the server's answer as decoded JSON. Raises HttpError without an answer of this shape."""
    base = settings.url or f"http://127.0.0.1:{settings.http_port}"
    parameters = urlencode({name: value for name, value in query.items() if value is not None})
    token = settings.token.get_secret_value()
    try:
        url = URL(f"{base}{path}{'?' if parameters else ''}{parameters}", encoded=True)
        reply = with_retries(lambda: asyncio.run(_send(url, f"Bearer {token}" if token else "")))
    except (NoResponse, ValueError) as error:
        line = f"the HTTP server at {base} does not answer: start one (`order-service up`), or set ORDERS_URL"
        raise HttpError(line) from error
    if reply.status != HTTPStatus.OK:
        raise HttpError(_detail(reply, base))
    try:
        answer = msgspec.json.decode(reply.body)
        msgspec.convert(answer, shape)
    except (ValueError, RecursionError) as error:
        raise HttpError(f"the server at {base} is not an order service: set ORDERS_URL to one") from error
    return answer


def with_retries(
    send: Callable[[], Reply],
    sleep: Callable[[float], object] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> Reply:
    """Send a request, and again while the server says when to retry: at most 10 times, within a minute.

    Return the last reply.
    """
    give_up_at = clock() + RETRY_WITHIN_S
    reply = send()
    for _ in range(ATTEMPTS_MAX - 1):
        retry_after_s = _retry_after_s(reply)
        if retry_after_s is None or clock() + retry_after_s > give_up_at:
            break
        sleep(retry_after_s)
        reply = send()
    return reply


async def _send(url: URL, authorization: str) -> Reply:
    client = HttpClient(
        timeout_s=TIMEOUT_S,
        body_max_bytes=BODY_MAX_BYTES,
        authorization=authorization,
        reads_errors=True,
        uses_proxy=not is_loopback(url.host or ""),
    )
    try:
        return await client.request("GET", url)
    finally:
        await client.close()


def _retry_after_s(reply: Reply) -> float | None:
    """Return the seconds of `Retry-After` after a retryable status. A date is ignored: the wait would be too long."""
    after = reply.retry_after
    return float(after) if reply.status in RETRYABLE and after.isdecimal() else None


def _detail(reply: Reply, base: str) -> str:
    """Return the text of a problem, or only the status if another server answered."""
    try:
        problem = msgspec.json.decode(reply.body, type=Problem)
    except (ValueError, RecursionError):
        return f"the server at {base} answered {reply.status}: check ORDERS_URL"
    faults = "".join(f"; {fault.pointer}: {fault.detail}" for fault in problem.errors if fault.detail != problem.detail)
    return show.safe(f"{problem.detail or problem.title}{faults}")


def _row(order: dict[str, Any]) -> show.Row:
    names = ("created_at", "order_id", "user_id", "status", "version")
    return (*(order[name] for name in names), f"{order['total']} {order['currency']}")


def _text(value: object) -> str | None:
    return value if value is None or isinstance(value, str) else json.dumps(value, ensure_ascii=False)
