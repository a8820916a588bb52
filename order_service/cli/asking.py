"""Questions to the HTTP server: `show` an order, now or then, and `list` orders."""

import http.client
import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from http import HTTPStatus
from typing import Annotated, Any, Final
from urllib.parse import quote, urlencode, urlsplit

import msgspec
import typer
from msgspec import Struct

from order_service.cli import show
from order_service.cli.environment import read_settings
from order_service.cli.options import AsJson, At, CreatedFrom, CreatedTo
from order_service.errors import HttpError
from order_service.settings import Settings
from order_service.web.access.local_only import is_loopback
from order_service.web.api.bodies import Wanted

WITHIN_S: Final = 40.0
PAGE: Final = 200
AGAIN: Final = frozenset({HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE})
"""Answers after which the same question may be asked again, when `Retry-After` says so."""
ASKED_MAX: Final = 10
PATIENCE_S: Final = 60.0


class Order(Struct):
    """What we must know of an order that the server gives; it gives more."""

    order_id: str
    user_id: str
    created_at: str
    status: str
    version: int
    total: int
    currency: str


class Page(Struct):
    """A page of orders, and where the next one begins."""

    orders: list[Order]
    next: str | None


class Fault(Struct):
    """One thing that is wrong with what was asked."""

    pointer: str
    detail: str


class Problem(Struct):
    """What the server says when it does not give what was asked (RFC 9457)."""

    title: str
    detail: str = ""
    errors: tuple[Fault, ...] = ()


class Said(Struct, frozen=True):
    """An answer, and after how long the server would be asked again."""

    status: int
    body: bytes
    again_after_s: float | None = None


def show_order(
    order_id: Annotated[str, typer.Argument(metavar="ORDER_ID", help="The order.")],
    version: Annotated[int | None, typer.Option(min=1, help="As it was at this version.")] = None,
    at: At = None,
    as_json: AsJson = False,
) -> None:
    """Show one order, as it is or as it was; the HTTP server at ORDERS_URL is asked."""
    if version is not None and at is not None:
        raise typer.BadParameter("--version and --at exclude each other")
    asked = {"version": version, "at": None if at is None else at.isoformat()}
    order = _ask(read_settings(), f"/v1/orders/{quote(order_id, safe='')}", asked, Order)
    if as_json:
        show.json_line(order)
        return
    show.table(("field", "value"), [("", (name, _text(value))) for name, value in order.items()])


def list_orders(
    user: Annotated[str | None, typer.Option(help="Only this user's.")] = None,
    status: Annotated[Wanted | None, typer.Option(help="Only those that stand there.")] = None,
    created_from: CreatedFrom = None,
    created_to: CreatedTo = None,
    limit: Annotated[int, typer.Option(min=1, help="How many at most.")] = 50,
    as_json: AsJson = False,
) -> None:
    """List orders, the newest first; the HTTP server at ORDERS_URL is asked."""
    asked = {
        "user_id": user,
        "status": status,
        "created_from": None if created_from is None else created_from.isoformat(),
        "created_to": None if created_to is None else created_to.isoformat(),
    }
    orders = _pages(read_settings(), asked, limit)
    if as_json:
        for order in orders:
            show.json_line(order)
        return
    show.table(("created", "order", "user", "status", "version", "total"), [("", _row(order)) for order in orders])


def _pages(settings: Settings, asked: dict[str, Any], limit: int) -> Iterator[dict[str, Any]]:
    cursor = None
    while limit > 0:
        page = _ask(settings, "/v1/orders", {**asked, "limit": min(limit, PAGE), "cursor": cursor}, Page)
        yield from page["orders"]
        limit -= len(page["orders"])
        cursor = page["next"]
        if cursor is None or not page["orders"]:
            return


def _ask(settings: Settings, path: str, query: dict[str, Any], shape: type[Page | Order]) -> Any:
    """Give what our server answers, as JSON has it; HttpError if nobody does, or it has not this shape."""
    base = settings.url or f"http://127.0.0.1:{settings.http_port}"
    given = {name: value for name, value in query.items() if value is not None}
    try:
        request = urllib.request.Request(f"{base}{path}?{urlencode(given)}")  # noqa: S310 - settings allow http alone
        if token := settings.token.get_secret_value():
            request.add_header("Authorization", f"Bearer {token}")
        said = patiently(lambda: _answer(request))
    except (OSError, http.client.HTTPException, ValueError) as error:
        line = f"no HTTP server of ours answers at {base}: start one (`order-service up`), or set ORDERS_URL"
        raise HttpError(line) from error
    if said.status != HTTPStatus.OK:
        raise HttpError(_detail(said, base))
    try:
        answer = msgspec.json.decode(said.body)
        msgspec.convert(answer, shape)
    except (ValueError, RecursionError) as error:
        raise HttpError(f"the server at {base} is none of ours: set ORDERS_URL to one that is") from error
    return answer


def patiently(
    ask: Callable[[], Said], sleep: Callable[[float], object] = time.sleep, clock: Callable[[], float] = time.monotonic
) -> Said:
    """Ask again as long as the server says when to, 10 times and a minute at most; give the last that it said."""
    give_up_at = clock() + PATIENCE_S
    said = ask()
    for _ in range(ASKED_MAX - 1):
        if said.again_after_s is None or clock() + said.again_after_s > give_up_at:
            break
        sleep(said.again_after_s)
        said = ask()
    return said


def _answer(request: urllib.request.Request) -> Said:
    try:
        with _opener(request.host).open(request, timeout=WITHIN_S) as answer:
            return Said(answer.status, answer.read())
    except urllib.error.HTTPError as error:
        with error:
            return Said(error.code, error.read(), _again_after_s(error))


def _again_after_s(error: urllib.error.HTTPError) -> float | None:
    """Read `Retry-After` of an answer that means it; one that names a date is not worth to wait for."""
    after = error.headers.get("Retry-After", "")
    return float(after) if error.code in AGAIN and after.isdecimal() else None


def _opener(host: str) -> urllib.request.OpenerDirector:
    """Open URLs without following elsewhere, where the token must not go; a proxy cannot reach this machine."""
    name = urlsplit(f"//{host}").hostname or ""
    return urllib.request.build_opener(_Stay, urllib.request.ProxyHandler({} if is_loopback(name) else None))


class _Stay(urllib.request.HTTPRedirectHandler):
    """Makes an answer that sends us elsewhere an error like any other."""

    def redirect_request(self, *_: Any) -> None:
        """Ask nobody else."""


def _detail(said: Said, base: str) -> str:
    """Give what a problem says; another server's error page says nothing to us."""
    try:
        problem = msgspec.json.decode(said.body, type=Problem)
    except (ValueError, RecursionError):
        return f"the server at {base} answered {said.status}: is ORDERS_URL right?"
    faults = "".join(f"; {fault.pointer}: {fault.detail}" for fault in problem.errors)
    return show.safe(f"{problem.detail or problem.title}{faults}")


def _row(order: dict[str, Any]) -> tuple[str, ...]:
    return (
        order["created_at"],
        order["order_id"],
        order["user_id"],
        order["status"],
        str(order["version"]),
        f"{order['total']} {order['currency']}",
    )


def _text(value: object) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
