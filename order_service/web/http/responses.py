"""What callers get: orders, events, outcomes and pages as JSON."""

from collections.abc import Mapping
from typing import Any, Final

import msgspec
from aiohttp import web

from order_service.domain.messages import Event, Rejection
from order_service.views.order_view import OrderView
from order_service.views.queries import StoredEvent
from order_service.wire.flat import flat

JSON: Final = "application/json"
PRIVATE: Final = "private, no-cache"
encode: Final = msgspec.json.Encoder().encode


def answer(body: object, status: int = 200, headers: Mapping[str, str] | None = None) -> web.Response:
    """Make an answer of JSON. An order is its user's, and a cache asks again with the ETag."""
    headers = {"Cache-Control": PRIVATE, **(headers or {})}
    return web.Response(body=encode(body), status=status, content_type=JSON, headers=headers)


def order_answer(view: OrderView, status: int = 200, headers: Mapping[str, str] | None = None) -> web.Response:
    """Answer with an order; its version is the ETag."""
    return answer(view, status, {"ETag": etag(view.version), **(headers or {})})


def etag(version: int) -> str:
    """Make the ETag of a version."""
    return f'"{version}"'


def event_json(recorded: StoredEvent) -> dict[str, Any]:
    """Give an event flat, as its Avro record is, with its type and place; digests are hexadecimal."""
    place = {"partition": recorded.partition, "offset": recorded.offset, "command_offset": recorded.command_offset}
    return {**flat(recorded.event), **place}


def outcome_json(decided: Event | Rejection) -> dict[str, Any]:
    """Say what became of a command."""
    if isinstance(decided, Event):
        return {"outcome": "accepted", "version": decided.version, "event": flat(decided)}
    return {
        "outcome": "rejected",
        "version": decided.version,
        "problem": f"/problems/{decided.reason}",
        "rejection": flat(decided),
    }


def undecided_json(order_id: str, command_id: str, copy_id: str | None = None) -> dict[str, Any]:
    """Say that a command is in Kafka, and not decided yet."""
    named = {} if copy_id is None else {"copy_id": copy_id}
    return {"outcome": "undecided", "order_id": order_id, "command_id": command_id, **named}
