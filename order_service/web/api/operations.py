"""The table of routes: the source of the routes, of the OpenAPI document and of the access tests."""

from collections.abc import Iterable
from typing import Final

from msgspec import Struct

from order_service.domain.messages import AmendOrder, Command, CreateOrder, PayOrder
from order_service.domain.refusals import RULES, Reason
from order_service.web.access.caller import Scope
from order_service.web.api.bodies import (
    AmendBody,
    CancelBody,
    CommandBody,
    CommandQuery,
    CreateBody,
    DeliverBody,
    HistoryQuery,
    ListQuery,
    NoQuery,
    OrderQuery,
    PayBody,
    Query,
    ShipBody,
    WhyQuery,
)
from order_service.web.http.problems import STATUS, Kind, Trouble

ORDER: Final = "/v1/orders/{order_id}"


class Operation(Struct, frozen=True):
    """A route: `name` is the method of `Api` that serves it, `answers` maps each success status to its schema.

    A route with a `body` sends its command. A service needs the `scope` for it; a user may send it only if `users_may`.
    Only a route without `needs_views` is served while they cannot be read.
    """

    name: str
    method: str
    path: str
    summary: str
    answers: dict[int, str]
    body: type[CommandBody] | None = None
    may_be_empty: bool = False
    scope: Scope = Scope.ADMIN
    users_may: bool = False
    query: type[Query] = NoQuery
    is_stream: bool = False
    needs_views: bool = True

    @property
    def command(self) -> type[Command] | None:
        """The type of the command that this route sends, if any."""
        return None if self.body is None else self.body.kind

    @property
    def reasons(self) -> frozenset[Reason]:
        """The reasons for which the command of this route can be refused."""
        return frozenset() if self.command is None else frozenset(reasons_of(self.command))


def reasons_of(command: type[Command]) -> Iterable[Reason]:
    """Return all reasons for refusing a command of this type: from the table of rules and from the checks before it."""
    yield from (outcome for (kind, _), outcome in RULES.items() if kind is command and isinstance(outcome, Reason))
    yield from (Reason.NOT_ALLOWED, Reason.VERSION_CONFLICT, Reason.INVALID_ORDER, Reason.COMMAND_ID_REUSED)
    yield from (Reason.DEADLINE_PASSED, Reason.TOO_MANY_WAITING)
    if command is CreateOrder:
        yield from (Reason.USER_NOT_FOUND, Reason.USER_NOT_ACTIVE, Reason.USER_CHECK_TIMED_OUT)
    if command is AmendOrder:
        yield Reason.TOO_MANY_CHANGES
    if command is PayOrder:
        yield Reason.PAYMENT_MISMATCH


CHANGED: Final = {200: "Order", 202: "Undecided"}
OPERATIONS: Final = (
    Operation(
        "create_order", "POST", "/v1/orders", "Create an order", {201: "Order", 202: "Undecided"}, body=CreateBody,
        users_may=True,
    ),
    Operation("list_orders", "GET", "/v1/orders", "List orders, newest first", {200: "OrderPage"}, query=ListQuery),
    Operation(
        "get_order", "GET", ORDER, "Get an order, now or at an earlier version or time", {200: "Order", 304: ""},
        query=OrderQuery,
    ),
    Operation(
        "amend_order", "PATCH", ORDER, "Change an order before it is paid", CHANGED, body=AmendBody, users_may=True
    ),
    Operation(
        "delete_order", "DELETE", ORDER, "Cancel an order; its history is kept", CHANGED, body=CancelBody,
        may_be_empty=True, users_may=True,
    ),
    Operation(
        "pay_order", "POST", f"{ORDER}/pay", "Record the payment of an order", CHANGED, body=PayBody, scope=Scope.PAY
    ),
    Operation(
        "ship_order", "POST", f"{ORDER}/ship", "Record that an order was shipped", CHANGED, body=ShipBody,
        scope=Scope.SHIP,
    ),
    Operation(
        "deliver_order", "POST", f"{ORDER}/deliver", "Record that an order was delivered", CHANGED, body=DeliverBody,
        may_be_empty=True, scope=Scope.SHIP,
    ),
    Operation(
        "cancel_order", "POST", f"{ORDER}/cancel", "Cancel an order", CHANGED, body=CancelBody, may_be_empty=True,
        users_may=True,
    ),
    Operation(
        "get_events", "GET", f"{ORDER}/events", "Get the history of an order: its audit trail", {200: "History"},
        query=HistoryQuery,
    ),
    Operation(
        "stream_order", "GET", f"{ORDER}/stream", "Stream an order: its history, then new events", {200: "OrderEvent"},
        is_stream=True,
    ),
    Operation(
        "get_command", "GET", f"{ORDER}/commands/{{command_id}}", "Get the outcome of a command",
        {200: "Outcome", 202: "Undecided"}, query=CommandQuery,
    ),
    Operation(
        "stream_events", "GET", "/v1/events", "Stream the events of all orders that you may see", {200: "OrderEvent"},
        is_stream=True,
    ),
    Operation(
        "why", "GET", "/v1/operations/why/{id}", "Find out where an order or a command is now", {200: "Why"},
        query=WhyQuery,
    ),
    Operation(
        "overview", "GET", "/v1/operations/overview", "Get the state of the service, as operators see it",
        {200: "Overview"}, needs_views=False,
    ),
)  # fmt: skip
"""All routes under `/v1`."""

TROUBLES_OF_ALL: Final = (
    Trouble.BAD_REQUEST,
    Trouble.UNAUTHORIZED,
    Trouble.CROSS_SITE_REQUEST,
    Trouble.INVALID_PARAMETER,
    Trouble.TOO_MANY_REQUESTS,
    Trouble.VIEWS_NOT_READY,
    Trouble.SERVICE_UNAVAILABLE,
    Trouble.INTERNAL,
)
"""Problems that every operation can return."""


def problems_of(operation: Operation) -> list[Kind]:
    """Return all problems that an operation can return, in the order of `STATUS`."""
    kinds: set[Kind] = {*TROUBLES_OF_ALL, *operation.reasons}
    if "{order_id}" in operation.path:
        kinds.add(Reason.ORDER_NOT_FOUND)
    if "{command_id}" in operation.path or "{id}" in operation.path:
        kinds.add(Trouble.NOT_FOUND)
    if operation.body is not None:
        kinds |= {Trouble.INVALID_BODY, Trouble.UNSUPPORTED_MEDIA_TYPE, Trouble.TOO_LARGE, Trouble.TOO_SLOW}
    if operation.name in {"list_orders", "stream_events", "why", "overview"}:
        kinds.add(Reason.NOT_ALLOWED)
    return [kind for kind in STATUS if kind in kinds]
