"""The table of routes: the source of the routes, of the OpenAPI document and of the access tests."""

from collections.abc import Iterable
from typing import Final

from msgspec import Struct

from order_service.domain.messages import AmendOrder, Command, CreateOrder, PayOrder
from order_service.domain.refusals import RULES, Reason
from order_service.web.access.auth import Scope
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
)
from order_service.web.http.problems import STATUS, Kind, Trouble

ORDER: Final = "/v1/orders/{order_id}"


class Operation(Struct, frozen=True, kw_only=True):
    """A route: `name` is the method of `Api` that serves it, `answers` maps each success status to its schema.

    A route with a `body` sends its command. Services need the `scope` for it; users may send it only if `users_may`.
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


def _change(
    name: str,
    path: str,
    summary: str,
    body: type[CommandBody],
    scope: Scope,
    *,
    method: str = "POST",
    users_may: bool = False,
    may_be_empty: bool = False,
) -> Operation:
    return Operation(
        name=name,
        method=method,
        path=ORDER + path,
        summary=summary,
        body=body,
        scope=scope,
        users_may=users_may,
        answers={200: "Order", 202: "Undecided"},
        may_be_empty=may_be_empty,
    )


OPERATIONS: Final = (
    Operation(
        name="create_order",
        method="POST",
        path="/v1/orders",
        summary="Create an order",
        body=CreateBody,
        scope=Scope.ADMIN,
        users_may=True,
        answers={201: "Order", 202: "Undecided"},
    ),
    Operation(
        name="list_orders",
        method="GET",
        path="/v1/orders",
        summary="List orders, newest first",
        query=ListQuery,
        answers={200: "OrderPage"},
    ),
    Operation(
        name="get_order",
        method="GET",
        path=ORDER,
        summary="Get an order, now or at an earlier version or time",
        query=OrderQuery,
        answers={200: "Order", 304: ""},
    ),
    _change(
        "amend_order", "", "Change an order before it is paid", AmendBody, Scope.ADMIN, method="PATCH", users_may=True,
    ),
    _change(
        "delete_order", "", "Cancel an order; its history is kept", CancelBody, Scope.ADMIN, method="DELETE",
        users_may=True, may_be_empty=True,
    ),
    _change("pay_order", "/pay", "Record the payment of an order", PayBody, Scope.PAY),
    _change("ship_order", "/ship", "Record that an order was shipped", ShipBody, Scope.SHIP),
    _change(
        "deliver_order", "/deliver", "Record that an order was delivered", DeliverBody, Scope.SHIP, may_be_empty=True,
    ),
    _change("cancel_order", "/cancel", "Cancel an order", CancelBody, Scope.ADMIN, users_may=True, may_be_empty=True),
    Operation(
        name="get_events",
        method="GET",
        path=f"{ORDER}/events",
        summary="Get the history of an order: its audit trail",
        query=HistoryQuery,
        answers={200: "History"},
    ),
    Operation(
        name="stream_order",
        method="GET",
        path=f"{ORDER}/stream",
        summary="Stream an order: its history, then new events",
        answers={200: "OrderEvent"},
        is_stream=True,
    ),
    Operation(
        name="get_command",
        method="GET",
        path=f"{ORDER}/commands/{{command_id}}",
        summary="Get the outcome of a command",
        query=CommandQuery,
        answers={200: "Outcome", 202: "Undecided"},
    ),
    Operation(
        name="stream_events",
        method="GET",
        path="/v1/events",
        summary="Stream the events of all orders that you may see",
        answers={200: "OrderEvent"},
        is_stream=True,
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
    if "{command_id}" in operation.path:
        kinds.add(Trouble.NOT_FOUND)
    if operation.body is not None:
        kinds |= {Trouble.INVALID_BODY, Trouble.UNSUPPORTED_MEDIA_TYPE, Trouble.TOO_LARGE, Trouble.TOO_SLOW}
    if operation.name in {"list_orders", "stream_events"}:
        kinds.add(Reason.NOT_ALLOWED)
    return [kind for kind in STATUS if kind in kinds]
