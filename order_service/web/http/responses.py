"""JSON responses: orders, events, outcomes and pages."""

from collections.abc import Mapping
from typing import Any, Final

import msgspec
from aiohttp import web

from order_service.domain.messages import Event, Rejection
from order_service.views.order_view import OrderView
from order_service.views.queries import StoredEvent
from order_service.web.http.problems import BASE
from order_service.wire.flat import flat

JSON: Final = "application/json"
PRIVATE: Final = "private, no-cache"
encode: Final = msgspec.json.Encoder().encode


def json_response(body: object, status: int = 200, headers: Mapping[str, str] | None = None) -> web.Response:
    """Return a JSON response. Orders are private to their user, and caches must revalidate with the ETag."""
    headers = {"Cache-Control": PRIVATE, **(headers or {})}
    return web.Response(body=encode(body), status=status, content_type=JSON, headers=headers)


def order_response(view: OrderView, status: int = 200, headers: Mapping[str, str] | None = None) -> web.Response:
    """Return a response with an order; the ETag is its version."""
    return json_response(view, status, {"ETag": etag(view.version), **(headers or {})})


def etag(version: int) -> str:
    """Return the ETag of a version."""
    return f'"{version}"'


def event_json(recorded: StoredEvent) -> dict[str, Any]:
    """Return an event as a flat object, with its type, partition and offsets; digests are hexadecimal."""
    offsets = {"partition": recorded.partition, "offset": recorded.offset, "command_offset": recorded.command_offset}
    return {**flat(recorded.event), **offsets}


def outcome_json(decided: Event | Rejection, base_path: str) -> dict[str, Any]:
    """Return the outcome of a command; the problem of a rejection is a URL below `base_path`."""
    if isinstance(decided, Event):
        return {"outcome": "accepted", "version": decided.version, "event": flat(decided)}
    return {
        "outcome": "rejected",
        "version": decided.version,
        "problem": f"{base_path}{BASE}{decided.reason}",
        "rejection": flat(decided),
    }


def undecided_json(order_id: str, command_id: str, copy_id: str | None = None) -> dict[str, Any]:
    """Return the outcome of a command that is in Kafka and not yet decided."""
    copy = {} if copy_id is None else {"copy_id": copy_id}
    return {"outcome": "undecided", "order_id": order_id, "command_id": command_id, **copy}
