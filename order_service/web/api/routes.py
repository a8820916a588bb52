"""The routes: each turns a request into a command or a query, and the outcome into a response."""

import asyncio
from collections.abc import Callable
from typing import Any, Final, TypeVar, cast
from urllib.parse import quote, urlencode

from aiohttp import web
from msgspec import Struct, structs

from order_service.domain.decision import VERSION_MAX
from order_service.domain.identity import command_digest
from order_service.domain.messages import Command, Event, Rejection
from order_service.domain.refusals import Reason, Status
from order_service.domain.validation import is_id
from order_service.views.order_view import OrderView
from order_service.views.queries import Filter, Views
from order_service.web.access.caller import Caller, Scope
from order_service.web.api.bodies import (
    CommandBody,
    CommandQuery,
    HistoryQuery,
    ListQuery,
    OrderQuery,
    Query,
    WhyQuery,
)
from order_service.web.api.id_searches import IdSearches
from order_service.web.api.operations import Operation
from order_service.web.http import requests
from order_service.web.http.cursors import read_copy_id, read_cursor, write_copy_id, write_cursor
from order_service.web.http.problems import Problem, Trouble, refused
from order_service.web.http.responses import (
    PRIVATE,
    etag,
    event_json,
    json_response,
    order_response,
    outcome_json,
    undecided_json,
)
from order_service.web.live.command_results import CommandResults, PendingCommand
from order_service.web.live.order_loader import OrderLoader
from order_service.web.live.overview_watch import OverviewWatch
from order_service.web.live.sse import Live
from order_service.web.live.subscriptions import Streams, Subject
from order_service.web.live.view_poller import ViewPoller
from order_service.wire.flat import flat

_T = TypeVar("_T")

RETRY_LATER: Final = {"Retry-After": "30"}
"""For problems that an operator must solve first."""


class Call(Struct, frozen=True):
    """A request, its operation, its caller, and its query parameters as the model of the operation.

    `large_body` reserves a slot while a large body is received.
    """

    request: web.Request
    operation: Operation
    caller: Caller
    query: Query
    large_body: requests.LargeBody

    @property
    def order_id(self) -> str:
        """The order id in the path. Raises Problem if it cannot be an id."""
        order_id = self.request.match_info["order_id"]
        if not is_id(order_id):
            raise Problem(Reason.ORDER_NOT_FOUND)
        return order_id


