"""The routes: each turns a request into a command or a question, and what comes of it into an answer."""

import asyncio
from collections.abc import Callable
from typing import Any, Final, TypeVar, cast
from urllib.parse import urlencode

from aiohttp import web
from msgspec import Struct

from order_service.domain.decision import command_digest
from order_service.domain.messages import Command, Event, Rejection
from order_service.domain.refusals import Reason, Status
from order_service.domain.validation import is_id
from order_service.views.order_view import OrderView
from order_service.views.queries import Filter, Views
from order_service.web.access.auth import Caller, Scope
from order_service.web.api.bodies import (
    AmendBody,
    CancelBody,
    CommandQuery,
    CreateBody,
    DeliverBody,
    HistoryQuery,
    ListQuery,
    OrderQuery,
    PayBody,
    Query,
    ShipBody,
)
from order_service.web.http import requests
from order_service.web.http.cursors import read_copy_id, read_cursor, write_copy_id, write_cursor
from order_service.web.http.problems import Problem, Trouble, refused
from order_service.web.http.responses import (
    PRIVATE,
    answer,
    etag,
    event_json,
    order_answer,
    outcome_json,
    undecided_json,
)
from order_service.web.live.command_results import CommandResults, PendingCommand
from order_service.web.live.order_loader import OrderLoader
from order_service.web.live.sse import Live
from order_service.web.live.subscriptions import Streams, Subject
from order_service.web.live.view_poller import ViewPoller
from order_service.wire.flat import flat

_T = TypeVar("_T")

RETRY_LATER: Final = {"Retry-After": "30"}
"""An operator must act first."""


class Call(Struct, frozen=True):
    """A request, who sent it, and its parameters in the form that its operation says."""

    request: web.Request
    caller: Caller
    query: Query

    @property
    def order_id(self) -> str:
        """The order in the path; Problem if it can be none."""
        order_id = self.request.match_info["order_id"]
        if not is_id(order_id):
            raise Problem(Reason.ORDER_NOT_FOUND)
        return order_id


