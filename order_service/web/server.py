"""The HTTP application: all routes with authentication and limits, and the middleware that returns problems."""

import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import partial
from http import HTTPStatus
from typing import TYPE_CHECKING, Final, Self

import structlog
from aiohttp import web
from msgspec import Struct
from prometheus_client import Gauge, Histogram

from order_service.errors import Unauthorized, Unavailable
from order_service.kafka.topics import TopicNames
from order_service.settings import Settings
from order_service.views.tables import translate_errors
from order_service.web.access.auth import Everybody, Tokens
from order_service.web.access.caller import LOCAL, Caller
from order_service.web.access.cors import CrossOrigin, preflight_response
from order_service.web.access.local_only import is_from_here
from order_service.web.access.rate_limit import LARGE_BYTES, Limits
from order_service.web.api.operations import OPERATIONS, Operation
from order_service.web.api.routes import Api, Call
from order_service.web.docs import event_catalogue, pages, schema_registry
from order_service.web.http import requests
from order_service.web.http.problems import Problem, Trouble
from order_service.web.http.request_log import HEADER, REQUEST_ID, log_access, logged_with_ids, method_of
from order_service.web.http.requests import TRACE, trace_context
from order_service.web.live.sse import come_again

if TYPE_CHECKING:
    from order_service.runtime.spans import Request as RequestSpan
    from order_service.runtime.spans import Spans

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

log = structlog.get_logger()

REQUEST_SECONDS: Final = Histogram(
    "orders_http_request_seconds",
    "Time from the head of a request to its response, by operation and status.",
    ["operation", "status"],
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0),
)
OPEN: Final = Gauge("orders_http_requests_open", "Requests without a response so far, and open streams.")

HEADERS: Final = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
"""Default headers of every response; pages override what they may load, orders how long they may be cached."""
OPERATION: Final = web.RequestKey("operation", str)
"""The key of the operation name in a request."""
RESUMES: Final = web.RequestKey("resumes", bool)
"""Whether a request resumes an event stream: an error status would end a browser's EventSource for good."""
TEMPORARY: Final = frozenset({HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE})
CHALLENGE: Final = {"WWW-Authenticate": 'Bearer realm="orders"'}
TROUBLE_OF: Final = {
    404: Trouble.NOT_FOUND,
    413: Trouble.TOO_LARGE,
}


class Site(Struct, frozen=True):
    """Where callers find this server: its names, the path that a proxy puts before its own, and who may call it."""

    hosts: frozenset[str] = frozenset()
    base_path: str = ""
    cross_origin: CrossOrigin = CrossOrigin(frozenset())

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """Return the site of these settings."""
        origins = frozenset(filter(None, settings.http_cors_origins.split(",")))
        hosts = frozenset(filter(None, settings.http_hosts.split(",")))
        return cls(hosts, settings.http_base_path, CrossOrigin(origins))


SITE: Final = web.AppKey("site", Site)
SPANS: Final[web.AppKey["Spans"]] = web.AppKey("spans")
"""The key of what records the requests; missing if tracing is off."""


