"""Questions to the HTTP server: `show` an order, now or then, and `list` orders."""

import http.client
import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Annotated, Any
from urllib.parse import quote, urlencode

import typer

from order_service.cli import show
from order_service.cli.environment import read_settings
from order_service.cli.options import AsJson, At, CreatedFrom, CreatedTo
from order_service.domain.reasons import Status
from order_service.errors import HttpError
from order_service.settings import Settings

WITHIN_S = 40.0
PAGE = 200


def show_order(
    order_id: Annotated[str, typer.Argument(metavar="ORDER_ID", help="The order.")],
    version: Annotated[int | None, typer.Option(min=1, help="As it was at this version.")] = None,
    at: At = None,
    as_json: AsJson = False,
) -> None:
    """Show one order, as it is or as it was; the HTTP server at ORDERS_URL is asked."""
    asked = {"version": version, "at": None if at is None else at.isoformat()}
    order = _ask(read_settings(), f"/v1/orders/{quote(order_id, safe='')}", asked)
    if as_json:
        show.json_line(order)
        return
    show.table(("field", "value"), [("", (name, _text(value))) for name, value in order.items()])


def list_orders(
    user: Annotated[str | None, typer.Option(help="Only this user's.")] = None,
    status: Annotated[Status | None, typer.Option(help="Only those that stand there.")] = None,
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
        page = _ask(settings, "/v1/orders", {**asked, "limit": min(limit, PAGE), "cursor": cursor})
        yield from page["orders"]
        limit -= len(page["orders"])
        cursor = page["next"]
        if cursor is None:
            return


def _ask(settings: Settings, path: str, query: dict[str, Any]) -> Any:
    base = settings.url or f"http://127.0.0.1:{settings.http_port}"
    given = {name: value for name, value in query.items() if value is not None}
    request = urllib.request.Request(f"{base}{path}?{urlencode(given)}")  # noqa: S310 - settings allow http alone
    if token := settings.token.get_secret_value():
        request.add_header("Authorization", f"Bearer {token}")
    try:
        with urllib.request.urlopen(request, timeout=WITHIN_S) as answer:  # noqa: S310 - the same
            return json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            raise HttpError(_detail(error)) from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        line = f"no HTTP server of ours answers at {base}: start one (`order-service up`), or set ORDERS_URL"
        raise HttpError(line) from error


def _detail(error: urllib.error.HTTPError) -> str:
    """Give what a problem says; another server's error page says nothing to us."""
    if not error.headers.get_content_type().endswith("json"):
        return f"the server at ORDERS_URL answered {error.code}"
    problem = json.load(error)
    faults = "".join(f"; {fault['pointer']}: {fault['detail']}" for fault in problem.get("errors", ()))
    return f"{problem.get('detail', problem.get('title'))}{faults}"


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