class Api:
    """All routes under `/v1`, each by the name of its operation."""

    def __init__(self, views: Views, pulse: ViewPoller, outcomes: CommandResults, streams: Streams, live: Live) -> None:
        self._views = views
        self._lookup = OrderLoader(views)
        self._pulse = pulse
        self._outcomes = outcomes
        self._streams = streams
        self._live = live

    # Commands

    async def create_order(self, call: Call) -> web.StreamResponse:
        """201 it happened, 202 it is in Kafka and undecided yet; else why not."""
        _check_scope(call, Scope.ADMIN, users_may=True)
        body = await requests.read_body(call.request, CreateBody, may_be_empty=False)
        order_id = requests.new_id(call.caller.actor, requests.idempotency_key(call.request.headers), "order")
        head = _head(call, order_id)
        return await self._command(call, body.command(call.caller.subject, **head), 201)

    async def amend_order(self, call: Call) -> web.StreamResponse:
        """200 the order as it now stands."""
        return await self._change(call, AmendBody, Scope.ADMIN, users_may=True)

    async def pay_order(self, call: Call) -> web.StreamResponse:
        """200 the order as it now stands."""
        return await self._change(call, PayBody, Scope.PAY)

    async def ship_order(self, call: Call) -> web.StreamResponse:
        """200 the order as it now stands."""
        return await self._change(call, ShipBody, Scope.SHIP)

    async def deliver_order(self, call: Call) -> web.StreamResponse:
        """200 the order as it now stands."""
        return await self._change(call, DeliverBody, Scope.SHIP, may_be_empty=True)

    async def cancel_order(self, call: Call) -> web.StreamResponse:
        """200 the order as it now stands."""
        return await self._change(call, CancelBody, Scope.ADMIN, users_may=True, may_be_empty=True)

    async def delete_order(self, call: Call) -> web.StreamResponse:
        """Cancel, by another name: its history stays."""
        return await self.cancel_order(call)

    # Questions

    async def get_order(self, call: Call) -> web.StreamResponse:
        """200 the order now, at a version or at a time; 304 if the caller has it."""
        query = cast("OrderQuery", call.query)
        if query.min_version is not None:
            await self._wait_for(call, query.min_version)
        view = await self._visible(call)
        if query.version is not None or query.at is not None:
            then = await self._ask(self._views.order_at, call.order_id, version=query.version, at=query.at)
            if then is None:
                if query.version is not None:  # it may have come so far; that it was there at a time is certain
                    await self._check_absence(call.order_id)
                raise Problem(Reason.ORDER_NOT_FOUND, "The order had no such version, or was not there yet.")
            view = then
        if requests.has(call.request, str(view.version)):
            return web.Response(status=304, headers={"ETag": etag(view.version), "Cache-Control": PRIVATE})
        return order_answer(view)

    async def list_orders(self, call: Call) -> web.StreamResponse:
        """200 a page of orders, the newest first."""
        query = cast("ListQuery", call.query)
        user_id = query.user_id if call.caller.is_service else query.user_id or call.caller.subject
        if not call.caller.sees(user_id or ""):
            raise Problem(Reason.NOT_ALLOWED, "Users list their own orders; services need orders:read.")
        wanted = Filter(
            user_id=user_id,
            status=None if query.status is None else Status(query.status),
            created_from=query.created_from,
            created_to=query.created_to,
        )
        behind = None if query.cursor is None else read_cursor(query.cursor)
        page = await self._ask(self._views.page, wanted, query.limit, behind)
        following = None if page.next is None else write_cursor(page.next)
        link = {}
        if following is not None:
            again = urlencode({**call.request.query, "cursor": following})
            link["Link"] = f'<{call.request.path}?{again}>; rel="next"'
        return answer({"orders": page.orders, "next": following}, headers=link)

    async def get_events(self, call: Call) -> web.StreamResponse:
        """200 a page of the history of an order, the oldest first."""
        query = cast("HistoryQuery", call.query)
        await self._visible(call)
        found = await self._ask(
            self._views.history, call.order_id, after_version=query.after_version, limit=query.limit + 1
        )
        shown = found[: query.limit]
        body: dict[str, Any] = {
            "events": [event_json(recorded) for recorded in shown],
            "next_after_version": shown[-1].event.version if len(found) > len(shown) else None,
        }
        if query.include_refused:
            refusals = await self._ask(self._views.refusals, call.order_id)
            body["rejections"] = [flat(one) for one in refusals if call.caller.hears_of(one.actor)]
        return answer(body)

    async def get_command(self, call: Call) -> web.StreamResponse:
        """200 what became of a command, 202 while it is undecided, 404 if nothing is known of it.

        That it is undecided is known of a copy that the request names, and of a command that this process awaits.
        """
        order_id, command_id = call.order_id, call.request.match_info["command_id"]
        copy_id = cast("CommandQuery", call.query).copy_id
        if copy_id is not None and is_id(command_id):
            decided = await self._ask(self._views.outcome, order_id, command_id, *read_copy_id(copy_id))
            if decided is not None and (decided.actor == call.caller.actor or await self._seen(call) is not None):
                return answer(outcome_json(decided))
            await self._check_absence(order_id, commands=True)
            # Also of a foreign copy: who may not see it must not learn that it is decided.
            return answer(undecided_json(order_id, command_id, copy_id), 202, {"Retry-After": "1"})
        # First, for it may be decided while we look into the views.
        awaited = self._outcomes.awaited(order_id, command_id, call.caller.actor)
        decided = await self._decided(order_id, command_id, awaited) if is_id(command_id) else None
        if decided is not None and (decided.actor == call.caller.actor or await self._seen(call) is not None):
            return answer(outcome_json(decided))
        if decided is None and awaited is not None:
            return answer(undecided_json(order_id, command_id), 202, {"Retry-After": "1"})
        if decided is None:
            await self._check_absence(order_id, commands=True)
        raise Problem(Trouble.NOT_FOUND)

    # Streams

    async def stream_order(self, call: Call) -> web.StreamResponse:
        """200 the events of an order, those that were and those that come."""
        return await self._live.of_order(call.request, call.caller, await self._visible(call))

    async def stream_events(self, call: Call) -> web.StreamResponse:
        """200 the events of all orders that the caller may see, from now on or from where it was."""
        if call.caller.is_service and not call.caller.may(Scope.READ):
            raise Problem(Reason.NOT_ALLOWED, "This needs a token of the scope orders:read.")
        return await self._live.of_all(call.request, call.caller)

    # How

    async def _change(
        self, call: Call, model: type[Any], scope: Scope, *, users_may: bool = False, may_be_empty: bool = False
    ) -> web.StreamResponse:
        """Read the body of a command to an order that exists, and send it."""
        _check_scope(call, scope, users_may=users_may)
        body = await requests.read_body(call.request, model, may_be_empty=may_be_empty)
        return await self._command(call, body.command(**_head(call, call.order_id)), 200)

    async def _command(self, call: Call, command: Command, status: int) -> web.StreamResponse:
        """Send a command; answer with what it has made of the order, or with why it was refused."""
        headers = call.request.headers
        preference = requests.prefer(call.request)
        outcome = await self._outcomes.outcome(
            command, requests.trace_headers(headers), preference.wait_s, is_new="Idempotency-Key" not in headers
        )
        applied = {} if preference.applied is None else {"Preference-Applied": preference.applied}
        replayed = {"Idempotency-Replayed": "true"} if outcome.is_replayed else {}
        said = {**applied, **replayed}
        here = f"/v1/orders/{command.order_id}"
        decided = outcome.decided
        if decided is None:
            copy_id = None if outcome.offset is None else write_copy_id(command_digest(command), outcome.offset)
            query = "" if copy_id is None else f"?copy_id={copy_id}"
            said |= {"Location": f"{here}/commands/{command.command_id}{query}", "Retry-After": "1"}
            return answer(undecided_json(command.order_id, command.command_id, copy_id), 202, said)
        if not isinstance(decided, Event):
            raise refused(decided, command, said)
        if outcome.is_replayed:  # as the first answer said it, whatever has become of the order since
            view = await self._ask(self._views.order_at, command.order_id, version=decided.version)
        else:
            view = await self._lookup.order(command.order_id)
        if view is None:
            raise Problem(Trouble.NOT_YET, headers={"Retry-After": "1"})  # the views were dropped meanwhile
        return order_answer(view, status, {**said, **({"Location": here} if status == 201 else {})})

    async def _decided(
        self, order_id: str, command_id: str, awaited: PendingCommand | None
    ) -> Event | Rejection | None:
        """Return the outcome of a command; of one that this process awaits, its event, else that of its own copy."""
        if awaited is None:
            return await self._ask(self._views.command, order_id, command_id)
        if (offset := awaited.offset) is None:  # on its way: whatever the views know is of another copy
            return None
        found = await self._ask(self._views.command, order_id, command_id)
        if isinstance(found, Event) and found.command_digest == awaited.digest:
            return found
        return await self._ask(self._views.outcome, order_id, command_id, awaited.digest, offset)

    async def _wait_for(self, call: Call, version: int) -> None:
        """Wait until the caller can see an order at this version; Problem if it does not come so far in time."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + requests.prefer(call.request).wait_s
        with (
            self._outcomes.place(call.caller.actor),
            self._streams.subscription(Subject(order_id=call.order_id)) as coming,
        ):
            coming.begin()
            await self._pulse.wake()
            while True:
                view = await self._seen(call)
                if view is not None and view.version >= version:
                    return
                if await coming.next(max(0.0, deadline - loop.time())) is None:
                    break
        if view is not None:
            raise Problem(Trouble.NOT_YET, headers={"Retry-After": "1"})

    async def _visible(self, call: Call) -> OrderView:
        """Give the order in the path; Problem if there is none, and the same one if it is not the caller's to see."""
        view = await self._seen(call)
        if view is None:
            await self._check_absence(call.order_id)
            raise Problem(Reason.ORDER_NOT_FOUND)
        return view

    async def _check_absence(self, order_id: str, *, commands: bool = False) -> None:
        """Raise Problem if the views cannot say that something does not exist: its partition is stopped.

        For `commands`, the partition of the rejections counts, too.
        """
        if await self._ask(self._views.is_stopped, order_id, commands=commands):
            raise Problem(Trouble.NOT_YET, "The views of this order's partition are stopped.", headers=RETRY_LATER)

    async def _seen(self, call: Call) -> OrderView | None:
        """Give the order in the path, None if there is none that the caller may see."""
        view = await self._lookup.order(call.order_id)
        return view if view is not None and call.caller.sees(view.user_id) else None

    @staticmethod
    async def _ask(question: Callable[..., _T], *args: Any, **named: Any) -> _T:
        return await asyncio.to_thread(question, *args, **named)


def _check_scope(call: Call, scope: Scope, *, users_may: bool = False) -> None:
    caller = call.caller
    if not (caller.may(scope) if caller.is_service else users_may):
        raise Problem(Reason.NOT_ALLOWED, f"This needs a token of the scope {scope}.")


def _head(call: Call, order_id: str) -> dict[str, Any]:
    """Make what every command has; its id is the same whenever the caller repeats its key."""
    headers = call.request.headers
    actor = call.caller.actor
    return {
        "command_id": requests.new_id(actor, requests.idempotency_key(headers), "command"),
        "order_id": order_id,
        "actor": actor,
        "expected_version": requests.expected_version(call.request),
        "decide_by": requests.decide_by(headers),
        "correlation_id": requests.correlation_id(headers),
    }