class Server(Struct, frozen=True):
    """Builds the application. `not_ready` returns a problem while the views cannot be read.

    `spans` records the requests, and is None if tracing is off.
    """

    api: Api
    authentication: Everybody | Tokens
    limits: Limits
    not_ready: Callable[[], Problem | None]
    names: TopicNames
    partitions: int
    site: Site = Site()
    spans: "Spans | None" = None

    def application(self) -> web.Application:
        """Return the application with all routes, and once more below the base path: not every proxy strips it."""
        app = web.Application(client_max_size=requests.MAX_BODY_BYTES, middlewares=[problems])
        app[SITE] = self.site
        if self.spans is not None:
            app[SPANS] = self.spans
        routes = [*self._routes()]
        for prefix in dict.fromkeys(("", self.site.base_path)):
            app.add_routes(web.RouteDef(each.method, prefix + each.path, each.handler, each.kwargs) for each in routes)
        app.on_response_prepare.append(_prepare)
        return app

    def _routes(self) -> Iterator[web.RouteDef]:
        for operation in OPERATIONS:
            path = operation.path.replace("}", ":[^/]+}")  # an id can have braces, which aiohttp's own pattern lacks
            options = {"allow_head": not operation.is_stream} if operation.method == "GET" else {}
            yield web.RouteDef(operation.method, path, self._handler(operation), options)
        yield from pages.routes(self.site.base_path)
        yield from schema_registry.routes(self.names)
        yield from event_catalogue.routes(self.names, self.partitions, self.site.base_path)

    def _handler(self, operation: Operation) -> Handler:
        """Return the handler of an operation, with authentication, rate limit and readiness check."""
        handle = getattr(self.api, operation.name)

        async def serve(request: web.Request) -> web.StreamResponse:
            request[OPERATION] = operation.name
            request[RESUMES] = operation.is_stream and requests.last_event_id(request.headers) is not None
            caller = await self.authentication.caller(request.headers.get("Authorization"))
            if caller is not LOCAL:
                self.limits.take(caller.actor)
            elif not is_from_here(request.headers, self.site.hosts, self.site.cross_origin.origins):
                raise Problem(Trouble.CROSS_SITE_REQUEST)
            if operation.needs_views and (problem := self.not_ready()):
                raise problem
            query = requests.read_query(request, operation.query)
            large_body = partial(self._large_body, caller)
            response: web.StreamResponse = await handle(Call(request, operation, caller, query, large_body))
            return response

        return serve

    @contextmanager
    def _large_body(self, caller: Caller, size: int) -> Iterator[None]:
        """Reserve a slot for a large body. Each further `LARGE_BYTES` of it count as a request."""
        if caller is not LOCAL:
            self.limits.take_parts(caller.actor, size // LARGE_BYTES)
        with self.limits.large_body(caller.actor):
            yield


@web.middleware
async def problems(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turn every error into a problem response, and record metrics, the span and the log of the request."""
    start = time.monotonic()
    OPEN.inc()
    status = 0
    with _recorded(request) as span, logged_with_ids(request):
        try:
            response = await _respond(request, handler)
            if request.get(RESUMES) and response.status in TEMPORARY:
                response = come_again(float(response.headers.get("Retry-After", "1")))
            status = response.status
            return response
        finally:
            OPEN.dec()
            operation, duration_s = request.get(OPERATION, "none"), time.monotonic() - start
            exemplar = None if span is None else span.exemplar
            REQUEST_SECONDS.labels(operation, str(status)).observe(duration_s, exemplar)
            log_access(request, operation, status, duration_s)
            if span is not None:
                span.responded(status, operation)


@contextmanager
def _recorded(request: web.Request) -> Iterator["RequestSpan | None"]:
    """Record the span of a request if tracing is on. Commands and log lines of the request belong to its trace."""
    spans = request.app.get(SPANS)
    if spans is None:
        yield None
        return
    with spans.serving(method_of(request), _route(request), trace_context(request)) as span:
        if span.trace is not None:
            request[TRACE] = span.trace
        yield span


def _route(request: web.Request) -> str:
    """Return the path of a request with the names of its parameters in place of their values, or an empty text."""
    resource = request.match_info.route.resource
    return "" if resource is None else resource.canonical


async def _respond(request: web.Request, handler: Handler) -> web.StreamResponse:
    site = request.app[SITE]
    try:
        with translate_errors():
            return await handler(request)
    except Problem as problem:
        return problem.response(site.base_path)
    except Unauthorized as error:
        log.info("Request has no valid token.", error=str(error), operation=request.get(OPERATION))
        return Problem(Trouble.UNAUTHORIZED, headers=CHALLENGE).response(site.base_path)
    except web.HTTPMethodNotAllowed as error:
        if site.cross_origin.is_preflight(request):
            return preflight_response(error.allowed_methods)
        return Problem(Trouble.METHOD_NOT_ALLOWED, headers={"Allow": error.headers["Allow"]}).response(site.base_path)
    except web.HTTPException as error:
        kind = TROUBLE_OF.get(error.status, Trouble.BAD_REQUEST)
        return Problem(kind).response(site.base_path)
    except Unavailable as error:
        log.warning("Request failed: a dependency is unavailable.", why=str(error), operation=request.get(OPERATION))
        return Problem(Trouble.SERVICE_UNAVAILABLE, headers={"Retry-After": "1"}).response(site.base_path)
    except Exception as error:  # noqa: BLE001 - the last handler; the error itself goes to the log alone
        log.error(  # noqa: TRY400 - a traceback can hold values
            "Request failed with an unexpected error.",
            error=type(error).__name__,
            operation=request.get(OPERATION),
            where=_where(error),
        )
        if request.writer.output_size > 0:  # a stream has begun: a second head would be read as an event
            raise ConnectionResetError from None
        return Problem(Trouble.INTERNAL).response(site.base_path)


def _where(error: BaseException) -> str:
    """Return the file and line that raised an error, without its values."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return "" if trace is None else f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}"


def harden(response: web.StreamResponse) -> None:
    """Add the default security headers to a response."""
    for name, value in HEADERS.items():
        response.headers.setdefault(name, value)


async def _prepare(request: web.Request, response: web.StreamResponse) -> None:
    harden(response)
    if request_id := request.get(REQUEST_ID):  # aiohttp refuses some requests before our middleware
        response.headers[HEADER] = request_id
    request.app[SITE].cross_origin.allow(request, response)
    response.headers.pop("Server", None)  # aiohttp sets its name, its version and that of Python