class Api:
    """All routes under `/v1`; each method has the name of its operation."""

    def __init__(
        self,
        views: Views,
        poller: ViewPoller,
        outcomes: CommandResults,
        streams: Streams,
        live: Live,
        id_searches: IdSearches,
        overview_watch: OverviewWatch,
        base_path: str = "",
    ) -> None:
        self._views = views
        self._loader = OrderLoader(views)
        self._poller = poller
        self._outcomes = outcomes
        self._streams = streams
        self._live = live
        self._id_searches = id_searches
        self._overview_watch = overview_watch
        self._base_path = base_path

    # Commands

    async def create_order(self, call: Call) -> web.StreamResponse:
        """Respond 201 with the order, 202 while the command is undecided, or with the problem."""
        body = await _body(call)
        order_id = requests.new_id(call.caller.actor, requests.idempotency_key(call.request.headers), "order")
        command = body.command(user_id=call.caller.subject, **_head(call, order_id))
        return await self._command(call, command, 201)

    async def change_order(self, call: Call) -> web.StreamResponse:
        """Respond 200 with the new state of the order, 202 while the command is undecided, or with the problem."""
        body = await _body(call)
        return await self._command(call, body.command(**_head(call, call.order_id)), 200)

    amend_order = pay_order = ship_order = deliver_order = cancel_order = delete_order = change_order

    # Queries

    async def get_order(self, call: Call) -> web.StreamResponse:
        """Respond 200 with the order now, at a version or at a time; 304 if the caller already has it."""
        query = cast("OrderQuery", call.query)
        if query.min_version is not None:
            await self._wait_for(call, query.min_version)
        view = await self._visible(call)
        if query.version is not None or query.at is not None:
            earlier = await self._query(self._views.order_at, call.order_id, version=query.version, at=query.at)
            if earlier is None:
                if query.version is not None:  # stopped views may lack a version; absence at a time is certain
                    await self._check_absence(call.order_id)
                raise Problem(Reason.ORDER_NOT_FOUND, "The order has no such version, or did not exist at that time.")
            view = earlier
        if requests.etag_matches(call.request, str(view.version)):
            return web.Response(status=304, headers={"ETag": etag(view.version), "Cache-Control": PRIVATE})
        return order_response(view)

    async def list_orders(self, call: Call) -> web.StreamResponse:
        """Respond 200 with a page of orders, newest first."""
        query = cast("ListQuery", call.query)
        user_id = query.user_id if call.caller.is_service else query.user_id or call.caller.subject
        if not call.caller.sees(user_id or ""):
            raise Problem(Reason.NOT_ALLOWED, "Users list their own orders; services need the scope orders:read.")
        filters = Filter(
            user_id=user_id,
            status=None if query.status is None else Status(query.status),
            created_from=query.created_from,
            created_to=query.created_to,
        )
        cursor = None if query.cursor is None else read_cursor(query.cursor)
        page = await self._query(self._views.page, filters, query.limit, cursor)
        next_cursor = None if page.next is None else write_cursor(page.next)
        link = {}
        if next_cursor is not None:
            parameters = urlencode({**call.request.query, "cursor": next_cursor})
            link["Link"] = f'<{self._base_path}{call.operation.path}?{parameters}>; rel="next"'
        return json_response({"orders": page.orders, "next": next_cursor}, headers=link)

    async def get_events(self, call: Call) -> web.StreamResponse:
        """Respond 200 with a page of the history of an order, oldest first. `Link` leads to the operations on it."""
        query = cast("HistoryQuery", call.query)
        await self._visible(call)
        events = await self._query(
            self._views.history, call.order_id, after_version=query.after_version, limit=query.limit + 1
        )
        page = events[: query.limit]
        body: dict[str, Any] = {
            "events": [event_json(recorded) for recorded in page],
            "next_after_version": page[-1].event.version if len(events) > len(page) else None,
        }
        if query.include_refused:
            refusals = await self._query(self._views.refusals, call.order_id)
            body["rejections"] = [
                flat(rejection) for rejection in refusals if call.caller.sees_attempts_of(rejection.actor)
            ]
        why = f'<{self._base_path}/v1/operations/why/{quote(call.order_id, safe="")}>; rel="related"'
        return json_response(body, headers={"Link": why} if call.caller.may(Scope.ADMIN) else {})

    async def get_command(self, call: Call) -> web.StreamResponse:
        """Respond 200 with the outcome of a command, 202 while it is undecided, 404 if it is unknown.

        A command is known to be undecided if the request names a copy of it, or if this process awaits its outcome.
        """
        order_id, command_id = call.order_id, call.request.match_info["command_id"]
        copy_id = cast("CommandQuery", call.query).copy_id
        if copy_id is not None and is_id(command_id):
            decided = await self._query(self._views.outcome, order_id, command_id, *read_copy_id(copy_id))
            if decided is not None and (decided.actor == call.caller.actor or await self._seen(call) is not None):
                return json_response(outcome_json(decided, self._base_path))
            await self._check_absence(order_id, commands=True)
            # Also for a copy of another caller: without access to it, a caller must not learn that it is decided.
            return json_response(undecided_json(order_id, command_id, copy_id), 202, {"Retry-After": "1"})
        # First, because it may be decided while the views are queried.
        pending = self._outcomes.pending(order_id, command_id, call.caller.actor)
        decided = await self._decided(order_id, command_id, pending) if is_id(command_id) else None
        if decided is not None and (decided.actor == call.caller.actor or await self._seen(call) is not None):
            return json_response(outcome_json(decided, self._base_path))
        if decided is None and pending is not None:
            return json_response(undecided_json(order_id, command_id), 202, {"Retry-After": "1"})
        if decided is None:
            await self._check_absence(order_id, commands=True)
        raise Problem(Trouble.NOT_FOUND)

    # Streams

    async def stream_order(self, call: Call) -> web.StreamResponse:
        """Respond 200 with the events of an order, past and future.

        `Last-Event-ID` shows that the order exists: these views may lack it only because they are behind.
        """
        version = requests.last_version(call.request.headers)
        if version == 0:
            await self._visible(call)

        async def is_visible() -> bool:
            return await self._seen(call) is not None

        return await self._live.stream_order(call.request, call.caller, call.order_id, version, is_visible)

    async def stream_events(self, call: Call) -> web.StreamResponse:
        """Respond 200 with the events of all orders that the caller may see, from now on or after `Last-Event-ID`."""
        if call.caller.is_service and not call.caller.may(Scope.READ):
            raise Problem(Reason.NOT_ALLOWED, "This requires a token with the scope orders:read.")
        return await self._live.stream_events(call.request, call.caller)

    # Operations

    async def why(self, call: Call) -> web.StreamResponse:
        """Respond 200 with everything that the topics know about an id, 404 if that is nothing."""
        if not call.caller.may(Scope.ADMIN):
            raise Problem(Reason.NOT_ALLOWED, "This requires a token with the scope orders:admin.")
        query = cast("WhyQuery", call.query)
        answer = await self._id_searches.why(call.request.match_info["id"], all_partitions=query.all_partitions)
        return json_response(answer)

    async def overview(self, call: Call) -> web.StreamResponse:
        """Respond 200 with the figures of the last refresh."""
        if not call.caller.may(Scope.ADMIN):
            raise Problem(Reason.NOT_ALLOWED, "This requires a token with the scope orders:admin.")
        return json_response(self._overview_watch.latest())

    # Helpers

    async def _command(self, call: Call, command: Command, status: int) -> web.StreamResponse:
        """Send a command; respond with the new state of the order, or with why the command was refused."""
        command = await self._on_condition(call, command)
        preference = requests.preference(call.request)
        trace = requests.trace_of_commands(call.request)
        is_new = "Idempotency-Key" not in call.request.headers
        headers = [] if trace is None else trace.headers()
        outcome = await self._outcomes.outcome(command, headers, preference.wait_s, is_new=is_new)
        applied = {} if preference.applied is None else {"Preference-Applied": preference.applied}
        replayed = {"Idempotency-Replayed": "true"} if outcome.is_replayed else {}
        response_headers = {**applied, **replayed}
        order_path = f"{self._base_path}/v1/orders/{command.order_id}"
        decided = outcome.decided
        if decided is None:
            copy_id = None if outcome.offset is None else write_copy_id(command_digest(command), outcome.offset)
            query = "" if copy_id is None else f"?copy_id={copy_id}"
            response_headers |= {"Location": f"{order_path}/commands/{command.command_id}{query}", "Retry-After": "1"}
            return json_response(undecided_json(command.order_id, command.command_id, copy_id), 202, response_headers)
        if not isinstance(decided, Event):
            raise refused(decided, command, response_headers)
        if outcome.is_replayed:  # as in the first response, although the order may have changed since
            view = await self._query(self._views.order_at, command.order_id, version=decided.version)
        else:
            view = await self._loader.order(command.order_id)
        if view is None:
            raise Problem(
                Trouble.VIEWS_NOT_READY, headers={"Retry-After": "1"}
            )  # the views were dropped in the meantime
        return order_response(view, status, {**response_headers, **({"Location": order_path} if status == 201 else {})})

    async def _on_condition(self, call: Call, command: Command) -> Command:
        """Return the command for the version in `If-Match`; of several versions, for the one that the order has.

        A repeat gets the version of the first request: a command for another version is another command.
        """
        versions = requests.expected_versions(call.request)
        if versions is None:
            return command
        if not versions:
            raise Problem(Reason.VERSION_CONFLICT, "No order has a version with a tag in If-Match.")
        possible = [version for version in versions if version <= VERSION_MAX] or versions[:1]
        choices = [structs.replace(command, expected_version=version) for version in possible]
        if len(choices) == 1:
            return choices[0]
        pending = self._outcomes.pending(command.order_id, command.command_id, command.actor)
        earlier = await self._query(self._views.remembered, command.order_id, command.command_id)
        digests = {outcome.command_digest for outcome in earlier} | ({pending.digest} if pending else set())
        for choice in choices if digests else ():
            if command_digest(choice) in digests:
                return choice
        order = await self._loader.order(command.order_id)
        current = 0 if order is None else order.version
        later = [choice for version, choice in zip(possible, choices, strict=True) if version >= current]
        return (later or choices[-1:])[0]

    async def _decided(
        self, order_id: str, command_id: str, pending: PendingCommand | None
    ) -> Event | Rejection | None:
        """Return the outcome of a command. For a pending one: its event, else the outcome of our copy."""
        if pending is None:
            return await self._query(self._views.command, order_id, command_id)
        if (offset := pending.offset) is None:  # being sent: any outcome in the views is of another copy
            return None
        outcome = await self._query(self._views.command, order_id, command_id)
        if isinstance(outcome, Event) and outcome.command_digest == pending.digest:
            return outcome
        return await self._query(self._views.outcome, order_id, command_id, pending.digest, offset)

    async def _wait_for(self, call: Call, version: int) -> None:
        """Wait until the caller can see the order at this version. Raises Problem if it does not reach it in time."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + requests.preference(call.request).wait_s
        with (
            self._outcomes.slot(call.caller.actor),
            self._streams.subscription(Subject(order_id=call.order_id)) as subscription,
        ):
            subscription.restart()
            await self._poller.wake()
            while True:
                view = await self._seen(call)
                if view is not None and view.version >= version:
                    return
                if await subscription.next(max(0.0, deadline - loop.time())) is None:
                    break
        if view is not None:
            raise Problem(Trouble.VIEWS_NOT_READY, headers={"Retry-After": "1"})

    async def _visible(self, call: Call) -> OrderView:
        """Return the order in the path. Raises the same Problem if it is missing or the caller may not see it."""
        view = await self._seen(call)
        if view is None:
            await self._check_absence(call.order_id)
            raise Problem(Reason.ORDER_NOT_FOUND)
        return view

    async def _check_absence(self, order_id: str, *, commands: bool = False) -> None:
        """Raise Problem if the views cannot prove that something does not exist, because its partition is stopped.

        With `commands`, a stopped partition of the rejections counts as well.
        """
        if await self._query(self._views.is_stopped, order_id, commands=commands):
            raise Problem(
                Trouble.VIEWS_NOT_READY, "Views are stopped for the partition of this order.", headers=RETRY_LATER
            )

    async def _seen(self, call: Call) -> OrderView | None:
        """Return the order in the path, or None if it is missing or the caller may not see it."""
        view = await self._loader.order(call.order_id)
        return view if view is not None and call.caller.sees(view.user_id) else None

    @staticmethod
    async def _query(query: Callable[..., _T], *args: Any, **kwargs: Any) -> _T:
        return await asyncio.to_thread(query, *args, **kwargs)


async def _body(call: Call) -> CommandBody:
    """Return the body of a command. Raises Problem if the caller may not send it."""
    caller, operation = call.caller, call.operation
    if not (caller.may(operation.scope) if caller.is_service else operation.users_may):
        raise Problem(Reason.NOT_ALLOWED, f"This requires a token with the scope {operation.scope}.")
    model = cast("type[CommandBody]", operation.body)
    return await requests.read_body(
        call.request, model, may_be_empty=operation.may_be_empty, large_body=call.large_body
    )


def _head(call: Call, order_id: str) -> dict[str, Any]:
    """Return the fields that every command has; the same key of the same caller always gives the same command id."""
    headers = call.request.headers
    actor = call.caller.actor
    return {
        "command_id": requests.new_id(actor, requests.idempotency_key(headers), "command"),
        "order_id": order_id,
        "actor": actor,
        "decide_by": requests.decide_by(headers),
        "correlation_id": requests.correlation_id(headers),
    }
